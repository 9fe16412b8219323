//! The engine's proofs that cargo's own tests do not run: execution in an emulator, and fuzzing.

use crate::kernel::Kernel;
use crate::packages::{self, Need};
use crate::progress::Progress;
use crate::shell::{self, Step};
use crate::workspace::Workspace;
use crate::{libraries, python};
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use std::process::Command;

/// A proof of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// Runs the original instructions and the trampoline of every function of libraries and kernels from the same
    /// random states.
    Differential,
    /// Reads the kernels' images, and lets an independent oracle read every plan for every function of the libraries.
    Images,
    /// Feeds survey and plan with what libFuzzer finds, beside an independent oracle.
    Fuzz,
}

/// Random states from which each function is executed, short and long.
const STATES: (&str, &str) = ("3", "40");
/// How many functions are made up, short and long, and the seed of the generator.
const MADE_UP: (&str, &str) = ("4000", "100000");
const SEED: &str = "7";
/// Seconds of fuzzing, short and long.
const FUZZ: (&str, &str) = ("10", "1800");

impl Proof {
    /// Runs the proof and says in a few words what it covered.
    pub(super) fn run(
        self,
        workspace: &Workspace,
        progress: &Progress,
        long: bool,
        kernels: impl FnOnce() -> Result<Vec<Kernel>>,
    ) -> Result<String> {
        match self {
            Self::Images => images(workspace, progress, &kernels()?),
            Self::Differential => differential(workspace, progress, long, &kernels()?),
            Self::Fuzz => fuzz(workspace, progress, if long { FUZZ.1 } else { FUZZ.0 }),
        }
    }
}

fn images(workspace: &Workspace, progress: &Progress, kernels: &[Kernel]) -> Result<String> {
    let stage = progress.stage("images");
    let libraries = {
        let _lock = workspace.lock()?;
        libraries::all(workspace, &stage)?
    };
    let test = |arguments: &[&str], variable: &str, value: &std::ffi::OsStr| {
        let mut cargo = Command::new("cargo");
        shell::leave_cargo_run(&mut cargo);
        cargo.current_dir(&workspace.root).arg("test").args(arguments).env(variable, value);
        Step {
            what: "pass the tests of images",
            log: workspace.log("images"),
            advice: &format!("run `{variable}={} cargo test {}`", value.display(), arguments.join(" ")),
        }
        .run(&mut cargo)
    };
    stage.note("kernels");
    let images = std::env::join_paths(kernels.iter().map(|kernel| &kernel.image))?;
    test(&["-p", "kdetour-image", "--test", "image", "--", "--ignored"], "KDETOUR_VMLINUZ", &images)?;
    for library in &libraries {
        stage.note(&workspace.shown(library).to_string());
        test(&["-p", "kdetour-plan", "--test", "real_code"], "KDETOUR_LIBRARY", library.as_os_str())?;
    }
    stage.clear();
    Ok(format!("{} kernels, {} libraries", kernels.len(), libraries.len()))
}

fn differential(
    workspace: &Workspace,
    progress: &Progress,
    long: bool,
    kernels: &[Kernel],
) -> Result<String> {
    let stage = progress.stage("differential");
    let lock = workspace.lock()?;
    let mut files = libraries::all(workspace, &stage)?;
    files.extend(kernels.iter().map(|kernel| kernel.image.clone()));
    let python = python::prepare(workspace, &stage)?;
    drop(lock);
    let script = workspace.root.join("tests/differential/run.py");
    Step {
        what: "find wrong records out",
        log: workspace.log("differential-self-test"),
        advice: "the emulator misses what it should see: look at tests/differential/selftest.py",
    }
    .run(Command::new(&python).arg(&script).arg("--self-test"))?;
    let kdetour = command_line_tool(workspace)?;
    let plans = workspace.out.join("plans.jsonl");
    stage.note("planning every function");
    Step {
        what: "plan every function",
        log: workspace.log("differential-scan"),
        advice: "run `kdetour scan` on the files by itself",
    }
    .run(Command::new(&kdetour).args(["scan", "--plans"]).arg(&plans).args(&files))?;
    stage.note("planning made-up functions in every shape");
    let made_up = workspace.out.join("made-up.jsonl");
    let records = std::fs::File::create(&made_up).context("cannot write the plans of made-up functions")?;
    let mut cargo = Command::new("cargo");
    shell::leave_cargo_run(&mut cargo);
    cargo.current_dir(&workspace.root);
    cargo.args(["run", "--quiet", "-p", "kdetour-tests", "--example", "records", "--", "--random"]);
    cargo.args([if long { MADE_UP.1 } else { MADE_UP.0 }, SEED]);
    let status = cargo.stdout(records).status().context("cargo did not start")?;
    anyhow::ensure!(status.success(), "could not plan made-up functions: cargo ended with {status}");
    stage.note("executing originals and trampolines");
    let mut emulate = Command::new(python);
    emulate.arg(&script).args([&plans, &made_up]).args(["--states", if long { STATES.1 } else { STATES.0 }]);
    let text = Step {
        what: "find original and trampoline equal",
        log: workspace.log("differential"),
        advice: "the log has the state and both outcomes of each difference",
    }
    .run(&mut emulate)?;
    stage.clear();
    summary(&text)
}

/// What the emulator's last line says.
#[derive(serde::Deserialize)]
struct Summary {
    accepted: u64,
    runs: u64,
    not_run: u64,
}

fn summary(text: &str) -> Result<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("summary "));
    let summary: Summary = serde_json::from_str(line.context("the emulator printed no summary")?)?;
    let Summary { accepted, runs, not_run } = summary;
    Ok(format!("{accepted} plans, {runs} runs, {not_run} instructions that the emulator does not know"))
}

/// Builds the command `kdetour`; what the unit tests built already is not built again.
fn command_line_tool(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    shell::leave_cargo_run(&mut cargo);
    cargo.current_dir(&workspace.root).args(["build", "-p", "kdetour-cli"]);
    Step {
        what: "build the command kdetour",
        log: workspace.log("cli"),
        advice: "run `cargo build -p kdetour-cli`",
    }
    .run(&mut cargo)?;
    let target = workspace.out.parent().context("the build folder has a parent")?;
    Ok(target.join("debug/kdetour"))
}

/// What libFuzzer needs to see which code an input reaches; a stable rustc has all of it. See fuzz/README.md.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1";
/// With a target named, build scripts and macros are built without the counters.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn fuzz(workspace: &Workspace, progress: &Progress, seconds: &str) -> Result<String> {
    let stage = progress.stage("fuzz");
    {
        let _lock = workspace.lock()?;
        // libFuzzer itself is C++.
        packages::ensure(workspace, &stage, &[Need::new("g++", "g++")])?;
    }
    let sources = workspace.root.join("fuzz");
    let target = workspace.out.join("fuzz");
    let [seeds, corpus, findings] = ["seeds", "corpus", "findings"].map(|name| target.join(name));
    for folder in [&seeds, &corpus, &findings] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let cargo = |name: &str, counters: bool, arguments: &[&str], rest: &[&PathBuf]| {
        let mut cargo = Command::new("cargo");
        shell::leave_cargo_run(&mut cargo);
        cargo.current_dir(&sources).args(arguments).env("CARGO_TARGET_DIR", &target).args(rest);
        if counters {
            cargo.env("RUSTFLAGS", COVERAGE);
        }
        Step { what: name, log: workspace.log("fuzz-build"), advice: "see fuzz/README.md" }.run(&mut cargo)
    };
    stage.note("making seeds of the cases");
    let cases = workspace.root.join("crates/plan/tests/cases");
    cargo("make the seeds", false, &["run", "--quiet", "--bin", "seeds", "--"], &[&cases, &seeds])?;
    stage.note("building");
    let build = ["build", "--release", "--target", TARGET, "--bin", "engine"];
    cargo("build the fuzz target", true, &build, &[])?;
    stage.note(&format!("{seconds} s"));
    let mut run = Command::new(target.join(TARGET).join("release/engine"));
    run.args(["-max_len=600", "-timeout=10", "-print_final_stats=1"]);
    run.arg(format!("-max_total_time={seconds}"));
    run.arg(format!("-artifact_prefix={}/", findings.display()));
    run.args([&corpus, &seeds, &sources.join("regressions/engine")]);
    let text = Step {
        what: "fuzz survey and plan",
        log: workspace.log("fuzz"),
        advice: "the log names the input that failed; fuzz/README.md says what to do with it",
    }
    .run(&mut run)?;
    stage.clear();
    let executed = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let executed = executed.map(str::trim).context("libFuzzer printed no statistics")?;
    Ok(format!("{executed} inputs"))
}
