//! Whether a thread blocks a signal, or will when it goes on.
//!
//! `rt_sigtimedwait`, `ppoll` and the like put another mask in place of a thread's own while it waits. A thread that sleeps in one
//! of them is known by its system call. One that has been woken and has not run since is told to be runnable, in no
//! system call, and to block what its own mask does not say; where there are few processors that lasts for long, and nothing tells
//! it apart from a thread that was interrupted. But it puts its own mask back as soon as it runs. So what is told of
//! a thread that is runnable is believed when it has run for [`A_MOMENT`] without having slept since it was first seen so, and
//! from then on until it sleeps. One that sleeps more often than that is believed after [`ENOUGH`] looks in a row: who waits for signals
//! would have been seen to by then.

use super::list::{Tasks, Where};
use super::raw;
use crate::Error;
use std::vec::Vec;

/// So many nanoseconds a thread has run when it has put its mask back.
const A_MOMENT: u64 = 100_000;
/// So many looks at a thread that never has been seen to block the signal, nor to sleep where it may, are enough.
const ENOUGH: u32 = 100;
/// So often one look asks: a thread that puts another mask in place of its own is told to run while it does.
const AGAIN: usize = 4;

/// What a look has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::host::linux_process) enum Told {
    /// It blocks the signal, or may do so when it goes on.
    Blocks,
    /// It does not seem to; look again when it has run.
    NotSure,
    /// It does not block it.
    Open,
}

/// What is known of one thread's mask, for one signal.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::host::linux_process) struct Mask {
    since: Option<Since>,
    /// Whether it has run for a moment since then.
    believed: bool,
    /// How many looks in a row have left it open.
    looks: u32,
}

/// A thread that was seen runnable, and has not slept since.
#[derive(Clone, Copy, Debug)]
struct Since {
    /// How often it had slept.
    sleeps: u64,
    /// How much processor time it had used.
    used: u64,
}

impl Mask {
    /// Looks at a thread of which this is known.
    pub(in crate::host::linux_process) fn look(&mut self, tasks: &Tasks, thread: i32, signal: i32) -> Told {
        // Before it is looked at: what it does meanwhile is not to count.
        let used = raw::processor_time(thread);
        // Where the kernel does not tell, it has never slept.
        let sleeps = tasks.sleeps(thread).unwrap_or(0);
        let (mut is_runnable, mut is_asleep, mut before) = (false, false, Where::Running);
        for _ in 0..AGAIN {
            let stat = match tasks.stat(thread) {
                Ok(Some(stat)) => stat,
                // It has ended.
                Ok(None) => return Told::Open,
                Err(_) => return Told::Blocks,
            };
            let place = tasks.whereabouts(thread);
            let is_hidden = matches!(place, Where::Asleep(asleep) if asleep.hides_mask(signal));
            if stat.blocks(signal) || is_hidden {
                (self.since, self.looks) = (None, 0);
                return Told::Blocks;
            }
            is_runnable |= stat.is_runnable() || place == Where::Running;
            // Then it slept there when the mask was told.
            is_asleep |= !stat.is_runnable() && place == before && matches!(place, Where::Asleep(_));
            before = place;
        }
        // Whoever asks is not about to come out of a system call.
        if !is_runnable || is_asleep || thread == raw::thread() {
            return Told::Open;
        }
        // Where the kernel does not tell the time, it is believed at once.
        let Some(used) = used else { return Told::Open };
        match self.since {
            Some(since) if since.sleeps == sleeps => {
                self.believed |= used.saturating_sub(since.used) >= A_MOMENT;
            }
            _ => (self.since, self.believed) = (Some(Since { sleeps, used }), false),
        }
        self.looks = self.looks.saturating_add(1);
        // It may have gone to sleep, and been woken, just now.
        let is_awake = self.believed && tasks.sleeps(thread).unwrap_or(0) == sleeps;
        if is_awake || self.looks >= ENOUGH { Told::Open } else { Told::NotSure }
    }
}

/// The masks of threads, sorted by their numbers.
#[derive(Debug, Default)]
pub(in crate::host::linux_process) struct Masks(Vec<(i32, Mask)>);

impl Masks {
    pub(in crate::host::linux_process) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Makes room for so many threads more: until they are that many, [`of`](Self::of) allocates nothing.
    pub(in crate::host::linux_process) fn reserve(&mut self, count: usize) -> Result<(), Error> {
        Ok(self.0.try_reserve(count)?)
    }

    /// What is known of a thread.
    pub(in crate::host::linux_process) fn of(&mut self, thread: i32) -> Result<&mut Mask, Error> {
        let place = match self.0.binary_search_by_key(&thread, |&(thread, _)| thread) {
            Ok(place) => place,
            Err(place) => {
                self.reserve(1)?;
                self.0.insert(place, (thread, Mask::default()));
                place
            }
        };
        self.0.get_mut(place).map(|(_, mask)| mask).ok_or(Error::OutOfMemory)
    }
}
