//! What a survey saw that does not forbid a detour, but that a careful caller wants to know.

use crate::code::Owner;
use core::fmt;

/// Something about the target that a caller should know. Where the function was not seen whole, or a jump was not
/// followed, a branch into the window may have been missed; the others do not make a plan wrong.
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
    /// The call at `address` is displaced and stays a call, as [`Returns::Slot`](crate::Returns::Slot) asked: its
    /// callee returns into the slot, which must not be freed while one sleeps there.
    ReturnsToSlot {
        /// The call instruction.
        address: u64,
    },
    /// The displaced branch at `address` goes back to the window's start. Its copy stays in the slot; but a thread
    /// that is in that loop while the patch is written enters the detour once, with the loop's registers.
    LoopToStart {
        /// The branch.
        address: u64,
    },
    /// The function jumps through a register or table at `address`; where to was not followed.
    IndirectJump {
        /// The jump instruction.
        address: u64,
    },
    /// The system call at `address` is displaced: a thread can sleep in the slot, and `syscall` leaves an address of
    /// the slot in RCX.
    SystemCall {
        /// The instruction.
        address: u64,
    },
    /// The x87 instruction at `address` is displaced. Whoever asks the processor where its last x87 instruction was
    /// (`fnstenv`, `fnsave`, `fxsave`) is told an address in the slot.
    X87 {
        /// The instruction.
        address: u64,
    },
    /// The displaced bytes at `address` are rewritten before the image runs: the plan is for the bytes as they are,
    /// and a commit would refuse it for the others.
    Rewritten {
        /// Where they begin.
        address: u64,
        /// Who rewrites them.
        owner: Owner,
    },
    /// The bytes at `address`, behind the window, do not decode. From here on every byte was looked at as if an
    /// instruction began there.
    Undecodable {
        /// The first such byte.
        address: u64,
    },
}

impl Hazard {
    /// The hazard's name, as in the documentation.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::LengthUnknown => "LengthUnknown",
            Self::NotWhollyRead { .. } => "NotWhollyRead",
            Self::Call { .. } => "Call",
            Self::ReturnsToSlot { .. } => "ReturnsToSlot",
            Self::LoopToStart { .. } => "LoopToStart",
            Self::IndirectJump { .. } => "IndirectJump",
            Self::SystemCall { .. } => "SystemCall",
            Self::X87 { .. } => "X87",
            Self::Rewritten { .. } => "Rewritten",
            Self::Undecodable { .. } => "Undecodable",
        }
    }

    /// The address that it is about.
    pub const fn address(&self) -> Option<u64> {
        match *self {
            Self::LengthUnknown => None,
            Self::NotWhollyRead { address }
            | Self::Call { address, .. }
            | Self::ReturnsToSlot { address }
            | Self::LoopToStart { address }
            | Self::IndirectJump { address }
            | Self::SystemCall { address }
            | Self::X87 { address }
            | Self::Rewritten { address, .. }
            | Self::Undecodable { address } => Some(address),
        }
    }
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
            Self::ReturnsToSlot { address } => {
                write!(f, "the call at {address:#x} is displaced; its callee returns into the slot")
            }
            Self::LoopToStart { address } => {
                write!(
                    f,
                    "the branch at {address:#x} loops to the window's start; who is in the loop meets the detour once"
                )
            }
            Self::IndirectJump { address } => write!(f, "indirect jump at {address:#x}, not followed"),
            Self::Rewritten { address, owner } => {
                write!(f, "the code at {address:#x} is rewritten by {} before it runs", owner.text())
            }
            Self::X87 { address } => {
                write!(
                    f,
                    "x87 instruction displaced at {address:#x}; `fnstenv` would tell its copy's address"
                )
            }
            Self::SystemCall { address } => write!(f, "system call displaced at {address:#x}"),
            Self::Undecodable { address } => {
                write!(f, "bytes at {address:#x} do not decode; every byte from there on was checked")
            }
        }
    }
}
