//! Slots lie in the driver's own executable section.

use crate::host::Span;
use crate::slots::{GRANULE, SlotMemory, Slots};
use kdetour_plan::{Reach, Relays};

/// The room that the driver has set apart. It stays what it is until the driver is unloaded.
#[derive(Debug)]
pub struct DriverSlots {
    slots: Slots,
    room: Span,
}

impl DriverSlots {
    /// That room, from its first whole granule on; none of it if there is no memory for the list of what is taken.
    pub(super) fn new(room: Span) -> Self {
        let start = room.address.next_multiple_of(GRANULE as u64);
        let skipped = usize::try_from(start - room.address).unwrap_or(usize::MAX);
        let room = Span { address: start, len: room.len.saturating_sub(skipped) };
        let mut slots = Slots::new();
        // Without it there is no slot, which every attach says by itself.
        let _ = slots.add(room);
        Self { slots, room }
    }

    /// Bytes that slots take.
    pub fn bytes_in_use(&self) -> usize {
        self.slots.bytes_in_use()
    }
}

impl SlotMemory for DriverSlots {
    fn near(&mut self, len: usize, reach: Reach) -> Option<Span> {
        self.slots.take(len, reach)
    }

    /// The room is where the driver is; now and then it has an address that a shape wants.
    fn at(&mut self, len: usize, relays: Relays, reach: Reach) -> Option<Span> {
        let end = self.room.address.saturating_add(self.room.len as u64);
        let mut places = (self.room.address..end).step_by(GRANULE);
        places.find_map(|place| {
            let fits = relays.contains(place) && reach.contains(place);
            if fits { self.slots.take(len, Reach { first: place, last: place }) } else { None }
        })
    }

    fn trim(&mut self, slot: Span, len: usize) -> Span {
        self.slots.trim(slot, len)
    }

    fn free(&mut self, slot: Span) {
        self.slots.free(slot, |_| false);
    }
}
