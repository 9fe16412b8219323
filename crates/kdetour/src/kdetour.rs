//! The detours of one environment.

use crate::commit::Protocol;
use crate::commit::breakpoints::{self, Boundary, Retired};
use crate::host::{BreakpointHook, Host, Quiesce, Span, Text};
use crate::slots::Slots;
use crate::{Error, Session};
use alloc::vec::Vec;
use core::fmt;
use kdetour_plan::{Patch, Reach};

/// How many old breakpoint tables may wait for a grace period before one is asked for.
const MAX_RETIRED: usize = 32;

/// Names an attached detour. A handle is never given out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
}

/// What a detour is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls of the target reach the detour.
    Attached,
    /// The target is as it was; calls may still be inside the detour or the trampoline.
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
    /// The target's entry.
    pub target: u64,
    /// The patch.
    pub patch: Patch,
    /// The slot; its first byte is the trampoline.
    pub slot: Span,
    /// How it was attached.
    pub protocol: Protocol,
    /// What it is doing.
    pub state: State,
    /// The host's counter of calls in flight; 0 for none.
    pub in_flight: u64,
    /// Whoever attached it, in the host's own terms; 0 for nobody in particular.
    pub owner: u64,
}

/// The detours of one environment: its host, its slots, and what is attached.
pub struct Kdetour<H> {
    host: H,
    pub(crate) slots: Slots,
    /// Sorted by handle, since handles are given out in rising order.
    records: Vec<Record>,
    retired: Vec<Retired>,
    last_handle: u64,
}

impl<H> fmt::Debug for Kdetour<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kdetour").field("records", &self.records).finish_non_exhaustive()
    }
}

impl<H: Host> Kdetour<H> {
    /// No detours yet. Lets the decoder allocate its tables.
    pub fn new(host: H) -> Self {
        kdetour_plan::warm_up();
        Self { host, slots: Slots::new(), records: Vec::new(), retired: Vec::new(), last_handle: 0 }
    }

    /// Begins a set of changes that commits as one or not at all.
    pub const fn session(&mut self) -> Session<'_, H> {
        Session::new(self)
    }

    /// The host.
    pub const fn host(&self) -> &H {
        &self.host
    }

    /// Everything that is attached or being drained, oldest first.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// What is known about one detour; none if the handle names nothing.
    pub fn record(&self, handle: Handle) -> Option<&Record> {
        self.position(handle).and_then(|index| self.records.get(index))
    }

    pub(crate) fn position(&self, handle: Handle) -> Option<usize> {
        self.records.binary_search_by_key(&handle.0, |record| record.handle.0).ok()
    }

    pub(crate) fn record_mut(&mut self, handle: Handle) -> Option<&mut Record> {
        let position = self.position(handle)?;
        self.records.get_mut(position)
    }

    /// Takes a slot, asking the host for more memory if none within reach is left.
    pub(crate) fn take_slot(&mut self, len: usize, reach: Reach) -> Option<Span> {
        if let Some(slot) = self.slots.take(len, reach) {
            return Some(slot);
        }
        let area = self.host.executable_memory(len, reach)?;
        self.slots.add(area).ok()?;
        self.slots.take(len, reach)
    }

    /// Makes room for records that [`insert`](Self::insert) will add.
    pub(crate) fn reserve(&mut self, count: usize) -> Result<(), Error> {
        self.records.try_reserve(count)?;
        Ok(())
    }

    /// Adds a record and gives it its handle.
    pub(crate) fn insert(&mut self, mut record: Record) -> Handle {
        self.last_handle += 1;
        record.handle = Handle(self.last_handle);
        self.records.push(record);
        record.handle
    }

    /// Gives a record a new handle.
    pub(crate) fn renew(&mut self, handle: Handle) -> Handle {
        let Some(position) = self.position(handle) else { return handle };
        let record = self.records.remove(position);
        self.insert(record)
    }

    pub(crate) fn set_state(&mut self, handle: Handle, state: State) {
        if let Some(record) = self.record_mut(handle) {
            record.state = state;
        }
    }

    pub(crate) fn remove(&mut self, handle: Handle) {
        if let Some(position) = self.position(handle) {
            let record = self.records.remove(position);
            self.slots.free(record.slot);
        }
    }
}

impl<H: BreakpointHook + Quiesce> Kdetour<H> {
    /// Forgets detours that were detached, and frees their slots, which are filled with INT3 first.
    ///
    /// # Safety
    /// The detours have been drained: no thread is, or will come, inside their detours or trampolines, or to a
    /// breakpoint that stood in their windows.
    ///
    /// # Errors
    /// [`Error::NotAttached`] if a handle names nothing or something that is still attached;
    /// [`Error::OutOfMemory`]. Nothing is freed then.
    pub unsafe fn reclaim(&mut self, handles: &[Handle]) -> Result<(), Error> {
        let mut spans = Vec::new();
        spans.try_reserve_exact(handles.len())?;
        for &handle in handles {
            let record = self.record(handle).filter(|record| record.state == State::Draining);
            spans.push(record.ok_or(Error::NotAttached)?.slot);
        }
        let mut text = self.host.open_text(&spans)?;
        self.publish_without(handles)?;
        self.records.retain(|record| !handles.contains(&record.handle));
        for span in spans {
            poison(&mut text, span)?;
            self.slots.free(span);
        }
        Ok(())
    }

    /// Treats a detour as detached without writing its target, whose memory is about to go. It then drains.
    ///
    /// # Errors
    /// [`Error::NotAttached`]; [`Error::OutOfMemory`], and it stays attached.
    pub fn forget(&mut self, handle: Handle) -> Result<(), Error> {
        self.record(handle).filter(|record| record.state == State::Attached).ok_or(Error::NotAttached)?;
        self.set_state(handle, State::Draining);
        self.publish().inspect_err(|_| self.set_state(handle, State::Attached))
    }

    /// Forgets everything, breakpoint tables too. No handler answers any more, nothing is attached.
    pub fn stop(mut self) {
        self.records.clear();
        if self.publish().is_ok() {
            breakpoints::free(self.retired.drain(..), &self.host);
        }
    }

    /// Publishes the breakpoints' answers for all records: the detour where it is attached, the trampoline where it
    /// is not any more. Lets old tables go when enough of them wait.
    pub(crate) fn publish(&mut self) -> Result<(), Error> {
        self.publish_without(&[])
    }

    fn publish_without(&mut self, gone: &[Handle]) -> Result<(), Error> {
        let mut boundaries = Vec::new();
        boundaries.try_reserve_exact(self.records.len())?;
        self.retired.try_reserve(1)?;
        for record in self.records.iter().filter(|record| !gone.contains(&record.handle)) {
            let attached = record.state == State::Attached;
            let resume = if attached { record.patch.detour() } else { record.patch.trampoline() };
            let rank = record.handle.as_raw();
            boundaries.push(Boundary { at: record.patch.address(), resume, attached, rank });
        }
        self.retired.push(self.host.breakpoints().publish(boundaries)?);
        if self.retired.len() > MAX_RETIRED {
            breakpoints::free(self.retired.drain(..), &self.host);
        }
        Ok(())
    }
}

/// Fills a slot with INT3: whoever still comes there is stopped at once instead of running something else.
fn poison<T: Text>(text: &mut T, slot: Span) -> Result<(), Error> {
    const INT3: [u8; crate::slots::GRANULE] = [0xcc; crate::slots::GRANULE];
    let mut at = 0;
    while at < slot.len {
        text.write(slot.address.wrapping_add(at as u64), &INT3)?;
        at += INT3.len();
    }
    Ok(())
}
