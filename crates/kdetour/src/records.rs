//! Records by handle: found, added and removed in the same time however many there are.

use crate::commit::Protocol;
use crate::host::Span;
use crate::{AtomicAddress, Error, Method};
use alloc::vec::Vec;
use core::ptr;
use hashbrown::HashMap;
use kdetour_plan::Patch;

/// Names an attached detour. A handle is never given out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(u64);

impl Handle {
    /// As a number, for C. Never 0.
    pub const fn as_raw(self) -> u64 {
        self.0
    }

    /// From [`as_raw`](Self::as_raw). Any number is safe: one that names nothing is refused later.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The place in the table, counted from 1, below; how often that was given out, above.
    const fn of(place: u32, turn: u32) -> Self {
        Self((turn as u64) << 32 | (place as u64 + 1))
    }

    fn place(self) -> Option<usize> {
        usize::try_from((self.0 & 0xffff_ffff).checked_sub(1)?).ok()
    }
}

/// What a detour is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls of the target reach the detour, or one that was attached later.
    Attached,
    /// Calls do not reach it any more, but may still be inside it or the trampoline.
    Draining,
}

impl State {
    /// In lower case, for lists.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Draining => "draining",
        }
    }
}

/// What is known about one detour.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Its handle.
    pub handle: Handle,
    /// How calls are led to it.
    pub method: Method,
    /// The target's entry; the address of the pointer for [`Method::Pointer`].
    pub target: u64,
    /// The replacement function.
    pub detour: u64,
    /// The patch that leads to this detour. Of several detours of one target the youngest one's is in the text. A pointer has
    /// none.
    pub patch: Option<Patch>,
    /// The slot, which all detours of a target share. That of a pointer is empty.
    pub slot: Span,
    /// How it was attached.
    pub protocol: Protocol,
    /// What it is doing.
    pub state: State,
    /// The host's counter of calls in flight; 0 for none.
    pub in_flight: u64,
    /// Whoever attached it, in the host's own terms; 0 for nobody in particular.
    pub owner: u64,
    /// The attacher's own word for where the original is to be put.
    pub original: u64,
    /// Where the original's address is kept, if the attacher has a place for it.
    pub cell: Option<&'static AtomicAddress>,
}

/// All records.
#[derive(Debug, Default)]
pub(crate) struct Records {
    places: Vec<Place>,
    free: Vec<u32>,
    len: usize,
    /// How many of them drain.
    draining: usize,
    /// Whose original is kept in a cell, by the cell's address. A static that has gone from one target to another has one cell
    /// for two records: the older one must not write there any more.
    holders: HashMap<usize, Handle>,
}

#[derive(Debug)]
struct Place {
    turn: u32,
    record: Option<Record>,
}

impl Records {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// How many drain.
    pub(crate) const fn draining(&self) -> usize {
        self.draining
    }

    pub(crate) fn get(&self, handle: Handle) -> Option<&Record> {
        self.places.get(handle.place()?)?.record.as_ref().filter(|record| record.handle == handle)
    }

    pub(crate) fn get_mut(&mut self, handle: Handle) -> Option<&mut Record> {
        self.places.get_mut(handle.place()?)?.record.as_mut().filter(|record| record.handle == handle)
    }

    /// Whether a handle was given out, now or before.
    pub(crate) fn was_given(&self, handle: Handle) -> bool {
        let place = handle.place().and_then(|place| self.places.get(place));
        place.is_some_and(|place| u64::from(place.turn) >= handle.0 >> 32)
    }

    /// Notes what a detour does from now on.
    pub(crate) fn set_state(&mut self, handle: Handle, state: State) {
        let Some(record) = self.get_mut(handle) else { return };
        let before = core::mem::replace(&mut record.state, state);
        self.count(before, false);
        self.count(state, true);
    }

    const fn count(&mut self, state: State, one_more: bool) {
        match (state, one_more) {
            (State::Attached, _) => {}
            (State::Draining, true) => self.draining += 1,
            (State::Draining, false) => self.draining -= 1,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.places.iter().filter_map(|place| place.record.as_ref())
    }

    /// Those at `place` of the table and behind it, with their places.
    pub(crate) fn iter_from(&self, place: usize) -> impl Iterator<Item = (usize, &Record)> {
        let places = self.places.iter().enumerate().skip(place);
        places.filter_map(|(index, place)| Some((index, place.record.as_ref()?)))
    }

    /// Makes room for so many more, and for as many to be freed.
    pub(crate) fn reserve(&mut self, count: usize) -> Result<(), Error> {
        self.places.try_reserve(count)?;
        self.free.try_reserve(self.places.len() + count - self.free.len())?;
        self.holders.try_reserve(count).map_err(|_| Error::OutOfMemory)
    }

    /// Where a record's original is kept, if it is the one that writes there.
    pub(crate) fn cell(&self, record: &Record) -> Option<&'static AtomicAddress> {
        record.cell.filter(|cell| self.holders.get(&key(cell)) == Some(&record.handle))
    }

    /// From now on this record's original is kept in its cell. Gives whose it was.
    pub(crate) fn hold_cell(&mut self, handle: Handle) -> Option<Handle> {
        let cell = self.get(handle)?.cell?;
        self.holders.insert(key(cell), handle)
    }

    /// Undoes that.
    pub(crate) fn give_cell_back(&mut self, handle: Handle, before: Option<Handle>) {
        let Some(cell) = self.get(handle).and_then(|record| record.cell) else { return };
        match before {
            Some(before) => drop(self.holders.insert(key(cell), before)),
            None => drop(self.holders.remove(&key(cell))),
        }
    }

    /// Says anew where a record's original is kept, and where its calls are counted. Nothing is written to the old cell any more.
    #[cfg(feature = "windows-kernel")]
    pub(crate) fn set_places(
        &mut self,
        handle: Handle,
        in_flight: u64,
        cell: Option<&'static AtomicAddress>,
    ) {
        let Some(record) = self.get_mut(handle) else { return };
        record.in_flight = in_flight;
        let old = core::mem::replace(&mut record.cell, cell);
        if let Some(old) = old.map(key)
            && self.holders.get(&old) == Some(&handle)
        {
            self.holders.remove(&old);
        }
    }

    /// Adds a record, in room that was made, and gives it its handle.
    pub(crate) fn insert(&mut self, mut record: Record) -> Handle {
        self.len += 1;
        self.count(record.state, true);
        let reused = self.free.pop().and_then(|index| {
            let place = self.places.get_mut(usize::try_from(index).ok()?)?;
            place.turn = place.turn.wrapping_add(1);
            record.handle = Handle::of(index, place.turn);
            place.record = Some(record);
            Some(record.handle)
        });
        reused.unwrap_or_else(|| {
            record.handle = Handle::of(u32::try_from(self.places.len()).unwrap_or(u32::MAX), 0);
            self.places.push(Place { turn: 0, record: Some(record) });
            record.handle
        })
    }

    /// Gives a record another handle: the old one names nothing any more.
    pub(crate) fn renew(&mut self, handle: Handle) -> Option<Handle> {
        let index = handle.place()?;
        let place = self.places.get_mut(index)?;
        let record = place.record.as_mut().filter(|record| record.handle == handle)?;
        place.turn = place.turn.wrapping_add(1);
        record.handle = Handle::of(u32::try_from(index).ok()?, place.turn);
        let renewed = record.handle;
        if let Some(holder) = record.cell.and_then(|cell| self.holders.get_mut(&key(cell)))
            && *holder == handle
        {
            *holder = renewed;
        }
        Some(renewed)
    }

    pub(crate) fn remove(&mut self, handle: Handle) -> Option<Record> {
        let index = handle.place()?;
        let place = self.places.get_mut(index)?;
        let record = place.record.take_if(|record| record.handle == handle)?;
        self.len -= 1;
        self.count(record.state, false);
        if let Some(cell) = record.cell
            && self.holders.get(&key(cell)) == Some(&handle)
        {
            self.holders.remove(&key(cell));
        }
        if let Ok(index) = u32::try_from(index) {
            self.free.push(index);
        }
        Some(record)
    }

    pub(crate) fn clear(&mut self) {
        self.places.clear();
        self.free.clear();
        self.holders.clear();
        (self.len, self.draining) = (0, 0);
    }
}

fn key(cell: &'static AtomicAddress) -> usize {
    ptr::from_ref(cell).addr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kdetour_plan::{Code, Context, Mode, Plan, Slot, Survey};

    fn record() -> Record {
        // mov eax, 1 / ret
        let bytes = [0xb8, 1, 0, 0, 0, 0xc3];
        let code = Code::in_mode(Mode::Bits64, 0x40_0000, &bytes).with_length(bytes.len());
        let survey = Survey::of(&code, &Context::default()).unwrap();
        let slot = Slot { address: 0x50_0000, capacity: 64 };
        let plan = Plan::new(&survey, slot, 0x60_0000).unwrap();
        Record {
            handle: Handle::from_raw(0),
            method: Method::Jump,
            target: 0x40_0000,
            detour: 0x60_0000,
            patch: Some(*plan.patch()),
            slot: Span { address: 0x50_0000, len: 64 },
            protocol: Protocol::Local,
            state: State::Attached,
            in_flight: 0,
            owner: 0,
            original: 0,
            cell: None,
        }
    }

    #[test]
    fn those_that_drain_are_counted() {
        let mut records = Records::new();
        let [one, other] = [record(), Record { state: State::Draining, ..record() }].map(|new| {
            records.reserve(1).unwrap();
            records.insert(new)
        });
        let count = |records: &Records| {
            let draining = records.iter().filter(|record| record.state == State::Draining).count();
            assert_eq!(records.draining(), draining);
            draining
        };
        assert_eq!(count(&records), 1);
        for (state, draining) in [(State::Draining, 2), (State::Draining, 2), (State::Attached, 1)] {
            records.set_state(one, state);
            assert_eq!(count(&records), draining);
        }
        records.remove(one).unwrap();
        records.set_state(one, State::Draining);
        assert_eq!(count(&records), 1);
        records.remove(other).unwrap();
        assert_eq!((count(&records), records.len()), (0, 0));
    }

    #[test]
    fn a_handle_that_was_renewed_names_nothing() {
        let mut records = Records::new();
        records.reserve(1).unwrap();
        let old = records.insert(record());
        let new = records.renew(old).unwrap();
        assert!(new != old && records.get(old).is_none() && records.renew(old).is_none());
        assert_eq!(records.get(new).map(|record| record.handle), Some(new));
        // Nor does any handle that the place is given later.
        records.remove(new).unwrap();
        records.reserve(1).unwrap();
        let next = records.insert(record());
        assert!(next != old && next != new && records.len() == 1);
    }
}
