//! What is taken of the memory for slots, kept to the byte: a relay lies wherever a displacement says.

use crate::host::Span;
use core::ops::Bound::{Excluded, Unbounded};
use kdetour_plan::Reach;
use std::collections::BTreeMap;

/// First address and length of what is taken.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    slots: BTreeMap<u64, usize>,
    bytes: usize,
}

impl Taken {
    pub(crate) const fn new() -> Self {
        Self { slots: BTreeMap::new(), bytes: 0 }
    }

    /// How many bytes are.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first slot that reaches behind `address`, or begins there: its bounds.
    pub(crate) fn next(&self, address: u64) -> Option<(u64, u64)> {
        let end = |(&start, &len): (&u64, &usize)| (start, start.saturating_add(len as u64));
        let before = self.slots.range(..=address).next_back().map(end).filter(|&(_, end)| end > address);
        before.or_else(|| self.slots.range((Excluded(address), Unbounded)).next().map(end))
    }

    /// Room from `from` up to `end` for a slot that begins where `choose` says, within reach: at the lowest address allowed that is not
    /// below the one given.
    pub(crate) fn room(
        &self,
        end: u64,
        from: u64,
        len: usize,
        reach: Reach,
        choose: impl Fn(u64) -> Option<u64>,
    ) -> Option<u64> {
        let mut at = from.max(reach.first);
        loop {
            at = choose(at)?;
            let behind = at.checked_add(len as u64)?;
            if at > reach.last || behind > end {
                return None;
            }
            match self.next(at).filter(|&(next, _)| next < behind) {
                None => return Some(at),
                Some((_, next)) => at = next,
            }
        }
    }

    /// Takes bytes, which are free.
    pub(crate) fn insert(&mut self, slot: Span) {
        self.slots.insert(slot.address, slot.len);
        self.bytes = self.bytes.saturating_add(slot.len);
    }

    /// Shortens a slot to `len` bytes, but one at least. What it is then, and what of it is free again.
    pub(crate) fn trim(&mut self, slot: Span, len: usize) -> (Span, Option<Span>) {
        let len = len.clamp(1, slot.len.max(1));
        let longer = self.slots.get_mut(&slot.address).filter(|taken| **taken > len);
        let rest = longer.map(|taken| Span {
            address: slot.address.saturating_add(len as u64),
            len: core::mem::replace(taken, len) - len,
        });
        self.bytes = self.bytes.saturating_sub(rest.map_or(0, |rest| rest.len));
        (Span { len, ..slot }, rest)
    }

    /// Gives a slot back; what was taken of it.
    pub(crate) fn remove(&mut self, slot: Span) -> Option<Span> {
        let len = self.slots.remove(&slot.address)?;
        self.bytes = self.bytes.saturating_sub(len);
        Some(Span { len, ..slot })
    }

    /// All of them.
    #[cfg(test)]
    pub(crate) fn all(&self) -> std::vec::Vec<Span> {
        self.slots.iter().map(|(&address, &len)| Span { address, len }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn span(address: u64, len: usize) -> Span {
        Span { address, len }
    }

    #[test]
    fn what_is_taken_is_in_nobodys_way_but_its_own() {
        let mut taken = Taken::new();
        let reach = Reach { first: 0x1000, last: 0x10f0 };
        let choose = |from: u64| from.checked_next_multiple_of(16);
        let room = |taken: &Taken, len| taken.room(0x1100, 0x1000, len, reach, choose);
        assert_eq!((taken.next(0x1000), room(&taken, 0x100)), (None, Some(0x1000)));
        taken.insert(span(0x1000, 0x28));
        taken.insert(span(0x1080, 8));
        assert_eq!([0xfff, 0x1000, 0x1027].map(|at| taken.next(at)), [Some((0x1000, 0x1028)); 3]);
        assert_eq!([0x1028, 0x1087].map(|at| taken.next(at)), [Some((0x1080, 0x1088)); 2]);
        assert_eq!(taken.next(0x1088), None);
        // Between the two, behind the second, and nowhere: behind the end, or out of reach.
        assert_eq!(
            [0x50, 0x51, 0x70, 0x71].map(|len| room(&taken, len)),
            [Some(0x1030), Some(0x1090), Some(0x1090), None]
        );
        assert_eq!(taken.room(0x2000, 0x10f1, 1, reach, choose), None);
    }

    #[test]
    fn what_is_given_back_is_free_to_the_byte() {
        let mut taken = Taken::new();
        taken.insert(span(0x1000, 112));
        assert_eq!(taken.trim(span(0x1000, 112), 48), (span(0x1000, 48), Some(span(0x1030, 64))));
        // It grows no more, and is never empty.
        assert_eq!(taken.trim(span(0x1000, 48), 60), (span(0x1000, 48), None));
        assert_eq!(taken.trim(span(0x1000, 48), 0), (span(0x1000, 1), Some(span(0x1001, 47))));
        assert_eq!((taken.bytes(), taken.all()), (1, std::vec![span(0x1000, 1)]));
        assert_eq!(taken.remove(span(0x1000, 1)), Some(span(0x1000, 1)));
        assert_eq!((taken.remove(span(0x1000, 1)), taken.bytes()), (None, 0));
    }
}
