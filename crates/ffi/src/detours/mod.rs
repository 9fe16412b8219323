//! `detours.h`: the calls of Microsoft Detours 4, by their names, for programs that were written for it.
//!
//! ```text
//!   transaction   begin, attach, detach, commit: one set of changes at a time
//!   state         what those calls have in common
//!   region        memory near code: where trampolines may not be, and for code of the program's own
//!   pointer       what a program's pointer to a function leads to
//!   instruction   one instruction, measured or copied
//!   modules       what is loaded, and what its tables say
//!   with          how a DLL came into the process, on Windows
//!   windows       error numbers, and what they are here
//!   host          what the system does for them
//! ```
//!
//! What differs, function by function, is in docs/detours.md.

mod host;
mod instruction;
mod modules;
mod pointer;
mod region;
mod state;
mod transaction;
mod windows;
#[cfg(windows)]
mod with;

#[cfg(not(windows))]
pub use host::{kdetour_get_last_error, kdetour_set_last_error, kdetour_thread};
pub use instruction::DetourCopyInstruction;
#[cfg(windows)]
pub(crate) use modules::imported_from;
pub use modules::{
    DetourEnumerateExports, DetourEnumerateImports, DetourEnumerateImportsEx, DetourEnumerateModules,
    DetourFindFunction, DetourGetContainingModule, DetourGetEntryPoint, DetourGetModuleSize,
    DetourIsFunctionImported, ExportCallback, FileCallback, FunctionCallback, SlotCallback,
};
#[cfg(not(windows))]
pub use modules::{
    kdetour_free_module, kdetour_load_module, kdetour_module_called, kdetour_module_path, kdetour_procedure,
};
pub use pointer::DetourCodeFromPointer;
#[cfg(not(windows))]
pub use region::kdetour_virtual_free;
pub use region::{
    DetourAllocateRegionWithinJumpBounds, DetourSetSystemRegionLowerBound, DetourSetSystemRegionUpperBound,
};
pub use transaction::{
    DetourAttach, DetourAttachEx, DetourDetach, DetourSetIgnoreTooSmall, DetourSetRetainRegions,
    DetourTransactionAbort, DetourTransactionBegin, DetourTransactionCommit, DetourTransactionCommitEx,
    DetourUpdateThread,
};
#[cfg(windows)]
pub use with::{DetourIsHelperProcess, DetourRestoreAfterWith};
