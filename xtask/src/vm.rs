//! `cargo xtask vm`: one script in one guest.

use crate::guest::{Accel, Display, Guest, Outcome};
use crate::kernel::{Kernel, Series};
use crate::progress::Progress;
use crate::setup;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Boots a guest with the modules in `/modules` and runs a script in it.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// The kernel to boot.
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Series,
    /// Debian's kernel flavour.
    #[arg(long, default_value = "cloud-amd64")]
    flavour: String,
    /// Number of guest CPUs.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Added to the kernel's command line.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    append: String,
    /// The script, run by busybox' sh; its exit status becomes this command's.
    #[arg(long)]
    script: PathBuf,
    /// Another module for `/modules`.
    #[arg(long = "module", value_name = "FILE.ko")]
    modules: Vec<PathBuf>,
    /// A file for the guest.
    #[arg(long = "file", value_name = "HOST:GUEST", value_parser = host_and_guest)]
    files: Vec<(PathBuf, String)>,
    /// Do not build: only the modules given here are in the guest.
    #[arg(long)]
    no_build: bool,
    /// How QEMU executes the guest.
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accel,
    /// Longest time for boot and script, in seconds.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Another argument for QEMU.
    #[arg(long = "qemu", value_name = "ARGUMENT", allow_hyphen_values = true)]
    qemu: Vec<String>,
    /// A screen and a keyboard, for the script's lines `host: COMMAND`; pictures go to `target/kdetour/screens`.
    #[arg(long, value_enum)]
    screen: Option<Display>,
    /// Writes what happened there.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What `--json` gets.
#[derive(Serialize)]
struct Report<'a> {
    kernel: &'a str,
    cpus: u32,
    accel: &'a str,
    exit: i32,
    kernel_warnings: usize,
    warnings: &'a [String],
    tainted: u64,
    seconds: f64,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let script = fs::read(&arguments.script)
        .with_context(|| format!("cannot read the script {}", arguments.script.display()))?;
    let progress = Progress::new();
    let kernels = setup::kernels(workspace, &progress, &[arguments.kernel], &arguments.flavour)?;
    let kernel = kernels.first().context("no kernel was prepared")?;
    let (mut modules, programs) = if arguments.no_build {
        (Vec::new(), Vec::new())
    } else {
        let rust = setup::rust(workspace, &progress)?;
        let built = setup::modules(workspace, &progress, kernel, &rust)?;
        (built.files, built.programs)
    };
    modules.extend(arguments.modules.iter().cloned());
    let mut guest = Guest::new(workspace, kernel, &format!("vm-{}", std::process::id()));
    guest.script = script;
    guest.cpus = arguments.cpus;
    guest.append.clone_from(&arguments.append);
    guest.accel = arguments.accel.settle(workspace, kernel);
    guest.timeout = Duration::from_secs(arguments.timeout);
    guest.modules = modules;
    guest.files.extend(programs);
    guest.files.extend(arguments.files.iter().cloned());
    guest.qemu.clone_from(&arguments.qemu);
    guest.display = arguments.screen;
    guest.pictures = workspace.out.join("screens/vm");
    setup::display(workspace, &progress, arguments.screen)?;
    let outcome = guest.run(&mut |line| println!("{line}"))?;
    report_warnings(&outcome);
    if let Some(file) = &arguments.json {
        write_report(file, kernel, &guest, &outcome)?;
    }
    if outcome.exit == 0 && outcome.warnings.is_empty() {
        guest.forget();
    }
    Ok(match (outcome.exit, outcome.warnings.is_empty()) {
        (0, false) => ExitCode::FAILURE,
        (exit, _) => ExitCode::from(u8::try_from(exit).unwrap_or(1)),
    })
}

/// Shows the kernel's warnings on stderr.
pub(crate) fn report_warnings(outcome: &Outcome) {
    if outcome.warnings.is_empty() {
        return;
    }
    eprintln!("the kernel complained {} times:", outcome.warnings.len());
    for warning in outcome.warnings.iter().take(20) {
        eprintln!("  {warning}");
    }
    eprintln!("  whole log: {}", outcome.log.display());
}

fn write_report(file: &Path, kernel: &Kernel, guest: &Guest<'_>, outcome: &Outcome) -> Result<()> {
    write_json(
        file,
        &Report {
            kernel: &kernel.release,
            cpus: guest.cpus,
            accel: guest.accel.name(),
            exit: outcome.exit,
            kernel_warnings: outcome.warnings.len(),
            warnings: &outcome.warnings,
            tainted: outcome.tainted,
            seconds: rounded(outcome.seconds),
        },
    )
}

/// Writes `report` as indented JSON.
pub(crate) fn write_json(file: &Path, report: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(report).context("the report cannot be written as JSON")?;
    text.push('\n');
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Seconds to a hundredth.
pub(crate) fn rounded(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}

fn host_and_guest(text: &str) -> Result<(PathBuf, String)> {
    match text.split_once(':') {
        Some((host, guest)) if guest.starts_with('/') => Ok((PathBuf::from(host), guest.to_owned())),
        _ => bail!("expected HOST:GUEST, with an absolute path for GUEST"),
    }
}
