//! What a survey saw that does not forbid a detour, but that a careful caller wants to know.

use core::fmt;

/// Something about the target that a caller should know. None of them makes the plan wrong.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hazard {
    /// The function's length is unknown: branches from its later part into the window were not looked for.
    LengthUnknown,
    /// The readable bytes end before the function does: its part from `address` on was not looked at.
    NotWhollyRead {
        /// First address that was not looked at.
        address: u64,
    },
    /// The call at `address` is displaced. Its callee still sees the original return address, which lies behind
    /// the window; a processor's return predictor misses once per call, and a shadow stack would not agree.
    Call {
        /// The call instruction.
        address: u64,
        /// Where its callee returns to.
        returns_to: u64,
    },
    /// The function jumps through a register or table at `address`; where to was not followed.
    IndirectJump {
        /// The jump instruction.
        address: u64,
    },
    /// The system call at `address` is displaced: a thread can sleep with this instruction pointer.
    SystemCall {
        /// The instruction.
        address: u64,
    },
    /// The bytes at `address`, behind the window, do not decode. From here on every byte was looked at as if an
    /// instruction began there.
    Undecodable {
        /// The first such byte.
        address: u64,
    },
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::LengthUnknown => {
                f.write_str("the function's length is unknown: its later branches were not checked")
            }
            Self::NotWhollyRead { address } => {
                write!(f, "the function was not read from {address:#x} on: branches there were not checked")
            }
            Self::Call { address, returns_to } => {
                write!(f, "the call at {address:#x} is displaced; it still returns to {returns_to:#x}")
            }
            Self::IndirectJump { address } => write!(f, "indirect jump at {address:#x}, not followed"),
            Self::SystemCall { address } => write!(f, "system call displaced at {address:#x}"),
            Self::Undecodable { address } => {
                write!(f, "bytes at {address:#x} do not decode; every byte from there on was checked")
            }
        }
    }
}
