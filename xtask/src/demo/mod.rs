//! `cargo xtask demo [WHAT]`: kdetour at work, before the user's eyes.
//!
//! A script of `kernel/linux/tests` does the deed in a guest and reports it line by line: `step TEXT` for progress,
//! `demo.KEY=VALUE` for what is shown at the end. What is shown also stays, under `target/demo/`.

mod facts;
mod hook;
mod screen;
mod stackgrow;

use crate::guest::Accel;
use crate::kernel::{Kernel, Series};
use crate::module::Modules;
use crate::progress::{Progress, Stage};
use crate::workspace::Workspace;
use crate::{setup, vm};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Shows kdetour at work in a kernel that it boots.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    machine: Machine,
}

/// What is shown.
#[derive(clap::Subcommand, Debug)]
enum What {
    /// One function is detoured, called, and put back: what is shown if nothing is named.
    Hook(Machine),
    /// Softirqs need more stack than the kernel gives them: without the example stackgrow, and with it.
    Stackgrow(Machine),
    /// A hotkey stops the machine and shows what it was doing: the example popup.
    Popup(Machine),
    /// The screen's mode is learnt, and its changes: the example video.
    Video(Machine),
}

/// Where it is shown.
#[derive(clap::Args, Debug)]
struct Machine {
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
    /// Writes what happened there, too.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.what {
        None => hook::run(workspace, &arguments.machine),
        Some(What::Hook(machine)) => hook::run(workspace, machine),
        Some(What::Stackgrow(machine)) => stackgrow::run(workspace, machine),
        Some(What::Popup(machine)) => screen::run(workspace, machine, &screen::POPUP),
        Some(What::Video(machine)) => screen::run(workspace, machine, &screen::VIDEO),
    }
}

impl Machine {
    /// The kernel, and the modules for it.
    fn prepare(&self, workspace: &Workspace, progress: &Progress) -> Result<(Kernel, Modules)> {
        let kernels = setup::kernels(workspace, progress, &[self.kernel], &self.flavour)?;
        let kernel = kernels.into_iter().next().context("no kernel was prepared")?;
        let rust = setup::rust(workspace, progress)?;
        let modules = setup::modules(workspace, progress, &kernel, &rust)?;
        Ok((kernel, modules))
    }
}

/// A script of the tests' folder.
fn script(workspace: &Workspace, name: &str) -> Result<Vec<u8>> {
    let script = workspace.kernel_sources().join("tests").join(name);
    std::fs::read(&script).with_context(|| format!("cannot read {}", workspace.shown(&script)))
}

/// Keeps what was shown as `target/demo/NAME.txt` and `NAME.json`, and as the file that was asked for.
fn keep(
    workspace: &Workspace,
    name: &str,
    text: &str,
    report: &impl Serialize,
    json: Option<&PathBuf>,
) -> Result<()> {
    let folder = workspace.out.parent().unwrap_or(&workspace.root).join("demo");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let file = folder.join(format!("{name}.txt"));
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    vm::write_json(&folder.join(format!("{name}.json")), report)?;
    println!("\n{}", workspace.shown(&file));
    json.map_or(Ok(()), |json| vm::write_json(json, report))
}

/// Says why it is no success.
fn verdict(failures: &[&str]) -> ExitCode {
    for why in failures {
        eprintln!("FAILED: {why}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
