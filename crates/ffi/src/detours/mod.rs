//! `detours.h`: the calls of Microsoft Detours 4, by their names, for programs on Linux that were written for it.
//!
//! ```text
//!   transaction   begin, attach, detach, commit: one set of changes at a time
//!   pointer       what a program's pointer to a function leads to
//!   windows       error numbers, and the last one of each thread
//! ```
//!
//! What differs, function by function, is in docs/detours.md.

mod pointer;
mod transaction;
mod windows;

pub use pointer::DetourCodeFromPointer;
pub use transaction::{
    DetourAttach, DetourAttachEx, DetourDetach, DetourSetIgnoreTooSmall, DetourSetRetainRegions,
    DetourTransactionAbort, DetourTransactionBegin, DetourTransactionCommit, DetourTransactionCommitEx,
    DetourUpdateThread,
};
pub use windows::{kdetour_get_last_error, kdetour_set_last_error, kdetour_thread};
