//! x86-64.

use kdetour_plan::Mode;
use object::pe::{self, ImageNtHeaders64};

/// How code is decoded.
pub(crate) const MODE: Mode = Mode::Bits64;
/// Bytes below the stack pointer that a function may use (System V ABI for x86-64, section 3.2.2). On Windows it uses none, but code that was
/// compiled by that ABI may run there, too.
pub(crate) const RED_ZONE: u64 = 128;

/// The class of PE images that such processes can run.
pub(crate) type PeHeaders = ImageNtHeaders64;
pub(crate) const PE_MACHINE: pe::Machine = pe::IMAGE_FILE_MACHINE_AMD64;

pub(crate) use core::arch::x86_64::__cpuid_count as cpuid;

/// Bytes of what [`jump_by`] writes.
pub(crate) const JUMP_BY: usize = 13;

/// Code that goes where a cell says. It changes R11, which no function expects anything in.
pub(crate) const fn jump_by(cell: u64) -> [u8; JUMP_BY] {
    let [a, b, c, d, e, f, g, h] = cell.to_le_bytes();
    [0x49, 0xbb, a, b, c, d, e, f, g, h, 0x41, 0xff, 0x23] // mov r11, cell; jmp [r11]
}

/// Bytes from one [`landing`] to the next.
pub(crate) const LANDING: usize = 16;

/// Code at `at` that may be called through a pointer, and goes where a cell says, which is within 2 GiB. It changes no register.
pub(crate) const fn landing(at: u64, cell: u64) -> [u8; LANDING] {
    let [a, b, c, d, ..] = cell.wrapping_sub(at.wrapping_add(10)).to_le_bytes();
    // endbr64; jmp [rip + distance]
    [0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25, a, b, c, d, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc]
}
