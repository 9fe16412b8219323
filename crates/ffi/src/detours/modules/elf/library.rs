//! `GetModuleHandle`, `LoadLibrary`, `FreeLibrary`, `GetProcAddress`, `GetModuleFileName`: what `windows.h` has them from.

use super::super::{base_of, outcome, pointer_to};
use super::exports::Exports;
use super::find::{called, path};
use super::known;
use super::loaded::{self, Handle, Kind};
use crate::detours::windows::{
    Bool, INSUFFICIENT_BUFFER, INVALID_HANDLE, INVALID_PARAMETER, MOD_NOT_FOUND, PROC_NOT_FOUND, answer,
};
use core::ffi::{CStr, c_char, c_void};
use core::slice;

/// `GetModuleHandleA`: a module that is loaded; the program, if no name is given.
///
/// # Safety
/// `name` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_module_called(name: *const c_char) -> *mut c_void {
    let module = match name.is_null() {
        true => loaded::program(),
        // SAFETY: the caller's word.
        false => called(unsafe { CStr::from_ptr(name) }),
    };
    pointer_to(outcome(module.map(|module| module.base).ok_or(MOD_NOT_FOUND)))
}

/// `LoadLibraryA`.
///
/// # Safety
/// `name` is null or a string. The library's constructors run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_load_module(name: *const c_char) -> *mut c_void {
    let load = || {
        if name.is_null() {
            return Err(INVALID_PARAMETER);
        }
        // SAFETY: the caller's word.
        let handle = Handle::load(unsafe { CStr::from_ptr(name) }).ok_or(MOD_NOT_FOUND)?;
        let module = handle.address().and_then(loaded::containing).ok_or(MOD_NOT_FOUND)?;
        handle.keep();
        Ok(module.base)
    };
    pointer_to(outcome(load()))
}

/// `FreeLibrary`.
#[unsafe(no_mangle)]
pub extern "C" fn kdetour_free_module(module: *mut c_void) -> Bool {
    let module = loaded::modules().into_iter().find(|known| known.base == module.addr() as u64);
    let handle = module.filter(|module| module.kind == Kind::Library).and_then(|module| module.open());
    answer(handle.ok_or(INVALID_HANDLE).map(|handle| handle.release()))
}

/// `GetProcAddress`: what a module has for others under a name, and nothing of those that it needs.
///
/// # Safety
/// `name` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_procedure(module: *mut c_void, name: *const c_char) -> *mut c_void {
    let find = || {
        if name.is_null() {
            return Err(INVALID_PARAMETER);
        }
        let (image, module) = known(base_of(module))?;
        // SAFETY: the caller's word.
        let found = Exports::of(&image, module.as_ref())?.find(unsafe { CStr::from_ptr(name) })?;
        found.ok_or(PROC_NOT_FOUND)
    };
    pointer_to(outcome(find()))
}

/// `GetModuleFileNameA`: how long the path is; cut at the end of `size` bytes, the last of which is a zero.
///
/// # Safety
/// `text` is null or has `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_module_path(module: *mut c_void, text: *mut c_char, size: u32) -> u32 {
    let (text, size) = (text.cast::<u8>(), if text.is_null() { 0 } else { size as usize });
    let path = known(base_of(module))
        .and_then(|(_, module)| module.map(|module| path(&module)).ok_or(INVALID_HANDLE));
    let path = match path {
        Ok(path) => path,
        Err(error) => return outcome(Err(error)),
    };
    // SAFETY: the caller's word.
    let text = if size == 0 { &mut [] } else { unsafe { slice::from_raw_parts_mut(text, size) } };
    let Some((last, rest)) = text.split_last_mut() else {
        return outcome(Err(INSUFFICIENT_BUFFER));
    };
    *last = 0;
    for (to, byte) in rest.iter_mut().zip(path.iter().chain([&0])) {
        *to = *byte;
    }
    if path.len() > rest.len() {
        answer(Err(INSUFFICIENT_BUFFER));
        return u32::try_from(size).unwrap_or(u32::MAX);
    }
    outcome(Ok(u32::try_from(path.len()).unwrap_or(u32::MAX)))
}
