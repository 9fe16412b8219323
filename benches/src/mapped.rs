//! A private copy of a library in this process: for hooking libraries it is a library like any other, but nothing
//! runs in it, so that whatever they do to it harms nobody.
//!
//! The loader is not used, though it would give the same text: a library's own code (malloc, memcpy) is what the
//! hooking libraries use while they patch it.

use crate::subject::Subject;
use anyhow::{Context as _, Result};
use region::{Allocation, Protection};

/// Room behind the library for kdetour's slots.
const ARENA: usize = 32 << 20;

/// The copy. It stays until the process ends.
pub(crate) struct Mapped {
    /// What to add to an address of the file.
    pub(crate) slide: u64,
    memory: Allocation,
    arena: usize,
}

impl Mapped {
    /// Copies the segments of a file, all of them readable and executable, as the loader maps text.
    pub(crate) fn new(subject: &Subject) -> Result<Self> {
        let (first, end) = subject.span();
        let first = first & !0xfff;
        let arena = usize::try_from(end.next_multiple_of(4096) - first)?;
        let mut memory = region::alloc(arena + ARENA, Protection::READ_WRITE)?;
        let slide = (memory.as_ptr::<u8>() as u64).wrapping_sub(first);
        let base: *mut u8 = memory.as_mut_ptr();
        for (address, bytes) in subject.segments() {
            let at = usize::try_from(address - first)?;
            let len = bytes.len().min(arena.saturating_sub(at));
            // SAFETY: `at + len` lies within the `arena` bytes of `memory`, which is writable and which nobody else
            // knows yet; `bytes` is the file's, elsewhere.
            unsafe { base.add(at).copy_from_nonoverlapping(bytes.as_ptr(), len) };
        }
        // SAFETY: the pages are those of `memory`; no reference into them exists.
        unsafe { region::protect(base, arena, Protection::READ_EXECUTE) }
            .context("cannot protect the copy")?;
        // SAFETY: as above, the rest of the same allocation.
        unsafe { region::protect(base.add(arena), ARENA, Protection::READ_WRITE_EXECUTE) }
            .context("cannot protect the arena")?;
        Ok(Self { slide, memory, arena })
    }

    /// The bytes from an address of the copy on, as many as are asked for and there.
    pub(crate) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        read(&self.memory, address, len)
    }

    /// First address of the room for slots.
    pub(crate) fn arena(&self) -> u64 {
        self.memory.as_ptr::<u8>() as u64 + self.arena as u64
    }

    /// One past its last address.
    pub(crate) fn arena_end(&self) -> u64 {
        self.memory.as_ptr_range::<u8>().end as u64
    }

    /// Puts a slot's bytes where they belong.
    pub(crate) fn put(&mut self, address: u64, bytes: &[u8]) {
        let from = self.arena();
        let Some(at) = address.checked_sub(from).and_then(|at| usize::try_from(at).ok()) else { return };
        if at.checked_add(bytes.len()).is_none_or(|end| end > ARENA) {
            return;
        }
        let arena = self.arena;
        let base: *mut u8 = self.memory.as_mut_ptr();
        // SAFETY: `at + len` was just seen to lie within the arena, which is writable; nobody has a reference to it.
        unsafe { base.add(arena + at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

fn read(memory: &Allocation, address: u64, len: usize) -> Vec<u8> {
    let range = memory.as_range();
    let Ok(start) = usize::try_from(address) else { return Vec::new() };
    if !range.contains(&start) {
        return Vec::new();
    }
    let len = len.min(range.end - start);
    // SAFETY: the bytes lie in `memory`, every page of which is readable; this process has no other thread.
    unsafe { foreign(start, len) }
}

/// Copies bytes that another library has allocated, up to the end of what is mapped.
pub(crate) fn read_mapped(address: u64, len: usize) -> Vec<u8> {
    let Ok(start) = usize::try_from(address) else { return Vec::new() };
    let Ok(page) = region::query(start as *const u8) else { return Vec::new() };
    if !page.is_readable() {
        return Vec::new();
    }
    let len = len.min(page.as_range().end - start);
    // SAFETY: the kernel has just said that these bytes are mapped and readable; this process has no other thread.
    unsafe { foreign(start, len) }
}

/// # Safety
/// `len` bytes from `start` on are mapped and readable, and nobody writes them meanwhile.
unsafe fn foreign(start: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: promised by the caller; `bytes` has `len` bytes of its own.
    unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(start as *const u8, len) };
    bytes
}
