//! Programs for Windows, by Wine: the tests of what asks nothing of a host, and those of the host for one's own process there; as 64-bit
//! programs, and as 32-bit ones.
//!
//! What cannot run there is marked in its test, with the reason: `#[cfg_attr(windows, ignore = "...")]`. The suite names each such test.

use super::libtest::{Ignored, ignored, names, passed};
use crate::cross::{Cross, Target};
use crate::progress::Progress;
use crate::shell::Step;
use crate::wine::Wine;
use crate::workspace::Workspace;
use crate::{libraries, setup};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The crates that ask nothing of a host.
const CRATES: [&str; 4] = ["-p", "kdetour-plan", "-p", "kdetour-image"];

/// The host.
#[rustfmt::skip]
const HOST: [&str; 10] = [
    "-p", "kdetour", "--no-default-features", "--features", "windows-process", "--lib", "--test", "windows", "--test", "process",
];

/// The examples in its documentation.
const EXAMPLES: [&str; 6] =
    ["-p", "kdetour", "--no-default-features", "--features", "windows-process", "--doc"];

/// What is not asked for at all, and why.
const NOT_ASKED_FOR: [(&str, &str); 7] = [
    ("kdetour: tests/process, host", "it reads what Linux tells below /proc"),
    (
        "kdetour: tests/process, imports, stripped",
        "they are about ELF files; `pe` and `modules` there have the tables of PE images",
    ),
    (
        "kdetour: tests/process, methods::linux",
        "debug registers, and the signal of a breakpoint, are Linux's",
    ),
    ("kdetour: tests/process, mid", "detours inside functions are refused on Windows"),
    (
        "kdetour: tests/process, unwind",
        "it asks the unwinder of Linux, and gdb; tests/windows asks the other",
    ),
    (
        "kdetour: tests/process, a_function_of_libc, a_child_that_borrows_the_memory_counts",
        "Windows has neither that library nor such children",
    ),
    (
        "kdetour: tests/process, a_symbol_inside_the_window, indirect_functions_are_not_taken_for_their_resolvers",
        "PE images have no symbols of their own",
    ),
];

/// What reads files of Linux is asked for by itself: only here it is known that there are some. Kernels are read by the suite `images`.
#[rustfmt::skip]
const READS_LINUX: [&str; 14] = [
    "-p", "kdetour-plan", "-p", "kdetour-image", "--test", "real_code", "--test", "unwind", "--test", "image",
    "--", "--ignored", "--skip", "kernel::",
];

/// What of the host differs by processor: detours that are executed, and the host by itself.
#[rustfmt::skip]
const EXECUTED: [&str; 9] = [
    "-p", "kdetour", "--no-default-features", "--features", "windows-process", "--test", "windows", "--test", "process",
];
#[rustfmt::skip]
const BY_ITSELF: [&str; 8] = [
    "-p", "kdetour", "--no-default-features", "--features", "windows-process", "--lib", "--", "windows_process",
];

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All.
    Whole,
    /// What differs by processor: the engine's own tests have both modes in any program.
    Host,
}

impl Part {
    /// Arguments of `cargo test`, of one call each.
    const fn calls(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Whole => &[&CRATES, &READS_LINUX, &HOST, &EXAMPLES],
            Self::Host => &[&EXECUTED, &BY_ITSELF],
        }
    }
}

/// The suite's name.
pub(super) fn name(target: Target, part: Part) -> String {
    match part {
        Part::Whole => target.name().to_owned(),
        Part::Host => format!("{}-host", target.name()),
    }
}

/// No program takes nearly as long; one that hangs is ended.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs it for `target`, and says in a few words what that was.
pub(super) fn check(
    workspace: &Workspace,
    progress: &Progress,
    target: Target,
    part: Part,
) -> Result<String> {
    let programs = Programs::build(workspace, progress, target, part)?;
    let wine = setup::wine(workspace, progress, target)?;
    let (tests, left_out) = programs.run(progress, &wine)?;
    let marked = left_out.iter().map(|Ignored { name, why }| (name.as_str(), why.as_str()));
    for (name, why) in marked.chain(NOT_ASKED_FOR) {
        progress.line(&format!("       left out on Windows: {name}: {why}"));
    }
    Ok(format!("{tests} tests by {}, {} left out", wine.version(), left_out.len() + NOT_ASKED_FOR.len()))
}

/// The tests as programs of one target.
struct Programs<'a> {
    workspace: &'a Workspace,
    target: Target,
    part: Part,
    cross: Cross,
}

impl<'a> Programs<'a> {
    fn build(workspace: &'a Workspace, progress: &Progress, target: Target, part: Part) -> Result<Self> {
        let cross = setup::cross(workspace, progress, target)?;
        let programs = Self { workspace, target, part, cross };
        let stage = progress.stage(&programs.name());
        let whole: [&[&str]; 2] = [&CRATES, &HOST];
        let built = if part == Part::Whole { &whole[..] } else { &whole[1..] };
        for (number, crates) in built.iter().enumerate() {
            stage.note(&format!("build {}", crates.join(" ")));
            Step {
                what: &format!("build the tests for {}", target.triple()),
                log: workspace.log(&format!("suite-{}-build-{number}", programs.name())),
                advice: "what does not compile for Windows alone is behind a `cfg`",
            }
            .run(programs.cargo().arg("--no-run").args(*crates))?;
        }
        stage.clear();
        Ok(programs)
    }

    fn name(&self) -> String {
        name(self.target, self.part)
    }

    /// `cargo test`, in a folder of its own.
    fn cargo(&self) -> Command {
        // What is said of Windows alone, nobody else hears.
        let mut cargo = self.cross.cargo("test", &["-Dwarnings"]);
        cargo.current_dir(&self.workspace.root);
        cargo.arg("--target-dir").arg(self.workspace.out.join("windows"));
        cargo
    }

    /// Runs them all: how many passed, and which were left out.
    fn run(&self, progress: &Progress, wine: &Wine) -> Result<(usize, Vec<Ignored>)> {
        let stage = progress.stage(&self.name());
        let libc = {
            let _lock = self.workspace.lock()?;
            libraries::libc(self.workspace, &stage)?
        };
        wine.start(self.workspace)?;
        let (mut tests, mut left_out) = (0, Vec::new());
        for (number, &arguments) in self.part.calls().iter().enumerate() {
            let line = arguments.join(" ");
            stage.note(&format!("test {line}"));
            let said = self.call(wine, number, arguments, &libc)?;
            let passed = passed(&said);
            if passed == 0 {
                bail!("`cargo test {line}` ran no test on Windows");
            }
            tests += passed;
            left_out.extend(ignored(&said));
            left_out.retain(|test| !names(&said).any(|name| name == test.name));
        }
        stage.clear();
        Ok((tests, left_out))
    }

    fn call(&self, wine: &Wine, number: usize, arguments: &[&str], libc: &Path) -> Result<String> {
        let mut cargo = self.cargo();
        wine.run_for(self.workspace, &mut cargo, self.target, LIMIT)?;
        // A program that Wine starts in a folder of Linux finds Linux's paths on its drive.
        cargo.env("KDETOUR_LIBRARY", libc).env("KDETOUR_LIBC", libc);
        Step {
            what: &format!("pass `cargo test {}` on Windows", arguments.join(" ")),
            log: self.workspace.log(&format!("suite-{}-{number}", self.name())),
            advice: "the log says what failed. Where a program has ended, status 101 is a test that failed, 124 more \
                     than ten minutes, 53 a DLL that Wine has not; \
                     `WINEDEBUG=+seh` in front of `cargo xtask` tells of crashes",
        }
        .run(cargo.args(arguments))
    }
}
