//! Linux, which has neither last errors nor handles of threads.

use super::For;
use crate::detours::modules::wide;
use crate::detours::windows::Long;
use core::cell::Cell;
use core::ffi::c_void;

std::thread_local! {
    static LAST: Cell<u32> = const { Cell::new(0) };
}

/// `GetLastError`, which `windows.h` calls so.
#[unsafe(no_mangle)]
pub extern "C" fn kdetour_get_last_error() -> u32 {
    LAST.try_with(Cell::get).unwrap_or(0)
}

pub(in crate::detours) fn last_error() -> Long {
    kdetour_get_last_error().cast_signed()
}

/// `SetLastError`.
#[unsafe(no_mangle)]
pub extern "C" fn kdetour_set_last_error(number: u32) {
    // A thread that ends has none any more.
    let _ = LAST.try_with(|last| last.set(number));
}

/// `GetCurrentThreadId`.
#[unsafe(no_mangle)]
pub extern "C" fn kdetour_thread() -> u32 {
    // SAFETY: it asks for a number.
    unsafe { libc::gettid() }.cast_unsigned()
}

/// Leaves an error as the last one.
pub(in crate::detours) fn set_last_error(error: Long) {
    kdetour_set_last_error(error.cast_unsigned());
}

/// Whether this names a thread: the calling one, or by its number.
pub(in crate::detours) fn is_thread(thread: *mut c_void) -> bool {
    /// `GetCurrentThread()`.
    const CURRENT: isize = -2;
    let number = thread.addr().cast_signed();
    let is_there = || std::path::Path::new(&std::format!("/proc/self/task/{number}")).exists();
    number == CURRENT || number > 0 && is_there()
}

/// Where the kernel, or the loader, has entered the program. That is jumped to, with no return address on the stack: a function cannot stand for it.
pub(in crate::detours) fn start_of_the_program() -> Option<u64> {
    // SAFETY: it asks for a number.
    let entry = wide(unsafe { libc::getauxval(libc::AT_ENTRY) });
    (entry != 0).then_some(entry)
}

/// Changes what a region is for, if it can be.
///
/// # Safety
/// It was mapped for the program, and is still; nobody runs there who would not any more.
pub(in crate::detours) unsafe fn protect(address: *mut c_void, size: usize, how: For) -> bool {
    let protection = match how {
        For::Writing => libc::PROT_READ | libc::PROT_WRITE,
        For::Executing => libc::PROT_READ | libc::PROT_EXEC,
    };
    // SAFETY: the caller's word.
    unsafe { libc::mprotect(address, size, protection) == 0 }
}

/// Gives a region back, if it can be.
///
/// # Safety
/// As for [`protect`]; nobody needs it any more.
pub(in crate::detours) unsafe fn unmap(address: *mut c_void, size: usize) -> bool {
    // SAFETY: the caller's word.
    unsafe { libc::munmap(address, size) == 0 }
}
