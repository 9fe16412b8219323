//! Debug registers: the processor itself traps in front of an instruction, and no byte of the text changes.
//!
//! `perf_event_open(2)` gives one thread one breakpoint of the hardware. With `sigtrap` (Linux 5.13) each hit is a SIGTRAP in that
//! very thread, before the instruction has run, marked as ours (`sig_data`). Threads that a thread with such an event starts inherit
//! it (`inherit_thread`), by whatever means they are started; processes do not, and a program that is executed does not.
//!
//! ```text
//!   set      for every thread that is listed and has none: an event; listed again, until nobody is new
//!   clear    every event is disabled, those that were inherited too, on whatever processor they are; then closed
//! ```
//!
//! A thread that was started meanwhile may have inherited its event and gets a second one: nothing tells. Both registers then
//! trap at the same instruction, and the kernel makes one signal of it, as SIGTRAP is not queued.
//!
//! The kernel sets the resume flag (RF) for a thread that goes on where it trapped, so that it does not trap there again; the handler
//! takes it away from one that is sent to a detour, which may begin with a register's address itself.

use super::threads::list::Tasks;
use super::threads::raw::{self, Event};
use super::{lock, refused};
use crate::Error;
use crate::address::widen;
use crate::host::NotSet;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::sync::Mutex;
use std::vec::Vec;

/// What is set now. A session changes it, one at a time, and so does the child of a `fork`.
static SET: Mutex<Vec<Set>> = Mutex::new(Vec::new());

/// An address, and the events of all threads that were there when it was set.
#[derive(Debug)]
struct Set {
    address: u64,
    /// Sorted by thread.
    events: Vec<(i32, OwnedFd)>,
}

/// How often a set is begun anew because threads that were started meanwhile had too few registers left.
const TRIES: usize = 4;
/// How often threads are listed, where new ones appear all the time.
const PASSES: usize = 1000;

/// What marks our signals: no other library of this process has it.
pub(super) fn mark() -> usize {
    (&raw const SET).expose_provenance()
}

/// Every thread traps at `address` from now on, those that are started later, too.
pub(super) fn set(address: u64) -> Result<(), NotSet> {
    let mut all = lock(&SET);
    all.try_reserve(1).map_err(|error| NotSet { error: error.into(), met: false })?;
    let mut met = false;
    let mut tries = 1;
    loop {
        let mut events = Vec::new();
        let Err((error, is_late)) = add_all(address, &mut events) else {
            all.push(Set { address, events });
            return Ok(());
        };
        take_away(&events);
        met |= !events.is_empty();
        if !(is_late && matches!(error, Error::NoDebugRegister { .. })) || tries == TRIES {
            return Err(NotSet { error, met });
        }
        tries += 1;
    }
}

/// Nobody traps there any more. A signal that has been sent already may arrive yet.
pub(super) fn clear(address: u64) {
    let mut all = lock(&SET);
    let Some(place) = all.iter().position(|one| one.address == address) else { return };
    take_away(&all.swap_remove(place).events);
}

/// Somebody else may have a copy of the file, such as a child that was made without the handlers of `fork`: closing alone would not
/// end the event.
fn take_away(events: &[(i32, OwnedFd)]) {
    for (_, file) in events {
        raw::disable_event(file);
    }
}

/// Adds an event for every thread; else says why not, and whether it was for a thread that had come meanwhile.
fn add_all(address: u64, events: &mut Vec<(i32, OwnedFd)>) -> Result<(), (Error, bool)> {
    let at_once = |error| (error, false);
    let tasks = Tasks::open().map_err(at_once)?;
    for pass in 0..PASSES {
        let mut is_new = false;
        for thread in tasks.all().map_err(at_once)? {
            let Err(place) = events.binary_search_by_key(&thread, |&(known, _)| known) else { continue };
            events.try_reserve(1).map_err(|error| at_once(error.into()))?;
            match raw::open_event(&event(address), thread) {
                Ok(file) => {
                    events.insert(place, (thread, file));
                    is_new = true;
                }
                // It has ended.
                Err(Errno::SRCH) => {}
                Err(errno) => {
                    // The kernel's own workers run none of this code; nor do those that have ended and are not yet gone.
                    let stat = tasks.stat(thread).map_err(at_once)?;
                    if stat.is_some_and(|stat| !stat.is_none_of_ours()) {
                        return Err((named(errno, address), pass > 0));
                    }
                }
            }
        }
        if !is_new {
            return Ok(());
        }
    }
    Err(at_once(Error::ThreadNotReached { thread: raw::thread() }))
}

fn event(address: u64) -> Event {
    Event::execution_of(address, widen(mark()))
}

/// perf_event_open(2), "ERRORS".
fn named(errno: Errno, address: u64) -> Error {
    match errno {
        Errno::NOSPC => Error::NoDebugRegister { address },
        Errno::ACCESS | Errno::PERM | Errno::NOSYS => Error::DebugRegistersForbidden,
        Errno::NODEV | Errno::NOENT | Errno::OPNOTSUPP | Errno::TOOBIG | Errno::INVAL => {
            Error::DebugRegistersMissing
        }
        other => refused(other),
    }
}

/// In the child of a `fork`, which has none of its parent's events, but their files: its own take their place. What the kernel refuses
/// here traps no more in this child.
pub(super) fn forked() {
    // Held by the thread that has forked: from a detour, in the middle of it.
    let Ok(mut all) = SET.try_lock() else { return };
    for Set { address, events } in all.iter_mut() {
        // The parent's: not to be disabled.
        events.clear();
        if let Ok(file) = raw::open_event(&event(*address), raw::thread())
            && events.capacity() > 0
        {
            events.push((raw::thread(), file));
        }
    }
}
