//! The stress suite on Windows, by Wine: detours that come and go in processes whose threads do what threads do there.

use super::libtest::passed;
use crate::cross::Target;
use crate::progress::Progress;
use crate::setup;
use crate::shell::Step;
use crate::workspace::Workspace;
use anyhow::{Result, bail};
use std::time::Duration;

/// The scenarios.
#[rustfmt::skip]
const CALL: [&str; 7] = [
    "-p", "kdetour", "--no-default-features", "--features", "windows-process", "--test", "stress",
];

/// How many seconds all of them take, short and long. Each also has a least number of rounds, however slow the machine is.
const SECONDS: [u32; 2] = [30, 1800];

/// How the program is linked, in 32-bit code. By its usual address, 4 MiB, an exchange has no place for what it jumps to if the jump's last byte
/// has to be a breakpoint, or a byte of the function's with the highest bit set: that is more than 2 GiB above it, or less, and
/// addresses below 2 GiB are all that such a process has. DLLs lie high enough for the former, and so does this.
const LINKED: [&str; 2] = ["-Dwarnings", "-Clink-arg=-Wl,--image-base=0x70000000"];

/// What of the suite on Linux is not run on Windows, and why.
const LEFT_OUT: [(&str, &str); 11] = [
    ("toggle-methods, by debug registers", "that method is refused on Windows"),
    ("parked-nested, signal-storm, signals-blocked", "Windows has no signals"),
    ("committer-killed, births-forks, births-spawns", "Windows has no children that are copies of a process"),
    (
        "committer-stopped, by Rendezvous",
        "two threads that suspend each other stand for ever, with or without detours",
    ),
    (
        "machinery",
        "it is about the functions of Linux's libraries that a commit runs through; chain-nested has one of Windows'",
    ),
    ("pointers", "its table is protected by Linux's calls, and nobody has written it for others yet"),
    ("undumpable", "it is about what Linux tells below /proc"),
    ("foreign-hook", "it changes text by Linux's calls, and nobody has written it for others yet"),
    ("tools-gdb, tools-gdb-names", "gdb reads what Linux's host tells it"),
    ("tools-perf-names", "perf is Linux's"),
    ("tools-exceptions", "it asks the unwinder of Linux; the scenario panics asks the other"),
];

/// What the suite is called.
pub(super) fn name(target: Target) -> String {
    match target {
        Target::I686Windows => "windows-stress-i686".to_owned(),
        _ => format!("{}-stress", target.name()),
    }
}

/// Runs it, and says in a few words what that was.
pub(super) fn check(
    workspace: &Workspace,
    progress: &Progress,
    target: Target,
    long: bool,
) -> Result<String> {
    let cross = setup::cross(workspace, progress, target)?;
    let wine = setup::wine(workspace, progress, target)?;
    let name = name(target);
    let stage = progress.stage(&name);
    stage.note("build and run the scenarios");
    wine.start(workspace)?;
    let seconds = SECONDS[usize::from(long)];
    let flags = if target == Target::I686Windows { &LINKED[..] } else { &LINKED[..1] };
    let mut cargo = cross.cargo("test", flags);
    cargo.current_dir(&workspace.root).arg("--target-dir").arg(workspace.out.join("windows"));
    // Each scenario that hangs is ended by the program itself; this is for the program.
    wine.run_for(workspace, &mut cargo, target, Duration::from_secs(1200 + 4 * u64::from(seconds)))?;
    let said = Step {
        what: "pass the stress suite on Windows",
        log: workspace.log(&format!("suite-{name}")),
        advice: &format!(
            "the log names the scenario, and how far it came; `cargo xtask test --only {name}` runs it again"
        ),
    }
    .run(cargo.args(CALL).args(["--", "--seconds", &seconds.to_string()]))?;
    stage.clear();
    for (name, why) in LEFT_OUT {
        progress.line(&format!("       left out on Windows: {name}: {why}"));
    }
    let scenarios = passed(&said);
    if scenarios == 0 {
        bail!("the stress suite ran no scenario on Windows");
    }
    Ok(format!("{scenarios} scenarios by {}", wine.version()))
}
