//! What differs from one processor to the other.
//!
//! * how code is decoded ([`MODE`]);
//! * a thread's registers, as the kernel hands them over;
//! * the instructions that run while a page cannot be executed: [`write`], and the vectored handler, which begins at [`handler`];
//! * whether a page can lose execution;
//! * a few instructions: to serialize, to tell the calling thread's number.
//!
//! Each processor's file has the same names.

/// A page of instructions, and what they are told of the structures and functions that they use.
macro_rules! instructions {
    ($($line:literal,)+) => {
        core::arch::global_asm!(
            $($line,)+
            protect = const core::mem::offset_of!(Job, protect),
            pages = const core::mem::offset_of!(Job, pages),
            page_count = const core::mem::offset_of!(Job, page_count),
            writes = const core::mem::offset_of!(Job, writes),
            count = const core::mem::offset_of!(Job, count),
            writable = const core::mem::offset_of!(Job, writable),
            flags = const core::mem::offset_of!(Job, flags),
            spare = const core::mem::offset_of!(Job, spare),
            tries = const core::mem::offset_of!(Job, tries),
            written = const core::mem::offset_of!(Job, written),
            base = const core::mem::offset_of!(Page, base),
            size = const core::mem::offset_of!(Page, size),
            old = const core::mem::offset_of!(Page, old),
            page = const size_of::<Page>(),
            to = const core::mem::offset_of!(Write, to),
            from = const core::mem::offset_of!(Write, from),
            len = const core::mem::offset_of!(Write, len),
            write = const size_of::<Write>(),
            access_violation = const trap::ACCESS_VIOLATION,
            first = sym FIRST,
            end = sym END,
            writer = sym WRITER,
            yields = sym YIELD,
            open = sym OPEN,
            close = sym CLOSE,
            wait = sym WAIT,
            release = sym RELEASE,
            mutex = sym MUTEX,
            object = sym OBJECT,
            job = sym JOB,
            turns = sym TURNS,
            gone = const GONE,
            synchronize = const SYNCHRONIZE,
            answer = sym trap::answer,
        );
    };
}
use instructions;

#[cfg(target_arch = "x86")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86")]
pub(super) use x86::*;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::*;

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
compile_error!("the feature `windows-process` is for processes on x86-64 and x86-32");

use super::flip::Job;
use super::nt::Status;
use crate::address::widen;
use core::ops::Range;
use core::{mem, ptr};
use windows_sys::Win32::System::Diagnostics::Debug::EXCEPTION_POINTERS;

/// Bytes of a pointer, and of a word on a stack.
pub(super) const WORD: usize = size_of::<usize>();

/// What a vectored handler is.
pub(super) type Handler = unsafe extern "system" fn(*mut EXCEPTION_POINTERS) -> i32;

/// `STATUS_INVALID_CID` (ntstatus.h): no thread has this number.
const GONE: i32 = 0xc000_000b_u32.cast_signed();
/// `SYNCHRONIZE` (winnt.h).
const SYNCHRONIZE: u32 = 0x10_0000;

unsafe extern "C" {
    static kdetour_windows_process_begin: u8;
    static kdetour_windows_process_handler: u8;
    static kdetour_windows_process_end: u8;
    fn kdetour_windows_process_write(job: *mut Job) -> Status;
    fn kdetour_windows_process_finish();
}

/// The pages that have these instructions, and nothing else.
pub(super) fn own_pages() -> Range<u64> {
    let (begin, end) = (&raw const kdetour_windows_process_begin, &raw const kdetour_windows_process_end);
    widen(begin.addr())..widen(end.addr())
}

/// Makes pages writable, writes, and makes them what they were.
///
/// # Safety
/// As for [`write_pages`](super::flip::write_pages).
pub(super) unsafe fn write(job: *mut Job) -> Status {
    // SAFETY: the caller says so.
    unsafe { kdetour_windows_process_write(job) }
}

/// If the thread that has its turn has ended, writes what it was writing, and nobody has his turn any more.
///
/// # Safety
/// [`prepare`](super::flip::prepare) was called.
pub(super) unsafe fn finish_for_ended() {
    // SAFETY: the caller says so.
    unsafe { kdetour_windows_process_finish() }
}

/// The vectored handler: a thread that cannot execute where another one writes waits; everything else it hands to
/// [`answer`](super::trap::answer).
pub(super) fn handler() -> Handler {
    let start = ptr::addr_of!(kdetour_windows_process_handler);
    // SAFETY: a function of this type begins there.
    unsafe { mem::transmute::<*const u8, Handler>(start) }
}
