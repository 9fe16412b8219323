//! `cargo xtask bench`: how fast the engine is, beside other crates; and what a detour costs, in executed instructions.
//!
//! The numbers of the engine, and of detours in a process, come from `benches/`, whose README says how they are made. For the others QEMU counts instructions (`-icount`), so that the numbers repeat exactly and need no quiet machine.
//! The script `kernel/linux/tests/bench.sh` prints `bench NAME VALUE UNIT`.

use crate::cross::Target;
use crate::guest::Guest;
use crate::kernel::Series;
use crate::progress::Progress;
use crate::shell::Step;
use crate::workspace::Workspace;
use crate::{libraries, python, setup, shell, vm};
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Measures the engine beside other crates, and a detour beside the kernel's own ways.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// The kernel to measure on; without it, those without PREEMPT_RT.
    #[arg(long, value_enum)]
    kernel: Option<Series>,
    /// Debian's kernel flavour.
    #[arg(long, default_value = "cloud-amd64")]
    flavour: String,
    /// Writes the numbers of the guests there.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measures only the engine, on this machine.
    #[arg(long, conflicts_with = "guest")]
    engine: bool,
    /// Measures only in guests.
    #[arg(long)]
    guest: bool,
    /// Writes the numbers of the engine there.
    #[arg(long)]
    engine_json: Option<PathBuf>,
    /// Measures only detours in a process of this machine: calls, attaching beside threads, memory.
    #[arg(long, conflicts_with_all = ["guest", "engine"])]
    process: bool,
    /// Writes the numbers of the process there, also with --windows.
    #[arg(long)]
    process_json: Option<PathBuf>,
    /// Measures only detours in a process on Windows, by Wine: the same tables. Nothing else measures these.
    #[arg(long, conflicts_with_all = ["guest", "engine", "process"])]
    windows: bool,
}

/// One number.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    kernel: String,
    name: String,
    value: String,
    unit: String,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let progress = Progress::new();
    if arguments.windows {
        windows(workspace, &progress, arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.guest && !arguments.process {
        engine(workspace, &progress, arguments)?;
    }
    if !arguments.guest && !arguments.engine {
        process(workspace, &progress, arguments)?;
    }
    if arguments.engine || arguments.process {
        return Ok(ExitCode::SUCCESS);
    }
    let script = workspace.kernel_sources().join("tests/bench.sh");
    let script =
        std::fs::read(&script).with_context(|| format!("cannot read {}", workspace.shown(&script)))?;
    let wanted = arguments.kernel.map_or_else(|| Series::ORDINARY.to_vec(), |series| vec![series]);
    let kernels = setup::kernels(workspace, &progress, &wanted, &arguments.flavour)?;
    let rust = setup::rust(workspace, &progress)?;
    let mut rows = Vec::new();
    let mut complaints = 0;
    for kernel in &kernels {
        let modules = setup::modules(workspace, &progress, kernel, &rust)?;
        let stage = progress.stage("bench");
        stage.note(&kernel.release);
        let mut guest = Guest::new(workspace, kernel, &format!("bench-{}", kernel.release));
        guest.script.clone_from(&script);
        guest.count_instructions();
        // Commits of thousands of functions, on one emulated processor.
        guest.timeout = Duration::from_secs(1800);
        let size = modules.size();
        guest.modules = modules.files;
        let mut other = Vec::new();
        let outcome = guest.run(&mut |line| match row(line, &kernel.release) {
            Some(row) => rows.push(row),
            None => other.push(line.to_owned()),
        })?;
        stage.done(&kernel.release);
        vm::report_warnings(&outcome);
        complaints += outcome.warnings.len();
        if outcome.exit != 0 {
            let output = shell::indent(&other.join("\n"));
            bail!("the measuring script ended with {} on {}:\n{output}", outcome.exit, kernel.release);
        }
        let value = size.to_string();
        let [name, unit] = ["kdetour.ko-code-and-constants", "bytes"].map(str::to_owned);
        rows.push(Row { kernel: kernel.release.clone(), name, value, unit });
    }
    let releases: Vec<&str> = kernels.iter().map(|kernel| kernel.release.as_str()).collect();
    print!("{}", table(&rows, &releases));
    if let Some(file) = &arguments.json {
        vm::write_json(file, &rows)?;
    }
    Ok(if complaints == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Survey and plan over libraries and kernels, beside other crates.
fn engine(workspace: &Workspace, progress: &Progress, arguments: &Arguments) -> Result<()> {
    let kernels = setup::kernels(workspace, progress, &Series::ORDINARY, &arguments.flavour)?;
    let stage = progress.stage("engine");
    let libraries = libraries::all(workspace, &stage)?;
    let python = python::prepare(workspace, &stage)?;
    stage.note("building");
    let mut bench = benches(workspace, "kdetour-benches")?;
    stage.note("measuring");
    bench.arg("engine").arg("--emulate").arg(python);
    libraries.iter().for_each(|library| {
        bench.arg("--library").arg(library);
    });
    kernels.iter().for_each(|kernel| {
        bench.arg("--kernel").arg(&kernel.image);
    });
    if let Some(file) = &arguments.engine_json {
        bench.arg("--json").arg(file);
    }
    let text = Step {
        what: "measure the engine",
        log: workspace.log("bench-engine"),
        advice: "see benches/README.md",
    }
    .run(&mut bench)?;
    stage.clear();
    print!("{text}");
    Ok(())
}

/// Detours in a process of this machine.
fn process(workspace: &Workspace, progress: &Progress, arguments: &Arguments) -> Result<()> {
    let stage = progress.stage("process");
    stage.note("building");
    let mut bench = benches(workspace, "process")?;
    stage.note("measuring");
    if let Some(file) = &arguments.process_json {
        bench.arg("--json").arg(file);
    }
    let text = Step {
        what: "measure detours in a process",
        log: workspace.log("bench-process"),
        advice: "see benches/README.md",
    }
    .run(&mut bench)?;
    stage.clear();
    print!("{text}");
    Ok(())
}

/// Detours in a process on Windows, by Wine: the processor is this machine's, the kernel is not Windows'. The tables are those of [`process`].
fn windows(workspace: &Workspace, progress: &Progress, arguments: &Arguments) -> Result<()> {
    let target = Target::X86_64Windows;
    let cross = setup::cross(workspace, progress, target)?;
    let wine = setup::wine(workspace, progress, target)?;
    let stage = progress.stage("windows");
    let cargo = |command: &str| {
        let mut cargo = cross.cargo(command, &[]);
        cargo.current_dir(&workspace.root).arg("--target-dir").arg(workspace.out.join("windows"));
        cargo.args(["--release", "-p", "kdetour-benches", "--bin", "process"]);
        cargo
    };
    let step = |what| Step { what, log: workspace.log("bench-windows"), advice: "see benches/README.md" };
    stage.note("building");
    step("build the benches for Windows").run(&mut cargo("build"))?;
    stage.note("measuring");
    wine.start(workspace)?;
    let mut bench = wine.command("wine", Duration::from_secs(1800));
    let program = workspace.out.join("windows").join(cross.folder()).join("release/process.exe");
    bench.current_dir(&workspace.root).arg(program);
    if let Some(file) = &arguments.process_json {
        bench.arg("--json").arg(file);
    }
    let text = step("measure detours in a process on Windows").run(&mut bench)?;
    stage.clear();
    print!("{text}");
    Ok(())
}

/// Builds the programs that measure, and gives one of them.
fn benches(workspace: &Workspace, program: &str) -> Result<Command> {
    let mut cargo = Command::new("cargo");
    shell::leave_cargo_run(&mut cargo);
    cargo.current_dir(&workspace.root).args(["build", "--release", "-p", "kdetour-benches"]);
    Step {
        what: "build the benches",
        log: workspace.log("benches"),
        advice: "run `cargo build -p kdetour-benches`",
    }
    .run(&mut cargo)?;
    let target = workspace.out.parent().context("the build folder has a parent")?;
    Ok(Command::new(target.join("release").join(program)))
}

/// `bench NAME VALUE UNIT`.
fn row(line: &str, kernel: &str) -> Option<Row> {
    let mut words = line.strip_prefix("bench ")?.split_whitespace().map(str::to_owned);
    let (name, value) = (words.next()?, words.next()?);
    let unit = words.collect::<Vec<_>>().join(" ");
    Some(Row { kernel: kernel.to_owned(), name, value, unit })
}

/// One line for each name, one column for each kernel.
fn table(rows: &[Row], kernels: &[&str]) -> String {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        if !names.contains(&(&row.name, &row.unit)) {
            names.push((&row.name, &row.unit));
        }
    }
    let first = names.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = format!("{:first$}", "");
    for kernel in kernels {
        out.push_str(&format!("  {kernel:>12}"));
    }
    out.push_str("  unit\n");
    for (name, unit) in names {
        out.push_str(&format!("{name:first$}"));
        for kernel in kernels {
            let cell = rows.iter().find(|r| r.kernel == *kernel && r.name == name && r.unit == unit);
            let width = kernel.len().max(12);
            out.push_str(&format!("  {:>width$}", cell.map_or("-", |row| row.value.as_str())));
        }
        out.push_str(&format!("  {unit}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_an_aligned_table() {
        let rows: Vec<Row> =
            [("bench detour 8 instructions", "6.1"), ("bench kprobe 157 instructions", "6.12")]
                .into_iter()
                .filter_map(|(line, kernel)| row(line, kernel))
                .collect();
        let text = table(&rows, &["6.1", "6.12"]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "detour             8             -  instructions");
        assert_eq!(lines[2], "kprobe             -           157  instructions");
        assert_eq!(row("ok detour", "6.1"), None);
    }
}
