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

/// What the suite is called.
pub(super) fn name(target: Target) -> String {
    format!("{}-stress", target.name())
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
    let mut cargo = cross.cargo("test", &["-Dwarnings"]);
    cargo.current_dir(&workspace.root).arg("--target-dir").arg(workspace.out.join("windows"));
    // Each scenario that hangs is ended by the program itself; this is for the program.
    wine.run_for(&mut cargo, target, Duration::from_secs(1200 + 4 * u64::from(seconds)));
    let said = Step {
        what: "pass the stress suite on Windows",
        log: workspace.log(&format!("suite-{name}")),
        advice: &format!(
            "the log names the scenario, and how far it came; `cargo xtask test --only {name}` runs it again"
        ),
    }
    .run(cargo.args(CALL).args(["--", "--seconds", &seconds.to_string()]))?;
    stage.clear();
    let scenarios = passed(&said);
    if scenarios == 0 {
        bail!("the stress suite ran no scenario on Windows");
    }
    Ok(format!("{scenarios} scenarios by {}", wine.version()))
}
