//! Windows' words: error numbers, and what they are here.

pub(super) use super::host::set_last_error;
use kdetour::Error;

/// `LONG`: 32 bits, on every platform.
pub(super) type Long = i32;
/// `BOOL`.
pub(super) type Bool = i32;

pub(super) const NO_ERROR: Long = 0;
pub(super) const ACCESS_DENIED: Long = 5;
pub(super) const INVALID_HANDLE: Long = 6;
pub(super) const NOT_ENOUGH_MEMORY: Long = 8;
pub(super) const INVALID_BLOCK: Long = 9;
pub(super) const INVALID_DATA: Long = 13;
pub(super) const GEN_FAILURE: Long = 31;
pub(super) const NOT_SUPPORTED: Long = 50;
pub(super) const INVALID_PARAMETER: Long = 87;
#[cfg(not(windows))]
pub(super) const INSUFFICIENT_BUFFER: Long = 122;
pub(super) const MOD_NOT_FOUND: Long = 126;
#[cfg(not(windows))]
pub(super) const PROC_NOT_FOUND: Long = 127;
pub(super) const BUSY: Long = 170;
pub(super) const ALREADY_EXISTS: Long = 183;
pub(super) const INVALID_EXE_SIGNATURE: Long = 191;
pub(super) const EXE_MARKED_INVALID: Long = 192;
pub(super) const BAD_EXE_FORMAT: Long = 193;
pub(super) const INVALID_ADDRESS: Long = 487;
pub(super) const POSSIBLE_DEADLOCK: Long = 1131;
pub(super) const TIMEOUT: Long = 1460;
pub(super) const DYNAMIC_CODE_BLOCKED: Long = 1655;
pub(super) const INVALID_OPERATION: Long = 4317;

/// The number that a program for Detours knows best for this.
pub(super) const fn number(error: &Error) -> Long {
    match error {
        // "Too small to be detoured", which is all that Detours knows of functions that cannot be.
        Error::Refused(_) | Error::NotFunction { .. } | Error::NotAttached => INVALID_BLOCK,
        Error::NoSlot { .. } | Error::OutOfMemory => NOT_ENOUGH_MEMORY,
        Error::Changed { .. } => INVALID_DATA,
        Error::Unreadable { .. } | Error::NotCode { .. } => INVALID_ADDRESS,
        Error::Null | Error::UnknownSymbol => INVALID_PARAMETER,
        Error::Forbidden { .. } => ACCESS_DENIED,
        Error::AlreadyDetoured { .. } => ALREADY_EXISTS,
        Error::ThreadInWindow { .. }
        | Error::Busy { .. }
        | Error::TrapBlocked { .. }
        | Error::TrapHandler => BUSY,
        Error::ThreadNotReached { .. } => TIMEOUT,
        Error::TextBusy | Error::Inside => POSSIBLE_DEADLOCK,
        Error::NotExchangeable { .. } | Error::ShadowStack | Error::OtherThreads | Error::Preemptible => {
            NOT_SUPPORTED
        }
        // As Windows says it, in a process that has forbidden itself code that is made meanwhile.
        Error::Host(DYNAMIC_CODE_BLOCKED) => DYNAMIC_CODE_BLOCKED,
        _ => GEN_FAILURE,
    }
}

/// Leaves what an outcome says as the last error, and answers whether it is a success.
pub(super) fn answer(outcome: Result<(), Long>) -> Bool {
    set_last_error(outcome.err().unwrap_or(NO_ERROR));
    Bool::from(outcome.is_ok())
}
