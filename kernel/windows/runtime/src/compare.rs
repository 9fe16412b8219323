//! `memcmp`, which compiled code calls, and which `ntoskrnl.exe` exports for x64 only.

use core::ffi::c_int;

/// As C has it.
///
/// # Safety
/// Both are readable for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, len: usize) -> c_int {
    for at in 0..len {
        // SAFETY: by the caller's word.
        let (one, other) = unsafe { (one.add(at).read(), other.add(at).read()) };
        if one != other {
            return c_int::from(one) - c_int::from(other);
        }
    }
    0
}
