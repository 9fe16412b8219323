//! Detours of `kdetour_nt.h` whose body is left by an exception, in a program (`kernel/windows/tests/raising.c`): gcc has no `__finally`, and
//! a compiler for Windows' own targets has.

use crate::drivers::Machine;
use crate::packages::{self, Need};
use crate::progress::Stage;
use crate::shell::Step;
use crate::wine::Wine;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

/// Compiles it for x64, runs it, and says how many lines were as expected.
pub(super) fn run(workspace: &Workspace, stage: &Stage, wine: &Wine) -> Result<usize> {
    packages::ensure(workspace, stage, &[Need::new("clang", "clang")])?;
    let folder = workspace.out.join("drivers").join(Machine::X64.name());
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (object, program) = (folder.join("raising.o"), folder.join("raising.exe"));
    let step = |what, command: &mut Command| {
        let log = workspace.log(&format!("suite-windows-drivers-{what}-raising"));
        Step { what: &format!("{what} raising.c"), log, advice: "the log has the errors" }.run(command)
    };
    let mut clang = Command::new("clang");
    // As Microsoft's compiler takes it, any function may raise.
    clang.args(["--target=x86_64-pc-windows-msvc", "-fexceptions", "-ffreestanding", "-O2"]);
    clang.args(["-Wall", "-Wextra", "-Werror", "-I"]).arg(workspace.root.join("crates/ffi/include"));
    clang.arg("-c").arg(workspace.root.join("kernel/windows/tests/raising.c")).arg("-o").arg(&object);
    step("compile", &mut clang)?;
    step("link", Command::new(Machine::X64.compiler().0).arg("-o").arg(&program).arg(&object))?;
    let said = step("run", wine.command("wine", LIMIT).arg(&program))?;
    let expected =
        ["KDETOUR: 0 inside, after an exception 0", "KDETOUR_VOID: 0 inside, after an exception 0", "ok"];
    let found: Vec<&str> = said.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    if !found.ends_with(&expected) {
        bail!("raising.c said {found:?}, and not {expected:?}");
    }
    Ok(expected.len())
}
