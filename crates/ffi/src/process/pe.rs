//! `kdetour_pe_import`, `kdetour_pe_export`, `kdetour_pe_restore`: the tables of PE images.

use super::{Failure, answer, misuse};
use crate::code;
use crate::report::ErrorRecord;
use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::ptr;
use kdetour::Error;
use kdetour::typed::pe;

/// Where the pointer is through which an image calls a function; null if there is none, or no more.
///
/// # Safety
/// `library` and `symbol` are null or strings, `error` is null or a record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_pe_import(
    image: *const c_void,
    library: *const c_char,
    symbol: *const c_char,
    nth: c_uint,
    error: *mut ErrorRecord,
) -> *mut *mut c_void {
    let places = || {
        // SAFETY: by the caller's word.
        let symbol = unsafe { text(symbol) }?.ok_or_else(no_symbol)?;
        // SAFETY: by the caller's word.
        let library = unsafe { text(library) }?;
        let places = pe::imports_of(base(image)?, library, symbol)?;
        Ok(*places.get(nth as usize).ok_or(Error::UnknownSymbol)?)
    };
    // SAFETY: by the caller's word.
    unsafe { place(places(), error) }
}

/// Has an export lead to a pointer, and that to the function; where the pointer is, or null.
///
/// # Safety
/// `symbol` is null or a string, `error` is null or a record. As for [`pe::lead`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_pe_export(
    image: *const c_void,
    symbol: *const c_char,
    error: *mut ErrorRecord,
) -> *mut *mut c_void {
    let pointer = || {
        // SAFETY: by the caller's word.
        let symbol = unsafe { text(symbol) }?.ok_or_else(no_symbol)?;
        // SAFETY: by the caller's word.
        Ok(unsafe { pe::lead(base(image)?, symbol) }?)
    };
    // SAFETY: by the caller's word.
    unsafe { place(pointer(), error) }
}

/// Has an export lead to its function again.
///
/// # Safety
/// `error` is null or a record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_pe_restore(pointer: *mut *mut c_void, error: *mut ErrorRecord) -> c_int {
    let outcome = match pointer.is_null() {
        true => Err(misuse(code::NULL, 0, 0, "the pointer is null")),
        false => pe::restore(pointer.expose_provenance() as u64).map_err(Failure::from),
    };
    // SAFETY: by the caller's word.
    unsafe { answer(error, outcome) }
}

/// A string, if there is one.
///
/// # Safety
/// It is null or a string, which stays.
unsafe fn text<'a>(string: *const c_char) -> Result<Option<&'a str>, Failure> {
    if string.is_null() {
        return Ok(None);
    }
    // SAFETY: by the caller's word.
    let text = unsafe { CStr::from_ptr(string) }.to_str().map_err(|_| Error::UnknownSymbol)?;
    Ok(Some(text))
}

fn base(image: *const c_void) -> Result<u64, Failure> {
    match image.is_null() {
        true => Err(misuse(code::NULL, 0, 0, "the image is null")),
        false => Ok(image.expose_provenance() as u64),
    }
}

fn no_symbol() -> Failure {
    misuse(code::NULL, 0, 0, "the symbol is null")
}

/// # Safety
/// `error` is null or a record.
unsafe fn place(found: Result<u64, Failure>, error: *mut ErrorRecord) -> *mut *mut c_void {
    let mut place = 0;
    // SAFETY: by the caller's word.
    let _ = unsafe { answer(error, found.map(|found| place = found)) };
    usize::try_from(place).map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
}
