//! Where slots are taken from in a process: pages mapped near the targets, and at the addresses that a shape wants.
//!
//! Pages are private anonymous memory, filled with INT3 before they become executable, and never writable again. What
//! is taken is kept to the byte, since a relay lies wherever a displacement says. A page in which nothing is taken any more is
//! unmapped.
//!
//! What is mapped already is asked once and remembered; the kernel does not map over it (`MAP_FIXED_NOREPLACE`), and when it
//! refuses, it is asked again.

mod lent;

use super::near::{Gaps, page_down, unmap};
use super::{PAGE, refused};
use crate::Error;
use crate::host::Span;
use crate::host::process::avoided::Avoided;
use crate::host::process::relay::next_relay;
use crate::host::process::taken::Taken;
use crate::slots::SlotMemory;
use core::ptr;
use kdetour_plan::{Reach, Relays};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
use std::collections::{BTreeMap, BTreeSet};

/// Slots that may lie anywhere begin at multiples of this.
const ALIGN: u64 = 16;
/// A page in which a slot so small found no room is not looked into any more. Slots are asked for as long as they may
/// become, and trimmed.
const SMALL: usize = 128;
/// How many places one request looks at before it gives up.
const STEPS: usize = 256;
/// How many of them are in pages that are mapped already, before another one is mapped.
const KNOWN_STEPS: usize = 32;
/// How many places the kernel is asked for in one request: others may map there meanwhile, or a security module may refuse.
const TRIES: usize = 16;

/// The slot memory of a process.
#[derive(Debug, Default)]
pub struct Arena {
    /// By its address.
    pages: BTreeMap<u64, Page>,
    /// Pages that may have room for a slot that may lie anywhere.
    roomy: BTreeSet<u64>,
    taken: Taken,
    gaps: Option<Gaps>,
    /// Where no slot may be.
    avoided: Option<Avoided>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// Bytes of it that are taken.
    used: usize,
    /// Below there is no room for a slot that may lie anywhere.
    low: usize,
}

impl Arena {
    pub(super) const fn new() -> Self {
        Self {
            pages: BTreeMap::new(),
            roomy: BTreeSet::new(),
            taken: Taken::new(),
            gaps: None,
            avoided: None,
        }
    }

    /// Whether an address lies in memory for slots: code that must not be detoured itself.
    pub(super) fn is_slot(&self, address: u64) -> bool {
        self.pages.contains_key(&page_down(address))
    }

    /// How many pages are mapped.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// How many bytes are taken.
    pub fn bytes(&self) -> usize {
        self.taken.bytes()
    }

    /// How many runs of adjacent pages there are: at least so many mappings of the process.
    pub fn mappings(&self) -> usize {
        let follows =
            |page: &&u64| page.checked_sub(PAGE).is_some_and(|before| self.pages.contains_key(&before));
        self.pages.len() - self.pages.keys().filter(follows).count()
    }

    fn is_free(&self, start: u64, len: usize) -> bool {
        self.taken
            .next(start)
            .is_none_or(|(next, _)| next.checked_sub(start).is_some_and(|room| room >= len as u64))
    }

    /// Room in a page, from `from` on, for a slot that lies in it as a whole and begins where `choose` says: at the lowest
    /// address allowed that is not below the one given.
    fn room_in(
        &self,
        page: u64,
        from: u64,
        len: usize,
        reach: Reach,
        choose: impl Fn(u64) -> Option<u64>,
    ) -> Option<u64> {
        self.taken.room(page.saturating_add(PAGE), from, len, reach, choose)
    }

    /// Takes bytes, which are free, in pages that are mapped.
    fn take(&mut self, address: u64, len: usize) -> Option<Span> {
        self.taken.insert(Span { address, len });
        self.for_pages(address, len, |page, from, to| {
            page.used += to - from;
        });
        Some(Span { address, len })
    }

    /// Marks bytes as free, and unmaps pages that have become empty.
    fn release(&mut self, address: u64, len: usize) {
        let mut empty = false;
        self.for_pages(address, len, |page, from, to| {
            page.used = page.used.saturating_sub(to - from);
            page.low = page.low.min(from);
            empty |= page.used == 0;
        });
        for page in [page_down(address), page_down(address.saturating_add(len as u64))] {
            if self.pages.contains_key(&page) {
                self.roomy.insert(page);
            }
        }
        if !empty {
            return;
        }
        let mut page = page_down(address);
        while page < address.saturating_add(len as u64) {
            if self.pages.get(&page).is_some_and(|known| known.used == 0) {
                self.pages.remove(&page);
                self.roomy.remove(&page);
                unmap(Span { address: page, len: PAGE as usize });
            }
            page = page.saturating_add(PAGE);
        }
    }

    /// Calls `change` for every page that holds some of the bytes, with the part that it holds.
    fn for_pages(&mut self, address: u64, len: usize, mut change: impl FnMut(&mut Page, usize, usize)) {
        let end = address.saturating_add(len as u64);
        let mut start = page_down(address);
        while start < end {
            if let Some(page) = self.pages.get_mut(&start) {
                let within =
                    |address: u64| usize::try_from(address.saturating_sub(start)).unwrap_or(usize::MAX);
                change(page, within(address), within(end).min(PAGE as usize));
            }
            start = start.saturating_add(PAGE);
        }
    }

    /// What could be mapped, as far as is known.
    fn gaps(&mut self) -> Option<&Gaps> {
        if self.gaps.is_none() {
            self.gaps = Gaps::read().ok();
            if let (Some(gaps), Some(avoided)) = (&mut self.gaps, self.avoided) {
                let (first, end) = avoided.bounds();
                gaps.leave_out(first, end);
            }
        }
        self.gaps.as_ref()
    }

    /// Maps those pages of a slot that are not mapped yet.
    fn map(&mut self, address: u64, len: usize) -> Result<(), Error> {
        let first = page_down(address);
        let end = address.checked_add(len as u64).ok_or(Error::OutOfMemory)?;
        let mut page = first;
        let mut outcome = Ok(());
        while page < end && outcome.is_ok() {
            // As many as can be at once.
            let mut behind = page;
            while behind < end && !self.pages.contains_key(&behind) {
                behind = behind.checked_add(PAGE).ok_or(Error::OutOfMemory)?;
            }
            if behind > page {
                let len = usize::try_from(behind - page).unwrap_or(usize::MAX);
                outcome = map_filled(page, len);
                if outcome.is_ok() {
                    for page in (page..behind).step_by(PAGE as usize) {
                        self.pages.insert(page, Page::default());
                        self.roomy.insert(page);
                    }
                }
            }
            page = behind.max(page.saturating_add(PAGE));
        }
        if outcome.is_err() {
            self.unmap_unused(first, end);
        }
        outcome
    }

    fn unmap_unused(&mut self, start: u64, end: u64) {
        let mut page = start;
        while page < end {
            if self.pages.get(&page).is_some_and(|page| page.used == 0) {
                self.pages.remove(&page);
                self.roomy.remove(&page);
                unmap(Span { address: page, len: PAGE as usize });
            }
            page = page.saturating_add(PAGE);
        }
    }

    /// Takes `len` bytes at `address`, mapping what is not mapped.
    fn take_exactly(&mut self, address: u64, len: usize) -> Option<Span> {
        if !self.is_free(address, len) || self.avoided.is_some_and(|avoided| avoided.meets(address, len)) {
            return None;
        }
        self.map(address, len).ok()?;
        self.take(address, len)
    }

    /// As `at`, in pages that are mapped already.
    fn at_known(&mut self, len: usize, relays: Relays, reach: Reach) -> Option<Span> {
        let mut from = reach.first;
        for _ in 0..KNOWN_STEPS {
            let wanted = next_relay(relays, from).filter(|&wanted| wanted <= reach.last)?;
            let (&page, _) = self.pages.range(page_down(wanted)..).next()?;
            if let Some((_, end)) =
                self.avoided.filter(|avoided| avoided.meets(page, 1)).map(|one| one.bounds())
            {
                from = end;
            } else if page <= wanted {
                let choose = |from| next_relay(relays, from);
                if let Some(address) = self.room_in(page, page, len, reach, choose) {
                    return self.take(address, len);
                }
                from = page.checked_add(PAGE)?;
            } else {
                from = page;
            }
        }
        None
    }

    /// As `at`, in pages that are not mapped yet, from the address `from` on.
    fn at_new(&mut self, len: usize, relays: Relays, reach: Reach, from: u64) -> Option<Span> {
        let mut from = from.max(reach.first);
        let mut tries = TRIES;
        for _ in 0..STEPS {
            let wanted = next_relay(relays, from).filter(|&wanted| wanted <= reach.last)?;
            let (start, end) = self.gaps()?.at_or_behind(wanted)?;
            if start > wanted {
                from = start;
                continue;
            }
            if wanted.checked_add(len as u64)? > end {
                from = end;
                continue;
            }
            if let Some((taken, behind)) = self.taken.next(wanted)
                && taken < wanted.saturating_add(len as u64)
            {
                from = behind;
                continue;
            }
            if self.map(wanted, len).is_ok() {
                return self.take(wanted, len);
            }
            // Something was mapped there since.
            self.gaps = None;
            from = page_down(wanted).checked_add(PAGE)?;
            tries = tries.checked_sub(1)?;
        }
        None
    }
}

impl SlotMemory for Arena {
    fn near(&mut self, len: usize, reach: Reach) -> Option<Span> {
        let len = len.max(1);
        let align = |from: u64| from.checked_next_multiple_of(ALIGN);
        let mut from = page_down(reach.first);
        for _ in 0..STEPS {
            let Some(&page) = self.roomy.range(from..).next().filter(|&&page| page <= reach.last) else {
                break;
            };
            if let Some((_, end)) =
                self.avoided.filter(|avoided| avoided.meets(page, 1)).map(|one| one.bounds())
            {
                from = end;
                continue;
            }
            let low = self.pages.get(&page).map_or(0, |known| known.low as u64);
            let found = self.room_in(page, page.saturating_add(low), len, reach, align);
            let within = reach.contains(page.saturating_add(low)) && page.saturating_add(PAGE) <= reach.last;
            let low = match found {
                Some(address) => Some(address.saturating_add(len as u64)),
                None => Some(page.saturating_add(PAGE)).filter(|_| len <= SMALL),
            };
            if let (Some(known), Some(low), true) = (self.pages.get_mut(&page), low, within) {
                // What is too small for this one is not looked at again, until something is given back.
                known.low = usize::try_from(low.saturating_sub(page)).unwrap_or(PAGE as usize);
                if known.low + ALIGN as usize > PAGE as usize {
                    self.roomy.remove(&page);
                }
            }
            if let Some(address) = found {
                return self.take(address, len);
            }
            from = page.checked_add(PAGE)?;
        }
        for _ in 0..TRIES {
            let place = self.gaps()?.near(len as u64, reach)?;
            let address = align(place.max(reach.first))?;
            if self.is_free(address, len) && self.map(address, len).is_ok() {
                if let Some(gaps) = &mut self.gaps {
                    gaps.take(page_down(address), address.saturating_add(len as u64));
                }
                return self.take(address, len);
            }
            self.gaps = None;
        }
        None
    }

    fn at(&mut self, len: usize, relays: Relays, reach: Reach) -> Option<Span> {
        let len = len.max(1);
        if relays.count() == 1 {
            let wanted = next_relay(relays, reach.first).filter(|&wanted| wanted <= reach.last)?;
            return self.gaps()?.may_be_mapped(wanted, len).then(|| self.take_exactly(wanted, len))?;
        }
        let known = self.at_known(len, relays, reach);
        let known = known.or_else(|| self.at_new(len, relays, reach, relays.after));
        known.or_else(|| {
            self.at_new(len, relays, Reach { last: reach.last.min(relays.after), ..reach }, reach.first)
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

/// Maps pages filled with INT3. At no time are they writable and executable.
fn map_filled(address: u64, len: usize) -> Result<(), Error> {
    let wanted = ptr::with_exposed_provenance_mut(usize::try_from(address).map_err(|_| Error::OutOfMemory)?);
    let (protection, flags) =
        (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE);
    // SAFETY: MAP_FIXED_NOREPLACE replaces no mapping, so no memory that anybody uses changes.
    let found = unsafe { mmap_anonymous(wanted, len, protection, flags) }.map_err(refused)?;
    let span = Span { address: found.expose_provenance() as u64, len };
    if found != wanted {
        // Before Linux 4.17 the address is only a hint.
        unmap(span);
        return Err(refused(Errno::EXIST));
    }
    // SAFETY: so many bytes were mapped there a moment ago, writable, and nobody else knows of them.
    let outcome = unsafe {
        found.cast::<u8>().write_bytes(0xcc, len);
        mprotect(found, len, MprotectFlags::READ | MprotectFlags::EXEC)
    };
    outcome.map_err(|error| {
        unmap(span);
        refused(error)
    })
}

#[cfg(test)]
mod tests;
