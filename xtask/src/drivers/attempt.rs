//! `cargo xtask windows --try FILE.sys`: somebody's own driver, looked at and run in the emulator of NT.

use super::{Machine, check, checksum};
use crate::progress::{Progress, Stage};
use crate::python;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use object::{Architecture, Object as _};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

/// What runs a driver in the emulator: its environment is made if it is not there.
pub(crate) fn emulator(workspace: &Workspace, stage: &Stage, driver: &Path) -> Result<Command> {
    let python = {
        let _lock = workspace.lock()?;
        python::for_drivers(workspace, stage)?
    };
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", "900"]).arg(&python);
    command.arg(workspace.root.join("kernel/windows/tests/emulate.py")).arg(driver);
    Ok(command)
}

fn machine(image: &[u8]) -> Result<Machine> {
    match object::File::parse(image).context("it is no image")?.architecture() {
        Architecture::X86_64 => Ok(Machine::X64),
        Architecture::I386 => Ok(Machine::I386),
        other => bail!("it is for {other:?}, and no driver of x64 or i386"),
    }
}

/// Says whether NT would load it, and runs its `DriverEntry` and its `DriverUnload`.
pub(super) fn attempt(workspace: &Workspace, file: &Path) -> Result<ExitCode> {
    let image = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let machine = machine(&image).with_context(|| file.display().to_string())?;
    let allowed = check::allowed(&workspace.root.join("kernel/windows/imports.txt"))?;
    let progress = Progress::new();
    let loads = check::would_load(&image, machine, &allowed);
    progress.line(&match &loads {
        Ok(imports) => format!("{}: NT 5.2 and later would load it, {imports} imports", machine.name()),
        Err(why) => format!("{}: not every NT from 5.2 on would load it: {why:#}", machine.name()),
    });
    let stage = progress.stage("emulator");
    let mut command = emulator(workspace, &stage, file)?;
    stage.clear();
    let status = command.status().context("cannot run the emulator")?;
    Ok(if status.success() && loads.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the checksum that NT asks for into a driver.
pub(super) fn seal(file: &Path) -> Result<ExitCode> {
    let mut image = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    machine(&image).with_context(|| file.display().to_string())?;
    checksum::write(&mut image)?;
    fs::write(file, &image).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_driver_is_named() {
        assert!(machine(b"no image").unwrap_err().to_string().contains("no image"));
        // An ELF header of AArch64.
        let mut other = vec![0; 64];
        other[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\xb7\0");
        other[52] = 64;
        let why = machine(&other).unwrap_err().to_string();
        assert!(why.contains("Aarch64"), "{why}");
    }
}
