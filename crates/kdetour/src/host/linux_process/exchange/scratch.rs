//! The mapping that new pages are made in, and moved from.

use super::TRIES;
use super::foresee::failure;
use crate::Error;
use crate::host::linux_process::maps::Mapping;
use crate::host::linux_process::memory::Memory;
use crate::host::linux_process::{PAGE, query, refused};
use core::ffi::c_void;
use core::ptr;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, major, minor, stat};
use rustix::io::{Errno, pread, retry_on_intr};
use rustix::mm::{
    MapFlags, MprotectFlags, MremapFlags, ProtFlags, mmap, mmap_anonymous, mprotect, mremap_fixed, munmap,
};
use rustix::path::Arg;
use rustix::thread::sched_yield;
use std::format;

pub(super) fn pointer(address: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or_default())
}

/// Calls `copy` with every page from `start` up to `end` that the process has a copy of its own of, as `/proc/self/pagemap`
/// tells (proc_pid_pagemap(5)). Calls nothing if there is no such file.
pub(super) fn copies(
    pagemap: Option<&OwnedFd>,
    start: u64,
    end: u64,
    copy: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<(), Error> {
    const ENTRY: u64 = size_of::<u64>() as u64;
    const SWAPPED: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 63;
    const OF_FILE: u64 = 1 << 61;
    let Some(pagemap) = pagemap else { return Ok(()) };
    let mut page = start;
    let mut entries = [0_u8; 64 * ENTRY as usize];
    while page < end {
        let wanted = usize::try_from((end - page) / PAGE * ENTRY).unwrap_or(usize::MAX).min(entries.len());
        let entries = entries.get_mut(..wanted).unwrap_or_default();
        let count = retry_on_intr(|| pread(pagemap, &mut *entries, page / PAGE * ENTRY)).map_err(refused)?;
        let (entries, _) = entries.get(..count).unwrap_or_default().as_chunks();
        if entries.is_empty() {
            return Err(Error::Unreadable { address: page });
        }
        for entry in entries {
            let entry = u64::from_le_bytes(*entry);
            if entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT {
                copy(page)?;
            }
            page += PAGE;
        }
    }
    Ok(())
}

/// Copies a page as it is.
pub(super) fn copy_page(
    memory: &Memory,
    scratch: &Scratch,
    page: u64,
    protection: ProtFlags,
    room: &mut [u8],
) -> Result<(), Error> {
    let bytes = room.get_mut(..PAGE as usize).ok_or(Error::OutOfMemory)?;
    memory.read(page, bytes)?;
    scratch.fill(memory, page, protection, bytes)
}

/// Pages elsewhere that will be moved over others.
#[derive(Debug)]
pub(super) struct Scratch {
    /// The address that its first byte will have.
    pub(super) text: u64,
    pub(super) base: u64,
    /// 0 if it has been moved.
    pub(super) len: usize,
}

impl Scratch {
    pub(super) fn new(text: u64, base: *mut c_void, len: usize) -> Self {
        Self { text, base: base.expose_provenance() as u64, len }
    }

    pub(super) fn anonymous(text: u64, len: usize, protection: ProtFlags) -> Result<Self, Error> {
        // SAFETY: the kernel chooses the place, so no memory that anybody uses changes.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE) };
        base.map(|base| Self::new(text, base, len)).map_err(|error| failure(error, text))
    }

    /// The file's pages that are mapped from `start` to `end`, once more; none if the file is not to be had.
    pub(super) fn of_file(
        mapping: &Mapping,
        start: u64,
        end: u64,
        protection: ProtFlags,
    ) -> Result<Option<(Self, OwnedFd)>, Error> {
        let Some((file, certain)) = open(mapping) else { return Ok(None) };
        let len = usize::try_from(end.wrapping_sub(start)).unwrap_or_default();
        let offset = start.wrapping_sub(mapping.start).wrapping_add(mapping.offset);
        // SAFETY: the kernel chooses the place, so no memory that anybody uses changes.
        let base = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::PRIVATE, &file, offset) };
        let base = match base {
            Ok(base) => base,
            Err(Errno::NOMEM) => return Err(Error::OutOfMemory),
            // The file system may have become `noexec`, the file shorter.
            Err(_) => return Ok(None),
        };
        let scratch = Self::new(start, base, len);
        if !certain {
            let (mappings, _) = query::within(core::iter::once((scratch.base, scratch.base + PAGE)))?;
            if !mappings.of(scratch.base).is_some_and(|new| new.is_of_the_same_file(mapping)) {
                return Ok(None);
            }
        }
        Ok(Some((scratch, file)))
    }

    /// Writes the pages that will be at `text`. At no time are they writable and executable.
    pub(super) fn fill(
        &self,
        memory: &Memory,
        text: u64,
        protection: ProtFlags,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let offset = usize::try_from(text.wrapping_sub(self.text)).unwrap_or(usize::MAX);
        if offset.checked_add(bytes.len()).is_none_or(|end| end > self.len) {
            return Err(Error::Unreadable { address: text });
        }
        let address = self.base.wrapping_add(offset as u64);
        if memory.can_write() {
            return memory.write(address, bytes);
        }
        let protect = |protection| {
            // All of it, so that it stays one mapping: before Linux 6.17 `mremap` moves no more than one, and says so
            // only after it has unmapped what was to be replaced.
            // SAFETY: these pages are ours, and nobody else knows their address.
            let outcome = unsafe { mprotect(pointer(self.base), self.len, protection) };
            outcome.map_err(|error| failure(error, text))
        };
        protect(MprotectFlags::READ | MprotectFlags::WRITE)?;
        // SAFETY: so many bytes are ours from there on, writable since a moment ago; nobody refers to them.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), pointer(address).cast(), bytes.len()) };
        let mut own = MprotectFlags::empty();
        own.set(MprotectFlags::READ, protection.contains(ProtFlags::READ));
        own.set(MprotectFlags::EXEC, protection.contains(ProtFlags::EXEC));
        protect(own)
    }

    /// Moves it over what it replaces.
    pub(super) fn take_the_place(
        &mut self,
        memory: &Memory,
        reserve: &mut Option<Self>,
    ) -> Result<(), Error> {
        let (from, to) = (pointer(self.base), pointer(self.text));
        let mut outcome = Ok(());
        for _ in 0..TRIES {
            // SAFETY: the scratch mapping is ours; what it replaces is text that has the same bytes, but for those that
            // the caller wants changed.
            let moved = unsafe { mremap_fixed(from, self.len, self.len, MremapFlags::MAYMOVE, to) };
            let Err(error) = moved else {
                self.len = 0;
                return Ok(());
            };
            outcome = Err(failure(error, self.text));
            if memory.read(self.text, &mut [0]).is_ok() {
                break;
            }
            // The old pages are gone, and the new ones are not there: whatever is missing, it has to come.
            *reserve = None;
            sched_yield();
        }
        outcome
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping is ours, and nobody else knows its address.
            let _ = unsafe { munmap(pointer(self.base), self.len) };
        }
    }
}

/// Opens the file of a mapping, and says whether it certainly is that one.
pub(super) fn open(mapping: &Mapping) -> Option<(OwnedFd, bool)> {
    if mapping.inode == 0 {
        return None;
    }
    let regular = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let same = |stat: &Stat| (major(stat.st_dev), minor(stat.st_dev)) == mapping.device;
    // To open something else than a file might do something.
    let path =
        stat(mapping.path.as_slice()).ok().filter(|stat| regular(stat) && stat.st_ino == mapping.inode);
    let by_path = path.and_then(|_| opened(mapping.path.as_slice()));
    let by_path = by_path.filter(|(_, stat)| regular(stat) && stat.st_ino == mapping.inode);
    let uncertain = match by_path {
        Some((file, stat)) if same(&stat) => return Some((file, true)),
        other => other,
    };
    // This names a file that was deleted, too, but not everybody may follow it.
    let link = format!("/proc/self/map_files/{:x}-{:x}", mapping.start, mapping.end);
    let by_link = opened(link.as_str()).filter(|(_, stat)| regular(stat) && stat.st_ino == mapping.inode);
    // Some file systems have other devices for their files than for their mappings.
    by_link.or(uncertain).map(|(file, _)| (file, false))
}

pub(super) fn opened(path: impl Arg + Copy) -> Option<(OwnedFd, Stat)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty())).ok()?;
    let stat = fstat(&file).ok()?;
    Some((file, stat))
}

/// Reads what a mapping of the file shows: nothing but zeros behind its end.
pub(super) fn read_file(file: &OwnedFd, offset: u64, bytes: &mut [u8]) -> Option<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match retry_on_intr(|| pread(file, &mut *rest, offset.wrapping_add(done as u64))).ok()? {
            0 => {
                rest.fill(0);
                break;
            }
            count => done += count,
        }
    }
    Some(())
}
