//! Errors as `NTSTATUS`.

use kdetour::Error;

/// Of `ntstatus.h`.
mod values {
    pub(super) const INVALID_PARAMETER: u32 = 0xc000_000d;
    pub(super) const PROCEDURE_NOT_FOUND: u32 = 0xc000_007a;
    pub(super) const ACCESS_VIOLATION: u32 = 0xc000_0005;
    pub(super) const INVALID_ADDRESS: u32 = 0xc000_0141;
    pub(super) const ACCESS_DENIED: u32 = 0xc000_0022;
    pub(super) const NOT_SUPPORTED: u32 = 0xc000_00bb;
    pub(super) const ADDRESS_ALREADY_EXISTS: u32 = 0xc000_020a;
    pub(super) const REVISION_MISMATCH: u32 = 0xc000_0059;
    pub(super) const INSUFFICIENT_RESOURCES: u32 = 0xc000_009a;
    pub(super) const NOT_FOUND: u32 = 0xc000_0225;
    pub(super) const RETRY: u32 = 0xc000_022d;
    pub(super) const DEVICE_BUSY: u32 = 0x8000_0011;
    pub(super) const POSSIBLE_DEADLOCK: u32 = 0xc000_0194;
    pub(super) const INVALID_LEVEL: u32 = 0xc000_0148;
    pub(super) const IO_TIMEOUT: u32 = 0xc000_00b5;
    pub(super) const UNSUCCESSFUL: u32 = 0xc000_0001;
}

/// The `NTSTATUS` of an error. Several errors share one; which it is, is told by the error.
pub const fn status(error: &Error) -> i32 {
    let value = match error {
        Error::Null | Error::NullPointer { .. } | Error::Misaligned { .. } | Error::NotImage { .. } => {
            values::INVALID_PARAMETER
        }
        Error::UnknownSymbol | Error::UnknownImage => values::PROCEDURE_NOT_FOUND,
        Error::Unreadable { .. } => values::ACCESS_VIOLATION,
        Error::NotCode { .. }
        | Error::NotFunction { .. }
        | Error::SessionSpace { .. }
        | Error::Discardable { .. }
        | Error::Pageable { .. } => values::INVALID_ADDRESS,
        Error::Forbidden { .. } | Error::NotData { .. } | Error::PatchGuard { .. } | Error::CodeIntegrity => {
            values::ACCESS_DENIED
        }
        Error::Refused(_)
        | Error::NoGracePeriod { .. }
        | Error::OtherThreads
        | Error::ShadowStack
        | Error::DebugRegistersMissing => values::NOT_SUPPORTED,
        Error::AlreadyDetoured { .. } => values::ADDRESS_ALREADY_EXISTS,
        Error::Changed { .. } | Error::PointerChanged { .. } => values::REVISION_MISMATCH,
        Error::NoSlot { .. } | Error::OutOfMemory => values::INSUFFICIENT_RESOURCES,
        Error::NotAttached => values::NOT_FOUND,
        Error::ThreadInWindow { .. } | Error::TextBusy => values::RETRY,
        Error::Busy { .. } => values::DEVICE_BUSY,
        Error::Inside => values::POSSIBLE_DEADLOCK,
        Error::Irql { .. } => values::INVALID_LEVEL,
        Error::ProcessorNotReached { .. } => values::IO_TIMEOUT,
        // What NT itself has answered.
        Error::Host(status) if *status < 0 => return *status,
        _ => values::UNSUCCESSFUL,
    };
    value.cast_signed()
}

/// The `NTSTATUS` of what something ended with.
pub const fn status_of<T>(outcome: &Result<T, Error>) -> i32 {
    match outcome {
        Ok(_) => 0,
        Err(error) => status(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_is_a_success() {
        let errors = [
            Error::Null,
            Error::NotAttached,
            Error::OutOfMemory,
            Error::Busy { calls: 1 },
            Error::Host(0),
            Error::Host(5),
            Error::Irql { now: 2, most: 0 },
            Error::CodeIntegrity,
            Error::ProcessorNotReached { missing: 1 },
        ];
        for error in errors {
            assert!(status(&error) < 0, "{error:?}");
            assert_eq!(status_of::<()>(&Err(error)), status(&error));
        }
        assert_eq!(status_of(&Ok(())), 0);
    }
}
