//! Errors as numbers: `enum kdetour_code` of `kdetour.h`.

use kdetour::Error;

/// The number of an error.
pub const fn code(error: &Error) -> i32 {
    match error {
        Error::Null => 1,
        Error::UnknownSymbol => 2,
        Error::Unreadable { .. } => 3,
        Error::NotCode { .. } => 4,
        Error::NotFunction { .. } => 5,
        Error::Forbidden { .. } => 6,
        Error::Refused(_) => 7,
        Error::AlreadyDetoured { .. } => 8,
        Error::Changed { .. } => 9,
        Error::NoSlot { .. } => 10,
        Error::NotAttached => 11,
        Error::ThreadInWindow { .. } => 12,
        Error::Busy { .. } => 13,
        Error::TextBusy => 14,
        Error::OutOfMemory => 15,
        Error::Preemptible => 17,
        Error::OtherThreads => 23,
        _ => 16,
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
        ];
        let words: String = header.split_whitespace().collect::<std::vec::Vec<_>>().join(" ");
        for (name, error) in errors {
            let enumerator = format!("KDETOUR_{name} = {},", code(&error));
            assert!(words.contains(&enumerator), "kdetour.h should say: {enumerator}");
        }
    }
}
