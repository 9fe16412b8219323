//! Programs that guests run beside their scripts: each C file of `kernel/linux/tests/programs`, without shared libraries.

use crate::shell::Step;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Compiles what is newer than its program; each with its path in the guest.
pub(crate) fn build(workspace: &Workspace) -> Result<Vec<(PathBuf, String)>> {
    let sources = workspace.kernel_sources().join("tests/programs");
    let folder = workspace.out.join("programs");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut programs = Vec::new();
    for entry in fs::read_dir(&sources).into_iter().flatten().flatten() {
        let source = entry.path();
        let Some(name) = source.file_stem().filter(|_| source.extension().is_some_and(|e| e == "c")) else {
            continue;
        };
        let name = name.to_string_lossy().into_owned();
        let program = folder.join(&name);
        let written = |path: &PathBuf| fs::metadata(path).and_then(|found| found.modified());
        let is_fresh = matches!((written(&program), written(&source)), (Ok(made), Ok(from)) if made > from);
        if !is_fresh {
            let mut gcc = Command::new("gcc");
            gcc.args(["-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(&source);
            Step {
                what: &format!("compile the guests' program {name}"),
                log: workspace.log(&format!("program-{name}")),
                advice: "errors about headers or -lc mean that libc6-dev is not installed",
            }
            .run(&mut gcc)?;
        }
        programs.push((program, format!("/bin/{name}")));
    }
    Ok(programs)
}
