//! What NT is asked about itself.
//!
//! The list of loaded images is `ZwQuerySystemInformation`'s class 11, the one thing here that has no page in the WDK's documentation:
//! the documented `AuxKlibQueryModuleInformation` is part of a library that the WDK links statically, and that nobody else has. The form of
//! an answer has been the same in every version.

use super::NOT_IMPLEMENTED;
use super::imports::ZwQuerySystemInformation;
use crate::Error;
use crate::host::windows_kernel::nt::Module;
use alloc::vec::Vec;

/// `SystemModuleInformation`, and `SystemCodeIntegrityInformation` (winternl.h).
const MODULES: u32 = 11;
const CODE_INTEGRITY: u32 = 103;
/// `STATUS_INFO_LENGTH_MISMATCH`, `STATUS_INVALID_INFO_CLASS`.
const TOO_SHORT: i32 = 0xc000_0004_u32.cast_signed();
const NO_SUCH_CLASS: i32 = 0xc000_0003_u32.cast_signed();
/// How often a list is asked for that gets longer meanwhile.
const TRIES: usize = 8;

/// One image in the list.
#[repr(C)]
struct Entry {
    section: usize,
    mapped: usize,
    base: usize,
    size: u32,
    flags: u32,
    order: [u16; 3],
    /// Where the file's name begins in the path.
    name: u16,
    path: [u8; 256],
}

pub(super) fn modules() -> Result<Vec<Module>, Error> {
    let mut words: Vec<usize> = Vec::new();
    for _ in 0..TRIES {
        let len = u32::try_from(words.len() * size_of::<usize>()).map_err(|_| Error::OutOfMemory)?;
        let mut needed = 0;
        // SAFETY: so many bytes are writable, at `PASSIVE_LEVEL`.
        let status =
            unsafe { ZwQuerySystemInformation(MODULES, words.as_mut_ptr().cast(), len, &raw mut needed) };
        if status >= 0 {
            return listed(&words);
        }
        if status != TOO_SHORT {
            return Err(Error::Host(status));
        }
        // Some more, since it may be longer next time.
        let wanted = (needed.max(len) as usize).saturating_add(8 * size_of::<Entry>()) / size_of::<usize>();
        words.clear();
        words.try_reserve_exact(wanted)?;
        words.resize(wanted, 0);
    }
    Err(Error::Host(TOO_SHORT))
}

/// Behind a number of 32 bits, as far apart as pointers are.
fn listed(words: &[usize]) -> Result<Vec<Module>, Error> {
    let Some((&count, entries)) = words.split_first() else { return Ok(Vec::new()) };
    let room = size_of_val(entries) / size_of::<Entry>();
    let count = (count & 0xffff_ffff).min(room);
    let mut modules = Vec::new();
    modules.try_reserve_exact(count)?;
    let first = entries.as_ptr().cast::<Entry>();
    modules.extend((0..count).map(|index| {
        // SAFETY: there is room for so many, each is made of integers, and they are aligned as pointers are.
        let entry = unsafe { &*first.wrapping_add(index) };
        let path = entry.path.get(usize::from(entry.name)..).unwrap_or(&entry.path);
        let end = path.iter().position(|&byte| byte == 0).unwrap_or(path.len());
        Module::new(entry.base as u64, entry.size, path.get(..end).unwrap_or_default())
    }));
    Ok(modules)
}

/// `CODEINTEGRITY_OPTION_HVCI_KMCI_ENABLED` of `SYSTEM_CODEINTEGRITY_INFORMATION` (winternl.h). Whoever does not know the class is older
/// than the protection; any other failure counts as if it were there.
pub(super) fn has_code_integrity() -> bool {
    const HYPERVISOR: u32 = 0x400;
    let mut information = [8_u32, 0];
    let mut needed = 0;
    // SAFETY: a structure of eight bytes, whose size it begins with.
    let status = unsafe {
        ZwQuerySystemInformation(CODE_INTEGRITY, information.as_mut_ptr().cast(), 8, &raw mut needed)
    };
    match status {
        0.. => information[1] & HYPERVISOR != 0,
        NO_SUCH_CLASS | NOT_IMPLEMENTED => false,
        _ => true,
    }
}

/// Whether shadow stacks are in force in ring 0: `CR4.CET`, and `SH_STK_EN` of `IA32_S_CET` (Intel SDM volume 1, "Control-flow Enforcement
/// Technology"). Only a processor that has them is asked.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_shadow_stacks() -> bool {
    /// `CET_SS` in ECX of leaf 7; `CR4.CET`; `SH_STK_EN`.
    const HAS: u32 = 1 << 7;
    const CET: u64 = 1 << 23;
    const ENABLED: u32 = 1;
    const SUPERVISOR: u32 = 0x6a2;
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).ecx & HAS == 0 {
        return false;
    }
    let control: u64;
    // SAFETY: reads a control register, in ring 0.
    unsafe { core::arch::asm!("mov {}, cr4", out(reg) control, options(nomem, nostack, preserves_flags)) };
    if control & CET == 0 {
        return false;
    }
    let low: u32;
    // SAFETY: the register is there where `CR4.CET` can be set.
    unsafe {
        core::arch::asm!("rdmsr", in("ecx") SUPERVISOR, out("eax") low, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    low & ENABLED != 0
}

/// A 32-bit kernel has none.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn has_shadow_stacks() -> bool {
    false
}

const _: () = assert!(size_of::<Entry>() == 3 * size_of::<usize>() + 8 + 8 + 256);
