//! Where slots are taken from in a process: pages mapped near the targets, and at the addresses that a shape wants.
//!
//! Pages are private anonymous memory, filled with INT3 before they become executable, and never writable again. What
//! is taken is kept to the byte, since a relay lies wherever a displacement says. A page in which nothing is taken any more is
//! unmapped.
//!
//! What is mapped already is asked once and remembered; the kernel does not map over it (`MAP_FIXED_NOREPLACE`), and when it
//! refuses, it is asked again.

use super::near::{Gaps, page_down, unmap};
use super::{PAGE, refused};
use crate::Error;
use crate::host::Span;
use crate::slots::SlotMemory;
use core::ops::Bound::{Excluded, Unbounded};
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
    /// What is taken: first address and length.
    taken: BTreeMap<u64, usize>,
    bytes: usize,
    gaps: Option<Gaps>,
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
        Self { pages: BTreeMap::new(), roomy: BTreeSet::new(), taken: BTreeMap::new(), bytes: 0, gaps: None }
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
        self.bytes
    }

    /// How many runs of adjacent pages there are: at least so many mappings of the process.
    pub fn mappings(&self) -> usize {
        let follows =
            |page: &&u64| page.checked_sub(PAGE).is_some_and(|before| self.pages.contains_key(&before));
        self.pages.len() - self.pages.keys().filter(follows).count()
    }

    /// The first slot that reaches behind `address`, or begins there: its bounds.
    fn next_taken(&self, address: u64) -> Option<(u64, u64)> {
        let end = |(&start, &len): (&u64, &usize)| (start, start.saturating_add(len as u64));
        let before = self.taken.range(..=address).next_back().map(end).filter(|&(_, end)| end > address);
        before.or_else(|| self.taken.range((Excluded(address), Unbounded)).next().map(end))
    }

    fn is_free(&self, start: u64, len: usize) -> bool {
        self.next_taken(start)
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
        let mut at = from.max(reach.first);
        loop {
            at = choose(at)?;
            let end = at.checked_add(len as u64)?;
            if at > reach.last || end > page.saturating_add(PAGE) {
                return None;
            }
            match self.next_taken(at).filter(|&(next, _)| next < end) {
                None => return Some(at),
                Some((_, behind)) => at = behind,
            }
        }
    }

    /// Takes bytes, which are free, in pages that are mapped.
    fn take(&mut self, address: u64, len: usize) -> Option<Span> {
        self.taken.insert(address, len);
        self.bytes += len;
        self.for_pages(address, len, |page, from, to| {
            page.used += to - from;
        });
        Some(Span { address, len })
    }

    /// Marks bytes as free, and unmaps pages that have become empty.
    fn release(&mut self, address: u64, len: usize) {
        self.bytes = self.bytes.saturating_sub(len);
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
        if !self.is_free(address, len) {
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
            if page <= wanted {
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
            if let Some((taken, behind)) = self.next_taken(wanted)
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
        let len = len.clamp(1, slot.len.max(1));
        if let Some(taken) = self.taken.get_mut(&slot.address).filter(|taken| **taken > len) {
            let rest = *taken - len;
            *taken = len;
            self.release(slot.address.saturating_add(len as u64), rest);
        }
        Span { len, ..slot }
    }

    fn free(&mut self, slot: Span) {
        if let Some(len) = self.taken.remove(&slot.address) {
            self.release(slot.address, len);
        }
    }
}

/// The lowest address from `from` on at which a relay may be.
fn next_relay(relays: Relays, from: u64) -> Option<u64> {
    // Displacements in the order of their addresses: the sign turned round.
    const SIGN: u32 = 1 << 31;
    let lowest = i128::from(relays.after) - (1 << 31);
    let least = u32::try_from((i128::from(from) - lowest).max(0)).ok()?;
    let least = if lowest < 0 { least.max(u32::try_from(-lowest).ok()?) } else { least };
    let (mask, value) = (relays.mask, (relays.value ^ SIGN) & relays.mask);
    let different = (least ^ value) & mask;
    let found = match different.checked_ilog2() {
        None => least,
        Some(bit) => {
            let above = u32::MAX.checked_shl(bit + 1).unwrap_or(0);
            let kept = if value & (1 << bit) != 0 {
                least & above
            } else {
                // A given bit is lower than ours, so that a free one above it has to become higher.
                let free = !least & !mask & above;
                let raised = free & free.wrapping_neg();
                if raised == 0 {
                    return None;
                }
                least & raised.wrapping_neg() | raised
            };
            kept & !mask | value
        }
    };
    let address = u64::try_from(lowest + i128::from(found)).ok()?;
    relays.contains(address).then_some(address)
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
mod tests {
    use super::*;
    use crate::host::linux_process::maps::Mappings;
    use crate::host::linux_process::memory::Memory;
    use kdetour_plan::{Code, Context, Mode, Options, Survey};
    use std::vec::Vec;

    /// A region of the address space where nothing is mapped.
    fn empty_region(len: u64) -> u64 {
        let (start, end) = Gaps::read().unwrap().at_or_behind(1 << 33).unwrap();
        assert!(end - start > len + (1 << 32));
        // Tests that run beside this one have other regions.
        static NEXT: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
        let number = NEXT.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        page_down(start) + (number + 1) * (1 << 34)
    }

    fn around(middle: u64) -> Reach {
        Reach { first: middle - (1 << 30), last: middle + (1 << 30) }
    }

    /// The relays for which the displacement of the jump at `target` has `value` where `mask` is set.
    fn relays(target: u64, mask: u32, value: u32) -> Relays {
        // push rbp / mov rbp, rsp / ret
        let bytes = [0x55, 0x48, 0x89, 0xe5, 0xc3];
        let code = Code::in_mode(Mode::Bits64, target, &bytes).with_length(bytes.len());
        let survey = Survey::of(&code, &Context::default()).unwrap();
        let options = Options::default();
        let mut relays = survey.offers(&options).find_map(|offer| offer.relays(&options).next()).unwrap();
        (relays.after, relays.mask, relays.value) = (target + 5, mask, value);
        relays
    }

    /// The relay of a displacement.
    fn exactly(address: u64) -> Relays {
        relays(address + 0x1234_5678 - 5, u32::MAX, 0x1234_5678_u32.wrapping_neg())
    }

    fn bytes(span: Span) -> Vec<u8> {
        let mut bytes = std::vec![0; span.len];
        Memory::open().unwrap().read(span.address, &mut bytes).unwrap();
        bytes
    }

    fn is_mapped(address: u64) -> bool {
        Mappings::read().unwrap().of(address).is_some()
    }

    const ANYWHERE: Reach = Reach { first: 0, last: u64::MAX };

    #[test]
    fn the_next_relay_is_the_first_of_the_ranges() {
        let mut seed = 1_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed >> 32
        };
        for round in 0..4000 {
            // Few free bits, so that there are few ranges.
            let free = (0..6).fold(0xff << (random() % 25), |free, _| free | 1_u32 << (random() % 32));
            let value = u32::try_from(random()).unwrap();
            let target = [1 << 40, 0x40_0000, 3 << 30][round % 3] + random() % 5000;
            let relays = relays(target, !free, value & !free);
            let from = relays.after.saturating_add_signed((random().cast_signed() - (1 << 31)) + 7);
            let lowest = |(first, last): (u64, u64)| (last >= from).then_some(first.max(from));
            assert_eq!(
                next_relay(relays, from),
                relays.ranges().filter_map(lowest).min(),
                "{relays:x?} {from:x}"
            );
        }
        assert_eq!(next_relay(relays(1 << 40, 0, 0), 1 << 40), Some(1 << 40));
        assert_eq!(next_relay(relays(1 << 40, 0, 0), 1 << 41), None);
    }

    #[test]
    fn exact_slots_may_touch_but_not_overlap() {
        let mut arena = Arena::new();
        let base = empty_region(1 << 20);
        for (offset, len, fits) in [
            (101, 16, true),
            (117, 16, true),
            (85, 16, true),
            (84, 2, false),
            (132, 1, false),
            (133, 20, true),
        ] {
            let slot = arena.at(len, exactly(base + offset), ANYWHERE);
            assert_eq!(slot, fits.then_some(Span { address: base + offset, len }), "{offset}");
        }
        assert_eq!((arena.pages(), arena.mappings(), arena.bytes()), (1, 1, 68));
        assert_eq!(arena.at(9, exactly(base + 200), Reach { first: base + 201, last: u64::MAX }), None);
        assert!(arena.is_slot(base) && arena.is_slot(base + 4095) && !arena.is_slot(base + 4096));
        arena.free(Span { address: base + 117, len: 16 });
        assert!(arena.at(17, exactly(base + 117), ANYWHERE).is_none());
        assert!(arena.at(16, exactly(base + 117), ANYWHERE).is_some());
    }

    #[test]
    fn memory_is_given_back() {
        let mut arena = Arena::new();
        let base = empty_region(1 << 20);
        let border = arena.at(50, exactly(base + 4090), ANYWHERE).unwrap();
        let far = arena.at(50, exactly(base + 0x1_0000), ANYWHERE).unwrap();
        let near = arena.near(100, Reach { first: base, last: base + 4095 }).unwrap();
        assert_eq!((near.address, arena.pages(), arena.mappings()), (base, 3, 2));
        let trap = |byte: &u8| *byte == 0xcc;
        assert!([border, far, near].iter().all(|&slot| bytes(slot).iter().all(trap)));
        let mapping = Mappings::read().unwrap().of(base).cloned().unwrap();
        assert!(mapping.executable && mapping.readable && !mapping.writable && !mapping.shared);
        // What is behind the border goes with the end of the slot.
        assert_eq!(arena.trim(border, 6), Span { len: 6, ..border });
        assert!(!is_mapped(base + 4096) && is_mapped(base));
        arena.free(Span { len: 6, ..border });
        assert!(is_mapped(base));
        arena.free(near);
        arena.free(far);
        assert!(!is_mapped(base) && !is_mapped(base + 0x1_0000));
        assert_eq!((arena.pages(), arena.mappings(), arena.bytes()), (0, 0, 0));
    }

    #[test]
    fn slots_near_a_target_are_packed() {
        let mut arena = Arena::new();
        let reach = around(empty_region(1 << 30));
        let mut slots = Vec::new();
        for number in 0..2000 {
            let slot = arena.near(112, reach).unwrap();
            let len = 20 + number % 41;
            slots.push(arena.trim(slot, len));
            assert_eq!(slots[number].len, len);
        }
        slots.sort_unstable_by_key(|slot| slot.address);
        assert!(slots.windows(2).all(|two| two[0].address + two[0].len as u64 <= two[1].address));
        assert!(slots.iter().all(|slot| reach.contains(slot.address) && slot.address % ALIGN == 0));
        assert!(arena.pages() * 4096 <= 2000 * 64, "{} pages", arena.pages());
        assert!(arena.mappings() <= 2);
        // What was given back is used again.
        let pages = arena.pages();
        for slot in slots.iter().skip(1).step_by(2) {
            arena.free(*slot);
        }
        for _ in 0..1000 {
            arena.near(20, reach).unwrap();
        }
        assert!(arena.pages() <= pages);
        assert!(arena.near(5000, reach).is_some());
        assert_eq!(arena.near(8, Reach { first: 5, last: 4 }), None);
    }

    #[test]
    fn of_many_addresses_one_in_a_known_page_is_taken() {
        let mut arena = Arena::new();
        let base = empty_region(1 << 30);
        // The highest byte is given: 16 MiB in one piece. Then all but the highest: pieces of one address.
        for (mask, value) in [(0xff00_0000, 0x0100_0000), (0x00ff_ffff, 0x0012_3456)] {
            let relays = relays(base, mask, value);
            let first = arena.at(40, relays, ANYWHERE).unwrap();
            assert!(relays.contains(first.address));
        }
        let pages = arena.pages();
        let relays = relays(base + 300, 0xff00_0000, 0x0100_0000);
        for _ in 0..90 {
            let slot = arena.at(40, relays, ANYWHERE).unwrap();
            assert!(relays.contains(slot.address));
        }
        assert_eq!(arena.pages(), pages);
        let reach = Reach { first: base + 0x180_0000, last: base + 0x180_0fff };
        let slot = arena.at(40, relays, reach).unwrap();
        assert!(reach.contains(slot.address) && relays.contains(slot.address));
        // Backward ones serve, too.
        let negative = relays.after - 0x7f00_0000;
        let reach = Reach { first: negative, last: base };
        let mut relays = relays;
        (relays.mask, relays.value) = (0xff00_0000, 0xfe00_0000);
        assert!(relays.contains(arena.at(40, relays, reach).unwrap().address));
    }

    #[test]
    fn what_others_map_is_let_alone() {
        let mut arena = Arena::new();
        let base = empty_region(1 << 30);
        let first = arena.at(40, relays(base, 0xff00_0000, 0x0100_0000), ANYWHERE).unwrap();
        // Somebody maps the next pages, which the arena does not know.
        let next = page_down(first.address) + PAGE;
        let theirs = ptr::with_exposed_provenance_mut(next as usize);
        let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
        // SAFETY: nothing is replaced.
        unsafe { mmap_anonymous(theirs, 1 << 16, ProtFlags::READ, flags) }.unwrap();
        assert_eq!(arena.at(40, exactly(next + 8), ANYWHERE), None);
        let behind = Reach { first: next, last: u64::MAX };
        let slot = arena.at(40, relays(base, 0xff00_0000, 0x0100_0000), behind).unwrap();
        assert_eq!(slot.address, next + (1 << 16));
        // A slot whose second page is theirs leaves no first page behind.
        let edge = next + (1 << 16);
        arena.free(slot);
        assert!(!is_mapped(edge));
        assert_eq!(arena.at(40, exactly(next - 8), ANYWHERE), None);
        arena.free(first);
        assert_eq!(arena.at(40, exactly(next - 8), ANYWHERE), None);
        assert_eq!(arena.pages(), 0);
        assert!(!is_mapped(next - 1));
        unmap(Span { address: next, len: 1 << 16 });
    }

    #[test]
    fn where_the_stack_grows_nothing_is_mapped() {
        let mappings = Mappings::read().unwrap();
        let stack = mappings.iter().find(|mapping| mapping.path == b"[stack]").unwrap().start;
        let mut arena = Arena::new();
        assert_eq!(arena.at(40, exactly(stack - (1 << 20)), ANYWHERE), None);
        assert_eq!(arena.at(40, exactly(100), ANYWHERE), None);
        assert_eq!(arena.pages(), 0);
    }

    #[test]
    #[ignore = "measures"]
    fn speed() {
        use std::time::Instant;
        let mut arena = Arena::new();
        let base = empty_region(1 << 30);
        let lap = |name: &str, begin: Instant, count: u64, arena: &Arena| {
            let each = begin.elapsed().as_nanos() as u64 / count;
            std::println!("{name}: {each} ns, {} pages, {} bytes", arena.pages(), arena.bytes());
        };
        let begin = Instant::now();
        for number in 0..10_000 {
            arena.at(40, exactly(base + number * 12_345), ANYWHERE).unwrap();
        }
        lap("exact, new pages", begin, 10_000, &arena);
        let begin = Instant::now();
        for number in 0..10_000 {
            let page = page_down(base + number * 12_345);
            arena
                .at(20, exactly(page + if number * 12_345 % 4096 < 2048 { 3000 } else { 1000 }), ANYWHERE)
                .unwrap();
        }
        lap("exact, known pages", begin, 10_000, &arena);
        let begin = Instant::now();
        for slot in arena.taken.clone() {
            arena.free(Span { address: slot.0, len: slot.1 });
        }
        lap("free", begin, 20_000, &arena);
        let begin = Instant::now();
        for number in 0..10_000 {
            let slot = arena.near(112, around(base + number)).unwrap();
            arena.trim(slot, 48);
        }
        lap("near and trim", begin, 10_000, &arena);
        let begin = Instant::now();
        for number in 0..10_000 {
            arena.at(40, relays(base + number * 100, 0xff00_0000, 0x0100_0000), ANYWHERE).unwrap();
        }
        lap("16 MiB ranges (and a survey)", begin, 10_000, &arena);
        let begin = Instant::now();
        for number in 0..10_000 {
            relays(base + number * 100, 0xff00_0000, 0x0100_0000);
        }
        lap("the survey alone", begin, 10_000, &arena);
        let begin = Instant::now();
        for number in 0..10_000 {
            arena.at(40, relays(base + number * 100, 0x0000_ff00, 0x0000_cc00), ANYWHERE).unwrap();
        }
        lap("ranges of 256 (and a survey)", begin, 10_000, &arena);
    }
}
