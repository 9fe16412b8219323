//! Memory that is given once: what is made at the start is taken from it, one piece behind the other, and when that is done, it ends.
//!
//! So a start either has all the memory that it needs, or does not begin; what is made lies close together; whoever ends gives back one
//! piece; and nothing can be allocated later, wherever one may be then.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// The memory, and how much of it is taken.
#[derive(Debug)]
pub struct Arena {
    memory: AtomicPtr<u8>,
    size: AtomicUsize,
    taken: AtomicUsize,
}

impl Arena {
    /// None.
    pub const fn none() -> Self {
        Self { memory: AtomicPtr::new(null_mut()), size: AtomicUsize::new(0), taken: AtomicUsize::new(0) }
    }

    /// From now on there is this memory.
    ///
    /// # Safety
    /// The memory is nobody else's, and stays for as long as anything that is taken from it. Nobody allocates meanwhile.
    pub unsafe fn give(&self, memory: *mut u8, size: usize) {
        self.memory.store(memory, Ordering::Relaxed);
        self.taken.store(0, Ordering::Relaxed);
        self.size.store(size, Ordering::Release);
    }

    /// From now on there is none: each allocation fails. How much was taken.
    pub fn end(&self) -> usize {
        self.size.store(0, Ordering::Release);
        self.taken.load(Ordering::Relaxed)
    }
}

// SAFETY: pieces begin where the one before ended, or behind that, and end within the memory; a piece is taken back only if it is the last.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = self.size.load(Ordering::Acquire);
        let memory = self.memory.load(Ordering::Relaxed);
        let piece = |taken: usize| {
            let start =
                memory.addr().checked_add(taken)?.checked_next_multiple_of(layout.align())? - memory.addr();
            let end = start.checked_add(layout.size())?;
            (end <= size).then_some((start, end))
        };
        let next = |taken| piece(taken).map(|(_, end)| end);
        match self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            // SAFETY: `start` is within the memory, since the piece's end is.
            Ok(taken) => piece(taken).map_or(null_mut(), |(start, _)| unsafe { memory.add(start) }),
            Err(_) => null_mut(),
        }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        let start = piece.addr().wrapping_sub(self.memory.load(Ordering::Relaxed).addr());
        // One that is not the last stays until all is given back.
        let last = start.wrapping_add(layout.size());
        self.taken.compare_exchange(last, start, Ordering::Relaxed, Ordering::Relaxed).ok();
    }
}
