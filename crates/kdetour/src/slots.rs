//! Executable memory for trampolines: areas, handed out in granules.

use crate::Error;
use crate::host::Span;
use alloc::vec::Vec;
use kdetour_plan::{MAX_SLOT, Reach, Relays};

/// Where an environment takes slots from.
pub trait SlotMemory {
    /// `len` bytes that begin within reach; none if there is no such room.
    fn near(&mut self, len: usize, reach: Reach) -> Option<Span>;

    /// `len` bytes that begin at one of `relays` and within reach. An environment that cannot choose addresses
    /// answers none.
    fn at(&mut self, len: usize, relays: Relays, reach: Reach) -> Option<Span> {
        let _ = (len, relays, reach);
        None
    }

    /// Gives back what lies behind the first `len` bytes of a slot, and tells what is left.
    fn trim(&mut self, slot: Span, len: usize) -> Span;

    /// Gives a slot back, which holds INT3 again. Memory that is not from here is left alone.
    fn free(&mut self, slot: Span);
}

/// Slots are multiples of this many bytes, and begin at multiples of it.
pub const GRANULE: usize = 16;
/// The granules of the longest slot.
const MOST: usize = MAX_SLOT.div_ceil(GRANULE);

/// The areas of one environment.
#[derive(Debug, Default)]
pub struct Slots {
    areas: Vec<Area>,
}

impl Slots {
    /// No memory yet.
    pub const fn new() -> Self {
        Self { areas: Vec::new() }
    }

    /// Adds an area, all of it free. Its start should be a multiple of [`GRANULE`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn add(&mut self, area: Span) -> Result<(), Error> {
        self.areas.try_reserve(1)?;
        self.areas.push(Area::new(area)?);
        Ok(())
    }

    /// Takes `len` bytes whose first byte is within reach; none if there is no such run.
    pub fn take(&mut self, len: usize, reach: Reach) -> Option<Span> {
        self.areas.iter_mut().find_map(|area| area.take(len, reach))
    }

    /// Gives back the granules behind the first `len` bytes of a slot.
    pub fn trim(&mut self, slot: Span, len: usize) -> Span {
        let kept = (len.div_ceil(GRANULE).max(1) * GRANULE).min(slot.len);
        let behind = Span { address: slot.address.wrapping_add(kept as u64), len: slot.len - kept };
        if behind.len > 0 {
            self.free(behind, |_| false);
        }
        Span { address: slot.address, len: kept }
    }

    /// Gives a slot back. An area in which no slot is left goes, too, if `give_back` says that it has taken it. What is in no
    /// area is left alone.
    pub fn free(&mut self, slot: Span, give_back: impl FnOnce(Span) -> bool) {
        let Some(place) = self.areas.iter().position(|area| area.holds(slot.address)) else { return };
        let Some(area) = self.areas.get_mut(place) else { return };
        area.free(slot);
        if area.in_use == 0 && give_back(Span { address: area.base, len: area.taken.len() * GRANULE }) {
            self.areas.remove(place);
        }
    }

    /// Bytes that are taken.
    pub fn bytes_in_use(&self) -> usize {
        self.areas.iter().map(|area| area.in_use * GRANULE).sum()
    }
}

/// An area of executable memory, and which of its granules are taken.
#[derive(Debug)]
struct Area {
    base: u64,
    taken: Vec<bool>,
    in_use: usize,
    /// For each number of granules: no run of so many begins below this one. So an area that is full of holes is not gone
    /// through for each slot.
    from: [usize; MOST + 1],
}

impl Area {
    fn new(area: Span) -> Result<Self, Error> {
        let granules = area.len / GRANULE;
        let mut taken = Vec::new();
        taken.try_reserve_exact(granules)?;
        taken.resize(granules, false);
        Ok(Self { base: area.address, taken, in_use: 0, from: [0; MOST + 1] })
    }

    fn holds(&self, address: u64) -> bool {
        address.checked_sub(self.base).is_some_and(|offset| offset < (self.taken.len() * GRANULE) as u64)
    }

    fn take(&mut self, len: usize, reach: Reach) -> Option<Span> {
        let wanted = len.div_ceil(GRANULE).max(1);
        let start = self.from.get(wanted.min(MOST)).copied().unwrap_or_default();
        let (mut run, mut all_reachable) = (0, true);
        let mut found = None;
        for index in start..self.taken.len() {
            let free = self.taken.get(index).is_some_and(|taken| !taken);
            // The run begins here, or has begun.
            let reachable = run > 0 || reach.contains(self.address(index));
            all_reachable &= reachable;
            run = if free && reachable { run + 1 } else { 0 };
            if run == wanted {
                found = Some(index + 1 - wanted);
                break;
            }
        }
        if all_reachable {
            let next = found.map_or(self.taken.len(), |first| first + wanted);
            for from in self.from.iter_mut().skip(wanted) {
                *from = next.max(*from);
            }
        }
        let first = found?;
        self.mark(first, wanted, true);
        Some(Span { address: self.address(first), len: wanted * GRANULE })
    }

    fn free(&mut self, slot: Span) {
        let first = usize::try_from(slot.address.wrapping_sub(self.base)).unwrap_or(usize::MAX) / GRANULE;
        self.mark(first, slot.len / GRANULE, false);
        // A run of so many may begin so many in front of it.
        for (count, from) in self.from.iter_mut().enumerate() {
            *from = first.saturating_sub(count).min(*from);
        }
    }

    fn address(&self, granule: usize) -> u64 {
        self.base.wrapping_add((granule * GRANULE) as u64)
    }

    fn mark(&mut self, first: usize, count: usize, taken: bool) {
        for granule in self.taken.iter_mut().skip(first).take(count).filter(|granule| **granule != taken) {
            *granule = taken;
            if taken {
                self.in_use += 1;
            } else {
                self.in_use -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANYWHERE: Reach = Reach { first: 0, last: u64::MAX };

    fn slots(len: usize) -> Slots {
        let mut slots = Slots::new();
        slots.add(Span { address: 0x1000, len }).unwrap();
        slots
    }

    #[test]
    fn runs_are_found_and_found_again() {
        let mut slots = slots(4 * GRANULE + 7);
        let one = slots.take(1, ANYWHERE).unwrap();
        let two = slots.take(17, ANYWHERE).unwrap();
        assert_eq!((one.address, one.len), (0x1000, 16));
        assert_eq!((two.address, two.len), (0x1010, 32));
        assert_eq!(slots.take(32, ANYWHERE), None);
        slots.free(one, |_| false);
        assert_eq!(slots.take(32, ANYWHERE), None, "two free granules, but apart");
        slots.free(two, |_| false);
        assert_eq!(slots.take(48, ANYWHERE).unwrap().address, 0x1000);
        assert_eq!(slots.bytes_in_use(), 48);
    }

    #[test]
    fn what_a_slot_does_not_need_is_given_back() {
        let mut slots = slots(4 * GRANULE);
        let slot = slots.take(4 * GRANULE, ANYWHERE).unwrap();
        let slot = slots.trim(slot, GRANULE + 1);
        assert_eq!((slot.address, slot.len, slots.bytes_in_use()), (0x1000, 2 * GRANULE, 2 * GRANULE));
        assert_eq!(slots.trim(slot, 2 * GRANULE), slot);
        assert_eq!(slots.take(2 * GRANULE, ANYWHERE).unwrap().address, 0x1000 + 2 * GRANULE as u64);
    }

    /// Whatever is taken and given back, an area finds a run exactly when there is one, and never hands one out twice.
    #[test]
    fn no_run_is_missed_and_none_is_given_twice() {
        const GRANULES: usize = 64;
        let mut area = Area::new(Span { address: 0x1000, len: GRANULES * GRANULE }).unwrap();
        let mut model = [false; GRANULES];
        let mut held: Vec<Span> = Vec::new();
        let mut random = 1_u64;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = usize::try_from(random >> 33).unwrap();
            if number.is_multiple_of(2) && !held.is_empty() {
                let slot = held.swap_remove(number / 2 % held.len());
                area.free(slot);
                granules(slot).for_each(|granule| model[granule] = false);
                continue;
            }
            let wanted = 1 + number / 2 % 12;
            let reach = match number / 64 % 4 {
                0 => Reach { first: 0x1000 + 16 * 20, last: 0x1000 + 16 * 40 },
                _ => ANYWHERE,
            };
            let fits = |first: &usize| {
                reach.contains(0x1000 + 16 * *first as u64)
                    && model.get(*first..first + wanted).is_some_and(|run| run.iter().all(|taken| !taken))
            };
            let first = (0..GRANULES).find(fits);
            let slot = area.take(wanted * GRANULE, reach);
            assert_eq!(slot.map(|slot| granules(slot).start), first, "{wanted} granules in {model:?}");
            if let Some(slot) = slot {
                granules(slot).for_each(|granule| model[granule] = true);
                held.push(slot);
            }
        }
    }

    fn granules(slot: Span) -> core::ops::Range<usize> {
        let first = usize::try_from(slot.address - 0x1000).unwrap() / GRANULE;
        first..first + slot.len / GRANULE
    }

    #[test]
    fn an_area_without_slots_may_go() {
        let mut slots = slots(2 * GRANULE);
        slots.add(Span { address: 0x8000, len: 2 * GRANULE }).unwrap();
        let taken = [0; 4].map(|_| slots.take(GRANULE, ANYWHERE).unwrap());
        assert_eq!(slots.take(GRANULE, ANYWHERE), None);
        slots.free(taken[2], |_| unreachable!("a slot is left in it"));
        slots.free(taken[3], |area| {
            assert_eq!(area, Span { address: 0x8000, len: 2 * GRANULE });
            true
        });
        assert_eq!(slots.take(GRANULE, ANYWHERE), None, "it has gone");
        slots.free(taken[0], |_| unreachable!());
        slots.free(taken[1], |_| false);
        assert_eq!(slots.take(2 * GRANULE, ANYWHERE).unwrap().address, 0x1000, "it was kept");
    }

    #[test]
    fn what_is_somebody_elses_is_left_alone() {
        let mut slots = slots(2 * GRANULE);
        let own = slots.take(GRANULE, ANYWHERE).unwrap();
        let lent = slots.trim(Span { address: 0x9000, len: 4 * GRANULE + 3 }, GRANULE + 1);
        assert_eq!(lent, Span { address: 0x9000, len: 2 * GRANULE });
        slots.free(lent, |_| unreachable!());
        assert_eq!(slots.bytes_in_use(), own.len);
        assert_eq!(slots.trim(Span { address: 0x9000, len: 20 }, 18).len, 20);
    }

    #[test]
    fn a_slot_begins_within_reach() {
        let mut slots = slots(8 * GRANULE);
        let slot = slots.take(32, Reach { first: 0x1021, last: 0x1040 }).unwrap();
        assert_eq!(slot.address, 0x1030);
        assert_eq!(slots.take(16, Reach { first: 0x1030, last: 0x1030 }), None);
        assert_eq!(slots.take(16, Reach { first: 0x2000, last: 0x3000 }), None);
    }
}
