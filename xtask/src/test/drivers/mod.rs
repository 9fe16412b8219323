//! The drivers of `cargo xtask windows`, loaded: by Wine's driver host on this processor, and by an emulator of NT.
//!
//! Neither is a Windows kernel: Wine runs drivers in an ordinary process, and the emulator has one processor. What they show is that the
//! drivers are linked as NT expects, and that what they do is right. Both are given what they lack: the former by a DLL
//! (`kernel/windows/tests/shim.c`), the latter in Python (`emulate.py`).

mod emulate;
mod judge;
mod raising;
mod shim;
mod wine;

use crate::drivers::{self, Machine};
use crate::progress::Progress;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result};

/// Runs it, and says in a few words what that was.
pub(super) fn check(workspace: &Workspace, progress: &Progress) -> Result<String> {
    let mut lines = 0;
    for machine in Machine::ALL {
        let drivers = drivers::prepare(workspace, progress, machine)?;
        lines += wine::run(workspace, progress, machine, &drivers).context("in Wine's driver host")?;
        let emulated = emulate::run(workspace, progress, machine, &drivers).context("in the emulator")?;
        lines += emulated.lines;
        progress.line(&format!(
            "       {}: {} instructions are executed while processors are parked for one detour, {} for two; {} bytes of a stack are used",
            machine.name(),
            emulated.parked.0,
            emulated.parked.1,
            emulated.stack
        ));
    }
    Ok(format!("{lines} lines as expected"))
}
