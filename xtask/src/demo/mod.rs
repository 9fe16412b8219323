//! `cargo xtask demo`: from nothing to a detoured kernel function, and back, before the user's eyes.
//!
//! The script `kernel/linux/tests/demo.sh` does the deed in the guest and reports it line by line:
//! `step TEXT` for progress, `demo.KEY=VALUE` for what is shown at the end.

mod facts;
mod listing;
mod render;
mod report;

use crate::guest::{Accel, Guest};
use crate::kernel::Series;
use crate::progress::{Progress, Stage};
use crate::workspace::Workspace;
use crate::{setup, vm};
use anyhow::{Context as _, Result, bail};
use facts::Facts;
use render::Paint;
use report::Report;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Detours a function of a running kernel, calls it, and puts everything back.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// The kernel to boot.
    #[arg(long, value_enum, default_value = "6.1")]
    kernel: Series,
    /// Debian's kernel flavour.
    #[arg(long, default_value = "cloud-amd64")]
    flavour: String,
    /// Number of guest CPUs.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// How QEMU executes the guest.
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accel,
    /// Writes what happened there.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let start = Instant::now();
    let progress = Progress::new();
    let script = workspace.kernel_sources().join("tests/demo.sh");
    let script =
        std::fs::read(&script).with_context(|| format!("cannot read {}", workspace.shown(&script)))?;
    let kernels = setup::kernels(workspace, &progress, &[arguments.kernel], &arguments.flavour)?;
    let kernel = kernels.first().context("no kernel was prepared")?;
    let rust = setup::rust(workspace, &progress)?;
    let modules = setup::modules(workspace, &progress, kernel, &rust)?;

    let mut guest = Guest::new(workspace, kernel, &format!("demo-{}", arguments.kernel.name()));
    guest.script = script;
    guest.cpus = arguments.cpus;
    guest.timeout = Duration::from_secs(300);
    let mut steps = Steps::new(&progress);
    guest.accel = arguments.accel.settle(workspace, kernel);
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
    let report = Report::new(&facts, release, arguments.cpus, accel, warnings, modules.size, seconds)?;
    print!("{}", render::render(&facts, &report, Paint::for_stdout())?);
    if let Some(file) = &arguments.json {
        vm::write_json(file, &report)?;
    }
    let failures = report.failures(&facts);
    for why in &failures {
        eprintln!("FAILED: {why}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The boot and then the script's steps, each a stage of its own.
struct Steps<'a> {
    progress: &'a Progress,
    current: Option<(Stage, String)>,
}

impl<'a> Steps<'a> {
    fn new(progress: &'a Progress) -> Self {
        Self { progress, current: Some((progress.stage("boot"), "up".to_owned())) }
    }

    fn take(&mut self, line: &str) -> bool {
        let Some(text) = line.strip_prefix("step ") else {
            return false;
        };
        self.finish();
        let stage = self.progress.stage("guest");
        stage.show(text);
        self.current = Some((stage, text.to_owned()));
        true
    }

    fn finish(&mut self) {
        if let Some((stage, text)) = self.current.take() {
            stage.done(&text);
        }
    }
}
