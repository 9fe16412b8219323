//! What a commit needs to know, and nothing else.

use crate::arch::x86::relocate::{absolute_jump, near_jump};
use crate::code::Mode;
use crate::refusal::Refusal;
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

/// Bytes of the longest jump: `jmp qword ptr [rip+0]` and an address.
pub(crate) const RELAY_ROOM: usize = 14;

/// The jump in a slot that leads to the detour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Relay {
    pub(crate) address: u64,
    /// Bytes that are its own.
    pub(crate) room: u8,
    /// Whether it has the longest form whatever it leads to.
    pub(crate) far: bool,
}

/// The jump that decides which detour a patch leads to: the relay if there is one, else the jump of the patch itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lead {
    /// Its first byte.
    pub address: u64,
    bytes: [u8; RELAY_ROOM],
    len: u8,
}

impl Lead {
    fn new(address: u64, jump: &[u8]) -> Self {
        let mut bytes = [0; RELAY_ROOM];
        for (to, from) in bytes.iter_mut().zip(jump) {
            *to = *from;
        }
        Self { address, bytes, len: u8::try_from(jump.len().min(RELAY_ROOM)).unwrap_or(0) }
    }

    /// Its bytes: a `jmp rel32`, or a `jmp qword ptr [rip+0]` and the address behind it; the `int3` of a
    /// [`Breakpoint`](Shape::Breakpoint), which leads where the host's handler says.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }
}

/// The bytes to change, the bytes expected there, and where threads that stand on them go on.
///
/// Fixed size, `Copy`, no heap: it can be kept, and committed later where nothing may be allocated. It only comes
/// from a [`Plan`](crate::Plan), which is bound to the bytes that were surveyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    pub(crate) mode: Mode,
    pub(crate) address: u64,
    pub(crate) slot: u64,
    pub(crate) detour: u64,
    /// The copy of the first displaced instruction.
    pub(crate) trampoline: u64,
    pub(crate) relay: Option<Relay>,
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
    /// Of nothing, in a plan that is not made yet.
    pub(crate) const fn none() -> Self {
        Self {
            mode: Mode::Bits64,
            address: 0,
            slot: 0,
            detour: 0,
            trampoline: 0,
            relay: None,
            cave: None,
            shape: Shape::WholeInstruction,
            displaced_len: 0,
            original: [0; MAX_DISPLACED],
            new: [0; MAX_WINDOW],
            boundary_count: 0,
            boundaries: [(0, 0); MAX_BOUNDARIES],
        }
    }

    /// Start of the window.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// The slot's first byte.
    pub const fn slot(&self) -> u64 {
        self.slot
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

    /// Address of the relay in the slot; none if the patch jumps to the detour by itself.
    pub fn relay(&self) -> Option<u64> {
        self.relay.map(|relay| relay.address)
    }

    /// The jump that leads to the detour.
    pub fn lead(&self) -> Lead {
        match (self.relay, self.shape, self.cave) {
            (Some(relay), ..) => {
                let near = near_jump(self.mode, relay.address, self.detour).filter(|_| !relay.far);
                match near {
                    Some(jump) => Lead::new(relay.address, &jump),
                    None => Lead::new(relay.address, &absolute_jump(self.detour)),
                }
            }
            (None, Shape::ShortJump, Some(cave)) => Lead::new(cave.cave.address, &cave.new),
            (None, ..) => Lead::new(self.address, self.new_bytes()),
        }
    }

    /// The same patch, leading to another detour: only the bytes of the [`lead`](Self::lead) differ.
    ///
    /// # Errors
    /// [`Refusal::OutOfReach`] if the jump has no room to lead there.
    pub fn leading_to(&self, detour: u64) -> Result<Self, Refusal> {
        let mut patch = Self { detour, ..*self };
        let beyond = |from| Refusal::OutOfReach { address: from, target: detour };
        if detour > self.mode.last_address() {
            return Err(beyond(self.address));
        }
        match (self.relay, self.shape) {
            (Some(relay), _) => {
                if patch.lead().bytes().len() > usize::from(relay.room) {
                    return Err(beyond(relay.address));
                }
            }
            (None, Shape::Breakpoint) => {}
            (None, Shape::ShortJump) => {
                if let Some(cave) = &mut patch.cave {
                    let from = cave.cave.address;
                    cave.new = near_jump(self.mode, from, detour).ok_or(beyond(from))?;
                }
            }
            (None, Shape::Jump14) => patch.new = absolute_jump(detour),
            (None, _) => {
                let jump = near_jump(self.mode, self.address, detour).ok_or(beyond(self.address))?;
                for (to, from) in patch.new.iter_mut().zip(jump) {
                    *to = from;
                }
            }
        }
        Ok(patch)
    }
}
