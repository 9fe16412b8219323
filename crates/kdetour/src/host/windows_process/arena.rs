//! Where slots are taken from in a process: pages near the targets, and at the addresses that a shape wants.
//!
//! Windows hands out addresses in blocks of 64 KiB, and memory in pages. So a block is reserved as a whole, and of its pages those become
//! memory that a slot needs: one page at any address, if its block is free.
//!
//! Pages are private memory, filled with INT3 before they become executable, and never writable and executable. What is taken is kept to the
//! byte, since a relay lies wherever a displacement says. A page in which nothing is taken any more is given back, and so is a block without
//! pages.

mod lent;

pub(super) use lent::give_back;

use super::PAGE;
use super::memory::page_down;
use super::nt::Nt;
use super::regions::Region;
use crate::Error;
use crate::address::widen;
use crate::host::Span;
use crate::host::process::avoided::Avoided;
use crate::host::process::relay::next_relay;
use crate::host::process::taken::Taken;
use crate::slots::SlotMemory;
use core::ffi::c_void;
use core::{mem, ptr};
use kdetour_plan::{Reach, Relays};
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;
use windows_sys::Win32::Foundation::GetLastError;
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_DECOMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_EXECUTE_READ, PAGE_NOACCESS, PAGE_READWRITE,
    VirtualAlloc, VirtualFree, VirtualProtect,
};
use windows_sys::Win32::System::SystemInformation::{GetSystemInfo, SYSTEM_INFO};

/// In such steps addresses are handed out.
pub(super) const BLOCK: u64 = 0x1_0000;
/// Slots that may lie anywhere begin at multiples of this.
const ALIGN: u64 = 16;
/// How many places one request looks at before it gives up.
const STEPS: usize = 512;

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// Slots: executable.
    Slots,
    /// What is told of them: writable.
    #[cfg(target_arch = "x86_64")]
    Data,
}

/// Memory near targets.
#[derive(Debug)]
pub(crate) struct Arena {
    nt: &'static Nt,
    holds: Holds,
    /// The blocks that are reserved.
    blocks: BTreeSet<u64>,
    /// Pages that are memory, and how many bytes of each are taken.
    pages: BTreeMap<u64, usize>,
    taken: Taken,
    /// Where no slot may be.
    avoided: Option<Avoided>,
    /// The addresses that a process may have.
    lowest: u64,
    highest: u64,
}

/// Where a slot may begin that may lie anywhere, from an address on. Not at the beginning of a page: whoever asks what is mapped where has such
/// addresses on his stack, and what looks like an address in a slot is taken for one that may be returned to.
fn aligned(from: u64) -> Option<u64> {
    let at = from.checked_next_multiple_of(ALIGN)?;
    if at.is_multiple_of(PAGE) { at.checked_add(ALIGN) } else { Some(at) }
}

const fn block_down(address: u64) -> u64 {
    address & !(BLOCK - 1)
}

impl Arena {
    pub(super) fn new(nt: &'static Nt, holds: Holds) -> Self {
        // SAFETY: numbers and pointers, for which zeros are valid.
        let mut info: SYSTEM_INFO = unsafe { mem::zeroed() };
        // SAFETY: fills the structure.
        unsafe { GetSystemInfo(&raw mut info) };
        Self {
            nt,
            holds,
            blocks: BTreeSet::new(),
            pages: BTreeMap::new(),
            taken: Taken::new(),
            avoided: None,
            lowest: widen(info.lpMinimumApplicationAddress.addr()).max(BLOCK),
            highest: widen(info.lpMaximumApplicationAddress.addr()),
        }
    }

    /// Whether an address lies in memory for slots: code that must not be detoured itself.
    pub(super) fn is_slot(&self, address: u64) -> bool {
        self.pages.contains_key(&page_down(address))
    }

    /// How many bytes are taken.
    pub(super) fn bytes(&self) -> usize {
        self.taken.bytes()
    }

    /// How many pages are memory.
    pub(super) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// How many blocks are reserved.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Reserves those blocks of a slot that are not reserved yet, and makes its pages memory.
    fn map(&mut self, address: u64, len: usize) -> Result<(), Error> {
        let end = address.checked_add(len as u64).ok_or(Error::OutOfMemory)?;
        let mut outcome = Ok(());
        let mut block = block_down(address);
        while block < end && outcome.is_ok() {
            if !self.blocks.contains(&block) {
                outcome = reserve(block).map(|()| {
                    self.blocks.insert(block);
                });
            }
            block = block.checked_add(BLOCK).ok_or(Error::OutOfMemory)?;
        }
        let mut page = page_down(address);
        while page < end && outcome.is_ok() {
            if !self.pages.contains_key(&page) {
                outcome = commit(page, self.holds).map(|()| {
                    self.pages.insert(page, 0);
                });
            }
            page = page.checked_add(PAGE).ok_or(Error::OutOfMemory)?;
        }
        if outcome.is_err() {
            self.give_back(address, end);
        }
        outcome
    }

    /// Gives back pages in which nothing is taken, and blocks without pages.
    fn give_back(&mut self, start: u64, end: u64) {
        let pages = self.pages.range(page_down(start)..end).filter(|&(_, &used)| used == 0);
        let pages: Vec<u64> = pages.map(|(&page, _)| page).collect();
        for page in pages {
            self.pages.remove(&page);
            free(page, PAGE as usize, MEM_DECOMMIT);
        }
        let blocks: Vec<u64> = self.blocks.range(block_down(start)..end).copied().collect();
        for block in blocks {
            if self.pages.range(block..block.saturating_add(BLOCK)).next().is_none() {
                self.blocks.remove(&block);
                free(block, 0, MEM_RELEASE);
            }
        }
    }

    /// Takes bytes, which are free, and makes their pages memory.
    fn take(&mut self, address: u64, len: usize) -> Option<Span> {
        self.map(address, len).ok()?;
        self.taken.insert(Span { address, len });
        self.count(address, len, usize::saturating_add);
        Some(Span { address, len })
    }

    /// Marks bytes as free.
    fn release(&mut self, address: u64, len: usize) {
        self.count(address, len, usize::saturating_sub);
        self.give_back(address, address.saturating_add(len as u64));
    }

    /// Changes for every page how many of its bytes are taken, by those of these bytes that it holds.
    fn count(&mut self, address: u64, len: usize, change: fn(usize, usize) -> usize) {
        let end = address.saturating_add(len as u64);
        for (&page, used) in self.pages.range_mut(page_down(address)..end) {
            let (from, to) = (address.max(page), end.min(page.saturating_add(PAGE)));
            *used = change(*used, usize::try_from(to.saturating_sub(from)).unwrap_or_default());
        }
    }

    /// Whether a slot can be had in blocks that are free, or ours; else from where on it is worth looking again.
    fn can_be_had(&self, address: u64, len: usize) -> Result<(), u64> {
        let end = address.saturating_add(len as u64);
        if address < self.lowest {
            return Err(self.lowest);
        }
        if end > self.highest {
            return Err(u64::MAX);
        }
        if let Some((_, behind)) = self.avoided_by(address, len) {
            return Err(behind);
        }
        if let Some((_, behind)) = self.taken.next(address).filter(|&(next, _)| next < end) {
            return Err(behind);
        }
        let mut block = block_down(address);
        while block < end {
            if !self.blocks.contains(&block) {
                let region = Region::of(self.nt, block).ok_or(u64::MAX)?;
                let may_be = region.is_free() || region.may_be_free();
                if !may_be || region.end < block.saturating_add(BLOCK) {
                    return Err(region.end.max(block.saturating_add(BLOCK)));
                }
            }
            block = block.saturating_add(BLOCK);
        }
        Ok(())
    }

    /// As `at`, from the address `from` on.
    fn at_from(&mut self, len: usize, relays: Relays, reach: Reach, from: u64) -> Option<Span> {
        let mut from = from.max(reach.first);
        for _ in 0..STEPS {
            let wanted = next_relay(relays, from).filter(|&wanted| wanted <= reach.last)?;
            match self.can_be_had(wanted, len) {
                Ok(()) => match self.take(wanted, len) {
                    Some(slot) => return Some(slot),
                    // Somebody else was faster.
                    None => from = block_down(wanted).checked_add(BLOCK)?,
                },
                Err(u64::MAX) => return None,
                Err(next) => from = next.max(wanted.checked_add(1)?),
            }
        }
        None
    }

    /// As `at`, in pages that are memory already.
    fn at_known(&mut self, len: usize, relays: Relays, reach: Reach) -> Option<Span> {
        let choose = |from| next_relay(relays, from);
        let mut from = page_down(reach.first);
        for _ in 0..STEPS {
            let wanted = choose(from.max(reach.first)).filter(|&wanted| wanted <= reach.last)?;
            let (&page, _) = self.pages.range(page_down(wanted)..).next()?;
            let end = page.checked_add(PAGE)?;
            if let Some((_, behind)) = self.avoided_by(page, PAGE as usize) {
                from = behind.max(end);
                continue;
            }
            if let Some(address) = self.taken.room(end, page, len, reach, choose) {
                return self.take(address, len);
            }
            from = end;
        }
        None
    }

    /// A free block that is as near as can be to the middle of the reach, which is where the target is, and has a place within reach.
    fn free_block(&self, len: usize, reach: Reach) -> Option<u64> {
        let middle = block_down(middle(reach));
        let below = self.search(middle, len, reach, false);
        let above = self.search(middle, len, reach, true);
        let distance = |place: &u64| place.abs_diff(middle);
        [below, above].into_iter().flatten().min_by_key(distance)
    }

    /// Goes from region to region, up or down, to the first free block.
    fn search(&self, middle: u64, len: usize, reach: Reach, up: bool) -> Option<u64> {
        let mut block = middle;
        for _ in 0..STEPS {
            let first = block.max(reach.first).checked_next_multiple_of(ALIGN)?;
            if block < block_down(reach.first) || first > reach.last || block < self.lowest {
                return None;
            }
            if block.checked_add(BLOCK)? > self.highest {
                if up {
                    return None;
                }
                block = block_down(self.highest).checked_sub(BLOCK)?;
                continue;
            }
            if let Some((first, behind)) = self.avoided_by(block, BLOCK as usize) {
                block = match up {
                    true => behind.checked_next_multiple_of(BLOCK)?,
                    false => block_down(first).checked_sub(BLOCK)?,
                };
                continue;
            }
            let region = Region::of(self.nt, block)?;
            let is_room = first.saturating_add(len as u64) <= block.saturating_add(BLOCK);
            if region.is_free() && region.end >= block.saturating_add(BLOCK) && is_room {
                return Some(block);
            }
            block = match (up, region.is_free()) {
                (true, false) => region.end.checked_next_multiple_of(BLOCK)?.max(block.checked_add(BLOCK)?),
                (true, true) => block.checked_add(BLOCK)?,
                (false, false) => block_down(region.allocation.min(block)).checked_sub(BLOCK)?,
                (false, true) => block.checked_sub(BLOCK)?,
            };
        }
        None
    }
}

/// Where a slot is best: in the middle of the reach, which is where the target is. If the reach begins with the first address there is,
/// as in 32-bit mode, it does not tell. Then that is here, beside a program or its libraries.
fn middle(reach: Reach) -> u64 {
    let here = widen((middle as fn(Reach) -> u64 as *const ()).addr());
    if reach.first == 0 && reach.contains(here) { here } else { reach.first.midpoint(reach.last) }
}

impl SlotMemory for Arena {
    fn near(&mut self, len: usize, reach: Reach) -> Option<Span> {
        if reach.first > reach.last {
            return None;
        }
        let len = len.max(1);
        // In pages that are memory; then in blocks that are reserved; then in a new one.
        let allowed = |at: u64, len: u64| self.avoided_by(at, usize::try_from(len).unwrap_or(0)).is_none();
        let pages = self.pages.range(page_down(reach.first)..=reach.last).map(|(&page, _)| page);
        let pages = pages.filter(|&page| allowed(page, PAGE));
        let known = pages
            .take(STEPS)
            .find_map(|page| self.taken.room(page.saturating_add(PAGE), page, len, reach, aligned));
        let blocks = || {
            let known = self.blocks.range(block_down(reach.first)..=reach.last).copied();
            known.filter(|&block| allowed(block, BLOCK))
        };
        let reserved = || {
            blocks()
                .take(STEPS)
                .find_map(|block| self.taken.room(block.saturating_add(BLOCK), block, len, reach, aligned))
        };
        if let Some(address) = known.or_else(reserved) {
            return self.take(address, len);
        }
        // It may not begin where the block does.
        let block = self.free_block(len.checked_add(ALIGN as usize)?, reach)?;
        let address = aligned(block.max(reach.first))?;
        self.take(address, len)
    }

    fn at(&mut self, len: usize, relays: Relays, reach: Reach) -> Option<Span> {
        if reach.first > reach.last {
            return None;
        }
        let len = len.max(1);
        let known = if relays.count() > 1 { self.at_known(len, relays, reach) } else { None };
        let near = known.or_else(|| self.at_from(len, relays, reach, relays.after));
        near.or_else(|| {
            let reach = Reach { last: reach.last.min(relays.after), ..reach };
            self.at_from(len, relays, reach, reach.first)
        })
    }

    fn trim(&mut self, slot: Span, len: usize) -> Span {
        let (slot, rest) = self.taken.trim(slot, len);
        if let Some(rest) = rest {
            self.release(rest.address, rest.len);
        }
        slot
    }

    fn free(&mut self, slot: Span) {
        if let Some(slot) = self.taken.remove(slot) {
            self.release(slot.address, slot.len);
        }
    }
}

fn place(address: u64) -> Result<*mut c_void, Error> {
    usize::try_from(address).map(ptr::with_exposed_provenance_mut).map_err(|_| Error::OutOfMemory)
}

fn refused() -> Error {
    // SAFETY: reads what this thread was told last.
    Error::Host(unsafe { GetLastError() }.cast_signed())
}

/// Keeps the addresses of a block.
fn reserve(block: u64) -> Result<(), Error> {
    // SAFETY: where something is already the system refuses: nothing that anybody uses changes.
    let found = unsafe { VirtualAlloc(place(block)?, BLOCK as usize, MEM_RESERVE, PAGE_NOACCESS) };
    match widen(found.addr()) {
        found if found == block => Ok(()),
        0 => Err(refused()),
        elsewhere => {
            free(elsewhere, 0, MEM_RELEASE);
            Err(Error::OutOfMemory)
        }
    }
}

/// Makes a page of a block that is reserved memory; for slots full of INT3. At no time is it writable and executable.
fn commit(page: u64, holds: Holds) -> Result<(), Error> {
    let len = PAGE as usize;
    // SAFETY: a page of a block that is ours and of which nobody knows yet.
    let found = unsafe { VirtualAlloc(place(page)?, len, MEM_COMMIT, PAGE_READWRITE) };
    if found.is_null() {
        return Err(refused());
    }
    if holds != Holds::Slots {
        return Ok(());
    }
    let mut old = 0;
    // SAFETY: so many bytes are there since a moment ago, writable, and nobody else knows of them.
    let executable = unsafe {
        found.cast::<u8>().write_bytes(0xcc, len);
        VirtualProtect(found, len, PAGE_EXECUTE_READ, &raw mut old)
    };
    if executable == 0 {
        let error = refused();
        free(page, len, MEM_DECOMMIT);
        return Err(error);
    }
    Ok(())
}

/// Gives memory or addresses back.
fn free(address: u64, len: usize, how: u32) {
    if let Ok(place) = place(address) {
        // SAFETY: it is from here, and nobody runs there: it was not given out yet, or was given back.
        let _ = unsafe { VirtualFree(place, len, how) };
    }
}

/// Which flags a page's protection can be said with when it becomes executable again: that the calls that control-flow guard allows into
/// it stay those that it allowed (`PAGE_TARGETS_NO_UPDATE`, since Windows 10), where the system knows of that. On a page of our own.
///
/// # Errors
/// [`Error::Host`] with `ERROR_DYNAMIC_CODE_BLOCKED` where a page cannot become executable.
pub(super) fn flags() -> Result<u32, Error> {
    /// winnt.h.
    const TARGETS_NO_UPDATE: u32 = 0x4000_0000;
    let len = PAGE as usize;
    // SAFETY: the system chooses the place.
    let page = unsafe { VirtualAlloc(ptr::null(), len, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE) };
    if page.is_null() {
        return Err(refused());
    }
    let protect = |protection| {
        let mut old = 0;
        // SAFETY: the page of a moment ago, of which nobody else knows.
        unsafe { VirtualProtect(page, len, protection, &raw mut old) != 0 }
    };
    let outcome = if protect(PAGE_EXECUTE_READ | TARGETS_NO_UPDATE) {
        Ok(TARGETS_NO_UPDATE)
    } else if protect(PAGE_EXECUTE_READ) {
        Ok(0)
    } else {
        Err(refused())
    };
    free(widen(page.addr()), 0, MEM_RELEASE);
    outcome
}
