//! Where an attach looks for what is known, and takes its slot: one request becomes a planned patch.

use super::restored::Restored;
use super::survey::{Surveyor, survey};
use super::{Attach, inside};
use crate::commit::Protocol;
use crate::host::{Host, Span, View};
use crate::records::{Handle, Records};
use crate::sites::{Site, Sites, span};
use crate::slots::SlotMemory;
use crate::{Error, Method};
use kdetour_plan::{
    Allocator, MAX_DISPLACED, MAX_WINDOW, Options, Patch, PlanRoom, Reach, Refusal, Relays, Shape, Shapes,
    Slot, Survey,
};

/// The slots of an environment, or the one that is lent, as a plan asks for them: what it does not take goes back.
struct Taking<'a, S: SlotMemory> {
    slots: &'a mut S,
    lent: Option<Span>,
    taken: Option<Span>,
}

impl<S: SlotMemory> Taking<'_, S> {
    fn hold(&mut self, slot: Option<Span>) -> Option<Slot> {
        self.taken = slot;
        slot.map(|slot| Slot { address: slot.address, capacity: slot.len })
    }

    fn give_back(&mut self) {
        // What was lent is not one of theirs, which they see.
        if let Some(slot) = self.taken.take() {
            self.slots.free(slot);
        }
    }
}

impl<S: SlotMemory> Allocator for Taking<'_, S> {
    fn near(&mut self, reach: Reach, len: usize) -> Option<Slot> {
        self.give_back();
        let slot = match self.lent {
            Some(lent) => (lent.len >= len && reach.contains(lent.address)).then_some(lent),
            None => self.slots.near(len, reach),
        };
        self.hold(slot)
    }

    fn at(&mut self, relays: Relays, reach: Reach, len: usize) -> Option<Slot> {
        self.give_back();
        let slot = match self.lent {
            Some(lent) => {
                let fits = lent.len >= len && reach.contains(lent.address) && relays.contains(lent.address);
                fits.then_some(lent)
            }
            None => self.slots.at(len, relays, reach),
        };
        self.hold(slot)
    }
}

/// Where an attach looks and takes.
pub(super) struct Place<'a, H, V, S> {
    pub(super) host: &'a H,
    pub(super) view: &'a V,
    pub(super) slots: &'a mut S,
    pub(super) records: &'a mut Records,
    pub(super) sites: &'a mut Sites,
    pub(super) room: &'a mut PlanRoom,
    pub(super) options: Options,
    pub(super) protocol: Protocol,
    pub(super) index: usize,
}

impl<H, V: View, S> Place<'_, H, V, S> {
    /// Whether a detour that was detached may be put in again as it was.
    ///
    /// # Errors
    /// [`NoShape`](Refusal::NoShape) if its function has become another one since.
    #[inline(never)]
    pub(super) fn is_unchanged(&self, handle: Handle, surveyor: &mut Surveyor) -> Result<(), Error> {
        let site = self.records.get(handle).and_then(|record| self.sites.get(record.slot.address));
        match site.filter(|site| !site.live && !self.can_renew(site, surveyor)) {
            Some(site) => Err(Refusal::NoShape { address: site.patch.address() }.into()),
            None => Ok(()),
        }
    }

    /// Whether the function is still such that the site's patch may be put in again, by this protocol: the same bytes
    /// are displaced, and nothing forbids the shape.
    #[inline(never)]
    pub(super) fn can_renew(&self, site: &Site, surveyor: &mut Surveyor) -> bool {
        let patch = &site.patch;
        let (shape, original) = (patch.shape(), patch.original_bytes());
        let mut found = [0; MAX_DISPLACED];
        let found = found.get_mut(..original.len()).unwrap_or_default();
        if !self.protocol.shapes().contains(shape)
            || self.view.read(patch.address(), found).is_err()
            || found != original
        {
            return false;
        }
        // Whoever keeps every boundary, and is entered each time, needs to know no more of the function.
        if site.inside && patch.new_bytes().get(1..) == patch.window_bytes().get(1..) {
            return true;
        }
        let view = Restored { view: self.view, sites: &*self.sites, cave: patch.cave() };
        let options = Options { shapes: Shapes::only(shape), one_byte: false, ..self.options };
        let survey = match site.inside {
            true => inside::survey(&view, site.target, options, surveyor).map(|(survey, _)| survey),
            false => survey(&view, site.target, surveyor),
        };
        survey.is_ok_and(|survey| survey.window() == patch.address() && survey.best(&options).is_ok())
    }
}

/// Whether a patch that was put in is still there. It is not where the page was given back to the file it came from,
/// or mapped anew.
pub(super) fn is_in_place(view: &impl View, patch: &Patch) -> Result<(), Error> {
    let mut found = [0; MAX_WINDOW];
    let new = patch.new_bytes();
    let found = found.get_mut(..new.len()).unwrap_or_default();
    view.read(patch.address(), found)?;
    let mut bytes = new.iter().zip(found.iter()).enumerate();
    match bytes.find(|(_, (expected, found))| expected != found) {
        None => Ok(()),
        Some((at, (&expected, &found))) => {
            Err(Error::Changed { address: patch.address().wrapping_add(at as u64), expected, found })
        }
    }
}

/// Surveys and plans, and takes the slot, which it gives: the plan is in the place's room. On its own, as is each of its halves, so that what they have on the stack is
/// gone when the next is about to begin: a kernel's stack is small.
#[inline(never)]
pub(super) fn plan<H: Host, V: View, S: SlotMemory>(
    place: &mut Place<'_, H, V, S>,
    attach: &Attach,
    surveyor: &mut Surveyor,
) -> Result<Span, Error> {
    let wanted = match attach.method {
        Method::Jump | Method::Pointer => attach.shapes,
        // The copy of one instruction is all that they need. No byte changes for a register, but the slot is the same.
        Method::Breakpoint | Method::DebugRegister => Some(Shapes::only(Shape::Breakpoint)),
    };
    let options = match wanted {
        None => place.options,
        Some(shapes) => {
            let shapes = shapes.and(place.protocol.shapes());
            Options { shapes, one_byte: false, ..place.options }
        }
    };
    let view = Restored { view: place.view, sites: &*place.sites, cave: None };
    let (survey, options) = match attach.inside {
        true => inside::survey(&view, attach.target, options, surveyor)?,
        false => (survey(&view, attach.target, surveyor)?, options),
    };
    put(place, attach, survey, options)
}

#[inline(never)]
fn put<H: Host, V: View, S: SlotMemory>(
    place: &mut Place<'_, H, V, S>,
    attach: &Attach,
    survey: &Survey,
    options: Options,
) -> Result<Span, Error> {
    let best = survey.best(&options)?;
    let mut taking = Taking { slots: &mut *place.slots, lent: attach.slot, taken: None };
    let planned = place.room.best(survey, &mut taking, attach.detour, options);
    let (plan, slot) = match (planned, taking.taken) {
        (Ok(plan), Some(slot)) => (plan, slot),
        (Ok(_), None) | (Err(Refusal::NoSlot { .. }), _) => {
            taking.give_back();
            return Err(Error::NoSlot { target: survey.window(), needed: best.need() });
        }
        (Err(refusal), _) => {
            taking.give_back();
            return Err(refusal.into());
        }
    };
    if let Err(error) = place.view.code(span(plan.patch())) {
        taking.give_back();
        return Err(error);
    }
    if place.sites.overlaps(span(plan.patch())) {
        taking.give_back();
        return Err(Error::AlreadyDetoured { target: attach.target });
    }
    let slot = place.slots.trim(slot, plan.slot_bytes().len());
    // Inside a function nobody knows where the caller's frame is.
    if !attach.inside
        && let Err(error) = place.host.describe(plan)
    {
        place.slots.free(slot);
        return Err(error);
    }
    Ok(slot)
}
