//! Keeping the library of a target or of a detour loaded.
//!
//! While a detour is attached, neither the code that was patched nor the code that it leads to may be unloaded. So the loader counts one user
//! more: `FreeLibrary` then only counts. The loader's lock is taken for that, never while a thread is suspended.

use crate::address::widen;
use core::ffi::c_void;
use core::ptr;
use windows_sys::Win32::Foundation::FreeLibrary;
use windows_sys::Win32::System::LibraryLoader::{
    GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, GET_MODULE_HANDLE_EX_FLAG_PIN,
    GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT, GetModuleHandleExW, GetModuleHandleW,
};

/// A library that stays loaded until this is dropped. Dropping it may run the library's code that is run when it is unloaded: not while a lock
/// is held.
#[derive(Debug)]
pub struct Pin {
    module: *mut c_void,
}

// SAFETY: any thread may give back what another one has taken.
unsafe impl Send for Pin {}
// SAFETY: a reference to it allows nothing.
unsafe impl Sync for Pin {}

impl Pin {
    /// Keeps the library loaded that holds `address`. None if it is never unloaded: the program itself, memory of no library.
    pub fn of(address: u64) -> Option<Self> {
        let pin = Self { module: holding(address, 0)? };
        // SAFETY: with no name it is the program.
        let program = unsafe { GetModuleHandleW(ptr::null()) };
        (pin.module != program).then_some(pin)
    }

    /// Where the program or the library begins that holds `address`, as of now.
    pub(super) fn base(address: u64) -> Option<u64> {
        holding(address, GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT).map(|module| widen(module.addr()))
    }
}

/// Keeps the library loaded for ever that holds `address`.
pub(super) fn stay(address: u64) {
    // It is told where it is; that is all that can be wanted of it.
    let _ = holding(address, GET_MODULE_HANDLE_EX_FLAG_PIN);
}

/// What holds an address; counted as used once more, unless `flags` say otherwise.
fn holding(address: u64, flags: u32) -> Option<*mut c_void> {
    let mut module = ptr::null_mut();
    let at = ptr::without_provenance(usize::try_from(address).ok()?);
    // SAFETY: with this flag the name is an address, which is not read; the module is written.
    let found =
        unsafe { GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | flags, at, &raw mut module) };
    (found != 0 && !module.is_null()).then_some(module)
}

impl Drop for Pin {
    fn drop(&mut self) {
        // SAFETY: it was counted once and is given back once.
        unsafe { FreeLibrary(self.module) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, LoadLibraryA};

    /// One that nothing else in this process needs.
    const LIBRARY: *const u8 = c"winmm.dll".as_ptr().cast();

    fn is_loaded() -> bool {
        // SAFETY: a string that ends.
        !unsafe { GetModuleHandleA(LIBRARY) }.is_null()
    }

    #[test]
    fn a_pinned_library_stays() {
        assert!(!is_loaded());
        // SAFETY: a string that ends; the library does nothing that this process would notice.
        let module = unsafe { LoadLibraryA(LIBRARY) };
        assert!(!module.is_null());
        let pin = Pin::of(module.addr() as u64 + 0x1000).unwrap();
        // SAFETY: it was loaded above, and nothing of it is used.
        unsafe { FreeLibrary(module) };
        assert!(is_loaded());
        drop(pin);
        assert!(!is_loaded());
    }

    #[test]
    fn what_is_never_unloaded_is_not_pinned() {
        let here = (what_is_never_unloaded_is_not_pinned as fn() as *const ()).addr() as u64;
        let stack = ptr::from_ref(&here).addr() as u64;
        for address in [here, stack, 0, u64::MAX] {
            assert!(Pin::of(address).is_none(), "{address:#x}");
        }
    }
}
