//! x86-32.

use super::{behind_prefixes, displacement};
use crate::process::{Detour, detach_all};
use crate::report::ErrorRecord;
use core::arch::naked_asm;
use core::ffi::{c_int, c_uint};
use kdetour::plan::Mode;

/// How code is decoded.
pub(crate) const MODE: Mode = Mode::Bits32;

/// The images that run here, on Linux.
#[cfg(not(windows))]
pub(crate) mod elf {
    use object::LittleEndian;
    pub(crate) use object::elf::{
        EM_386 as MACHINE, R_386_GLOB_DAT as GLOB_DAT, R_386_IRELATIVE as IRELATIVE,
        R_386_JMP_SLOT as JUMP_SLOT,
    };

    /// Their header.
    pub(crate) type Elf = object::elf::FileHeader32<LittleEndian>;
}

/// The images that run here, on Windows.
#[cfg(windows)]
pub(crate) mod pe {
    pub(crate) use object::pe::{IMAGE_FILE_MACHINE_I386 as MACHINE, ImageNtHeaders32 as NtHeaders};
}

/// `[endbr32] [bnd] jmp [disp32]`, or `jmp [ebx + disp32]` where code may lie anywhere: EBX is the table of slots then, as the ABI
/// has it for calls of such stubs.
pub(crate) enum Jump {
    To(u64),
    Behind(i32),
}

impl Jump {
    /// No longer than so many bytes.
    pub(crate) const LONGEST: usize = 11;

    /// What is at `code`, if it is such a jump.
    pub(crate) fn of(_code: u64, bytes: &[u8]) -> Option<Self> {
        let at = behind_prefixes(bytes, [0xf3, 0x0f, 0x1e, 0xfb]);
        let jump = bytes.get(at..)?;
        let fixed = displacement(jump, [0xff, 0x25]).map(|slot| Self::To(slot.cast_unsigned().into()));
        fixed.or_else(|| displacement(jump, [0xff, 0xa3]).map(Self::Behind))
    }

    /// Where its slot is; `table` is where the image has its table of slots.
    pub(crate) fn slot(&self, table: impl FnOnce() -> Option<u64>) -> Option<u64> {
        match *self {
            Self::To(slot) => Some(slot),
            Self::Behind(by) => {
                u32::try_from(table()?).ok().map(|table| table.wrapping_add_signed(by).into())
            }
        }
    }
}

/// Detaches a set of detours, all or none, and waits until no call is inside any of them.
///
/// # Safety
/// As for [`kdetour_attach_all`](crate::process::kdetour_attach_all).
///
/// This thread's own stack counts from the return address on, and the caller's frame above it: a frame of ours lies where those of
/// earlier calls were, and in its gaps there may be their return addresses, in the very detours that are to be left.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn kdetour_detach_all(
    detours: *const *mut Detour,
    count: c_uint,
    protocol: c_int,
    timeout_ms: c_uint,
    error: *mut ErrorRecord,
) -> c_int {
    // The only argument, which `fastcall` has in a register: where the return address is.
    naked_asm!("mov ecx, esp", "jmp {}", sym detach_all_above)
}

/// What a caller has put on the stack, and the call.
#[repr(C)]
struct Call {
    _return_address: u32,
    detours: *const *mut Detour,
    count: c_uint,
    protocol: c_int,
    timeout_ms: c_uint,
    error: *mut ErrorRecord,
}

/// # Safety
/// As for [`kdetour_detach_all`]; `call` is the stack of that call.
unsafe extern "fastcall" fn detach_all_above(call: *const Call) -> c_int {
    // SAFETY: by the caller's word. Nobody else writes there: a callee's arguments are its own.
    let Call { detours, count, protocol, timeout_ms, error, .. } = unsafe { call.read() };
    // SAFETY: by the caller's word.
    unsafe { detach_all(detours, count, protocol, timeout_ms, error, call.addr() as u64) }
}
