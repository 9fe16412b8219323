//! x86-64.

use super::{behind_prefixes, displacement};
use crate::process::{Detour, detach_all};
use crate::report::ErrorRecord;
use core::arch::naked_asm;
use core::ffi::{c_int, c_uint};
use kdetour::plan::Mode;

/// How code is decoded.
pub(crate) const MODE: Mode = Mode::Bits64;

/// The images that run here, on Linux.
#[cfg(not(windows))]
pub(crate) mod elf {
    use object::LittleEndian;
    pub(crate) use object::elf::{
        EM_X86_64 as MACHINE, R_X86_64_GLOB_DAT as GLOB_DAT, R_X86_64_IRELATIVE as IRELATIVE,
        R_X86_64_JUMP_SLOT as JUMP_SLOT,
    };

    /// Their header.
    pub(crate) type Elf = object::elf::FileHeader64<LittleEndian>;
}

/// The images that run here, on Windows.
#[cfg(windows)]
pub(crate) mod pe {
    pub(crate) use object::pe::{IMAGE_FILE_MACHINE_AMD64 as MACHINE, ImageNtHeaders64 as NtHeaders};
}

/// `[endbr64] [bnd] jmp [rip + disp32]`; Windows' own libraries have it with a REX prefix that changes nothing.
pub(crate) struct Jump {
    slot: u64,
}

impl Jump {
    /// No longer than so many bytes.
    pub(crate) const LONGEST: usize = 12;

    /// What is at `code`, if it is such a jump.
    pub(crate) fn of(code: u64, bytes: &[u8]) -> Option<Self> {
        let mut at = behind_prefixes(bytes, [0xf3, 0x0f, 0x1e, 0xfa]);
        at += usize::from(bytes.get(at) == Some(&0x48));
        let by = displacement(bytes.get(at..)?, [0xff, 0x25])?;
        Some(Self { slot: code.wrapping_add(at as u64 + 6).wrapping_add_signed(i64::from(by)) })
    }

    /// Where its slot is; `table` is where the image has its table of slots.
    pub(crate) fn slot(&self, _table: impl FnOnce() -> Option<u64>) -> Option<u64> {
        Some(self.slot)
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
    // The sixth argument: where the return address is.
    #[cfg(not(windows))]
    naked_asm!("mov r9, rsp", "jmp {}", sym detach_all_above);
    // The only argument: where the return address is, the place of the first four arguments behind it, and the fifth. That place is the callee's
    // to fill.
    #[cfg(windows)]
    naked_asm!(
        "mov [rsp + 8], rcx", "mov [rsp + 16], edx", "mov [rsp + 24], r8d", "mov [rsp + 32], r9d",
        "mov rcx, rsp", "jmp {}", sym detach_all_above
    );
}

/// # Safety
/// As for [`kdetour_detach_all`].
#[cfg(not(windows))]
unsafe extern "C" fn detach_all_above(
    detours: *const *mut Detour,
    count: c_uint,
    protocol: c_int,
    timeout_ms: c_uint,
    error: *mut ErrorRecord,
    sp: u64,
) -> c_int {
    // SAFETY: by the caller's word.
    unsafe { detach_all(detours, count, protocol, timeout_ms, error, sp) }
}

/// What the stack of a call looks like on Windows, once the arguments in registers have been put into their places.
#[cfg(windows)]
#[repr(C)]
struct Call {
    _return_address: u64,
    detours: *const *mut Detour,
    count: c_uint,
    _gap: u32,
    protocol: c_int,
    _gap_behind: u32,
    timeout_ms: c_uint,
    _last_gap: u32,
    error: *mut ErrorRecord,
}

/// # Safety
/// As for [`kdetour_detach_all`]; `call` is the stack of that call.
#[cfg(windows)]
unsafe extern "C" fn detach_all_above(call: *const Call) -> c_int {
    // SAFETY: by the caller's word. Nobody else writes there: a callee's arguments are its own.
    let (detours, count, protocol, timeout_ms, error) = unsafe {
        let call = &*call;
        (call.detours, call.count, call.protocol, call.timeout_ms, call.error)
    };
    // SAFETY: by the caller's word.
    unsafe { detach_all(detours, count, protocol, timeout_ms, error, call.addr() as u64) }
}
