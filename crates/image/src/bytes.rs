//! Little-endian numbers out of bytes that may end anywhere.

use core::ffi::CStr;

/// `N` bytes from `offset` on.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

pub(crate) fn i32_at(bytes: &[u8], offset: usize) -> Option<i32> {
    array(bytes, offset).map(i32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// A pointer of 8 bytes or of 4.
pub(crate) fn word_at(bytes: &[u8], offset: usize, size: usize) -> Option<u64> {
    if size == 8 { u64_at(bytes, offset) } else { u32_at(bytes, offset).map(u64::from) }
}

/// The bytes up to the first zero, or to the end.
pub(crate) fn until_zero(bytes: &[u8]) -> &[u8] {
    // The standard library's search is a fast one.
    CStr::from_bytes_until_nul(bytes).map_or(bytes, CStr::to_bytes)
}
