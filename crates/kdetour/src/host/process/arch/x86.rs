//! x86-32.

use crate::address::narrow;
use kdetour_plan::Mode;
use object::pe::{self, ImageNtHeaders32};

/// How code is decoded.
pub(crate) const MODE: Mode = Mode::Bits32;
/// Bytes below the stack pointer that a function may use: none (System V ABI for i386).
#[cfg(not(windows))]
pub(crate) const RED_ZONE: u64 = 0;

/// The class of PE images that such processes can run.
pub(crate) type PeHeaders = ImageNtHeaders32;
pub(crate) const PE_MACHINE: pe::Machine = pe::IMAGE_FILE_MACHINE_I386;

pub(crate) use core::arch::x86::__cpuid_count as cpuid;

/// Bytes of what [`jump_by`] writes.
pub(crate) const JUMP_BY: usize = 6;

/// Code that goes where a cell says. It changes no register.
pub(crate) const fn jump_by(cell: u64) -> [u8; JUMP_BY] {
    let [a, b, c, d] = narrow(cell).to_le_bytes();
    [0xff, 0x25, a, b, c, d] // jmp dword ptr [cell]
}

/// Bytes from one [`landing`] to the next.
pub(crate) const LANDING: usize = 16;

/// Code that may be called through a pointer, and goes where a cell says. It changes no register.
pub(crate) const fn landing(_at: u64, cell: u64) -> [u8; LANDING] {
    let [a, b, c, d] = narrow(cell).to_le_bytes();
    // endbr32; jmp dword ptr [cell]
    [0xf3, 0x0f, 0x1e, 0xfb, 0xff, 0x25, a, b, c, d, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc]
}
