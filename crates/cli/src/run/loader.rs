//! The loader is asked what it would load.

use super::PRELOAD;
use super::library::Library;
use super::program::Program;
use anyhow::{Context as _, Result, bail};
use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// Makes sure that the libraries will be in the program, with all that they need. Both glibc's loader and musl's list what they
/// would load; no code of the program, nor of a library, runs.
pub(super) fn check(program: &Program, libraries: &[Library], preload: &OsStr) -> Result<()> {
    let loader = program.loader();
    let mut command = Command::new(loader);
    command.arg("--list").arg(program.file()).env(PRELOAD, preload).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run the loader {}", loader.display()))?;
    let (list, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if let Some(line) = said.lines().chain(list.lines()).find(|line| is_complaint(line)) {
        bail!("the loader of {} says: {}", program.file().display(), line.trim());
    }
    if !output.status.success() {
        let last = said.lines().last().unwrap_or("nothing");
        bail!("the loader of {} gives {} and says: {}", program.file().display(), output.status, last.trim());
    }
    for library in libraries {
        let wanted = library.path().to_string_lossy();
        let names = |line: &str| line.split_whitespace().any(|word| word == wanted);
        if !list.lines().any(names) {
            bail!("the loader of {} would not load {wanted}, and does not say why", program.file().display());
        }
    }
    Ok(())
}

/// What a loader says of something that it cannot load, and then goes on.
fn is_complaint(line: &str) -> bool {
    ["cannot be preloaded", "=> not found", "' not found (required by", "Error loading shared library"]
        .iter()
        .any(|complaint| line.contains(complaint))
}
