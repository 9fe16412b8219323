//! Windows itself.

use super::For;
use crate::detours::windows::{ACCESS_DENIED, Long};
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;
use windows_sys::Win32::Foundation::{GetLastError, SetLastError};
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_PRIVATE, MEMORY_BASIC_INFORMATION, PAGE_EXECUTE_READ, PAGE_GUARD, PAGE_NOACCESS,
    PAGE_READWRITE, VirtualProtect, VirtualQuery,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcessId, GetCurrentThread, GetProcessIdOfThread};

pub(in crate::detours) fn last_error() -> Long {
    // SAFETY: it asks for a number.
    unsafe { GetLastError() }.cast_signed()
}

/// Leaves an error as the last one.
pub(in crate::detours) fn set_last_error(error: Long) {
    // SAFETY: it is this thread's own.
    unsafe { SetLastError(error.cast_unsigned()) };
}

/// Whether this is a handle of a thread of this process. One that does not let itself be asked of which process it is one is taken for it.
pub(in crate::detours) fn is_thread(thread: *mut c_void) -> bool {
    let before = last_error();
    // SAFETY: they ask for a number; whatever the handle is.
    let (process, own) = unsafe { (GetProcessIdOfThread(thread), GetCurrentProcessId()) };
    let is_it = match process {
        // SAFETY: it asks for a pseudo handle.
        0 => thread == unsafe { GetCurrentThread() } || last_error() == ACCESS_DENIED,
        process => process == own,
    };
    set_last_error(before);
    is_it
}

/// Windows calls a program's entry as a function: it is a target like any other.
pub(in crate::detours) const fn start_of_the_program() -> Option<u64> {
    None
}

/// Changes what a region is for, if it can be. The program may have given it back by `VirtualFree`, and something else may be there: that stays
/// as it is, unless it looks the same.
///
/// # Safety
/// It was allocated for the program; if it is still, nobody runs there who would not any more.
pub(in crate::detours) unsafe fn protect(address: *mut c_void, size: usize, how: For) -> bool {
    let (protection, before) = match how {
        For::Writing => (PAGE_READWRITE, PAGE_EXECUTE_READ),
        For::Executing => (PAGE_EXECUTE_READ, PAGE_READWRITE),
    };
    let Some(found) = query(address) else { return false };
    let is_it = found.AllocationBase == address && found.Type == MEM_PRIVATE && found.State == MEM_COMMIT;
    if !is_it || found.RegionSize < size || ![before, protection].contains(&found.Protect) {
        return false;
    }
    let mut old = 0;
    // SAFETY: the caller's word.
    unsafe { VirtualProtect(address, size, protection, &raw mut old) != 0 }
}

/// Whether the program can read a page. The kernel looks at that as well when it reads for somebody; Wine's does not.
pub(in crate::detours) fn is_accessible(page: u64) -> bool {
    let address = ptr::without_provenance(usize::try_from(page).unwrap_or(usize::MAX));
    query(address)
        .is_some_and(|found| found.State == MEM_COMMIT && found.Protect & (PAGE_NOACCESS | PAGE_GUARD) == 0)
}

fn query(address: *const c_void) -> Option<MEMORY_BASIC_INFORMATION> {
    let mut found = MaybeUninit::<MEMORY_BASIC_INFORMATION>::uninit();
    // SAFETY: it is filled if the answer is its size; the address is only asked about.
    let len = unsafe { VirtualQuery(address, found.as_mut_ptr(), size_of::<MEMORY_BASIC_INFORMATION>()) };
    // SAFETY: it has been filled.
    (len == size_of::<MEMORY_BASIC_INFORMATION>()).then(|| unsafe { found.assume_init() })
}
