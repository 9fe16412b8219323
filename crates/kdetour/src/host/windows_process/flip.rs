//! Pages of text are written while nobody can run in them.
//!
//! Windows has no second mapping of an image's pages, and `WriteProcessMemory` makes the page writable and executable for a moment. So a page
//! is made writable and *not* executable, written, and made what it was. At no time is it both.
//!
//! ```text
//!   writer                                       a thread that comes to one of the pages meanwhile
//!   FIRST, END = from the first page to the last
//!   NtProtectVirtualMemory: read, write; each    faults: EXCEPTION_ACCESS_VIOLATION, 8 (execute)
//!   the bytes                                    the vectored handler waits as long as FIRST..END holds the address
//!   NtProtectVirtualMemory: what it was; each
//!   FIRST = none                                 and goes on where it was
//! ```
//!
//! What is written at once, in however many pages, is all old or all new to whoever runs there: nothing is written before no page can be
//! executed any more, and none can be again before everything is written. A page that lies between those that are written stays as it is; who
//! faults in it for another reason waits, too, and is told of his fault when he faults once more.
//!
//! While a page cannot be executed neither the writer may run in it, nor whoever waits. So the few instructions of both are in a page of
//! their own, written in assembler ([`arch`]), and what they call is in `ntdll.dll`. These pages are not patched at all
//! ([`guarded`](super::guarded)). The rest of kdetour may be in the page that is written: a handler of another thread that goes on there
//! faults once more, and waits in that page of its own.
//!
//! A thread may be ended while it writes: by `TerminateThread`, or by another one that ends the process, which ends all others first and then
//! runs what libraries do at the end. Nobody would come to those pages any more without waiting for ever. So whoever waits asks now and then whether
//! the writer has ended, and finishes what it has begun: all that it needs to know is kept where it stays, and writing the same once more is
//! the same. Threads that were suspended by one that has ended stay suspended.
//!
//! | where | what holds |
//! |---|---|
//! | 64-bit processes, 32-bit ones with DEP | no page is writable and executable at any time |
//! | 32-bit processes without DEP | every page that can be read can be executed: nobody faults, nobody waits, and the order of the writes is what protects, as everywhere |
//! | processes that forbid dynamic code | nothing is written: [`Error::Host`] with `ERROR_DYNAMIC_CODE_BLOCKED` when the host is made |

use super::nt::{Nt, Status};
use super::{PAGE, arch};
use crate::Error;
use crate::address::{narrow, widen};
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// How often a page is made executable again before it is given up, with a yield in between. Memory that is missing may come back.
const TRIES: u32 = 1000;

/// `STATUS_BUFFER_TOO_SMALL` (ntstatus.h).
const TOO_LONG: Status = 0xc000_0023_u32.cast_signed();

/// `PAGE_READWRITE` (winnt.h).
const READ_WRITE: u32 = 0x04;

/// The first byte of the pages that are being written; the highest address if none is. Read by the handler's assembler.
pub(super) static FIRST: AtomicUsize = AtomicUsize::new(usize::MAX);
/// One past their last byte.
pub(super) static END: AtomicUsize = AtomicUsize::new(0);
/// The thread that writes, or is about to; 0 if none is.
pub(super) static WRITER: AtomicU32 = AtomicU32::new(0);
/// Where the function is that lets others run.
pub(super) static YIELD: AtomicUsize = AtomicUsize::new(0);
/// Where the functions are that tell whether the writer has ended, and have copies of kdetour take turns.
pub(super) static OPEN: AtomicUsize = AtomicUsize::new(0);
pub(super) static CLOSE: AtomicUsize = AtomicUsize::new(0);
pub(super) static WAIT: AtomicUsize = AtomicUsize::new(0);
pub(super) static RELEASE: AtomicUsize = AtomicUsize::new(0);
/// What those take turns by; 0 if there is nothing.
pub(super) static MUTEX: AtomicUsize = AtomicUsize::new(0);
/// `OBJECT_ATTRIBUTES` (ntdef.h) that say nothing but how long they are.
pub(super) static OBJECT: [usize; 6] = [6 * size_of::<usize>(), 0, 0, 0, 0, 0];
/// How often pages have been written: a fault may be told of when its page is what it was again.
pub(super) static TURNS: AtomicUsize = AtomicUsize::new(0);

/// What belongs to whoever has his turn.
#[repr(transparent)]
pub(super) struct Own<T>(UnsafeCell<T>);

// SAFETY: one thread at a time has its turn, or finishes what one that has ended has begun.
unsafe impl<T> Sync for Own<T> {}

/// What is being written.
pub(super) static JOB: Own<Job> = Own(UnsafeCell::new(Job {
    protect: 0,
    pages: ptr::null_mut(),
    page_count: 0,
    writes: ptr::null(),
    count: 0,
    writable: READ_WRITE,
    flags: 0,
    spare: 0,
    tries: 0,
    written: 0,
}));

/// How many writes of one page are made at a time.
pub(super) const BATCH: usize = 16;

/// One page, and what is written there.
struct Draft {
    page: Page,
    writes: [Write; BATCH],
    bytes: [u8; PAGE as usize],
}

static DRAFT: Own<Draft> = Own(UnsafeCell::new(Draft {
    page: Page { base: 0, size: 0, old: 0 },
    writes: [Write { to: 0, from: ptr::null(), len: 0 }; BATCH],
    bytes: [0; PAGE as usize],
}));

/// Whose number is not given out again, and the handle by which.
static PINNED: AtomicU32 = AtomicU32::new(0);
static PIN: AtomicUsize = AtomicUsize::new(0);

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

/// A page that is written.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    /// Its first byte; the kernel rounds these two.
    pub(super) base: usize,
    /// How long it is.
    pub(super) size: usize,
    /// Its protection before, which comes back.
    pub(super) old: u32,
}

impl Page {
    /// The page that begins at an address.
    pub(super) fn at(address: u64) -> Self {
        Self { base: narrow(address), size: PAGE as usize, old: 0 }
    }
}

/// What the assembler is told.
#[repr(C)]
pub(super) struct Job {
    /// `NtProtectVirtualMemory`.
    pub(super) protect: usize,
    /// The pages.
    pub(super) pages: *mut Page,
    /// How many.
    pub(super) page_count: usize,
    /// The writes.
    pub(super) writes: *const Write,
    /// How many.
    pub(super) count: usize,
    /// The protection for the moment.
    pub(super) writable: u32,
    /// What else is said with the one that comes back.
    pub(super) flags: u32,
    /// What was for the moment, as the kernel tells.
    pub(super) spare: u32,
    /// How often a page that does not become what it was is tried again.
    pub(super) tries: u32,
    /// Whether the writes were made.
    pub(super) written: u32,
}

/// One who writes, or suspends others, at a time: of this process, whichever copy of kdetour it is in, since a page that two make writable
/// would become for ever what the second one found. A thread that has it may take it once more.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    nt: &'a Nt,
    nested: bool,
}

impl<'a> Turn<'a> {
    /// Waits for it.
    pub(super) fn take(nt: &'a Nt) -> Self {
        let me = arch::thread();
        if WRITER.load(Ordering::Relaxed) == me {
            return Self { nt, nested: true };
        }
        let mut waits = 0_u32;
        while WRITER.compare_exchange_weak(0, me, Ordering::Acquire, Ordering::Relaxed).is_err() {
            nt.pause(100);
            waits = waits.wrapping_add(1);
            if waits.is_multiple_of(64) {
                prepare(nt);
                // SAFETY: the functions are those that it calls.
                unsafe { arch::finish_for_ended() };
            }
        }
        pin(nt, me);
        nt.take_turn();
        Self { nt, nested: false }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.nested {
            self.nt.end_turn();
            WRITER.store(0, Ordering::Release);
        }
    }
}

/// Has the writer's number stay its own, whatever becomes of it: a number is not given out again while somebody has a handle of its thread. It is
/// kept until another thread writes.
fn pin(nt: &Nt, me: u32) {
    if PINNED.load(Ordering::Relaxed) == me {
        return;
    }
    // Without one, whoever waits may wait for another thread that has got the number.
    let former = PIN.swap(nt.own_handle().unwrap_or_default(), Ordering::Relaxed);
    PINNED.store(me, Ordering::Relaxed);
    if former != 0 {
        nt.close(ptr::with_exposed_provenance_mut(former));
    }
}

/// Tells the handler how to let others run, and how to learn that one has ended.
pub(super) fn prepare(nt: &Nt) {
    let [open, close, wait, release, mutex] = nt.ending();
    for (place, value) in
        [(&OPEN, open), (&CLOSE, close), (&WAIT, wait), (&RELEASE, release), (&MUTEX, mutex)]
    {
        place.store(value, Ordering::SeqCst);
    }
    YIELD.store(nt.yield_address(), Ordering::SeqCst);
}

/// Pages were not written as they should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// What the kernel answered.
    pub(super) status: Status,
    /// Whether the bytes are there nevertheless, and a page has not become executable again. Otherwise nothing was written.
    pub(super) written: bool,
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        Self::Host(failed.status)
    }
}

/// Writes bytes of some pages, for whoever runs there at one moment. `flags` are said together with their old protection.
///
/// # Safety
/// The writes lie in the pages, and are text of this process whose change is the caller's intent; each has so many bytes to be read, and
/// these are not in the pages. Pages, writes and bytes stay if the calling thread is ended: they are on no stack. The handler is installed.
pub(super) unsafe fn write_pages(
    nt: &Nt,
    pages: &mut [Page],
    writes: &[Write],
    flags: u32,
) -> Result<(), Failed> {
    // SAFETY: as the caller says; this is the kernel's own function.
    unsafe { write_pages_by(nt, nt.protect_address(), pages, writes, flags) }
}

/// Writes bytes of one page: no more than [`BATCH`] times, and no more than a page has.
///
/// # Safety
/// As for [`write_pages`]; the bytes may be anywhere.
pub(super) unsafe fn write_page(nt: &Nt, page: u64, writes: &[Write], flags: u32) -> Result<(), Failed> {
    // SAFETY: as the caller says; this is the kernel's own function.
    unsafe { write_page_by(nt, nt.protect_address(), page, writes, flags) }
}

/// As [`write_page`], where `protect` changes the page's protection.
///
/// # Safety
/// As for [`write_page`] and [`write_pages_by`].
unsafe fn write_page_by(
    nt: &Nt,
    protect: usize,
    page: u64,
    writes: &[Write],
    flags: u32,
) -> Result<(), Failed> {
    let _turn = Turn::take(nt);
    // SAFETY: it belongs to whoever has his turn, and what it held is written.
    let Draft { page: kept, writes: drafts, bytes } = unsafe { &mut *DRAFT.0.get() };
    *kept = Page::at(page);
    let mut rest = bytes.as_mut_slice();
    let mut count = 0;
    for (draft, write) in drafts.iter_mut().zip(writes) {
        let Some((part, behind)) = rest.split_at_mut_checked(write.len) else { break };
        // SAFETY: the caller's promise: so many bytes.
        unsafe { ptr::copy_nonoverlapping(write.from, part.as_mut_ptr(), write.len) };
        *draft = Write { from: part.as_ptr(), ..*write };
        rest = behind;
        count += 1;
    }
    if count != writes.len() {
        return Err(Failed { status: TOO_LONG, written: false });
    }
    let drafts = drafts.get(..count).unwrap_or_default();
    // SAFETY: as the caller says; all of it is in the draft, which stays.
    unsafe { write_pages_by(nt, protect, core::slice::from_mut(kept), drafts, flags) }
}

/// As [`write_pages`], where `protect` changes the pages' protection.
///
/// # Safety
/// As for [`write_pages`]; and `protect` is `NtProtectVirtualMemory`, or does nothing but call it or fail.
unsafe fn write_pages_by(
    nt: &Nt,
    protect: usize,
    pages: &mut [Page],
    writes: &[Write],
    flags: u32,
) -> Result<(), Failed> {
    let first = pages.iter().map(|page| page.base).min().unwrap_or(usize::MAX);
    let end = pages.iter().map(|page| page.base.saturating_add(page.size)).max().unwrap_or_default();
    let turn = Turn::take(nt);
    for page in &mut *pages {
        // Before it changes: whoever finishes this finds it changed. One that is not there does not become writable either.
        page.old = nt.query(widen(page.base)).map_or(0, |found| found.Protect);
    }
    let job = JOB.0.get();
    let this = Job {
        protect,
        pages: pages.as_mut_ptr(),
        page_count: pages.len(),
        writes: writes.as_ptr(),
        count: writes.len(),
        writable: READ_WRITE,
        flags,
        spare: 0,
        tries: TRIES,
        written: 0,
    };
    // SAFETY: it belongs to whoever has his turn, and nobody comes to read it before `FIRST` says that something is written.
    unsafe { job.write(this) };
    // Whoever reads `FIRST` first sees the end that belongs to it.
    END.store(end, Ordering::SeqCst);
    FIRST.store(first, Ordering::SeqCst);
    // SAFETY: the job is complete; its pages and its writes are as the caller says; who comes to the pages waits in the handler.
    let (status, written) = unsafe { (arch::write(job), (*job).written != 0) };
    TURNS.fetch_add(1, Ordering::SeqCst);
    FIRST.store(usize::MAX, Ordering::SeqCst);
    drop(turn);
    if status < 0 { Err(Failed { status, written }) } else { Ok(()) }
}

/// Whether a thread that could not execute at this address is to try again: the page is being written by another thread, or was when
/// the thread came there. If it still is, the thread faults once more and waits.
pub(super) fn was_written(nt: &Nt, address: u64) -> bool {
    let within = || {
        let (first, address) = (FIRST.load(Ordering::SeqCst), narrow(address));
        first <= address && address < END.load(Ordering::SeqCst)
    };
    loop {
        let turns = TURNS.load(Ordering::SeqCst);
        if within() {
            return WRITER.load(Ordering::SeqCst) != arch::thread();
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

#[cfg(test)]
mod tests;
