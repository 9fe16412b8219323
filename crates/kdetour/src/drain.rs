//! Freeing what detached detours leave behind, in a process.
//!
//! ```text
//!   detached                 nobody enters any more, but calls may be inside
//!   counters are 0           whoever counted itself has come back
//!   originals = targets      nobody takes the trampoline's address any more
//!   (answers)                where breakpoints are remembered: nobody is sent into the slot any more
//!   look at every thread     none has an instruction pointer, a register or a word of its stack in the slot or in the
//!                            detour: whoever was before the counter, behind it, or asleep, has left
//!   INT3 into the slot, free it
//! ```

use crate::host::process::Process;
use crate::host::process::caller::with_return;
use crate::host::{BreakpointHook, Drain, Host, Quiesce};
use crate::records::{Handle, State};
use crate::sites::Gone;
use crate::{AtomicAddress, Error, Kdetour};
use core::ops::Range;
use core::sync::atomic::Ordering;
use core::time::Duration;
use std::thread::sleep;
use std::time::Instant;
use std::vec::Vec;

/// How long a counter is left alone before it is read again.
const PAUSE: Duration = Duration::from_micros(200);

type Ranges = Vec<Range<u64>>;

impl Kdetour<Process> {
    /// Waits until no call is inside detours that were detached, nor inside their trampolines; then frees their slots
    /// and forgets them.
    ///
    /// # Errors
    /// [`Error::NotAttached`] if a handle names nothing or something that is attached. [`Error::Inside`] if the calling thread is
    /// inside itself. [`Error::Busy`] or
    /// [`Error::ThreadNotReached`] when the time is up. Nothing has changed then.
    #[inline(always)]
    pub fn drain(&mut self, handles: &[Handle], until: Instant) -> Result<(), Error> {
        with_return(|sp| self.drain_above(sp, handles, until).map(|()| 0)).map(drop)
    }

    /// The same for a caller who knows from where on its own stack counts: in deeper frames there may be gaps, in which
    /// detours that it was in before have left return addresses.
    #[inline(never)]
    pub(crate) fn drain_above(&mut self, sp: u64, handles: &[Handle], until: Instant) -> Result<(), Error> {
        if handles.is_empty() {
            return Ok(());
        }
        let gone = Gone::new(handles)?;
        let (places, slots) = self.places(&gone)?;
        self.wait_for_counters(handles, until)?;
        let originals = self.turn_originals_away(&gone)?;
        let outcome = self.turn_late_hits_away(&gone);
        let outcome = outcome.and_then(|()| self.host().look(sp, &places, &slots, until)).and_then(|()| {
            // SAFETY: nobody is inside, by the counters and by the look, and nobody comes: the targets lead elsewhere,
            // and so do the originals.
            unsafe { self.reclaim(handles) }
        });
        if outcome.is_err() {
            originals.iter().for_each(|(cell, original)| cell.store(*original, Ordering::SeqCst));
            // Without memory for it late hits go on at the targets, as if these were drained.
            let _ = self.publish();
        }
        outcome
    }

    /// Where a look does not see who has trapped and has not been answered yet, he is sent to where he was from now on; and whoever
    /// was sent into the slot has it where it is looked for.
    fn turn_late_hits_away(&mut self, gone: &Gone) -> Result<(), Error> {
        if !self.host().breakpoints().is_remembering() {
            return Ok(());
        }
        self.publish_without(gone)?;
        self.host().quiesce(&[])
    }

    /// Where nobody may be: the slots that go, and the detours; and the slots alone.
    fn places(&self, gone: &Gone) -> Result<(Ranges, Ranges), Error> {
        let (mut detours, mut slots) = (Vec::new(), Vec::new());
        detours.try_reserve_exact(gone.handles().len())?;
        slots.try_reserve_exact(2 * gone.handles().len())?;
        for &handle in gone.handles() {
            let record = self.record(handle).filter(|record| record.state == State::Draining);
            let record = record.ok_or(Error::NotAttached)?;
            detours.push(record.detour);
            let site = self.sites.get(record.slot.address);
            if site.is_some_and(|site| gone.takes(site)) {
                slots.push(record.slot.address..record.slot.address + record.slot.len as u64);
                // Whoever has executed a short jump comes to its cave.
                let cave = record.patch.and_then(|patch| patch.cave());
                slots.extend(cave.map(|cave| cave.cave.address..cave.cave.address + 1));
            }
        }
        let mut places = self.code_of(detours)?;
        places.try_reserve_exact(slots.len())?;
        places.extend_from_slice(&slots);
        join(&mut places);
        join(&mut slots);
        Ok((places, slots))
    }

    /// Where the code of these detours is. What is asked of an image's tables takes its time, which whoever drains has promised to keep: so
    /// each is asked about once, however often it was attached.
    fn code_of(&self, mut detours: Vec<u64>) -> Result<Ranges, Error> {
        detours.sort_unstable();
        detours.dedup();
        let view = self.host().view()?;
        let mut code = Vec::new();
        for detour in detours {
            // What the compiler has moved away of it, such as a path that is rarely taken, is entered by a jump.
            let pieces = view.moved_away(detour)?;
            code.try_reserve(1 + pieces.len())?;
            code.push(view.bounds(detour));
            code.extend(pieces);
        }
        Ok(code)
    }

    fn wait_for_counters(&self, handles: &[Handle], until: Instant) -> Result<(), Error> {
        loop {
            let counters = handles.iter().filter_map(|&handle| self.record(handle)).map(|one| one.in_flight);
            // SAFETY: it was given with the detour, which has its record yet.
            let calls = counters.map(|counter| unsafe { self.host().in_flight(counter) }).sum();
            if calls == 0 {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Error::Busy { calls });
            }
            sleep(PAUSE);
        }
    }

    /// Makes the targets themselves the originals of detours whose slots are about to go; gives what they were.
    fn turn_originals_away(&self, gone: &Gone) -> Result<Vec<(&'static AtomicAddress, u64)>, Error> {
        let mut before = Vec::new();
        before.try_reserve_exact(gone.handles().len())?;
        for record in gone.handles().iter().filter_map(|&handle| self.record(handle)) {
            let goes = self.sites.get(record.slot.address).is_some_and(|site| gone.takes(site));
            if let Some(cell) = self.records.cell(record).filter(|_| goes) {
                before.push((cell, cell.swap(record.target, Ordering::SeqCst)));
            }
        }
        Ok(before)
    }
}

/// Sorts ranges, and joins those that overlap. Those that adjoin stay apart: what a function begins with is no return address, whatever
/// lies in front of it.
fn join(ranges: &mut Ranges) {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|later, earlier| {
        let joined = later.start < earlier.end;
        if joined {
            earlier.end = earlier.end.max(later.end);
        }
        joined
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_are_joined() {
        let mut ranges = std::vec![8..9, 0..10, 2..4, 10..12, 20..21];
        join(&mut ranges);
        assert_eq!(ranges, [0..10, 10..12, 20..21]);
    }
}
