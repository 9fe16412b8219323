//! What a program's pointer to a function leads to.

use super::modules::{add, function_through};
use crate::arch::Jump;
use core::ffi::c_void;
use core::ptr;
use kdetour::host::Host as _;
use kdetour::typed::with_process;

/// The code behind a pointer: a jump through the loader's table, as import thunks and PLT entries are, is followed, and so are the
/// short jumps that Detours follows. Nothing else is: a `jmp rel32` alone may be somebody's detour.
pub(super) fn code_of(pointer: u64) -> u64 {
    // A detour of kdetour's begins with a jump, too.
    let is_detoured = |address: u64| with_process(|kdetour| Ok(kdetour.detours_of(address).next().is_some()));
    if is_detoured(pointer) == Ok(true) {
        return pointer;
    }
    let read =
        |address: u64, bytes: &mut [u8]| with_process(|kdetour| kdetour.host().read(address, bytes)).is_ok();
    let mut code = pointer;
    code = through_table(code, &read).unwrap_or(code);
    let mut bytes = [0; 5];
    if is_detoured(code) == Ok(true) || !read(code, &mut bytes) || bytes[0] != 0xeb {
        return code;
    }
    let short = ahead(code.wrapping_add(2), i8::from_le_bytes([bytes[1]]).into());
    if let Some(through) = through_table(short, &read) {
        return through;
    }
    if read(short, &mut bytes) && bytes[0] == 0xe9 {
        let by = i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        return ahead(short.wrapping_add(5), by);
    }
    short
}

/// Where a [`Jump`] leads, if it is through a slot of the loader's: the function that belongs there, also if the loader waits for
/// the first call. None for every other jump: it is code like any other, or somebody's detour.
fn through_table(code: u64, read: &impl Fn(u64, &mut [u8]) -> bool) -> Option<u64> {
    const SHORTEST: usize = 6;
    let mut bytes = [0; Jump::LONGEST];
    if !read(code, &mut bytes) && !read(code, bytes.get_mut(..SHORTEST)?) {
        return None;
    }
    function_through(code, &Jump::of(code, &bytes)?)
}

/// Where an instruction that ends at `end` leads.
fn ahead(end: u64, by: i32) -> u64 {
    add(end, i64::from(by).cast_unsigned())
}

/// The code that a pointer leads to; `*ppGlobals`, which other processors need, becomes null.
///
/// # Safety
/// `globals` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn DetourCodeFromPointer(
    pointer: *mut c_void,
    globals: *mut *mut c_void,
) -> *mut c_void {
    if pointer.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: by the caller's word.
    if let Some(globals) = unsafe { globals.as_mut() } {
        *globals = ptr::null_mut();
    }
    let code = code_of(pointer.expose_provenance() as u64);
    ptr::with_exposed_provenance_mut(usize::try_from(code).unwrap_or(0))
}
