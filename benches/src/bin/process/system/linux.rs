//! Linux. What is mapped is what `/proc/self/maps` says.

use super::{Mapped, Protection};
use anyhow::{Context as _, Result};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
use rustix::time::{ClockId, clock_gettime};
use std::fs;
use std::ptr;
use std::time::Duration;

/// Pages at an address, to be read and written, if nothing is there. They stay for ever.
pub(crate) fn pages(address: u64, len: usize) -> Option<*mut u8> {
    map(ptr::with_exposed_provenance_mut(usize::try_from(address).ok()?), len, MapFlags::FIXED_NOREPLACE)
}

/// The same where the kernel wants them.
pub(crate) fn pages_anywhere(len: usize) -> Option<*mut u8> {
    map(ptr::null_mut(), len, MapFlags::empty())
}

fn map(address: *mut std::ffi::c_void, len: usize, how: MapFlags) -> Option<*mut u8> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: nothing is replaced.
    unsafe { mmap_anonymous(address, len, protection, MapFlags::PRIVATE | how) }.ok().map(<*mut _>::cast)
}

/// # Safety
/// They are pages of the caller's own, which nobody writes from now on.
pub(crate) unsafe fn protect(pages: *mut u8, len: usize, protection: Protection) -> Result<()> {
    let flags = match protection {
        Protection::Executable => MprotectFlags::READ | MprotectFlags::EXEC,
        Protection::ReadOnly => MprotectFlags::READ,
    };
    // SAFETY: the caller's promise.
    Ok(unsafe { mprotect(pages.cast(), len, flags) }?)
}

/// How long this thread has had a processor.
pub(crate) fn cpu_time() -> Option<Duration> {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).ok()
}

pub(super) fn mapped() -> Result<Mapped> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut mapped = Mapped { executable_pages: 0, executable_mappings: 0, mappings: 0 };
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, protection) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (start, end) = range.split_once('-').context("a mapping has bounds")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        mapped.mappings += 1;
        if protection.contains('x') && words.nth(3).is_none() {
            mapped.executable_mappings += 1;
            mapped.executable_pages += (end - start) / 4096;
        }
    }
    Ok(mapped)
}

/// How many mappings a process may have.
pub(crate) fn most_mappings() -> Result<Option<u64>> {
    Ok(Some(fs::read_to_string("/proc/sys/vm/max_map_count")?.trim().parse()?))
}
