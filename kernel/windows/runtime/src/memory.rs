//! The global allocator: nonpaged pool, not executable where NT has that.
//!
//! What is allocated is listed, and [`free_all`] gives it all back before the driver goes: the decoder keeps its tables for ever, and pool
//! that a driver leaves behind is lost until the next boot.

use crate::irql::at_dispatch_level;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// `NonPagedPool`, of every NT, and `NonPagedPoolNx`, from 6.2 (Windows 8) on (wdm.h: `POOL_TYPE`).
const NON_PAGED: i32 = 0;
const NON_PAGED_NX: i32 = 512;
/// Not asked yet.
const UNKNOWN: i32 = -1;
/// What debuggers show as `KDet`.
const TAG: u32 = u32::from_le_bytes(*b"KDet");
/// What pool is aligned to (wdm.h: `MEMORY_ALLOCATION_ALIGNMENT`).
const ALIGNED: usize = 2 * size_of::<usize>();

// As wdm.h declares them.
unsafe extern "system" {
    /// Up to `DISPATCH_LEVEL`, of nonpaged pool.
    fn ExAllocatePoolWithTag(pool: i32, size: usize, tag: u32) -> *mut Block;
    fn ExFreePoolWithTag(memory: *mut Block, tag: u32);
    /// Tells the version; any IRQL.
    fn PsGetVersion(major: *mut u32, minor: *mut u32, build: *mut u32, service_pack: *mut u8) -> u8;
}

/// In front of everything that is allocated: its neighbours in the list.
#[repr(C)]
struct Block {
    next: *mut Block,
    previous: *mut Block,
}

// What is behind it is aligned as it is.
const _: () = assert!(size_of::<Block>() == ALIGNED);

/// The first of the list, and who may look at it.
struct List {
    busy: AtomicBool,
    first: UnsafeCell<*mut Block>,
}

// SAFETY: `first` and what it leads to are looked at by `List::with` alone, one after the other.
unsafe impl Sync for List {}

static LIST: List = List { busy: AtomicBool::new(false), first: UnsafeCell::new(ptr::null_mut()) };

impl List {
    /// Runs `f` with the list, at `DISPATCH_LEVEL`: whoever has it is not preempted. None above that level.
    fn with<R>(&self, f: impl FnOnce(&mut *mut Block) -> R) -> Option<R> {
        at_dispatch_level(|| {
            while self.busy.swap(true, Ordering::Acquire) {
                core::hint::spin_loop();
            }
            // SAFETY: `busy` makes this the only access; `f` allocates nothing.
            let done = f(unsafe { &mut *self.first.get() });
            self.busy.store(false, Ordering::Release);
            done
        })
    }
}

/// The pool to allocate from.
fn pool() -> i32 {
    let known = POOL.load(Ordering::Relaxed);
    if known != UNKNOWN {
        return known;
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are writable; what is null is not told.
    unsafe { PsGetVersion(&raw mut major, &raw mut minor, ptr::null_mut(), ptr::null_mut()) };
    let pool = if (major, minor) >= (6, 2) { NON_PAGED_NX } else { NON_PAGED };
    POOL.store(pool, Ordering::Relaxed);
    pool
}

static POOL: AtomicI32 = AtomicI32::new(UNKNOWN);

/// Memory behind a block of its own, aligned to [`ALIGNED`]; null if there is none, or above `DISPATCH_LEVEL`.
fn take(size: usize) -> *mut u8 {
    let Some(size) = size.checked_add(size_of::<Block>()) else { return ptr::null_mut() };
    let taken = LIST.with(|first| {
        // SAFETY: called at `DISPATCH_LEVEL`, at which it may be.
        let block = unsafe { ExAllocatePoolWithTag(pool(), size, TAG) };
        if block.is_null() {
            return ptr::null_mut();
        }
        // SAFETY: the memory is ours, and large enough for a block and what was asked for.
        unsafe { block.write(Block { next: *first, previous: ptr::null_mut() }) };
        if !first.is_null() {
            // SAFETY: what is in the list has not been freed.
            unsafe { (**first).previous = block };
        }
        *first = block;
        // SAFETY: behind the block there is what was asked for.
        unsafe { block.add(1).cast::<u8>() }
    });
    taken.unwrap_or(ptr::null_mut())
}

/// Gives it back.
///
/// # Safety
/// `memory` is what [`take`] gave, once.
unsafe fn give(memory: *mut u8) {
    // Above `DISPATCH_LEVEL` it stays until `free_all`.
    LIST.with(|first| {
        // SAFETY: by the caller's word there is a block in front.
        let block = unsafe { memory.cast::<Block>().sub(1) };
        // SAFETY: it is in the list.
        let Block { next, previous } = unsafe { block.read() };
        if previous.is_null() {
            *first = next;
        } else {
            // SAFETY: what is in the list has not been freed.
            unsafe { (*previous).next = next };
        }
        if !next.is_null() {
            // SAFETY: as above.
            unsafe { (*next).previous = previous };
        }
        // SAFETY: it came from ExAllocatePoolWithTag, and is in no list any more; the level is `DISPATCH_LEVEL`.
        unsafe { ExFreePoolWithTag(block, TAG) };
    });
}

/// Gives back all memory that was ever allocated here. Up to `DISPATCH_LEVEL`.
///
/// # Safety
/// Nothing that was allocated is used any more, not even by a destructor; nothing of kdetour is called any more: the driver is about to go.
pub unsafe fn free_all() {
    LIST.with(|first| {
        while !first.is_null() {
            let block = *first;
            // SAFETY: what is in the list has not been freed.
            *first = unsafe { (*block).next };
            // SAFETY: it came from ExAllocatePoolWithTag; by the caller's word nobody uses it.
            unsafe { ExFreePoolWithTag(block, TAG) };
        }
    });
}

/// Nonpaged pool. Above `DISPATCH_LEVEL`, where nothing may be allocated, there is none.
struct Pool;

// SAFETY: `take` gives memory of at least the size, aligned to `ALIGNED`, owned until `give`; what has to be aligned more has what it was
// given in front.
unsafe impl GlobalAlloc for Pool {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= ALIGNED {
            return take(layout.size());
        }
        let Some(size) = layout.size().checked_add(layout.align()) else { return ptr::null_mut() };
        let given = take(size);
        if given.is_null() {
            return given;
        }
        // It is aligned to `ALIGNED`, so there is room for a pointer in front of the next place that is aligned.
        let ahead = layout.align() - given.addr() % layout.align();
        // SAFETY: `ahead` is at most the alignment, by which there is more than asked for.
        let aligned = unsafe { given.add(ahead) };
        // SAFETY: `ahead` is at least `ALIGNED`: the pointer lies in what was given, and is aligned.
        unsafe { aligned.cast::<*mut u8>().sub(1).write(given) };
        aligned
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        let given = if layout.align() <= ALIGNED {
            memory
        } else {
            // SAFETY: `alloc` has put it there, for this layout.
            unsafe { memory.cast::<*mut u8>().sub(1).read() }
        };
        // SAFETY: `take` gave it, and this is called once.
        unsafe { give(given) };
    }
}

#[global_allocator]
static MEMORY: Pool = Pool;
