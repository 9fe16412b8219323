//! What a commit needs to know, and nothing else.

use crate::shape::Shape;

/// The longest window of any shape, in bytes.
pub const MAX_WINDOW: usize = 14;
/// The longest run of displaced instructions, in bytes: thirteen bytes, then one instruction of fifteen.
pub const MAX_DISPLACED: usize = MAX_WINDOW - 1 + crate::code::MAX_INSTRUCTION;
/// The most instructions that can begin inside a window.
pub(crate) const MAX_BOUNDARIES: usize = MAX_WINDOW;

/// Where a thread that stands on a boundary of the window goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// Distance of the boundary from the start of the window.
    pub offset: u8,
    /// The instruction's copy in the slot.
    pub address: u64,
}

/// Five bytes of padding that hold the long jump of a [`ShortJump`](Shape::ShortJump).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cave {
    /// The first byte.
    pub address: u64,
    /// What stands there: padding.
    pub expected: [u8; 5],
}

/// What is written into a cave, before the window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CavePatch {
    /// The cave.
    pub cave: Cave,
    /// A `jmp rel32` to the detour or its relay.
    pub new: [u8; 5],
}

/// The bytes to change, the bytes expected there, and where threads that stand on them go on.
///
/// Fixed size, `Copy`, no heap: it can be kept, and committed later where nothing may be allocated. It only comes
/// from a [`Plan`](crate::Plan), which is bound to the bytes that were surveyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    pub(crate) address: u64,
    pub(crate) detour: u64,
    /// The copy of the first displaced instruction.
    pub(crate) trampoline: u64,
    pub(crate) cave: Option<CavePatch>,
    pub(crate) shape: Shape,
    pub(crate) displaced_len: u8,
    pub(crate) original: [u8; MAX_DISPLACED],
    pub(crate) new: [u8; MAX_WINDOW],
    pub(crate) boundary_count: u8,
    /// For each boundary its distance from the window's start, and its copy's from the trampoline.
    pub(crate) boundaries: [(u8, u8); MAX_BOUNDARIES],
}

impl Patch {
    /// Start of the window.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// The patch's shape.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// All bytes of the displaced instructions as they were surveyed. The window is their beginning; the rest
    /// stays in place, but must not change either, since the trampoline holds a copy.
    pub fn original_bytes(&self) -> &[u8] {
        self.original.get(..usize::from(self.displaced_len)).unwrap_or(&self.original)
    }

    /// The bytes that the commit writes at [`address`](Self::address).
    pub fn new_bytes(&self) -> &[u8] {
        self.new.get(..self.shape.window_len()).unwrap_or(&self.new)
    }

    /// The original bytes of the window alone.
    pub fn window_bytes(&self) -> &[u8] {
        self.original.get(..self.shape.window_len()).unwrap_or(&self.original)
    }

    /// What is written into a cave, for a [`ShortJump`](Shape::ShortJump).
    pub const fn cave(&self) -> Option<CavePatch> {
        self.cave
    }

    /// What [`original_bytes`](Self::original_bytes) become once the patch is in place, with their number.
    pub fn patched_bytes(&self) -> ([u8; MAX_DISPLACED], usize) {
        let mut bytes = self.original;
        for (to, from) in bytes.iter_mut().zip(self.new_bytes()) {
            *to = *from;
        }
        (bytes, usize::from(self.displaced_len))
    }

    /// The boundaries of the window, the first of them at offset 0, each with the address of its copy.
    pub fn boundaries(&self) -> impl Iterator<Item = Resume> + '_ {
        self.boundaries
            .iter()
            .take(usize::from(self.boundary_count))
            .map(|&(offset, copy)| Resume { offset, address: self.trampoline.wrapping_add(u64::from(copy)) })
    }

    /// Where the new code goes: the detour, which is where a thread that calls the target wants to be.
    pub const fn detour(&self) -> u64 {
        self.detour
    }

    /// The copy of the first displaced instruction: where a thread goes on that wants the original.
    pub const fn trampoline(&self) -> u64 {
        self.trampoline
    }
}
