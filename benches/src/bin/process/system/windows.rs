//! Windows. What is mapped is what `VirtualQuery` says.

use super::{Mapped, Protection};
use anyhow::{Result, ensure};
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_FREE, MEM_PRIVATE, MEM_RESERVE, MEMORY_BASIC_INFORMATION, PAGE_EXECUTE_READ,
    PAGE_READONLY, PAGE_READWRITE, VirtualAlloc, VirtualProtect, VirtualQuery,
};

/// All protections under which pages are executed.
const EXECUTABLE: u32 = 0xf0;

/// Pages at an address, to be read and written, if nothing is there. They stay for ever.
pub(crate) fn pages(address: u64, len: usize) -> Option<*mut u8> {
    let address = ptr::without_provenance(usize::try_from(address).ok()?);
    // SAFETY: nothing is replaced.
    let pages = unsafe { VirtualAlloc(address, len, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE) };
    (!pages.is_null()).then_some(pages.cast())
}

/// The same far from the program, among what Windows has at the end of all addresses.
pub(crate) fn pages_anywhere(len: usize) -> Option<*mut u8> {
    (1..1000_u64).find_map(|step| pages((0x7f00 << 32) - (step << 24), len))
}

/// # Safety
/// They are pages of the caller's own, which nobody writes from now on.
pub(crate) unsafe fn protect(pages: *mut u8, len: usize, protection: Protection) -> Result<()> {
    let (flags, mut before) = match protection {
        Protection::Executable => (PAGE_EXECUTE_READ, 0),
        Protection::ReadOnly => (PAGE_READONLY, 0),
    };
    // SAFETY: the caller's promise.
    let done = unsafe { VirtualProtect(pages.cast(), len, flags, &raw mut before) };
    ensure!(done != 0, "VirtualProtect: {}", std::io::Error::last_os_error());
    Ok(())
}

/// How long this thread has had a processor is told in steps of milliseconds: nobody measures by that.
pub(crate) const fn cpu_time() -> Option<Duration> {
    None
}

#[expect(clippy::unnecessary_wraps, reason = "Linux has to read a file")]
pub(super) fn mapped() -> Result<Mapped> {
    let mut mapped = Mapped { executable_pages: 0, executable_mappings: 0, mappings: 0 };
    let mut address = 0;
    loop {
        let mut found = MaybeUninit::<MEMORY_BASIC_INFORMATION>::uninit();
        let size = size_of::<MEMORY_BASIC_INFORMATION>();
        // SAFETY: it is filled if the answer is its size; the address is only asked about.
        let filled = unsafe { VirtualQuery(ptr::without_provenance(address), found.as_mut_ptr(), size) };
        if filled != size {
            return Ok(mapped);
        }
        // SAFETY: it has been filled.
        let found = unsafe { found.assume_init() };
        address = found.BaseAddress.addr().saturating_add(found.RegionSize);
        if found.State == MEM_FREE {
            continue;
        }
        mapped.mappings += 1;
        if found.State == MEM_COMMIT && found.Type == MEM_PRIVATE && found.Protect & EXECUTABLE != 0 {
            mapped.executable_mappings += 1;
            mapped.executable_pages += found.RegionSize as u64 / 4096;
        }
    }
}

/// How many mappings a process may have: nobody counts them.
#[expect(clippy::unnecessary_wraps, reason = "Linux has to read a file")]
pub(crate) const fn most_mappings() -> Result<Option<u64>> {
    Ok(None)
}
