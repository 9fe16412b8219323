//! `cargo xtask size`: how large the static libraries for the kernel are.

use crate::progress::Progress;
use crate::rust_half::{HALVES, RustHalf};
use crate::shell::Step;
use crate::workspace::Workspace;
use crate::{module, setup};
use anyhow::{Context as _, Result};
use std::fs;
use std::process::{Command, ExitCode};

/// Runs the command.
pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    let progress = Progress::new();
    let folder = setup::rust(workspace, &progress)?;
    for half in &HALVES {
        let library = stripped(workspace, half)?;
        let object = folder.join(half.object());
        let bytes = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
        let linked = module::size(&object, &bytes)?;
        progress.line(&format!(
            "{}  static library, stripped: {library} bytes; what the module takes of it: {linked} bytes of code and constants",
            half.module
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// The size of a static library without what only debuggers and linkers of other languages need.
fn stripped(workspace: &Workspace, half: &RustHalf) -> Result<u64> {
    let copy = workspace.out.join("size.a");
    let library = half.archive(workspace);
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
