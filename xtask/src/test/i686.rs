//! Everything about processes once more in 32-bit code, which this machine runs as well: i686-unknown-linux-gnu.

use super::c;
use super::libtest::passed;
use crate::cross::{Cross, Processor, Target};
use crate::progress::Progress;
use crate::setup;
use crate::shell::Step;
use crate::workspace::Workspace;
use anyhow::{Result, bail};

/// How long the stress suite runs, short and long.
const STRESS_SECONDS: (&str, &str) = ("20", "3600");

/// Cargo's calls: the command, and its arguments.
const CALLS: [(&str, &[&str]); 7] = [
    ("test", &["-p", "kdetour-plan", "-p", "kdetour-image"]),
    ("test", &["-p", "kdetour"]),
    ("test", &["-p", "kdetour-ffi", "--features", "linux-process"]),
    // Not `inside`: its function is 64-bit code.
    ("run", &["-p", "kdetour-examples", "--example", "getenv"]),
    ("run", &["-p", "kdetour-examples", "--example", "closure"]),
    ("run", &["-p", "kdetour-examples", "--example", "library"]),
    ("test", &["--release", "-p", "kdetour", "--test", "stress"]),
];

/// Runs it, and says in a few words what that was.
pub(super) fn check(workspace: &Workspace, progress: &Progress, long: bool) -> Result<String> {
    let cross = setup::cross(workspace, progress, Target::I686Linux)?;
    let stage = progress.stage("i686");
    let mut tests = 0;
    for (number, (command, arguments)) in CALLS.into_iter().enumerate() {
        stage.note(&format!("{command} {}", arguments.join(" ")));
        let said = call(workspace, &cross, number, command, arguments, long)?;
        let passed = passed(&said);
        if command == "test" && passed == 0 {
            bail!("`cargo {command} {}` ran no test for 32-bit code", arguments.join(" "));
        }
        tests += passed;
    }
    stage.clear();
    let of_c = c::check(workspace, progress, Processor::I686)?;
    Ok(format!("{tests} tests, {of_c}"))
}

fn call(
    workspace: &Workspace,
    cross: &Cross,
    number: usize,
    command: &str,
    arguments: &[&str],
    long: bool,
) -> Result<String> {
    // What is said of 32-bit code alone, nobody else hears.
    let mut cargo = cross.cargo(command, &["-Dwarnings"]);
    cargo.current_dir(&workspace.root).arg("--target-dir").arg(workspace.out.join("i686")).args(arguments);
    cargo.env("KDETOUR_STRESS_SECONDS", if long { STRESS_SECONDS.1 } else { STRESS_SECONDS.0 });
    Step {
        what: &format!("pass `{command} {}` in 32-bit code", arguments.join(" ")),
        log: workspace.log(&format!("suite-i686-{number}")),
        advice: "the log says what failed; a test's 64-bit form is run by `cargo test`",
    }
    .run(&mut cargo)
}
