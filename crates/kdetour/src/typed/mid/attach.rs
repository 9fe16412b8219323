//! Attaching a detour inside a function, and what it needs until it has been drained: its site, its stub.

use super::arch::{Registers, stub, thunk};
use super::site::Site;
use super::state::area;
use crate::host::process::{NOT_SUPPORTED, Pin, Process as Own, STUB, has_shadow_stack};
use crate::host::{Host, Span, Text};
use crate::kdetour::poison;
use crate::slots::SlotMemory;
use crate::typed::cell::{self, Cell};
use crate::typed::process::{self, By, Process, commit, one};
use crate::{Attach, Error, Handle, Kdetour, Record, State};
use core::any::Any;
use core::mem;
use core::ptr::NonNull;
use kdetour_plan::{Reach, Refusal};
use std::boxed::Box;
use std::vec::Vec;

/// How far from the function its stub may lie: a jump reaches twice as far.
const NEAR: u64 = 1 << 30;

/// What is called at the instruction.
pub(super) struct Callback {
    pub(super) function: extern "C" fn(&mut Registers, *const ()),
    pub(super) context: *const (),
    /// What the context points to, if that is to be dropped with the detour.
    pub(super) state: Option<Box<dyn Any + Send>>,
    /// An address in the library that it is in.
    pub(super) code: u64,
}

/// The site and the stub of one detour. Both are there until nobody can be inside: a thread that is has the stub's
/// address in its instruction pointer or on its stack.
pub(in crate::typed) struct Mid {
    /// From a box. Not a box, since the stub leads threads to it.
    site: NonNull<Site>,
    stub: Span,
    /// What may be attached again as it was: a plain function.
    plain: Option<*const ()>,
}

// SAFETY: a site may be shared, and it may be dropped by any thread.
unsafe impl Send for Mid {}

impl Drop for Mid {
    fn drop(&mut self) {
        // SAFETY: made from a box by `new`, owned by this value alone. It is dropped when no record leads to the stub:
        // the attach has failed, or the detour has been drained.
        drop(unsafe { Box::from_raw(self.site.as_ptr()) });
    }
}

impl Mid {
    fn new(site: Site, stub: Span, plain: Option<*const ()>) -> Self {
        let site = NonNull::from(Box::leak(Box::new(site)));
        Self { site, stub, plain }
    }

    fn site(&self) -> &Site {
        // SAFETY: it lives as long as this value, and nobody has it mutably.
        unsafe { self.site.as_ref() }
    }

    /// Writes the stub.
    fn write(&self, kdetour: &Kdetour<Own>) -> Result<(), Error> {
        let thunk = (thunk as unsafe extern "C" fn() as *const ()).expose_provenance() as u64;
        let stub = stub(self.stub.address, self.site.as_ptr().expose_provenance() as u64, thunk);
        kdetour.host().open_text(&[self.stub])?.write(self.stub.address, &stub)
    }

    /// Gives the stub back, which nobody is in or comes to.
    pub(in crate::typed) fn give_back(&self, kdetour: &mut Kdetour<Own>) {
        // What cannot be filled is filled by whoever gets it next.
        let _ = kdetour
            .host()
            .open_text(&[self.stub])
            .and_then(|mut text| poison(&mut text, core::iter::once(self.stub)));
        kdetour.slots.free(self.stub);
    }
}

/// Attaches a detour inside a function; a plain function that was there before, and drains, as it was.
///
/// # Safety
/// As for [`MidDetour::attach`](super::MidDetour::attach). The function may be called with its context until the state
/// is dropped, or for ever.
pub(super) unsafe fn attach(by: By<'_>, address: u64, mut callback: Callback) -> Result<Handle, Error> {
    if address == 0 {
        return Err(Error::Null);
    }
    if has_shadow_stack() {
        return Err(Error::ShadowStack);
    }
    let area = area().ok_or(Error::Host(NOT_SUPPORTED))?;
    // The loader's lock is never waited for with the turn taken.
    let mut pins: Vec<Pin> = [address, callback.code].into_iter().filter_map(Pin::of).collect();
    process::with(|process| {
        let plain = callback.state.is_none().then_some(callback.context);
        if let Some(former) = former(process, address, plain) {
            // SAFETY: the caller's promise.
            match unsafe { process.again(by, former, true) } {
                // Another protocol planned it, or the function is not what it was.
                Err(Error::Refused(Refusal::NoShape { .. }) | Error::Changed { .. }) => {}
                outcome => return outcome,
            }
        }
        let reach = Reach { first: address.saturating_sub(NEAR), last: address.saturating_add(NEAR) };
        let no_slot = Error::NoSlot { target: address, needed: STUB };
        let stub = process.kdetour.slots.near(STUB, reach).ok_or(no_slot)?;
        let cell = cell::new();
        let site = Site::new(address, area, callback.function, callback.context, cell);
        let mid = Mid::new(site, stub, plain);
        // SAFETY: the caller's promise; the stub and the thunk keep everything that is to be kept.
        let attached = mid.write(&process.kdetour).and_then(|()| unsafe { begin(process, by, &mid, cell) });
        // Of a commit that was taken back a record may be left: then a thread may have come to the stub.
        let leads_here = |record: &&Record| record.detour == stub.address;
        let record = process.kdetour.detours_of(address).find(leads_here).map(|record| record.handle);
        if let Some(handle) = record {
            let kept = process.kept.entry(handle).or_default();
            kept.states.extend(callback.state.take());
            kept.cell = Some(cell);
            kept.mid = Some(mid);
            mem::swap(&mut kept.pins, &mut pins);
        } else {
            mid.give_back(&mut process.kdetour);
            cell::give_back(cell);
        }
        attached
    })
}

/// A detour that drains, of the same plain function at the same address.
fn former(process: &Process, address: u64, plain: Option<*const ()>) -> Option<Handle> {
    plain?;
    let is_it = |record: &&Record| {
        let mid = process.kept.get(&record.handle).and_then(|kept| kept.mid.as_ref());
        record.state == State::Draining && mid.is_some_and(|mid| mid.plain == plain)
    };
    process.kdetour.detours_of(address).find(is_it).map(|record| record.handle)
}

/// # Safety
/// As for [`attach`]; the stub is written.
unsafe fn begin(process: &mut Process, by: By<'_>, mid: &Mid, cell: Cell) -> Result<Handle, Error> {
    let (site, detour) = (mid.site(), mid.stub.address);
    let attach = Attach {
        target: site.address,
        detour,
        cell: Some(cell),
        chain: true,
        inside: true,
        ..Attach::default()
    };
    // SAFETY: the caller's promise.
    let session = unsafe { process.kdetour.session().attach(attach) };
    commit(session, by, &mut |record, _| {
        if record.detour == detour
            && let Some(patch) = &record.patch
        {
            site.displaced(patch);
        }
    })
    .map_err(Error::from)
    .and_then(one)
}
