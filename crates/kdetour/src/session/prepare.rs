//! Everything before the first write: requests become records, sites and changes.

use super::place::{Place, is_in_place, plan};
use super::pointing::{Pointing, Table};
use super::registers::{Register, Turns};
use super::survey::{Surveyor, accepted};
use super::{Announce, Attach, Request};
use crate::commit::{Change, CommitError, Protocol};
use crate::host::{Host, Span, View};
use crate::kdetour::Kdetour;
use crate::records::{Handle, Record, Records, State};
use crate::sites::{Site, Sites, span};
use crate::slots::SlotMemory;
use crate::{AtomicAddress, Error, Method};
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::ptr;
use hashbrown::HashMap;
use kdetour_plan::{MAX_SLOT, Patch, Refusal};

/// Bytes for a slot that nobody knows of yet.
pub(super) struct Fill {
    pub(super) at: u64,
    pub(super) bytes: ArrayVec<u8, MAX_SLOT>,
}

mod ended;

/// What a session does, and what undoes it.
#[derive(Default)]
pub(super) struct Preparation {
    pub(super) changes: Vec<Change>,
    /// Relays of targets that are not patched, which have to lead elsewhere before the targets lead there.
    pub(super) leads: Vec<Change>,
    pub(super) fills: Vec<Fill>,
    /// What is found by debug registers, and comes, goes, or leads elsewhere.
    pub(super) registers: Vec<Register>,
    /// Whether each attach gets a slot of its own, though a former detour of the target may have one that drains.
    pub(super) alone: bool,
    /// What is done at pointers.
    pub(super) pointing: Pointing,
    /// For each change the site that it is at.
    changed: Vec<u64>,
    /// For each request its detour.
    handles: Vec<Handle>,
    touched: Vec<Touched>,
    /// Where in `touched` a site is.
    places: HashMap<u64, usize>,
    pub(super) undo: Vec<Undo>,
    announced: bool,
}

/// A site that the session does something at. There may be tens of thousands: the patch itself stays with the site.
struct Touched {
    slot: u64,
    /// The first request that did.
    request: usize,
    /// Whether its slot is new: nobody knows it, nothing is in it.
    fresh: bool,
    was_live: bool,
    /// The detour that its patch is going to lead to, if there is to be one in the text.
    after: Option<u64>,
    /// Whether that is another one than the site's patch leads to.
    leads_elsewhere: bool,
}

/// What a request did to the records.
#[derive(Clone, Copy)]
pub(super) enum Undo {
    Added {
        slot: u64,
        handle: Handle,
    },
    AddedToPointer {
        place: u64,
        handle: Handle,
    },
    Detached {
        handle: Handle,
    },
    /// It keeps its original in a cell now that was another record's, or nobody's.
    Held {
        handle: Handle,
        before: Option<Handle>,
    },
    /// It was the user at this position of its site.
    Again {
        slot: u64,
        handle: Handle,
        position: usize,
        request: usize,
    },
    /// It was the user at this position of its pointer.
    AgainAtPointer {
        place: u64,
        handle: Handle,
        position: usize,
        request: usize,
    },
}

/// Whether a detour of the site leads to this function already, and the place of its original is this one's, too: chained to itself
/// it would call itself. Who is told of the original by `announce` has one place for it.
fn calls_itself(
    records: &Records,
    site: &Site,
    detour: u64,
    original: u64,
    cell: Option<&AtomicAddress>,
) -> bool {
    let attached = site.users.iter().filter_map(|&user| records.get(user));
    let mut alike = attached.filter(|record| record.state == State::Attached && record.detour == detour);
    let is_its = |record: &Record| match (record.cell, cell) {
        (Some(its), Some(cell)) => ptr::eq(its, cell),
        _ => false,
    };
    alike.any(|record| original != 0 || is_its(record))
}

/// Whether a handle names a detour of a pointer.
fn is_pointer(records: &Records, handle: Handle) -> bool {
    records.get(handle).is_some_and(|record| record.method == Method::Pointer)
}

impl Preparation {
    /// Of plans that somebody else may write.
    pub(super) fn of_plans() -> Self {
        Self { alone: true, ..Self::default() }
    }

    /// Validates and plans everything and takes the slots. On failure [`take_back`](Self::take_back) undoes it.
    #[inline(never)]
    pub(super) fn prepare<H: Host>(
        &mut self,
        kdetour: &mut Kdetour<H>,
        requests: &[Request],
        protocol: Protocol,
    ) -> Result<(), CommitError> {
        self.reserve(kdetour, requests.len()).map_err(CommitError::before)?;
        let looks = |request: &Request| match *request {
            Request::Attach(_) | Request::Reattach { checked: true, .. } => true,
            Request::Reattach { handle, .. } => is_pointer(&kdetour.records, handle),
            Request::Detach(_) => false,
        };
        let attaches = requests.iter().any(looks);
        let Kdetour { host, slots, records, sites, pointers, surveyor, room, .. } = kdetour;
        let host = &*host;
        let view = if attaches { Some(host.view().map_err(CommitError::before)?) } else { None };
        let options = accepted(host, protocol);
        for (index, request) in requests.iter().enumerate() {
            let failed = |error| CommitError { index, error, written: false };
            let handle = match *request {
                Request::Detach(handle) if is_pointer(records, handle) => {
                    self.detach_pointer(records, pointers, index, handle)
                }
                Request::Detach(handle) => self.detach(records, sites, index, handle),
                Request::Reattach { handle, original, .. } if is_pointer(records, handle) => match &view {
                    Some(view) => {
                        let mut table = Table { view, records, pointers, protocol, index };
                        self.reattach_pointer(&mut table, handle, original)
                    }
                    None => Err(Error::NotAttached),
                },
                Request::Reattach { handle, original, checked } => {
                    let unchanged = match &view {
                        Some(view) if checked => {
                            let place =
                                Place { host, view, slots, records, sites, room, options, protocol, index };
                            place.is_unchanged(handle, surveyor)
                        }
                        _ => Ok(()),
                    };
                    unchanged.and_then(|()| self.reattach(records, sites, index, handle, original))
                }
                Request::Attach(ref attach) => match &view {
                    Some(view) if attach.method == Method::Pointer => {
                        let mut table = Table { view, records, pointers, protocol, index };
                        self.attach_pointer(&mut table, attach)
                    }
                    Some(view) => {
                        let mut place =
                            Place { host, view, slots, records, sites, room, options, protocol, index };
                        self.attach(&mut place, attach, surveyor)
                    }
                    None => Err(Error::NotAttached),
                },
            };
            self.handles.push(handle.map_err(failed)?);
        }
        self.pointing.find_swaps(records, pointers);
        self.find_changes(records, sites)
    }

    #[inline(never)]
    fn reserve<H: Host>(&mut self, kdetour: &mut Kdetour<H>, count: usize) -> Result<(), Error> {
        self.handles.try_reserve_exact(count)?;
        self.touched.try_reserve_exact(count)?;
        self.undo.try_reserve_exact(2 * count)?;
        self.fills.try_reserve_exact(2 * count)?;
        self.changes.try_reserve_exact(count)?;
        self.changed.try_reserve_exact(count)?;
        self.registers.try_reserve_exact(count)?;
        self.leads.try_reserve_exact(count)?;
        self.places.try_reserve(count).map_err(|_| Error::OutOfMemory)?;
        self.pointing.reserve(count)?;
        kdetour.records.reserve(count)?;
        kdetour.pointers.reserve(count)?;
        kdetour.sites.reserve(count)
    }

    /// Remembers how a site was before the session did anything at it.
    fn touch(&mut self, site: &Site, request: usize, fresh: bool) {
        let place = self.touched.len();
        if *self.places.entry(site.slot.address).or_insert(place) == place {
            self.touched.push(Touched {
                slot: site.slot.address,
                request,
                fresh,
                was_live: site.live,
                after: None,
                leads_elsewhere: false,
            });
        }
    }

    fn detach(
        &mut self,
        records: &mut Records,
        sites: &mut Sites,
        request: usize,
        handle: Handle,
    ) -> Result<Handle, Error> {
        let record = records.get(handle).filter(|record| record.state == State::Attached);
        let site = record.and_then(|record| sites.get(record.slot.address)).ok_or(Error::NotAttached)?;
        self.touch(site, request, false);
        records.set_state(handle, State::Draining);
        self.undo.push(Undo::Detached { handle });
        Ok(handle)
    }

    #[inline(never)]
    fn reattach(
        &mut self,
        records: &mut Records,
        sites: &mut Sites,
        request: usize,
        handle: Handle,
        original: u64,
    ) -> Result<Handle, Error> {
        let record = records.get(handle).ok_or(Error::NotAttached)?;
        if record.state == State::Attached {
            return Err(Error::AlreadyDetoured { target: record.target });
        }
        let (slot, target, detour) = (record.slot.address, record.target, record.detour);
        let site = sites.get(slot).ok_or(Error::NotAttached)?;
        let to_itself = calls_itself(records, site, detour, original, record.cell);
        if (!site.live && sites.overlaps(span(&site.patch))) || to_itself {
            return Err(Error::AlreadyDetoured { target });
        }
        self.touch(site, request, false);
        let position = site.users.iter().position(|&user| user == handle).ok_or(Error::NotAttached)?;
        if let Some(record) = records.get_mut(handle) {
            record.original = original;
        }
        records.set_state(handle, State::Attached);
        if let Some(site) = sites.get_mut(slot)
            && let Some(tail) = site.users.get_mut(position..)
        {
            tail.rotate_left(1);
        }
        sites.set_live(slot, true);
        self.undo.push(Undo::Again { slot, handle, position, request });
        self.hold(records, handle);
        Ok(handle)
    }

    #[inline(never)]
    fn attach<H: Host, V: View, S: SlotMemory>(
        &mut self,
        place: &mut Place<'_, H, V, S>,
        attach: &Attach,
        surveyor: &mut Surveyor,
    ) -> Result<Handle, Error> {
        if attach.target == 0 || attach.detour == 0 {
            return Err(Error::Null);
        }
        if attach.detour == attach.target {
            return Err(Refusal::DetourInWindow { detour: attach.detour }.into());
        }
        place.view.detour(attach.detour)?;
        if let Some(site) = place.sites.of_target(attach.target) {
            let is_alike = site.inside == attach.inside && site.method == attach.method;
            let to_itself = calls_itself(place.records, site, attach.detour, attach.original, attach.cell);
            let may_chain = attach.chain && is_alike && !site.lent && attach.slot.is_none();
            if (site.live && !may_chain) || to_itself {
                return Err(Error::AlreadyDetoured { target: attach.target });
            }
            // What this very session is about to put there is not there yet.
            let touched = self.places.get(&site.slot.address).and_then(|&place| self.touched.get(place));
            if site.live && site.method.writes() && touched.is_none_or(|touched| touched.was_live) {
                is_in_place(place.view, &site.patch)?;
            }
            let is_wanted = attach.shapes.is_none_or(|shapes| shapes.contains(site.patch.shape()));
            let is_free = !self.alone && !site.planned && !site.lent && attach.slot.is_none();
            let can_share =
                is_alike && (site.live || is_free && is_wanted && place.can_renew(site, surveyor));
            match site.patch.leading_to(attach.detour).map(|_| ()) {
                Ok(()) if can_share => return self.share(place, attach),
                Err(refusal) if site.live => return Err(refusal.into()),
                _ => {}
            }
        }
        let slot = plan(place, attach, surveyor)?;
        self.settle(place, attach, slot)
    }

    /// What was planned gets its site and its record.
    #[inline(never)]
    fn settle<H: Host, V, S: SlotMemory>(
        &mut self,
        place: &mut Place<'_, H, V, S>,
        attach: &Attach,
        slot: Span,
    ) -> Result<Handle, Error> {
        let Some(plan) = place.room.last() else { return Err(Error::NotAttached) };
        let patch = *plan.patch();
        let mut users = Vec::new();
        if let Err(error) = users.try_reserve_exact(1) {
            place.host.withdraw(slot.address);
            place.slots.free(slot);
            return Err(error.into());
        }
        let Attach { target, inside, method, .. } = *attach;
        let site = Site {
            target,
            patch,
            slot,
            live: false,
            inside,
            method,
            lent: attach.slot.is_some(),
            planned: false,
            traps: false,
            rank: 0,
            next: None,
            has_others: false,
            users,
        };
        self.touch(&site, place.index, true);
        place.sites.insert(site);
        self.fill(slot.address, plan.slot_bytes());
        Ok(self.add(place, attach, patch, slot))
    }

    /// Bytes for a slot, in room that was made. They are copied there once.
    fn fill(&mut self, at: u64, bytes: &[u8]) {
        self.fills.push(Fill { at, bytes: ArrayVec::new() });
        if let Some(fill) = self.fills.last_mut() {
            // No slot is longer than that.
            let _ = fill.bytes.try_extend_from_slice(bytes);
        }
    }

    /// One more detour of a target that has a slot already.
    #[inline(never)]
    fn share<H, V: View, S: SlotMemory>(
        &mut self,
        place: &mut Place<'_, H, V, S>,
        attach: &Attach,
    ) -> Result<Handle, Error> {
        let site = place.sites.of_target(attach.target).ok_or(Error::NotAttached)?;
        let patch = site.patch.leading_to(attach.detour)?;
        if !site.live && place.sites.overlaps(span(&site.patch)) {
            return Err(Error::AlreadyDetoured { target: attach.target });
        }
        self.touch(site, place.index, false);
        let slot = site.slot;
        if let Some(site) = place.sites.get_mut(slot.address) {
            site.users.try_reserve(1)?;
        }
        Ok(self.add(place, attach, patch, slot))
    }

    /// Adds the record. There is room for it.
    #[inline(never)]
    fn add<H, V, S>(
        &mut self,
        place: &mut Place<'_, H, V, S>,
        attach: &Attach,
        patch: Patch,
        slot: Span,
    ) -> Handle {
        let handle = place.records.insert(Record {
            handle: Handle::from_raw(0),
            method: attach.method,
            target: attach.target,
            detour: attach.detour,
            patch: Some(patch),
            slot,
            protocol: place.protocol,
            state: State::Attached,
            in_flight: attach.in_flight,
            owner: attach.owner,
            original: attach.original,
            cell: attach.cell,
        });
        if let Some(site) = place.sites.get_mut(slot.address) {
            site.users.push(handle);
        }
        place.sites.set_live(slot.address, true);
        self.undo.push(Undo::Added { slot: slot.address, handle });
        self.hold(place.records, handle);
        handle
    }

    /// The record's cell is kept by the record from now on.
    pub(super) fn hold(&mut self, records: &mut Records, handle: Handle) {
        if records.get(handle).is_some_and(|record| record.cell.is_some()) {
            let before = records.hold_cell(handle);
            self.undo.push(Undo::Held { handle, before });
        }
    }

    /// What has to change in the text, now that it is known which detours stay.
    #[inline(never)]
    fn find_changes(&mut self, records: &Records, sites: &mut Sites) -> Result<(), CommitError> {
        for touched in &mut self.touched {
            let index = touched.request;
            let failed = |refusal: Refusal| CommitError { index, error: refusal.into(), written: false };
            let Some(site) = sites.get_mut(touched.slot) else { continue };
            let attached = |handle: &&Handle| {
                records.get(**handle).is_some_and(|record| record.state == State::Attached)
            };
            let youngest = site.users.iter().rev().find(attached).and_then(|&handle| records.get(handle));
            touched.after = youngest.map(|youngest| youngest.detour);
            let mut change = |change| {
                self.changes.push(change);
                self.changed.push(touched.slot);
            };
            let before = site.patch;
            if site.method == Method::DebugRegister {
                let turns = Turns::of(touched.was_live, touched.after.is_some());
                touched.leads_elsewhere = touched.after.is_some_and(|detour| detour != before.detour());
                let (slot, address) = (touched.slot, before.address());
                self.registers.extend(turns.map(|turns| Register { slot, address, request: index, turns }));
                continue;
            }
            let Some(detour) = touched.after else {
                if touched.was_live {
                    change(Change::detach(before));
                }
                continue;
            };
            touched.leads_elsewhere = detour != before.detour();
            let leads_elsewhere = touched.leads_elsewhere;
            if touched.was_live && !leads_elsewhere {
                continue;
            }
            let after = if leads_elsewhere { before.leading_to(detour).map_err(failed)? } else { before };
            let has_relay = after.relay().is_some();
            if touched.was_live {
                change(Change::retarget(before, after));
                continue;
            }
            if leads_elsewhere && has_relay && touched.fresh {
                // The slot was planned for the oldest detour of it.
                let lead = after.lead();
                self.fills.push(Fill { at: lead.address, bytes: lead.bytes().iter().copied().collect() });
            } else if leads_elsewhere && has_relay {
                self.leads.push(Change::retarget(before, after));
            }
            change(Change::attach(after));
        }
        Ok(())
    }

    /// The relays have been written: they stay so, whatever becomes of the session.
    pub(super) fn leads_are_written<H: Host>(&mut self, kdetour: &mut Kdetour<H>) {
        for lead in self.leads.drain(..) {
            if let Some(site) = kdetour.sites.get_mut(lead.patch().slot()) {
                site.patch = *lead.patch();
            }
        }
    }

    /// The text that is written.
    pub(super) fn spans<H: Host>(&self, kdetour: &Kdetour<H>) -> Result<Vec<Span>, Error> {
        let mut spans = Vec::new();
        spans.try_reserve_exact(3 * self.touched.len())?;
        for touched in &self.touched {
            let Some(site) = kdetour.sites.get(touched.slot) else { continue };
            if site.method.writes() {
                spans.push(span(&site.patch));
            }
            if touched.fresh || touched.leads_elsewhere {
                spans.push(site.slot);
            }
            spans.extend(site.patch.cave().map(|cave| Span { address: cave.cave.address, len: 5 }));
        }
        Ok(spans)
    }

    /// The request that a change comes from.
    pub(super) fn request_of(&self, change: usize) -> usize {
        let place = self.changed.get(change).and_then(|slot| self.places.get(slot));
        place.and_then(|&place| self.touched.get(place)).map_or(0, |touched| touched.request)
    }

    /// Tells the attachers their originals.
    pub(super) fn announce<H: Host>(&mut self, kdetour: &Kdetour<H>, announce: Announce<'_>) {
        self.announced = true;
        for touched in &self.touched {
            kdetour.announce(touched.slot, announce);
        }
        self.pointing.announce(kdetour, announce);
    }
}
