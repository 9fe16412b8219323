//! Waiting until nobody is inside a detour any more, before the driver goes.
//!
//! ```text
//!   detached            nobody enters any more
//!   counters are 0      whoever counted itself has come back
//!   every processor     a thread of the lowest priority has run there: whoever was ready to run there, and stood in front of the counter,
//!                       behind it or in a slot, has gone on; and deferred procedures that have begun have ended
//!   counters are 0      nobody who went on has counted itself
//!   the caves           get their padding back
//! ```
//!
//! # What that is worth
//! NT has no call that says that no thread is at an address. A thread that stands exactly between a target's jump and the detour's
//! counter, or between the counter and the return, and does not run though nothing of higher priority does, is missed: one that was
//! suspended just there, that waits in an asynchronous procedure which was delivered just there, or that has itself the lowest priority.
//! So slots are never given to anybody else. They are part of the driver, and go with it.

use super::WindowsKernel;
use super::nt::{Nt, PASSIVE_LEVEL, ticks};
use crate::commit::restore_caves;
use crate::host::{Host, Span};
use crate::records::{Handle, State};
use crate::{Error, Kdetour};
use alloc::vec::Vec;
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use kdetour_plan::Patch;

/// How long a counter is left alone before it is read again, in microseconds.
const PAUSE: u32 = 1000;

impl<N: Nt> Kdetour<WindowsKernel<N>> {
    /// Waits until no call is inside detours that were detached, as far as NT lets one know: the module's documentation says how far that
    /// is. Their slots stay until the driver is unloaded, and they may be attached again. `DriverUnload` calls this with every detour
    /// that it has detached, and with none if there is none: deferred procedures of a commit may still be in their last instructions.
    ///
    /// IRQL: `PASSIVE_LEVEL`.
    ///
    /// # Errors
    /// [`Error::Irql`]; [`Error::NotAttached`] if a handle names nothing or something that is attached; [`Error::Busy`] when the
    /// time is up: the driver must not be unloaded. What NT says.
    pub fn drain(&mut self, handles: &[Handle], limit: Duration) -> Result<(), Error> {
        self.host().at(PASSIVE_LEVEL)?;
        let draining = |&handle: &Handle| self.record(handle).filter(|one| one.state == State::Draining);
        if handles.iter().any(|handle| draining(handle).is_none()) {
            return Err(Error::NotAttached);
        }
        let until = Until::new(&self.host().nt, limit);
        loop {
            self.wait_for_counters(handles, &until)?;
            visit_all(&self.host().nt, &until)?;
            if self.calls(handles) == 0 {
                break;
            }
        }
        self.empty_caves(handles)
    }

    fn calls(&self, handles: &[Handle]) -> u64 {
        let counters = handles.iter().filter_map(|&handle| self.record(handle)).map(|one| one.in_flight);
        counters.map(|counter| u64::from(in_flight(counter))).sum()
    }

    fn wait_for_counters(&self, handles: &[Handle], until: &Until<'_, N>) -> Result<(), Error> {
        loop {
            let calls = self.calls(handles);
            if calls == 0 {
                return Ok(());
            }
            if until.is_over() {
                return Err(Error::Busy { calls });
            }
            self.host().nt.sleep(PAUSE);
        }
    }

    /// Gives the padding back that holds the long jumps of short ones, where no detour of the target is left.
    fn empty_caves(&mut self, handles: &[Handle]) -> Result<(), Error> {
        let mut patches: Vec<Patch> = Vec::new();
        patches.try_reserve_exact(handles.len())?;
        for record in handles.iter().filter_map(|&handle| self.record(handle)) {
            let is_live = self.sites.get(record.slot.address).is_some_and(|site| site.live);
            patches.extend(record.patch.filter(|patch| !is_live && patch.cave().is_some()));
        }
        if patches.is_empty() {
            return Ok(());
        }
        let mut spans = Vec::new();
        spans.try_reserve_exact(patches.len())?;
        let caves = patches.iter().filter_map(Patch::cave);
        spans.extend(caves.map(|cave| Span { address: cave.cave.address, len: cave.new.len() }));
        let mut text = self.host().open_text(&spans)?;
        restore_caves(&mut text, patches.iter())
    }
}

/// A time that comes.
struct Until<'a, N> {
    nt: &'a N,
    start: u64,
    ticks: u64,
}

impl<'a, N: Nt> Until<'a, N> {
    fn new(nt: &'a N, limit: Duration) -> Self {
        let (start, frequency) = nt.clock();
        Self { nt, start, ticks: ticks(frequency, limit) }
    }

    fn is_over(&self) -> bool {
        self.nt.clock().0.wrapping_sub(self.start) > self.ticks
    }
}

/// What a counter of calls in flight says; 0 stands for none.
fn in_flight(counter: u64) -> u32 {
    let Ok(address) = usize::try_from(counter) else { return 0 };
    let counter = core::ptr::with_exposed_provenance::<AtomicU32>(address);
    // SAFETY: by the word of whoever attached: 0, or a counter that lives until the detour is gone.
    unsafe { counter.as_ref() }.map_or(0, |counter| counter.load(Ordering::Acquire))
}

/// What the visiting thread is given, and gives back.
struct Visit<'a, N> {
    until: &'a Until<'a, N>,
    outcome: Result<(), Error>,
}

/// Has a thread of the lowest priority run on every processor.
fn visit_all<N: Nt>(nt: &N, until: &Until<'_, N>) -> Result<(), Error> {
    let mut visit = Visit { until, outcome: Err(Error::Busy { calls: 0 }) };
    // SAFETY: the routine expects a `Visit`, which stays until the thread has ended.
    unsafe { nt.run_thread(visit_each::<N>, (&raw mut visit).cast::<c_void>()) }?;
    visit.outcome
}

/// # Safety
/// `visit` is a `Visit` that nobody else uses until the thread has ended.
unsafe extern "system" fn visit_each<N: Nt>(visit: *mut c_void) {
    // SAFETY: by the caller's word.
    let visit = unsafe { &mut *visit.cast::<Visit<'_, N>>() };
    let nt = visit.until.nt;
    visit.outcome = nt.processors().and_then(|processors| {
        processors.into_iter().try_for_each(|processor| {
            let pin = nt.pin(processor);
            let mut has_run = nt.run_last();
            while !has_run && !visit.until.is_over() {
                nt.sleep(PAUSE);
                has_run = nt.run_last();
            }
            nt.unpin(pin);
            if has_run { Ok(()) } else { Err(Error::Busy { calls: 0 }) }
        })
    });
}
