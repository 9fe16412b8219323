//! `kdetour_import`: where the pointers are through which an image calls what it imports.

use super::{Failure, answer, misuse};
use crate::code;
use crate::report::ErrorRecord;
use core::ffi::{CStr, c_char, c_uint, c_void};
use core::ptr;
use kdetour::Error;
use kdetour::typed::pointer::{Image, imports_of};

/// Where the pointer is through which an image calls a function; null if there is none, or no more.
///
/// # Safety
/// `image` and `symbol` are null or strings, `error` is null or a record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_import(
    image: *const c_char,
    symbol: *const c_char,
    nth: c_uint,
    error: *mut ErrorRecord,
) -> *mut *mut c_void {
    let mut found = ptr::null_mut();
    // SAFETY: by the caller's word.
    let _ = unsafe { answer(error, place(image, symbol, nth).map(|place| found = place)) };
    found
}

/// # Safety
/// As for [`kdetour_import`].
unsafe fn place(
    image: *const c_char,
    symbol: *const c_char,
    nth: c_uint,
) -> Result<*mut *mut c_void, Failure> {
    if symbol.is_null() {
        return Err(misuse(code::NULL, 0, 0, "the symbol is null"));
    }
    // SAFETY: by the caller's word.
    let symbol = unsafe { CStr::from_ptr(symbol) }.to_str().map_err(|_| Error::UnknownSymbol)?;
    let image = match image.is_null() {
        true => Image::Program,
        // SAFETY: by the caller's word.
        false => Image::Named(unsafe { CStr::from_ptr(image) }.to_str().map_err(|_| Error::UnknownImage)?),
    };
    let places = imports_of(image, symbol)?;
    let place = places.get(nth as usize).ok_or(Error::UnknownSymbol)?;
    Ok(ptr::with_exposed_provenance_mut(usize::try_from(*place).unwrap_or(0)))
}
