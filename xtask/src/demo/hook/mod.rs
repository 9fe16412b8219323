//! From nothing to a detoured kernel function, and back: `kernel/linux/tests/demo.sh`.

mod listing;
mod render;
mod report;

use super::facts::Facts;
use super::{Machine, Steps};
use crate::guest::Guest;
use crate::progress::Progress;
use crate::vm;
use crate::workspace::Workspace;
use anyhow::{Result, bail};
use render::Paint;
use report::Report;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Detours a function of a running kernel, calls it, and puts everything back.
pub(super) fn run(workspace: &Workspace, machine: &Machine) -> Result<ExitCode> {
    let start = Instant::now();
    let progress = Progress::new();
    let script = super::script(workspace, "demo.sh")?;
    let (kernel, modules) = machine.prepare(workspace, &progress)?;
    let mut guest = Guest::new(workspace, &kernel, &format!("demo-{}", machine.kernel.name()));
    guest.script = script;
    guest.cpus = machine.cpus;
    guest.timeout = Duration::from_secs(300);
    let mut steps = Steps::new(&progress);
    guest.accel = machine.accel.settle(workspace, &kernel);
    guest.modules.clone_from(&modules.files);
    let mut facts = Facts::default();
    let mut other = Vec::new();
    let outcome = guest.run(&mut |line| {
        if !steps.take(line) && !facts.take(line) {
            other.push(line.to_owned());
        }
    })?;
    steps.finish();
    vm::report_warnings(&outcome);
    if outcome.exit != 0 {
        bail!(
            "the demonstration's script ended with {}:\n{}",
            outcome.exit,
            crate::shell::indent(&other.join("\n"))
        );
    }

    let seconds = start.elapsed().as_secs_f64();
    let (release, accel) = (&kernel.release, guest.accel.name());
    let warnings = outcome.warnings.len();
    let report = Report::new(&facts, release, machine.cpus, accel, warnings, modules.size(), seconds)?;
    print!("{}", render::render(&facts, &report, Paint::for_stdout())?);
    let plain = render::render(&facts, &report, Paint::none())?;
    super::keep(workspace, "hook", &plain, &report, machine.json.as_ref())?;
    Ok(super::verdict(&report.failures(&facts)))
}
