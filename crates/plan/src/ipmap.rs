//! Where a thread that stands on a displaced instruction goes on in the slot, and back.

use crate::patch::MAX_BOUNDARIES;
use arrayvec::ArrayVec;

/// Old instruction pointers against addresses in the slot: one pair per displaced instruction, and one for the
/// jump back. A bijection on boundaries; addresses between boundaries have no partner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpMap {
    pairs: ArrayVec<(u64, u64), { MAX_BOUNDARIES + 1 }>,
}

impl IpMap {
    pub(crate) const fn none() -> Self {
        Self { pairs: ArrayVec::new_const() }
    }

    pub(crate) fn clear(&mut self) {
        self.pairs.clear();
    }

    /// Adds a pair; false if the map is full.
    pub(crate) fn push(&mut self, old: u64, new: u64) -> bool {
        self.pairs.try_push((old, new)).is_ok()
    }

    /// Where a thread whose instruction pointer was `old` goes on in the slot.
    pub fn to_slot(&self, old: u64) -> Option<u64> {
        self.pairs.iter().find(|pair| pair.0 == old).map(|pair| pair.1)
    }

    /// Which original instruction the slot's address `new` stands for.
    pub fn to_original(&self, new: u64) -> Option<u64> {
        self.pairs.iter().find(|pair| pair.1 == new).map(|pair| pair.0)
    }

    /// The pairs `(old, new)`, in the order of the instructions; the last one is the jump back.
    pub fn pairs(&self) -> &[(u64, u64)] {
        &self.pairs
    }
}
