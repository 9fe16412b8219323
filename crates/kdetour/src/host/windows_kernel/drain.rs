//! Waiting until nobody is inside a detour any more, before the driver goes.
//!
//! ```text
//!   detached            nobody enters any more
//!   counters are 0      whoever counted itself has come back
//!   every processor     a thread of the lowest priority has run there: whoever was ready to run there, and stood in front of the counter,
//!                       behind it or in a slot, has gone on; and deferred procedures that have begun have ended
//!   counters are 0      nobody who went on has counted itself
//!   let go              counters are not read any more, and no original is written to its cell
//! ```
//!
//! # What that is worth
//! NT has no call that says that no thread is at an address. A thread that stands exactly between a target's jump and the detour's
//! counter, or between the counter and the return, and does not run though nothing of higher priority does, is missed: one that was
//! suspended just there, that waits in an asynchronous procedure which was delivered just there, or that has itself the lowest priority.
//! So slots are never given to anybody else. They are part of the driver, and go with it. Nor is the padding given back by this that holds
//! the long jumps of short ones: that is the last thing before the driver goes (`caves`).

use super::WindowsKernel;
use super::nt::{Nt, PASSIVE_LEVEL, ticks};
use crate::records::{Handle, State};
use crate::{AtomicAddress, Error, Kdetour};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

/// How long a counter is left alone before it is read again, in microseconds.
const PAUSE: u32 = 1000;

impl<N: Nt> Kdetour<WindowsKernel<N>> {
    /// Waits until no call is inside detours that were detached, as far as NT lets one know: the module's documentation says how far that
    /// is. Their slots stay until the driver is unloaded. `DriverUnload` calls this with every detour that it has detached, and with none
    /// if there is none: deferred procedures of a commit may still be in their last instructions.
    ///
    /// From then on neither their counters nor their cells are used, whoever comes and goes at their targets: both may be freed. Who attaches
    /// one of them again says anew where they are, by [`set_places`](Self::set_places).
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
        handles.iter().for_each(|&handle| self.records.set_places(handle, 0, None));
        Ok(())
    }

    /// Says anew where the calls of a detour are counted, and where its original is kept, before it is attached again: it was drained,
    /// and neither is known any more. Any IRQL.
    ///
    /// # Safety
    /// As for [`attach`](crate::Session::attach). It was drained, and was not attached since: nobody is counted by another counter.
    ///
    /// # Errors
    /// [`Error::NotAttached`] if the handle names nothing or something that is attached.
    pub unsafe fn set_places(
        &mut self,
        handle: Handle,
        in_flight: u64,
        cell: Option<&'static AtomicAddress>,
    ) -> Result<(), Error> {
        let record = self.record(handle).filter(|record| record.state == State::Draining);
        record.ok_or(Error::NotAttached)?;
        self.records.set_places(handle, in_flight, cell);
        Ok(())
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
