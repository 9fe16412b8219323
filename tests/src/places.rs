//! Addresses for slots: an allocator that has everything but what is taken.

use kdetour_plan::{Allocator, Mode, Reach, Relays, Slot};

/// An address space of which some ranges are taken.
#[derive(Clone, Debug)]
pub struct Places {
    taken: Vec<(u64, u64)>,
    preferred: u64,
}

/// A slot that is no relay begins at such a multiple.
const ALIGN: u64 = 16;

impl Places {
    /// Everything but what a process has for itself, and but the `taken` ranges `(first, end)`. Slots whose
    /// address does not matter begin at `preferred`, if that is allowed.
    pub fn new(mode: Mode, preferred: u64, taken: &[(u64, u64)]) -> Self {
        let mut all = vec![(0, 0x1_0000), (0x5f00_0000, 0x7000_0000)];
        all.push(match mode {
            Mode::Bits32 => (0xe800_0000, u64::MAX),
            // What the kernel gives a process; not the kernel's own addresses.
            _ => (0x7ff0_0000_0000, 0xffff_8000_0000_0000),
        });
        all.extend_from_slice(taken);
        Self { taken: all, preferred }
    }

    /// The first address in `first..=last` where `len` bytes are free.
    fn free(&self, first: u64, last: u64, len: u64) -> Option<u64> {
        let mut at = first;
        while at <= last {
            let end = at.checked_add(len)?;
            match self.taken.iter().find(|(start, taken)| at < *taken && end > *start) {
                Some((_, taken)) => at = *taken,
                None => return Some(at),
            }
        }
        None
    }
}

impl Allocator for Places {
    fn near(&mut self, reach: Reach, len: usize) -> Option<Slot> {
        if reach.first > reach.last {
            return None;
        }
        let middle = reach.first + (reach.last - reach.first) / 2;
        let address = [self.preferred, middle, reach.first]
            .into_iter()
            .filter_map(|from| from.checked_next_multiple_of(ALIGN))
            .filter(|from| reach.contains(*from))
            .find_map(|from| self.free(from, reach.last, len as u64))?;
        Some(Slot { address, capacity: len })
    }

    fn at(&mut self, relays: Relays, reach: Reach, len: usize) -> Option<Slot> {
        let address = relays.ranges().find_map(|(first, last)| {
            let (first, last) = (first.max(reach.first), last.min(reach.last));
            self.free(first, last, len as u64)
        })?;
        Some(Slot { address, capacity: len })
    }
}
