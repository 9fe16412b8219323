//! What a DLL for Detours asks before it attaches: how it came into the process. Windows only.
//!
//! `DetourCreateProcessWithDll` of Microsoft's leaves a payload in the processes that it creates, and a list of imports that is changed, and goes
//! through a process of the other width where it has to. Nothing here creates processes, so there is neither.

use super::windows::{Bool, MOD_NOT_FOUND, set_last_error};

/// Whether this process was only started to create another one: none is.
#[unsafe(no_mangle)]
pub extern "system" fn DetourIsHelperProcess() -> Bool {
    Bool::from(false)
}

/// Gives the program the imports back that it had before a DLL was put among them. That was not done, which is no success.
#[unsafe(no_mangle)]
pub extern "system" fn DetourRestoreAfterWith() -> Bool {
    set_last_error(MOD_NOT_FOUND);
    Bool::from(false)
}
