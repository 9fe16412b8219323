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
//! | where | what holds |
//! |---|---|
//! | 64-bit processes, 32-bit ones with DEP | no page is writable and executable at any time |
//! | 32-bit processes without DEP | every page that can be read can be executed: nobody faults, nobody waits, and the order of the writes is what protects, as everywhere |
//! | processes that forbid dynamic code | nothing is written: [`Error::Host`] with `ERROR_DYNAMIC_CODE_BLOCKED` when the host is made |

use super::arch;
use super::nt::{Nt, Status};
use crate::Error;
use crate::address::narrow;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// The smallest page.
pub(super) const PAGE: u64 = 4096;

/// How often a page is made executable again before it is given up, with a yield in between. Memory that is missing may come back.
const TRIES: u32 = 1000;

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
/// How often pages have been written: a fault may be told of when its page is what it was again.
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
        while WRITER.compare_exchange_weak(0, me, Ordering::Acquire, Ordering::Relaxed).is_err() {
            nt.pause(100);
        }
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

/// Tells the handler how to let others run.
pub(super) fn prepare(nt: &Nt) {
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
/// these are not in the pages. The handler is installed.
pub(super) unsafe fn write_pages(
    nt: &Nt,
    pages: &mut [Page],
    writes: &[Write],
    flags: u32,
) -> Result<(), Failed> {
    // SAFETY: as the caller says; this is the kernel's own function.
    unsafe { write_pages_by(nt, nt.protect_address(), pages, writes, flags) }
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
    let mut job = Job {
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
    let turn = Turn::take(nt);
    // Whoever reads `FIRST` first sees the end that belongs to it.
    END.store(end, Ordering::SeqCst);
    FIRST.store(first, Ordering::SeqCst);
    // SAFETY: the job is complete; its pages and its writes are as the caller says; who comes to the pages waits in the handler.
    let status = unsafe { arch::write(&raw mut job) };
    TURNS.fetch_add(1, Ordering::SeqCst);
    FIRST.store(usize::MAX, Ordering::SeqCst);
    drop(turn);
    if status < 0 { Err(Failed { status, written: job.written != 0 }) } else { Ok(()) }
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

#[cfg(test)]
mod tests {
    #![expect(clippy::undocumented_unsafe_blocks, reason = "memory of this test, and the system's functions")]

    use super::super::{regions, trap};
    use super::*;
    use crate::address::widen;
    use std::sync::Mutex;
    use std::vec::Vec;
    use std::{ptr, slice};
    use windows_sys::Win32::System::Memory::{
        MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_EXECUTE_READ, VirtualAlloc, VirtualFree,
    };

    const PAGES: usize = 4;

    /// How many calls are left until one fails, and how many fail then.
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    static FAILING: AtomicUsize = AtomicUsize::new(0);
    const REFUSED: Status = 0xc000_0022_u32.cast_signed();

    unsafe extern "system" fn protect(
        process: *mut core::ffi::c_void,
        base: *mut usize,
        size: *mut usize,
        new: u32,
        old: *mut u32,
    ) -> Status {
        if LEFT.load(Ordering::SeqCst) == 0 && FAILING.load(Ordering::SeqCst) > 0 {
            FAILING.fetch_sub(1, Ordering::SeqCst);
            return REFUSED;
        }
        LEFT.store(LEFT.load(Ordering::SeqCst).saturating_sub(1), Ordering::SeqCst);
        let real = std::ptr::with_exposed_provenance::<()>(Nt::known().unwrap().protect_address());
        let real: super::super::nt::Protect = unsafe { core::mem::transmute(real) };
        unsafe { real(process, base, size, new, old) }
    }

    /// Four pages of code, the first byte of which is written; what became of that, and the bytes.
    fn written(left: usize, failing: usize) -> (Result<(), Failed>, Vec<u8>, usize) {
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = super::super::lock(&TURN);
        let nt = Nt::get().unwrap();
        trap::install(nt).unwrap();
        let len = PAGES * PAGE as usize;
        let base = unsafe { VirtualAlloc(ptr::null(), len, MEM_RESERVE | MEM_COMMIT, PAGE_EXECUTE_READ) };
        let base: *mut u8 = base.cast();
        let starts: Vec<_> = (0..PAGES).map(|page| unsafe { base.add(page * PAGE as usize) }).collect();
        let mut pages: Vec<_> = starts.iter().map(|start| Page::at(widen(start.addr()))).collect();
        let new = [0x90; 1];
        let writes = starts.iter().map(|start| Write { to: start.addr(), from: new.as_ptr(), len: 1 });
        let writes: Vec<_> = writes.collect();
        LEFT.store(left, Ordering::SeqCst);
        FAILING.store(failing, Ordering::SeqCst);
        let outcome = unsafe { write_pages_by(nt, (protect as *const ()).addr(), &mut pages, &writes, 0) };
        let bytes = starts.iter().map(|start| unsafe { start.read_volatile() }).collect();
        let is_code =
            |start: &&*mut u8| regions::is_executable(nt.query(widen(start.addr())).unwrap().Protect);
        let code = starts.iter().filter(is_code).count();
        assert_eq!(unsafe { slice::from_raw_parts(base.add(1), 16) }, [0; 16]);
        unsafe { VirtualFree(base.cast(), 0, MEM_RELEASE) };
        (outcome, bytes, code)
    }

    #[test]
    fn all_pages_are_written_and_executable_again() {
        assert_eq!(written(usize::MAX, 0), (Ok(()), [0x90; PAGES].to_vec(), PAGES));
    }

    #[test]
    fn one_that_does_not_become_writable_leaves_all_as_they_were() {
        for left in 0..PAGES {
            let failed = Failed { status: REFUSED, written: false };
            assert_eq!(written(left, 1), (Err(failed), [0; PAGES].to_vec(), PAGES), "{left}");
        }
    }

    #[test]
    fn one_that_does_not_become_executable_is_tried_again() {
        for left in PAGES..2 * PAGES {
            assert_eq!(written(left, TRIES as usize), (Ok(()), [0x90; PAGES].to_vec(), PAGES), "{left}");
        }
    }

    /// It is told, the others are executable, and nobody waits any more.
    #[test]
    fn one_that_never_does_is_given_up() {
        for left in PAGES..2 * PAGES {
            let failed = Failed { status: REFUSED, written: true };
            let expected = (Err(failed), [0x90; PAGES].to_vec(), PAGES - 1);
            assert_eq!(written(left, TRIES as usize + 1), expected, "{left}");
            assert_eq!(FIRST.load(Ordering::SeqCst), usize::MAX);
        }
    }
}
