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

    /// Bytes that slots take. Any IRQL.
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

#[cfg(test)]
mod tests {
    use super::*;
    use kdetour_plan::{Code, Context, Options, Shape, Shapes, Survey};

    /// `push rbp / mov rbp, rsp / push r15`: a jump that repeats all but the first byte leads to one address.
    #[test]
    fn a_slot_lies_where_a_shape_wants_it_or_not_at_all() {
        let bytes = [0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0xc3];
        let target = 0x7000_0000_0000;
        let code = Code::new(target, &bytes).with_length(bytes.len());
        let survey = Survey::of(&code, &Context::default()).unwrap();
        let options = Options { shapes: Shapes::only(Shape::Jump5Kept), ..Options::default() };
        let offer = survey.best(&options).unwrap();
        let relays = offer.relays(&options).next().unwrap();
        let wanted = target + 5 + 0x41e5_8948;
        assert!(relays.contains(wanted));
        // Slots begin at granules: another function's wanted address is one.
        let target = target + wanted.next_multiple_of(GRANULE as u64) - wanted;
        let code = Code::new(target, &bytes).with_length(bytes.len());
        let survey = Survey::of(&code, &Context::default()).unwrap();
        let offer = survey.best(&options).unwrap();
        let relays = offer.relays(&options).next().unwrap();
        let wanted = target + 5 + 0x41e5_8948;
        let mut slots = DriverSlots::new(Span { address: wanted - 64, len: 256 });
        let slot = slots.at(32, relays, offer.reach()).unwrap();
        assert_eq!((slot.address, slots.bytes_in_use()), (wanted, 32));
        assert_eq!(slots.at(32, relays, offer.reach()), None, "it is taken");
        slots.free(slot);
        let mut elsewhere = DriverSlots::new(Span { address: wanted + 64, len: 256 });
        assert_eq!(elsewhere.at(32, relays, offer.reach()), None);
    }

    #[test]
    fn the_room_begins_with_a_whole_granule() {
        let mut slots = DriverSlots::new(Span { address: 0x1009, len: 16 + 7 + 15 });
        let slot = slots.near(16, Reach { first: 0, last: u64::MAX }).unwrap();
        assert_eq!((slot.address, slot.len), (0x1010, 16));
        assert_eq!(slots.near(16, Reach { first: 0, last: u64::MAX }), None);
        assert_eq!(
            DriverSlots::new(Span { address: 0x1009, len: 3 }).near(1, Reach { first: 0, last: u64::MAX }),
            None
        );
    }
}
