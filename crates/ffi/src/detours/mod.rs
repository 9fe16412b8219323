//! `detours.h`: the calls of Microsoft Detours 4, by their names, for programs on Linux that were written for it.
//!
//! ```text
//!   transaction   begin, attach, detach, commit: one set of changes at a time
//!   state         what those calls have in common
//!   region        memory near code: where trampolines may not be, and for code of the program's own
//!   pointer       what a program's pointer to a function leads to
//!   instruction   one instruction, measured or copied
//!   modules       what is loaded, and what its tables say
//!   windows       error numbers, and the last one of each thread
//! ```
//!
//! What differs, function by function, is in docs/detours.md.

mod instruction;
mod modules;
mod pointer;
mod region;
mod state;
mod transaction;
mod windows;

pub use instruction::DetourCopyInstruction;
pub use modules::{
    DetourEnumerateExports, DetourEnumerateImports, DetourEnumerateImportsEx, DetourEnumerateModules,
    DetourFindFunction, DetourGetContainingModule, DetourGetEntryPoint, DetourGetModuleSize,
    DetourIsFunctionImported, ExportCallback, FileCallback, FunctionCallback, SlotCallback,
    kdetour_free_module, kdetour_load_module, kdetour_module_called, kdetour_module_path, kdetour_procedure,
};
pub use pointer::DetourCodeFromPointer;
pub use region::{
    DetourAllocateRegionWithinJumpBounds, DetourSetSystemRegionLowerBound, DetourSetSystemRegionUpperBound,
    kdetour_virtual_free,
};
pub use transaction::{
    DetourAttach, DetourAttachEx, DetourDetach, DetourSetIgnoreTooSmall, DetourSetRetainRegions,
    DetourTransactionAbort, DetourTransactionBegin, DetourTransactionCommit, DetourTransactionCommitEx,
    DetourUpdateThread,
};
pub use windows::{kdetour_get_last_error, kdetour_set_last_error, kdetour_thread};
