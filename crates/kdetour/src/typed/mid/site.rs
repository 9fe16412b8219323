//! What the thunk has to know about one detour.

use super::arch::Registers;
use crate::typed::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};
use kdetour_plan::{MAX_WINDOW, Patch};

/// One detour inside a function. It is never moved: its address is in the stub.
#[repr(C)]
pub(super) struct Site {
    /// The detoured instruction.
    pub(super) address: u64,
    /// Bytes of an XSAVE area, as [`area`](super::state::area) says.
    pub(super) area: usize,
    /// The detour.
    pub(super) function: extern "C" fn(&mut Registers, *const ()),
    /// What the detour is called with.
    pub(super) context: *const (),
    /// Holds the address of the copy of the detoured instruction, or of the stub of an older detour of it.
    original: Cell,
    /// The displaced instructions and their copies, as far as there are any: known before the first thread can come here.
    copies: [Copy; MAX_WINDOW],
}

/// A displaced instruction.
#[derive(Default)]
struct Copy {
    original: AtomicU64,
    copy: AtomicU64,
}

// SAFETY: `context` is only given to `function`, and both are what `MidDetour` made them from: a function, or a closure
// that is `Send` and `Sync`. Everything else is atomic or never changes.
unsafe impl Sync for Site {}

impl Site {
    pub(super) fn new(
        address: u64,
        area: usize,
        function: extern "C" fn(&mut Registers, *const ()),
        context: *const (),
        original: Cell,
    ) -> Self {
        Self { address, area, function, context, original, copies: core::array::from_fn(|_| Copy::default()) }
    }

    /// Says which instructions will be displaced, before anybody comes.
    pub(super) fn displaced(&self, patch: &Patch) {
        for (place, boundary) in self.copies.iter().zip(patch.boundaries()) {
            place.copy.store(boundary.address, Ordering::Release);
            let original = patch.address().wrapping_add(u64::from(boundary.offset));
            place.original.store(original, Ordering::Release);
        }
    }

    /// Where a function goes on that wants to be at `rip`: at the copy of what is displaced, otherwise there.
    pub(super) fn resume(&self, rip: u64) -> u64 {
        if rip == self.address {
            return self.original.load(Ordering::Acquire);
        }
        let is_it = |place: &&Copy| place.original.load(Ordering::Acquire) == rip;
        self.copies.iter().find(is_it).map_or(rip, |place| place.copy.load(Ordering::Acquire))
    }
}

impl core::fmt::Debug for Site {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Site").field("address", &format_args!("{:#x}", self.address)).finish_non_exhaustive()
    }
}
