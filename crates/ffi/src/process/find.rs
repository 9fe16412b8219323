//! Functions by their names.

use core::ffi::{CStr, c_char, c_void};
use core::ptr;
#[cfg(windows)]
use {
    crate::detours::imported_from,
    alloc::ffi::CString,
    alloc::vec::Vec,
    windows_sys::Win32::Foundation::HMODULE,
    windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress},
    windows_sys::Win32::System::ProcessStatus::K32EnumProcessModules,
    windows_sys::Win32::System::Threading::GetCurrentProcess,
};

/// The address of a function, as the loader finds it; null if there is none of that name.
///
/// # Safety
/// `symbol` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_find(symbol: *const c_char) -> *mut c_void {
    if symbol.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: by the caller's word.
    find(unsafe { CStr::from_ptr(symbol) })
}

/// A function by its name, as the loader finds it.
#[cfg(not(windows))]
pub(super) fn find(symbol: &CStr) -> *mut c_void {
    // SAFETY: a string is given.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) }
}

/// Windows' loader looks no name up but in one library. What is behind `library!` is that library's. A bare name is what the program has under it
/// for others; else what it imports by it; else what the first module has that was loaded and has something.
#[cfg(windows)]
pub(super) fn find(symbol: &CStr) -> *mut c_void {
    let bytes = symbol.to_bytes_with_nul();
    let Some(at) = bytes.iter().position(|&byte| byte == b'!') else { return anywhere(symbol) };
    let (library, name) = bytes.split_at(at);
    let name = name.get(1..).and_then(|name| CStr::from_bytes_with_nul(name).ok());
    match (CString::new(library), name) {
        (Ok(library), Some(name)) => in_module(module_called(library.as_ptr()), name),
        _ => ptr::null_mut(),
    }
}

#[cfg(windows)]
fn anywhere(name: &CStr) -> *mut c_void {
    let own = in_module(module_called(ptr::null()), name);
    if !own.is_null() {
        return own;
    }
    if let Some(library) = imported_from(name) {
        let found = in_module(module_called(library), name);
        if !found.is_null() {
            return found;
        }
    }
    let modules = modules().unwrap_or_default();
    modules
        .into_iter()
        .map(|module| in_module(module, name))
        .find(|found| !found.is_null())
        .unwrap_or(ptr::null_mut())
}

/// The module of a name that is loaded; null is the program.
#[cfg(windows)]
fn module_called(name: *const c_char) -> HMODULE {
    // SAFETY: null, a string of the caller's, or one of an image's tables that was looked at.
    unsafe { GetModuleHandleA(name.cast()) }
}

/// What a module has for others under a name.
#[cfg(windows)]
fn in_module(module: HMODULE, name: &CStr) -> *mut c_void {
    if module.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: the module is the loader's, the name a string.
    let found = unsafe { GetProcAddress(module, name.as_ptr().cast()) };
    found.map_or(ptr::null_mut(), |found| found as *mut c_void)
}

/// The modules, in the order in which they were loaded; none if that cannot be known.
#[cfg(windows)]
fn modules() -> Option<Vec<HMODULE>> {
    /// Modules that may have come meanwhile.
    const MORE: usize = 16;
    let mut modules: Vec<HMODULE> = Vec::new();
    loop {
        let room = u32::try_from(modules.len() * size_of::<HMODULE>()).ok()?;
        let mut needed = 0;
        // SAFETY: there is so much room.
        let listed = unsafe {
            K32EnumProcessModules(GetCurrentProcess(), modules.as_mut_ptr(), room, &raw mut needed)
        };
        if listed == 0 {
            return None;
        }
        let count = needed as usize / size_of::<HMODULE>();
        if count <= modules.len() {
            modules.truncate(count);
            return Some(modules);
        }
        modules.try_reserve(count + MORE - modules.len()).ok()?;
        modules.resize(count + MORE, ptr::null_mut());
    }
}
