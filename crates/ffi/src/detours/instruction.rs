//! One instruction, measured or copied to another address.

use super::host::last_error;
use super::modules::{pointer, read};
use super::windows::{INVALID_ADDRESS, INVALID_DATA, Long, set_last_error};
use crate::arch::MODE;
use core::ffi::c_void;
use core::{ptr, slice};
use kdetour::plan::{Code, Leads, MAX_INSTRUCTION, Single};

/// `DETOUR_INSTRUCTION_TARGET_NONE`.
const NONE: u64 = 0;
/// `DETOUR_INSTRUCTION_TARGET_DYNAMIC`.
const DYNAMIC: u64 = usize::MAX as u64;
/// No copy is longer.
const LONGEST: usize = 32;

/// The bytes from an address on, as far as they can be read; an instruction has no more.
fn bytes_at(address: u64, bytes: &mut [u8; MAX_INSTRUCTION]) -> usize {
    if read(address, bytes).is_ok() {
        return bytes.len();
    }
    let mut have = 0;
    while let Some(byte) = bytes.get_mut(have)
        && read(address.saturating_add(have as u64), slice::from_mut(byte)).is_ok()
    {
        have += 1;
    }
    have
}

/// Copies the instruction at `source` to `destination`, so that it does there what it does here; without a destination it is only
/// measured. The address of the next one, `*target` where it leads, `*extra` how many bytes its copy has more.
///
/// # Safety
/// `destination` is null or has room for the copy, 32 bytes at the most; `target` and `extra` are null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn DetourCopyInstruction(
    destination: *mut c_void,
    _pool: *mut *mut c_void,
    source: *mut c_void,
    target: *mut *mut c_void,
    extra: *mut Long,
) -> *mut c_void {
    let tell = |leads: u64, more: Long| {
        // SAFETY: the caller's word.
        if let Some(target) = unsafe { target.as_mut() } {
            *target = ptr::with_exposed_provenance_mut(usize::try_from(leads).unwrap_or(0));
        }
        // SAFETY: the caller's word.
        if let Some(extra) = unsafe { extra.as_mut() } {
            *extra = more;
        }
    };
    let fails = |error| {
        set_last_error(error);
        ptr::null_mut()
    };
    let put = |bytes: &[u8]| {
        if !destination.is_null() {
            // SAFETY: the caller's word; what is copied is a buffer of this function's.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), destination.cast(), bytes.len()) };
        }
    };
    tell(NONE, 0);
    // The first read asks the system for how it is done.
    let before = last_error();
    if source.is_null() {
        return fails(INVALID_DATA);
    }
    let address = source.expose_provenance() as u64;
    let mut bytes = [0; MAX_INSTRUCTION];
    let have = bytes_at(address, &mut bytes);
    if have == 0 {
        return fails(INVALID_ADDRESS);
    }
    let bytes = bytes.get(..have).unwrap_or_default();
    let Ok(single) = Single::of(&Code::in_mode(MODE, address, bytes)) else {
        // It is passed by, so that whoever goes through code comes on.
        set_last_error(INVALID_DATA);
        put(bytes.get(..1).unwrap_or_default());
        return source.wrapping_byte_add(1);
    };
    let leads = match single.leads() {
        Leads::Nowhere => NONE,
        Leads::To(address) => address,
        Leads::Through(slot) => pointer(slot).unwrap_or(DYNAMIC),
        _ => DYNAMIC,
    };
    let more = single.copy_length().saturating_sub(single.length());
    tell(leads, Long::try_from(more).unwrap_or(Long::MAX));
    if !destination.is_null() {
        let mut copy = [0; LONGEST];
        match single.copy(destination.expose_provenance() as u64, &mut copy) {
            Ok(length) => put(copy.get(..length).unwrap_or_default()),
            Err(_) => return fails(INVALID_DATA),
        }
    }
    set_last_error(before);
    source.wrapping_byte_add(single.length())
}
