//! `cargo xtask size`: how large the static library for the kernel is, for each set of features.

use crate::progress::Progress;
use crate::shell::Step;
use crate::workspace::Workspace;
use crate::{module, rust_half, setup};
use anyhow::{Context as _, Result};
use std::fs;
use std::process::{Command, ExitCode};

/// Runs the command.
pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    let progress = Progress::new();
    let object = setup::rust(workspace, &progress)?;
    let library = stripped(workspace)?;
    let bytes = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
    let linked = module::size(&object, &bytes)?;
    progress.line(&format!(
        "{}  static library, stripped: {library} bytes; what the module takes of it: {linked} bytes of code and constants",
        rust_half::FEATURES
    ));
    Ok(ExitCode::SUCCESS)
}

/// The size of the static library without what only debuggers and linkers of other languages need.
fn stripped(workspace: &Workspace) -> Result<u64> {
    let copy = workspace.out.join("size.a");
    let library = rust_half::archive(workspace);
    fs::copy(&library, &copy).with_context(|| format!("cannot copy {}", library.display()))?;
    Step {
        what: "strip the library",
        log: workspace.log("size"),
        advice: "strip comes with the package binutils",
    }
    .run(Command::new("strip").arg("--strip-unneeded").arg(&copy))?;
    let size = fs::metadata(&copy)?.len();
    fs::remove_file(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
    Ok(size)
}
