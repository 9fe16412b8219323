//! What the examples popup and video do, on a guest's screen: the pictures that were taken, and what the guest says of them.

use super::facts::Facts;
use super::{Machine, Steps};
use crate::guest::{Display, Guest};
use crate::progress::Progress;
use crate::vm::rounded;
use crate::workspace::Workspace;
use crate::{setup, vm};
use anyhow::{Result, bail};
use serde::Serialize;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// One of the two.
pub(super) struct Show {
    name: &'static str,
    script: &'static str,
    display: Display,
    pictures: &'static [&'static str],
}

pub(super) const POPUP: Show = Show {
    name: "popup",
    script: "demo-popup.sh",
    display: Display::Efi,
    pictures: &["popup", "popup-list", "popup-after"],
};

pub(super) const VIDEO: Show = Show {
    name: "video",
    script: "demo-video.sh",
    display: Display::Vga,
    pictures: &["video", "video-narrow"],
};

/// What `--json` gets.
#[derive(Serialize)]
struct Report {
    kernel: String,
    cpus: u32,
    accel: String,
    /// What the guest tells, line by line.
    told: Vec<String>,
    pictures: Vec<String>,
    restored: bool,
    kernel_warnings: usize,
    seconds: f64,
}

/// Runs the guest.
pub(super) fn run(workspace: &Workspace, machine: &Machine, show: &Show) -> Result<ExitCode> {
    let start = Instant::now();
    let progress = Progress::new();
    let (kernel, modules) = machine.prepare(workspace, &progress)?;
    setup::display(workspace, &progress, Some(show.display))?;
    let mut guest = Guest::new(workspace, &kernel, &format!("demo-{}-{}", show.name, kernel.release));
    guest.script = super::script(workspace, show.script)?;
    guest.cpus = machine.cpus;
    guest.accel = machine.accel.settle(workspace, &kernel);
    guest.timeout = Duration::from_secs(400);
    guest.modules = modules.files;
    guest.files.extend(modules.programs);
    guest.display = Some(show.display);
    guest.pictures = workspace.out.parent().unwrap_or(&workspace.root).join("demo");
    let mut steps = Steps::new(&progress);
    let (mut facts, mut told, mut other) = (Facts::default(), Vec::new(), Vec::new());
    let outcome = guest.run(&mut |line| {
        if let Some(text) = line.strip_prefix("tell ") {
            told.push(text.to_owned());
        } else if !steps.take(line) && !facts.take(line) {
            other.push(line.to_owned());
        }
    })?;
    steps.finish();
    vm::report_warnings(&outcome);
    if outcome.exit != 0 {
        bail!("{} ended with {}:\n{}", show.script, outcome.exit, crate::shell::indent(&other.join("\n")));
    }
    let picture = |name: &&str| workspace.shown(&guest.pictures.join(format!("{name}.png"))).to_string();
    let report = Report {
        kernel: kernel.release.clone(),
        cpus: machine.cpus,
        accel: guest.accel.name().to_owned(),
        told,
        pictures: show.pictures.iter().map(picture).collect(),
        restored: facts.number("restored")? == 1,
        kernel_warnings: outcome.warnings.len(),
        seconds: rounded(start.elapsed().as_secs_f64()),
    };
    let text = render(show.name, &report)?;
    print!("{text}");
    super::keep(workspace, show.name, &text, &report, machine.json.as_ref())?;
    let failures = [
        (report.restored, "the kernel's text was not restored"),
        (report.kernel_warnings == 0, "the kernel complained"),
    ];
    let failures: Vec<&str> = failures.into_iter().filter_map(|(good, why)| (!good).then_some(why)).collect();
    Ok(super::verdict(&failures))
}

fn render(name: &str, report: &Report) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "\n{name}   {}, {} CPUs\n", report.kernel, report.cpus)?;
    for line in &report.told {
        writeln!(out, "  {line}")?;
    }
    writeln!(out, "\npictures")?;
    for picture in &report.pictures {
        writeln!(out, "  {picture}")?;
    }
    let restored = if report.restored { "yes" } else { "NO" };
    writeln!(out, "\nkernel text restored: {restored}; kernel warnings: {}", report.kernel_warnings)?;
    writeln!(out, "{:.1} s in all", report.seconds)?;
    Ok(out)
}
