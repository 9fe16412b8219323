//! Addresses that slots keep out of.

use super::PAGE;

const fn page_down(address: u64) -> u64 {
    address & !(PAGE - 1)
}

/// Addresses where no slot may be: whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avoided {
    first: u64,
    /// One past the last.
    end: u64,
}

impl Avoided {
    /// From one address to another, both inside; none if there are none.
    pub(crate) fn new(first: u64, last: u64) -> Option<Self> {
        let end = page_down(last).saturating_add(PAGE);
        (first <= last).then_some(Self { first: page_down(first), end })
    }

    pub(crate) const fn meets(&self, address: u64, len: usize) -> bool {
        address < self.end && self.first < address.saturating_add(len as u64)
    }

    pub(crate) const fn bounds(&self) -> (u64, u64) {
        (self.first, self.end)
    }
}
