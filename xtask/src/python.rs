//! Pythons of their own for the emulators: virtual environments under `target/kdetour`.

use crate::packages::{self, Need};
use crate::progress::Stage;
use crate::shell::{Step, query};
use crate::workspace::Workspace;
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

/// The interpreter, with everything that the differential execution imports.
pub(crate) fn prepare(workspace: &Workspace, stage: &Stage) -> Result<PathBuf> {
    environment(workspace, stage, "python", "unicorn==2.1.4", "import unicorn")
}

/// The interpreter that emulates drivers. What emulates NT needs an older unicorn.
pub(crate) fn for_drivers(workspace: &Workspace, stage: &Stage) -> Result<PathBuf> {
    environment(workspace, stage, "python-drivers", "speakeasy-emulator==1.5.11", "import speakeasy")
}

/// The interpreter of an environment into which these requirements were installed from PyPI, so that it can run `import`.
fn environment(
    workspace: &Workspace,
    stage: &Stage,
    name: &str,
    requirements: &str,
    import: &str,
) -> Result<PathBuf> {
    let home = workspace.out.join(name);
    let python = home.join("bin/python");
    let ready = || query(Command::new(&python).args(["-c", import])).is_ok();
    if ready() {
        return Ok(python);
    }
    packages::ensure(workspace, stage, &[Need::new("python3", "python3")])?;
    // Debian keeps the part that makes virtual environments in a package of its own.
    if query(Command::new("python3").args(["-c", "import venv, ensurepip"])).is_err() {
        packages::ensure(
            workspace,
            stage,
            &[Need::new("python3-venv", "/usr/share/doc/python3-venv/copyright")],
        )?;
    }
    stage.note(&format!("installing {requirements}"));
    Step {
        what: "make a Python environment",
        log: workspace.log(&format!("{name}-venv")),
        advice: "install the package python3-venv, then run this again",
    }
    .run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
    Step {
        what: "install the emulator",
        log: workspace.log(&format!("{name}-pip")),
        advice: "check the network, then run this again",
    }
    .run(Command::new(&python).args(["-m", "pip", "install", "--quiet", requirements]))?;
    Ok(python)
}
