//! One page of text is written while nobody can run in it.
//!
//! Windows has no second mapping of an image's pages, and `WriteProcessMemory` makes the page writable and executable for a moment. So the page
//! is made writable and *not* executable, written, and made what it was. At no time is it both.
//!
//! ```text
//!   writer                                       a thread that comes to the page meanwhile
//!   FIRST, END = the page
//!   NtProtectVirtualMemory: read, write          faults: EXCEPTION_ACCESS_VIOLATION, 8 (execute)
//!   the bytes                                    the vectored handler waits as long as FIRST..END holds the address
//!   NtProtectVirtualMemory: what it was
//!   FIRST = none                                 and goes on where it was
//! ```
//!
//! While the page cannot be executed neither the writer may run in it, nor whoever waits. So the few instructions of both are in a page of
//! their own, written in assembler ([`arch`]), and what they call is in `ntdll.dll`. These pages are not patched at all
//! ([`guarded`](super::guarded)). The rest of kdetour may be in the page that is written: a handler of another thread that goes on there
//! faults once more, and waits in that page of its own.
//!
//! | where | what holds |
//! |---|---|
//! | 64-bit processes, 32-bit ones with DEP | no page is writable and executable at any time |
//! | 32-bit processes without DEP | every page that can be read can be executed: nobody faults, nobody waits, and the order of the writes is what protects, as everywhere |
//! | processes that forbid dynamic code | nothing is written: [`Error::Host`] with `ERROR_DYNAMIC_CODE_BLOCKED` when the host is made |

use super::arch;
use super::nt::Nt;
use crate::Error;
use crate::address::narrow;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// The smallest page.
pub(super) const PAGE: u64 = 4096;

/// `PAGE_READWRITE` (winnt.h).
const READ_WRITE: u32 = 0x04;

/// The first byte of the page that is being written; the highest address if none is. Read by the handler's assembler.
pub(super) static FIRST: AtomicUsize = AtomicUsize::new(usize::MAX);
/// One past its last byte.
pub(super) static END: AtomicUsize = AtomicUsize::new(0);
/// The thread that writes, or is about to; 0 if none is.
pub(super) static WRITER: AtomicU32 = AtomicU32::new(0);
/// Where the function is that lets others run.
pub(super) static YIELD: AtomicUsize = AtomicUsize::new(0);
/// How many pages have been written: a fault may be told of when its page is what it was again.
static TURNS: AtomicUsize = AtomicUsize::new(0);

/// Bytes to write.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    /// Where to.
    pub(super) to: usize,
    /// Where they are.
    pub(super) from: *const u8,
    /// How many.
    pub(super) len: usize,
}

/// What the assembler is told.
#[repr(C)]
pub(super) struct Job {
    /// `NtProtectVirtualMemory`.
    pub(super) protect: usize,
    /// The page; the kernel rounds these two.
    pub(super) base: usize,
    /// How long it is.
    pub(super) size: usize,
    /// The writes.
    pub(super) writes: *const Write,
    /// How many.
    pub(super) count: usize,
    /// The protection for the moment.
    pub(super) writable: u32,
    /// The one before, which comes back.
    pub(super) old: u32,
    /// What else is said with that.
    pub(super) flags: u32,
    /// What was for the moment, as the kernel tells.
    pub(super) spare: u32,
}

/// One who writes at a time. A thread that has it may take it once more.
#[derive(Debug)]
pub(super) struct Turn {
    nested: bool,
}

impl Turn {
    /// Waits for it.
    pub(super) fn take(nt: &Nt) -> Self {
        let me = arch::thread();
        if WRITER.load(Ordering::Relaxed) == me {
            return Self { nested: true };
        }
        while WRITER.compare_exchange_weak(0, me, Ordering::Acquire, Ordering::Relaxed).is_err() {
            nt.pause(100);
        }
        Self { nested: false }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.nested {
            WRITER.store(0, Ordering::Release);
        }
    }
}

/// Tells the handler how to let others run.
pub(super) fn prepare(nt: &Nt) {
    YIELD.store(nt.yield_address(), Ordering::SeqCst);
}

/// Writes bytes of one page. `flags` are said together with its old protection.
///
/// # Safety
/// The writes lie in the page, and are text of this process whose change is the caller's intent; each has so many bytes to be read, and
/// these are not in the page. The handler is installed.
///
/// # Errors
/// [`Error::Host`] if the kernel refuses.
pub(super) unsafe fn write_page(nt: &Nt, page: u64, writes: &[Write], flags: u32) -> Result<(), Error> {
    let base = narrow(page);
    let mut job = Job {
        protect: nt.protect_address(),
        base,
        size: PAGE as usize,
        writes: writes.as_ptr(),
        count: writes.len(),
        writable: READ_WRITE,
        old: 0,
        flags,
        spare: 0,
    };
    let turn = Turn::take(nt);
    // Whoever reads `FIRST` first sees the end that belongs to it.
    END.store(base.saturating_add(PAGE as usize), Ordering::SeqCst);
    FIRST.store(base, Ordering::SeqCst);
    // SAFETY: the job is complete; its page and its writes are as the caller says; who comes to the page waits in the handler.
    let status = unsafe { arch::write(&raw mut job) };
    TURNS.fetch_add(1, Ordering::SeqCst);
    FIRST.store(usize::MAX, Ordering::SeqCst);
    drop(turn);
    if status < 0 { Err(Error::Host(status)) } else { Ok(()) }
}

/// Whether a thread that could not execute at this address is to try again: the page is being written by another thread, or was when
/// the thread came there. Waits as long as it is being written.
pub(super) fn was_written(nt: &Nt, address: u64) -> bool {
    let within = || {
        let (first, address) = (FIRST.load(Ordering::SeqCst), narrow(address));
        first <= address && address < END.load(Ordering::SeqCst)
    };
    loop {
        let turns = TURNS.load(Ordering::SeqCst);
        if within() {
            if WRITER.load(Ordering::SeqCst) == arch::thread() {
                return false;
            }
            nt.pause(0);
            continue;
        }
        if nt.query(address).is_some_and(|found| super::regions::is_executable(found.Protect)) {
            return true;
        }
        // If somebody wrote there meanwhile, what was found was of that.
        if TURNS.load(Ordering::SeqCst) == turns && !within() {
            return false;
        }
    }
}
