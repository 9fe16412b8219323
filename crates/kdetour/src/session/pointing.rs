//! What a session does at pointers: requests become records, and records what is to be swapped.
//!
//! ```text
//!   attach      read where it leads: what was found there is the oldest one's original
//!   detach      the youngest that stays is where it leads from then on
//!   commit      compare and exchange each, before the code is written; exchange back if that fails
//! ```

use super::prepare::{Preparation, Undo};
use super::{Announce, Attach};
use crate::commit::{CommitError, Protocol};
use crate::host::{Host, Span, View};
use crate::kdetour::Kdetour;
use crate::pointers::{self, Pointers, Swap};
use crate::records::{Handle, Record, Records, State};
use crate::{Error, Method};
use alloc::vec::Vec;
use hashbrown::HashMap;
use kdetour_plan::Refusal;

/// The pointers that a session does something at.
#[derive(Default)]
pub(super) struct Pointing {
    touched: Vec<Touched>,
    /// Where in `touched` a place is.
    places: HashMap<u64, usize>,
    swaps: Vec<Swap>,
}

struct Touched {
    place: u64,
    /// The first request that did.
    request: usize,
    /// Where it leads before the session.
    before: u64,
}

/// Where a pointer's detours are kept, and what is known about the place.
pub(super) struct Table<'a, V> {
    pub(super) view: &'a V,
    pub(super) records: &'a mut Records,
    pub(super) pointers: &'a mut Pointers,
    pub(super) protocol: Protocol,
    pub(super) index: usize,
}

impl Pointing {
    pub(super) fn reserve(&mut self, count: usize) -> Result<(), Error> {
        self.touched.try_reserve_exact(count)?;
        self.swaps.try_reserve_exact(count)?;
        self.places.try_reserve(count).map_err(|_| Error::OutOfMemory)
    }

    /// Whether the session does anything at pointers.
    pub(super) const fn is_any(&self) -> bool {
        !self.touched.is_empty()
    }

    fn before(&self, place: u64) -> Option<u64> {
        self.places.get(&place).and_then(|&index| self.touched.get(index)).map(|touched| touched.before)
    }

    /// Remembers how a pointer was before the session did anything at it.
    fn touch(&mut self, place: u64, request: usize, before: u64) {
        let index = self.touched.len();
        if *self.places.entry(place).or_insert(index) == index {
            self.touched.push(Touched { place, request, before });
        }
    }

    /// Where each is to lead, now that it is known which detours stay.
    pub(super) fn find_swaps(&mut self, records: &Records, pointers: &Pointers) {
        for &Touched { place, request, before } in &self.touched {
            let Some(pointer) = pointers.get(place) else { continue };
            let new = pointer.leads_to(records);
            if new != before {
                self.swaps.push(Swap { place, request, expected: before, new, done: false });
            }
        }
    }

    pub(super) fn announce<H: Host>(&self, kdetour: &Kdetour<H>, announce: Announce<'_>) {
        for touched in &self.touched {
            kdetour.announce_pointer(touched.place, announce);
        }
    }

    /// Swaps all, or none; whether there was one.
    pub(super) fn swap<H: Host>(&mut self, host: &H) -> Result<bool, CommitError> {
        pointers::swap(host, &mut self.swaps)
    }

    pub(super) fn swap_back<H: Host>(&mut self, host: &H) {
        pointers::swap_back(host, &mut self.swaps);
    }
}

impl Preparation {
    /// One more detour of a pointer.
    #[inline(never)]
    pub(super) fn attach_pointer<V: View>(
        &mut self,
        table: &mut Table<'_, V>,
        attach: &Attach,
    ) -> Result<Handle, Error> {
        let Attach { target, detour, .. } = *attach;
        if target == 0 || detour == 0 {
            return Err(Error::Null);
        }
        // There is nothing that could be planned: no patch, no slot.
        if self.alone || attach.inside {
            return Err(Refusal::NoShape { address: target }.into());
        }
        table.view.detour(detour)?;
        self.come(table, target, detour, attach.chain)?;
        let handle = table.records.insert(Record {
            handle: Handle::from_raw(0),
            method: Method::Pointer,
            target,
            detour,
            patch: None,
            slot: Span { address: 0, len: 0 },
            protocol: table.protocol,
            state: State::Attached,
            in_flight: attach.in_flight,
            owner: attach.owner,
            original: attach.original,
            cell: attach.cell,
        });
        if let Some(pointer) = table.pointers.get_mut(target) {
            pointer.users.push(handle);
        }
        self.undo.push(Undo::AddedToPointer { place: target, handle });
        self.hold(table.records, handle);
        Ok(handle)
    }

    /// One that drains comes back, as the youngest.
    #[inline(never)]
    pub(super) fn reattach_pointer<V: View>(
        &mut self,
        table: &mut Table<'_, V>,
        handle: Handle,
        original: u64,
    ) -> Result<Handle, Error> {
        let record = table.records.get(handle).ok_or(Error::NotAttached)?;
        let (place, detour) = (record.target, record.detour);
        if record.state == State::Attached {
            return Err(Error::AlreadyDetoured { target: place });
        }
        self.come(table, place, detour, true)?;
        let pointer = table.pointers.get_mut(place).ok_or(Error::NotAttached)?;
        let position = pointer.users.iter().position(|&user| user == handle).ok_or(Error::NotAttached)?;
        if let Some(tail) = pointer.users.get_mut(position..) {
            tail.rotate_left(1);
        }
        if let Some(record) = table.records.get_mut(handle) {
            record.original = original;
        }
        table.records.set_state(handle, State::Attached);
        self.undo.push(Undo::AgainAtPointer { place, handle, position, request: table.index });
        self.hold(table.records, handle);
        Ok(handle)
    }

    /// Whether a detour may come to a pointer. Remembers how that was.
    fn come<V: View>(
        &mut self,
        table: &mut Table<'_, V>,
        place: u64,
        detour: u64,
        chain: bool,
    ) -> Result<(), Error> {
        let leads_to = table.view.pointer(place)?;
        let known = table.pointers.get(place);
        let youngest = known.and_then(|pointer| pointer.youngest(table.records)).map(|one| one.detour);
        if youngest.is_some() && !chain || known.is_some_and(|pointer| pointer.has(table.records, detour)) {
            return Err(Error::AlreadyDetoured { target: place });
        }
        // What this very session does there is not there yet.
        let before = self.pointing.before(place);
        if let Some(expected) = before.or(youngest)
            && leads_to != expected
        {
            return Err(Error::PointerChanged { address: place, expected, found: leads_to });
        }
        let is_new = before.is_none() && youngest.is_none();
        // Its original would be itself.
        if is_new && leads_to == detour {
            return Err(Error::AlreadyDetoured { target: place });
        }
        let pointer = table.pointers.find_or_add(place, leads_to)?;
        if is_new {
            pointer.found = leads_to;
        }
        self.pointing.touch(place, table.index, leads_to);
        Ok(())
    }

    /// One less.
    pub(super) fn detach_pointer(
        &mut self,
        records: &mut Records,
        pointers: &Pointers,
        request: usize,
        handle: Handle,
    ) -> Result<Handle, Error> {
        let record = records.get(handle).filter(|record| record.state == State::Attached);
        let place = record.ok_or(Error::NotAttached)?.target;
        let pointer = pointers.get(place).ok_or(Error::NotAttached)?;
        self.pointing.touch(place, request, pointer.leads_to(records));
        records.set_state(handle, State::Draining);
        self.undo.push(Undo::Detached { handle });
        Ok(handle)
    }
}
