//! Errors as numbers: `enum kdetour_code` of `kdetour.h`.

use kdetour::Error;

/// Numbers of what the library does not know, but a caller from C may do.
pub const ALREADY_DETOURED: i32 = 8;
/// The same.
pub const NULL: i32 = 1;
/// Called where that is forbidden.
pub const ATOMIC: i32 = 19;
/// Called from inside what it would wait for.
pub const INSIDE: i32 = 20;
/// An argument that means nothing.
pub const ARGUMENT: i32 = 21;

/// The number of an error.
pub const fn code(error: &Error) -> i32 {
    match error {
        Error::Null | Error::NullPointer { .. } => NULL,
        Error::UnknownSymbol | Error::UnknownImage => 2,
        Error::Unreadable { .. } => 3,
        Error::NotCode { .. } => 4,
        Error::NotFunction { .. } | Error::Unbound { .. } | Error::Forwarded { .. } => 5,
        Error::Forbidden { .. } | Error::NotData { .. } => 6,
        Error::Refused(_) => 7,
        Error::AlreadyDetoured { .. } => ALREADY_DETOURED,
        Error::Changed { .. } | Error::PointerChanged { .. } => 9,
        Error::NoSlot { .. } => 10,
        Error::NotAttached => 11,
        Error::ThreadInWindow { .. } => 12,
        Error::Busy { .. } => 13,
        Error::TextBusy => 14,
        Error::OutOfMemory => 15,
        Error::Preemptible => 17,
        Error::Inside => INSIDE,
        Error::Misaligned { .. } | Error::NotImage { .. } => ARGUMENT,
        Error::OtherThreads => 23,
        Error::NotExchangeable { .. } => 24,
        Error::TrapBlocked { .. } => 25,
        Error::TrapHandler => 26,
        Error::ThreadNotReached { .. } => 27,
        Error::ShadowStack => 28,
        Error::DebugRegistersForbidden => 31,
        Error::NoDebugRegister { .. } => 32,
        Error::DebugRegistersMissing => 33,
        Error::Irql { .. } => ATOMIC,
        Error::ProcessorNotReached { .. } => 34,
        Error::PatchGuard { .. } => 35,
        Error::CodeIntegrity => 36,
        Error::SessionSpace { .. } => 37,
        Error::Discardable { .. } => 38,
        Error::Pageable { .. } => 39,
        Error::NoGracePeriod { .. } => 40,
        _ => 16,
    }
}

/// What a caller in a process gets for a code, without its sign: the errno that `kdetour.h` has beside it.
pub const fn errno(code: i32) -> i32 {
    const ENOENT: i32 = 2;
    const EIO: i32 = 5;
    const EAGAIN: i32 = 11;
    const ENOMEM: i32 = 12;
    const EFAULT: i32 = 14;
    const EBUSY: i32 = 16;
    const EEXIST: i32 = 17;
    const EINVAL: i32 = 22;
    const ENOSPC: i32 = 28;
    const EDEADLK: i32 = if cfg!(windows) { 36 } else { 35 };
    const ENOTUNIQ: i32 = 76;
    const EOPNOTSUPP: i32 = if cfg!(windows) { 130 } else { 95 };
    // Windows has none; there it is EILSEQ.
    const ESTALE: i32 = if cfg!(windows) { 42 } else { 116 };
    const EPERM: i32 = 1;
    match code {
        0 => 0,
        2 => ENOENT,
        3 => EFAULT,
        6 | 19 | 22 | 31 => EPERM,
        7 | 17 | 23 | 24 | 28 | 33 | 35..=40 => EOPNOTSUPP,
        8 => EEXIST,
        9 => ESTALE,
        10 | 32 => ENOSPC,
        12 | 14 | 27 | 34 => EAGAIN,
        13 | 25 | 26 => EBUSY,
        15 => ENOMEM,
        16 => EIO,
        18 => ENOTUNIQ,
        20 => EDEADLK,
        _ => EINVAL,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;
    use std::string::String;

    /// The header and this file must agree: an enumerator's number is looked up by the variant's name.
    #[test]
    fn the_header_has_the_same_numbers() {
        let header = include_str!("../include/kdetour.h");
        let errors = [
            ("NULL", Error::Null),
            ("UNKNOWN_SYMBOL", Error::UnknownSymbol),
            ("UNREADABLE", Error::Unreadable { address: 0 }),
            ("NOT_CODE", Error::NotCode { address: 0 }),
            ("NOT_FUNCTION", Error::NotFunction { address: 0, entry: 0 }),
            ("FORBIDDEN", Error::Forbidden { address: 0 }),
            ("REFUSED", Error::Refused(kdetour::plan::Refusal::Undecodable { address: 0 })),
            ("ALREADY_DETOURED", Error::AlreadyDetoured { target: 0 }),
            ("CHANGED", Error::Changed { address: 0, expected: 0, found: 0 }),
            ("NO_SLOT", Error::NoSlot { target: 0, needed: 0 }),
            ("NOT_ATTACHED", Error::NotAttached),
            ("THREAD_IN_WINDOW", Error::ThreadInWindow { address: 0 }),
            ("BUSY", Error::Busy { calls: 0 }),
            ("TEXT_BUSY", Error::TextBusy),
            ("OUT_OF_MEMORY", Error::OutOfMemory),
            ("HOST", Error::Host(0)),
            ("PREEMPTIBLE", Error::Preemptible),
            ("NOT_ALONE", Error::OtherThreads),
            ("INSIDE", Error::Inside),
            ("NOT_EXCHANGEABLE", Error::NotExchangeable { address: 0 }),
            ("TRAP_BLOCKED", Error::TrapBlocked { thread: 0 }),
            ("TRAP_HANDLER", Error::TrapHandler),
            ("THREAD_NOT_REACHED", Error::ThreadNotReached { thread: 0 }),
            ("SHADOW_STACK", Error::ShadowStack),
            ("NULL", Error::NullPointer { address: 0 }),
            ("UNKNOWN_SYMBOL", Error::UnknownImage),
            ("NOT_FUNCTION", Error::Unbound { address: 0 }),
            ("FORBIDDEN", Error::NotData { address: 0 }),
            ("CHANGED", Error::PointerChanged { address: 0, expected: 0, found: 0 }),
            ("ARGUMENT", Error::Misaligned { address: 0 }),
            ("ARGUMENT", Error::NotImage { address: 0 }),
            ("NOT_FUNCTION", Error::Forwarded { address: 0 }),
            ("DEBUG_REGISTERS_FORBIDDEN", Error::DebugRegistersForbidden),
            ("NO_DEBUG_REGISTER", Error::NoDebugRegister { address: 0 }),
            ("DEBUG_REGISTERS_MISSING", Error::DebugRegistersMissing),
            ("ATOMIC", Error::Irql { now: 2, most: 0 }),
            ("PROCESSOR_NOT_REACHED", Error::ProcessorNotReached { missing: 1 }),
            ("PATCH_GUARD", Error::PatchGuard { address: 0 }),
            ("CODE_INTEGRITY", Error::CodeIntegrity),
            ("SESSION_SPACE", Error::SessionSpace { address: 0 }),
            ("DISCARDABLE", Error::Discardable { address: 0 }),
            ("PAGEABLE", Error::Pageable { address: 0 }),
            ("NO_GRACE_PERIOD", Error::NoGracePeriod { address: 0 }),
        ];
        let words: String = header.split_whitespace().collect::<std::vec::Vec<_>>().join(" ");
        for (name, error) in errors {
            let enumerator = format!("KDETOUR_{name} = {}", code(&error));
            let is_there = [",", " "].iter().any(|end| words.contains(&format!("{enumerator}{end}")));
            assert!(is_there, "kdetour.h should say: {enumerator}");
        }
    }

    /// What both headers have has one number.
    #[test]
    fn the_header_for_drivers_has_the_same_numbers() {
        let enumerators = |header: &'static str| {
            header.lines().filter_map(|line| {
                let (name, rest) = line.trim().strip_prefix("KDETOUR_")?.split_once(" = ")?;
                let number = rest.split(|c: char| !c.is_ascii_digit()).next()?;
                // Else it is an assignment in a macro.
                let is_enumerator = !name.contains(' ') && !number.is_empty();
                is_enumerator.then_some((name, number))
            })
        };
        let known: std::collections::BTreeMap<_, _> =
            enumerators(include_str!("../include/kdetour.h")).collect();
        let of_drivers = enumerators(include_str!("../include/kdetour_nt.h"));
        let own = ["IPI", "DPC", "LOCAL"];
        let mut count = 0;
        for (name, number) in of_drivers.filter(|(name, _)| !own.contains(name)) {
            assert_eq!(known.get(name), Some(&number), "KDETOUR_{name}");
            count += 1;
        }
        assert!(count > 20);
    }
}
