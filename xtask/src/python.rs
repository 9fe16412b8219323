//! A Python of its own for the emulator: a virtual environment under `target/kdetour`.

use crate::packages::{self, Need};
use crate::progress::Stage;
use crate::shell::{Step, query};
use crate::workspace::Workspace;
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

/// What is installed into it from PyPI.
const REQUIREMENTS: &str = "unicorn==2.1.4";

/// The interpreter, with everything that the differential execution imports.
pub(crate) fn prepare(workspace: &Workspace, stage: &Stage) -> Result<PathBuf> {
    let home = workspace.out.join("python");
    let python = home.join("bin/python");
    let ready = || query(Command::new(&python).args(["-c", "import unicorn"])).is_ok();
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
    stage.note(&format!("installing {REQUIREMENTS}"));
    Step {
        what: "make a Python environment",
        log: workspace.log("python-venv"),
        advice: "install the package python3-venv, then run this again",
    }
    .run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
    Step {
        what: "install the emulator",
        log: workspace.log("python-pip"),
        advice: "check the network, then run this again",
    }
    .run(Command::new(&python).args(["-m", "pip", "install", "--quiet", REQUIREMENTS]))?;
    Ok(python)
}
