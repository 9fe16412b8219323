//! Why a target cannot be detoured.

use crate::code::Owner;
use core::fmt;

/// Why a target cannot be detoured. Nothing has been written when this is returned.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Only `have` bytes from `address` on can be read, and the window needs more.
    Truncated {
        /// Where the readable bytes begin.
        address: u64,
        /// How many there are.
        have: usize,
    },
    /// The bytes at `address` are no instruction.
    Undecodable {
        /// The first byte that does not decode.
        address: u64,
    },
    /// The function ends after `len` bytes and what follows is not proven padding.
    TooShort {
        /// Start of the window.
        target: u64,
        /// Bytes from there to the function's end.
        len: usize,
        /// Bytes that the window needs.
        needed: usize,
    },
    /// `from` jumps to `into`, inside the bytes that the patch would overwrite.
    BranchIntoWindow {
        /// The jump, or what takes the address of a label; equal to `into` where only the target is known.
        from: u64,
        /// Where it lands.
        into: u64,
    },
    /// `from` jumps back to `start`, the window's first byte: each time it would enter the detour again.
    BranchToStart {
        /// The jump; equal to `start` where only the target is known.
        from: u64,
        /// The window's start.
        start: u64,
    },
    /// The indirect call at `call` returns to `returns_to`, strictly inside the window, and no grace period ends
    /// such a call.
    ReturnIntoWindow {
        /// The call instruction.
        call: u64,
        /// Its return address.
        returns_to: u64,
    },
    /// There is a breakpoint at `address`: a debugger or a kprobe owns it.
    Breakpoint {
        /// Where the INT3 is.
        address: u64,
    },
    /// The entry already jumps out of its image: another hook is there.
    Foreign {
        /// The jump.
        address: u64,
        /// Where it goes.
        to: u64,
    },
    /// Bytes that would be displaced belong to somebody else.
    Reserved {
        /// The bytes.
        address: u64,
        /// Whose they are.
        owner: Owner,
    },
    /// The context names an ftrace site at `address`, but the bytes there, or between the entry and it, are not
    /// what such a site looks like.
    NotFentry {
        /// The address named by the context.
        address: u64,
    },
    /// An instruction that cannot be moved.
    Unsupported {
        /// The instruction.
        address: u64,
        /// Why not.
        why: Unsupported,
    },
    /// `address` is no place where an instruction begins: read from the function's entry on, it is inside the one at
    /// `instruction`.
    NotBoundary {
        /// The address that was given.
        address: u64,
        /// The instruction that it is inside of.
        instruction: u64,
    },
    /// Where the computed jump at `address` leads is not known: it could be into the window, of which every shape
    /// that was asked for would change a boundary.
    ComputedJump {
        /// The jump.
        address: u64,
    },
    /// What `address` refers to is more than 2 GiB away from where it would be moved. A nearer slot would do.
    OutOfReach {
        /// The instruction, or the window for the patch itself.
        address: u64,
        /// What it refers to.
        target: u64,
    },
    /// The slot lies on the function itself or on the cave, or the detour in the slot.
    SlotOverlaps {
        /// The slot.
        address: u64,
    },
    /// The shape allows no instruction to begin inside the window, and one does at `address`.
    InteriorBoundary {
        /// The second displaced instruction.
        address: u64,
    },
    /// No instruction begins inside the window: the same jump is a `WholeInstruction`.
    NoInterior {
        /// Start of the window.
        address: u64,
    },
    /// The detour lies on the bytes that the patch overwrites, or on the landing pad in front of them.
    DetourInWindow {
        /// The detour.
        detour: u64,
    },
    /// None of the shapes asked for is one that is written here: none was asked for, or the protocol writes none of them, or
    /// the function has become another one and the old shape does not serve.
    NoShape {
        /// Start of the window.
        address: u64,
    },
    /// No five bytes of proven padding are within reach of a short jump.
    NoCave {
        /// Start of the window.
        address: u64,
    },
    /// The shape does not exist in the code's mode.
    NotInMode {
        /// Start of the window.
        address: u64,
    },
    /// The allocator has no slot for any of the shapes.
    NoSlot {
        /// Start of the window.
        address: u64,
    },
    /// The slot is too small.
    SlotTooSmall {
        /// Bytes needed.
        needed: usize,
        /// Bytes that the slot has.
        capacity: usize,
    },
}

/// Why an instruction cannot be moved.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// A near branch or call with an operand-size prefix: processors of AMD and Intel disagree about it.
    OperandSize16,
    /// An EIP-relative operand (address-size prefix in 64-bit code).
    EipRelative,
    /// An indirect call through the stack pointer, which the emulated push would change, or through memory after an
    /// instruction that copies the stack pointer: the push could overwrite the pointer. With
    /// [`Returns::Slot`](crate::Returns::Slot) there is no such push.
    CallThroughStackPointer,
    /// A far call or jump.
    FarTransfer,
    /// The instruction reads or writes the bytes of the window itself.
    TouchesWindow,
    /// An instruction that always traps (`ud2`): its handler knows it by its address.
    Trap,
    /// `sti` or a load of SS as the last displaced instruction: the next one, which stays where it is, must run
    /// before any interrupt does.
    InterruptShadow,
}

impl Unsupported {
    /// In plain words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::OperandSize16 => "a near branch with an operand-size prefix",
            Self::EipRelative => "an EIP-relative operand",
            Self::CallThroughStackPointer => "an indirect call through the stack pointer",
            Self::FarTransfer => "a far call or jump",
            Self::TouchesWindow => "an operand inside the window itself",
            Self::Trap => "a trap, which its handler knows by its address",
            Self::InterruptShadow => "it must not be parted from the next one",
        }
    }
}

impl Owner {
    /// In plain words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::ExceptionTable => "the exception table",
            Self::JumpLabel => "a jump label",
            Self::StaticCall => "a static call",
            Self::Alternative => "the alternatives",
            Self::Ftrace => "ftrace",
            Self::BugTable => "the bug table",
            Self::Kprobe => "a kprobe; remove it first",
        }
    }
}

impl Refusal {
    /// The address that the refusal is about.
    pub const fn address(&self) -> u64 {
        match *self {
            Self::Truncated { address, .. }
            | Self::Undecodable { address }
            | Self::Breakpoint { address }
            | Self::Foreign { address, .. }
            | Self::Reserved { address, .. }
            | Self::NotFentry { address }
            | Self::NotBoundary { address, .. }
            | Self::ComputedJump { address }
            | Self::Unsupported { address, .. }
            | Self::OutOfReach { address, .. }
            | Self::InteriorBoundary { address }
            | Self::NoInterior { address }
            | Self::NoCave { address }
            | Self::NotInMode { address }
            | Self::NoSlot { address }
            | Self::NoShape { address }
            | Self::SlotOverlaps { address } => address,
            Self::TooShort { target, .. } => target,
            Self::BranchIntoWindow { into, .. } => into,
            Self::BranchToStart { start, .. } => start,
            Self::DetourInWindow { detour } => detour,
            Self::ReturnIntoWindow { call, .. } => call,
            Self::SlotTooSmall { .. } => 0,
        }
    }

    /// The refusal's name, as in the documentation.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Truncated { .. } => "Truncated",
            Self::Undecodable { .. } => "Undecodable",
            Self::TooShort { .. } => "TooShort",
            Self::BranchIntoWindow { .. } => "BranchIntoWindow",
            Self::BranchToStart { .. } => "BranchToStart",
            Self::ReturnIntoWindow { .. } => "ReturnIntoWindow",
            Self::InteriorBoundary { .. } => "InteriorBoundary",
            Self::NoInterior { .. } => "NoInterior",
            Self::DetourInWindow { .. } => "DetourInWindow",
            Self::NoShape { .. } => "NoShape",
            Self::NoCave { .. } => "NoCave",
            Self::NotInMode { .. } => "NotInMode",
            Self::NoSlot { .. } => "NoSlot",
            Self::Breakpoint { .. } => "Breakpoint",
            Self::Foreign { .. } => "Foreign",
            Self::Reserved { .. } => "Reserved",
            Self::NotFentry { .. } => "NotFentry",
            Self::NotBoundary { .. } => "NotBoundary",
            Self::ComputedJump { .. } => "ComputedJump",
            Self::Unsupported { .. } => "Unsupported",
            Self::OutOfReach { .. } => "OutOfReach",
            Self::SlotOverlaps { .. } => "SlotOverlaps",
            Self::SlotTooSmall { .. } => "SlotTooSmall",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated { address, have } => {
                write!(f, "only {have} bytes can be read at {address:#x}, fewer than the window needs")
            }
            Self::Undecodable { address } => write!(f, "the bytes at {address:#x} are no instruction"),
            Self::TooShort { target, len, needed } => write!(
                f,
                "the function at {target:#x} ends after {len} of {needed} bytes and what follows is not proven padding"
            ),
            Self::BranchIntoWindow { from, into } if from == into => {
                write!(f, "other code jumps to {into:#x}, inside the window; detour a caller instead")
            }
            Self::BranchIntoWindow { from, into } => {
                write!(f, "{from:#x} jumps to {into:#x}, inside the window; detour a caller instead")
            }
            Self::BranchToStart { from, start } if from == start => {
                write!(
                    f,
                    "other code jumps to {start:#x}, the window's start: it would enter the detour again"
                )
            }
            Self::BranchToStart { from, start } => {
                write!(
                    f,
                    "{from:#x} jumps back to {start:#x}, the window's start: it would enter the detour again"
                )
            }
            Self::InteriorBoundary { address } => {
                write!(f, "an instruction begins inside the window, at {address:#x}")
            }
            Self::NoInterior { .. } => f.write_str("no instruction begins inside the window"),
            Self::NoCave { address } => {
                write!(f, "no five bytes of proven padding are within reach of a short jump at {address:#x}")
            }
            Self::DetourInWindow { detour } => {
                write!(f, "the detour at {detour:#x} lies on the bytes that the patch overwrites")
            }
            Self::NoShape { .. } => {
                f.write_str("none of the shapes asked for is written by this protocol: ask for others, or commit by another one")
            },
            Self::NotInMode { .. } => f.write_str("the shape does not exist in this mode"),
            Self::NoSlot { address } => write!(f, "no memory for a slot within reach of {address:#x}"),
            Self::ReturnIntoWindow { call, returns_to } => {
                write!(f, "the call at {call:#x} returns to {returns_to:#x}, inside the window")
            }
            Self::Breakpoint { address } => {
                write!(f, "a breakpoint is at {address:#x}: remove the kprobe or debugger first")
            }
            Self::Foreign { address, to } => {
                write!(f, "{address:#x} already jumps to {to:#x}, out of its image: another hook owns it")
            }
            Self::Reserved { address, owner } => {
                write!(f, "the code at {address:#x} belongs to {}", owner.text())
            }
            Self::NotFentry { address } => write!(f, "no ftrace site is at {address:#x}"),
            Self::NotBoundary { address, instruction } => {
                write!(f, "{address:#x} is inside the instruction at {instruction:#x}, not the start of one")
            }
            Self::ComputedJump { address } => write!(
                f,
                "where the computed jump at {address:#x} leads is not known, and it could be into the window"
            ),
            Self::Unsupported { address, why } => {
                write!(f, "the instruction at {address:#x} cannot be moved: {}", why.text())
            }
            Self::OutOfReach { address, target } => {
                write!(
                    f,
                    "{address:#x} refers to {target:#x}, more than 2 GiB from the slot; use a nearer slot"
                )
            }
            Self::SlotOverlaps { address } => {
                write!(f, "the slot at {address:#x} lies on the function that is detoured, or on the detour")
            }
            Self::SlotTooSmall { needed, capacity } => {
                write!(f, "the trampoline needs {needed} bytes and the slot has {capacity}")
            }
        }
    }
}

impl core::error::Error for Refusal {}
