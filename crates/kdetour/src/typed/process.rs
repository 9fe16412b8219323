//! The detours of this process.

use super::cell::{self, Cell};
use super::mid::Mid;
use super::turn::Turn;
use crate::commit::Alone;
use crate::host::process::caller::{stack_pointer, with_return};
use crate::host::process::{Pin, Process as Host};
use crate::{Attach, Error, Handle, Kdetour, Method, Protocol, Record, Session, SessionError, State};
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use core::{mem, ptr};
use kdetour_plan::Refusal;
use std::boxed::Box;
use std::collections::HashMap;
use std::thread::sleep;
use std::time::Instant;
use std::vec::Vec;

static PROCESS: Turn<Option<Process>> = Turn::new(None);

/// The detours, and what their closures hold.
pub(super) struct Process {
    pub(super) kdetour: Kdetour<Host>,
    pub(super) kept: HashMap<Handle, Kept>,
    /// How many detours may drain before some are freed unasked.
    many: usize,
    /// What may go now, when the turn has been given back: it runs other people's code, which may want to detour.
    gone: Vec<Kept>,
}

/// What must not go before a detour has been drained.
#[derive(Default)]
pub(super) struct Kept {
    /// The closures that it had.
    pub(super) states: Vec<Box<dyn Any + Send>>,
    /// The place of the original, once its owner is gone.
    pub(super) cell: Option<Cell>,
    /// What it is entered by inside a function.
    pub(super) mid: Option<Mid>,
    /// The libraries of the target and of the detour.
    pub(super) pins: Vec<Pin>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            cell::give_back(cell);
        }
    }
}

/// How many detours may drain before the next detach tries to free them.
const MANY: usize = 1024;
/// How long it tries.
const BRIEFLY: Duration = Duration::from_millis(20);
/// How often all threads are looked at to find out which detours are left, and how long each time.
const LOOKS: usize = 64;
const SHORTLY: Duration = Duration::from_millis(2);

/// Works with the detours of this process: all typed detours are among them. For sessions of several changes, and
/// to look at what is attached. Other threads wait meanwhile if they want to.
///
/// # Errors
/// [`Error::TextBusy`] if the calling thread is at it already, further up its stack; or if this process is a copy that
/// was made, without the handlers of `fork`, of one that was at it. [`Error::Host`] if the process
/// cannot be opened, or what `work` returns.
pub fn with_process<R>(work: impl FnOnce(&mut Kdetour<Host>) -> Result<R, Error>) -> Result<R, Error> {
    with(|process| work(&mut process.kdetour))
}

pub(super) fn with<R>(work: impl FnOnce(&mut Process) -> Result<R, Error>) -> Result<R, Error> {
    // Before the turn is taken for the first time: whoever forks waits for it from now on.
    Host::at_fork(before_fork, behind_fork, behind_fork_in_child)?;
    let outcome = PROCESS.with(|process| {
        if process.is_none() {
            match Host::new() {
                Ok(host) => *process = Some(Process::new(host)),
                Err(error) => return (Err(error), Vec::new()),
            }
        }
        let Some(process) = process else { return (Err(Error::OutOfMemory), Vec::new()) };
        let outcome = work(process);
        (outcome, mem::take(&mut process.gone))
    });
    let (outcome, gone) = outcome.unwrap_or((Err(Error::TextBusy), Vec::new()));
    drop(gone);
    outcome
}

/// Nothing is half done while the process is copied.
extern "C" fn before_fork() {
    // A detour that forks from inside a commit holds the turn already, and goes on holding it.
    if !PROCESS.is_ours() && PROCESS.acquire() {
        TAKEN_TO_FORK.store(true, Ordering::Relaxed);
    }
}

extern "C" fn behind_fork_in_child() {
    Host::forked();
    behind_fork();
}

/// In the parent, and in the child.
extern "C" fn behind_fork() {
    if TAKEN_TO_FORK.swap(false, Ordering::Relaxed) {
        PROCESS.release();
    }
}

/// Written by whoever has the turn.
static TAKEN_TO_FORK: AtomicBool = AtomicBool::new(false);

/// The closure of a detour, and the number of its calls that have not returned.
pub(super) struct Closure {
    pub(super) state: Box<dyn Any + Send>,
    pub(super) in_flight: &'static AtomicU64,
}

/// How a detour is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum By<'a> {
    /// Beside other threads.
    Protocol(Protocol),
    /// Where none of them comes by.
    Alone(&'a Alone),
}

/// Attaches one detour; if it was there before, with the record that it had. Its original is kept in `cell`, or, if none
/// is given, in one that is answered with the handle.
///
/// # Safety
/// As for [`Session::attach`]. The cell is read as the address of a function of the target's type.
pub(super) unsafe fn attach(
    by: By<'_>,
    method: Method,
    target: u64,
    detour: u64,
    own: Option<Cell>,
    closure: &mut Option<Closure>,
) -> Result<(Handle, Cell), Error> {
    // The loader's lock is never waited for with the turn taken: a library's constructor has it, and may want the turn.
    let mut pins: Vec<Pin> = [target, detour].into_iter().filter_map(Pin::of).collect();
    with(|process| {
        let former = process.former(method, target, detour, own);
        let in_flight = closure.as_ref().map_or(0, |closure| ptr::from_ref(closure.in_flight).addr() as u64);
        let again = former.map(|(former, cell)| {
            // SAFETY: the caller's promise.
            (unsafe { process.again(by, former, true) }, cell)
        });
        let (handle, cell) = match again {
            Some((Ok(handle), cell)) => (handle, cell),
            // Its patch is none for this protocol, or other bytes are there now: it is planned anew.
            Some((
                Err(Error::Refused(Refusal::NoShape { .. }) | Error::Changed { .. } | Error::NotAttached),
                _,
            ))
            | None => {
                let cell = own.unwrap_or_else(cell::new);
                let attach = Attach {
                    method,
                    target,
                    detour,
                    in_flight,
                    cell: Some(cell),
                    chain: true,
                    ..Attach::default()
                };
                // SAFETY: the caller's promise.
                let session = unsafe { process.kdetour.session().attach(attach) };
                match commit(session, by, &mut |_, _| ()).map_err(Error::from).and_then(one) {
                    Ok(handle) => (handle, cell),
                    Err(error) => {
                        process.keep_what_failed(cell, own.is_none(), closure, &mut pins);
                        return Err(error);
                    }
                }
            }
            Some((Err(error), _)) => return Err(error),
        };
        let kept = process.kept.entry(handle).or_default();
        kept.states.extend(closure.take().map(|closure| closure.state));
        kept.cell = None;
        mem::swap(&mut kept.pins, &mut pins);
        Ok((handle, cell))
    })
}

/// Attaches a detour again that was detached: as it was, or anew if it has been reclaimed or something else has come to
/// the target.
///
/// # Safety
/// As for [`attach`], still.
pub(super) unsafe fn attach_again(
    by: By<'_>,
    method: Method,
    handle: Handle,
    target: u64,
    detour: u64,
    cell: Cell,
) -> Result<Handle, Error> {
    // SAFETY: the caller's promise.
    let again = with(|process| unsafe { process.again(by, handle, false) });
    match again {
        Err(
            Error::NotAttached
            | Error::AlreadyDetoured { .. }
            | Error::Changed { .. }
            | Error::Refused(Refusal::NoShape { .. }),
        ) => {
            // SAFETY: the caller's promise.
            unsafe { attach(by, method, target, detour, Some(cell), &mut None) }.map(|(handle, _)| handle)
        }
        outcome => outcome,
    }
}

/// Detaches one detour.
#[inline(never)]
pub(super) fn detach(by: By<'_>, handle: Handle) -> Result<(), Error> {
    detach_above(stack_pointer(), by, handle)
}

#[inline(never)]
fn detach_above(sp: u64, by: By<'_>, handle: Handle) -> Result<(), Error> {
    with(|process| {
        let detached = commit(process.kdetour.session().detach(handle), by, &mut |_, _| ());
        match detached.map_err(Error::from) {
            Ok(_) => {}
            // There is nothing left to be written.
            Err(Error::Changed { .. } | Error::PointerChanged { .. } | Error::Unreadable { .. })
                if process.kdetour.has_vanished(handle) =>
            {
                // SAFETY: it has vanished: the patch is not in the text any more.
                unsafe { process.kdetour.forget(handle, &mut |_, _| ()) }?;
            }
            Err(error) => return Err(error),
        }
        process.reclaim_if_many(sp);
        Ok(())
    })
}

/// The owner of a detour's cell is gone: whoever is inside the detour may still read it.
pub(super) fn abandon(handle: Handle, cell: Cell) {
    let known = with(|process| {
        if process.kdetour.record(handle).is_some() {
            process.kept.entry(handle).or_default().cell = Some(cell);
        } else {
            cell::give_back(cell);
        }
        Ok(())
    });
    // A thread that drops a detour from inside kdetour loses eight bytes.
    let _ = known;
}

/// Frees what detached detours have left behind: their slots, what their closures hold, the libraries that were kept
/// loaded for them. All threads are looked at: nothing is freed as long as one of them can still be inside. How
/// many detours are gone.
///
/// Threads that sleep are looked at from outside; one that runs is asked by a signal (SIGURG, which is ignored
/// otherwise), and a system call that it is about to sleep in may return `EINTR`. On Windows each is suspended for that moment.
///
/// # Errors
/// [`Error::Busy`] if threads are still inside some when the time is up: these are as they were, the others have been
/// freed as far as that could be told. [`Error::ThreadNotReached`] if a thread does not answer: nothing is freed then. Both may
/// be tried again. [`Error::TextBusy`] as for
/// [`with_process`].
#[inline(always)]
pub fn reclaim(timeout: Duration) -> Result<usize, Error> {
    with_return(|sp| reclaim_above(sp, timeout))
}

#[inline(never)]
fn reclaim_above(sp: u64, timeout: Duration) -> Result<usize, Error> {
    let mut all = 0;
    again_until(timeout, |process, end, last| {
        let before = process.kdetour.draining();
        let outcome = process.reclaim(sp, end, last);
        all += before.saturating_sub(process.kdetour.draining());
        outcome
    })?;
    Ok(all)
}

/// Looks whether somebody is inside, again and again until the time is up. `look` is told until when, and whether it is the
/// last time. Others have their turn in between: a call that is waited for may be waiting for it itself.
pub(super) fn again_until(
    timeout: Duration,
    mut look: impl FnMut(&mut Process, Instant, bool) -> Result<(), Error>,
) -> Result<(), Error> {
    let until = after(timeout);
    let mut part = FIRST_LOOK;
    loop {
        let end = Instant::now().checked_add(part).map_or(until, |end| end.min(until));
        let last = end == until;
        match with(|process| look(process, end, last)) {
            Err(Error::Busy { .. } | Error::ThreadNotReached { .. }) if !last => sleep(BETWEEN_LOOKS),
            outcome => return outcome,
        }
        part = part.saturating_mul(2).min(LONGEST_LOOK);
    }
}

/// How long the turn is kept at first, and at the most, to look whether somebody is inside.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_millis(160);
const BETWEEN_LOOKS: Duration = Duration::from_micros(500);

impl Process {
    fn new(host: Host) -> Self {
        Self { kdetour: Kdetour::new(host), kept: HashMap::new(), many: MANY, gone: Vec::new() }
    }

    /// A record of the same detour that drains, and that is the cell's own, or nobody's any more.
    fn former(&self, method: Method, target: u64, detour: u64, own: Option<Cell>) -> Option<(Handle, Cell)> {
        let draining = |record: &&Record| {
            let is_alike = record.method == method && record.detour == detour;
            record.state == State::Draining && is_alike
        };
        self.kdetour.detours_of(target).filter(draining).find_map(|record| {
            let cell = record.cell?;
            let is_ours = match own {
                Some(own) => ptr::eq(own, cell),
                None => self.kept.get(&record.handle).is_some_and(|kept| kept.cell.is_some()),
            };
            is_ours.then_some((record.handle, cell))
        })
    }

    /// A commit that failed after it had written leaves a record that drains: what a call in it may need stays with it.
    fn keep_what_failed(
        &mut self,
        cell: Cell,
        ours: bool,
        closure: &mut Option<Closure>,
        pins: &mut Vec<Pin>,
    ) {
        match self.kdetour.left_behind().first() {
            Some(&handle) => {
                let kept = self.kept.entry(handle).or_default();
                kept.states.extend(closure.take().map(|closure| closure.state));
                kept.pins.append(pins);
                kept.cell = ours.then_some(cell);
            }
            None if ours => cell::give_back(cell),
            None => {}
        }
    }

    /// # Safety
    /// As for [`attach`], still.
    pub(super) unsafe fn again(
        &mut self,
        by: By<'_>,
        handle: Handle,
        checked: bool,
    ) -> Result<Handle, Error> {
        // SAFETY: the caller's promise.
        let session = unsafe {
            let session = self.kdetour.session();
            if checked { session.renew(handle, 0) } else { session.reattach(handle, 0) }
        };
        let renewed = one(commit(session, by, &mut |_, _| ())?)?;
        if let Some(kept) = self.kept.remove(&handle) {
            self.kept.insert(renewed, kept);
        }
        Ok(renewed)
    }

    /// Frees some, if many have gathered.
    pub(super) fn reclaim_if_many(&mut self, sp: u64) {
        if self.kdetour.draining() > self.many {
            // What is busy now is tried again when there is as much again.
            let _ = self.reclaim(sp, Instant::now() + BRIEFLY, true);
            self.many = MANY.max(2 * self.kdetour.draining());
        }
    }

    /// Frees what nobody is inside of any more. If this is the `last` attempt, those that can be freed beside others that cannot.
    fn reclaim(&mut self, sp: u64, until: Instant, last: bool) -> Result<(), Error> {
        // What is planned may be written at any time.
        let free = |record: &&Record| record.state == State::Draining && !self.kdetour.is_planned(record);
        let handles: Vec<Handle> = self.kdetour.records().filter(free).map(|record| record.handle).collect();
        let outcome = self.free(sp, &handles, until);
        let stays = matches!(outcome, Err(Error::Changed { .. } | Error::Unreadable { .. }));
        if stays || last && matches!(outcome, Err(Error::Busy { .. })) {
            // One that is never left, or cannot be given back, does not keep the others.
            let mut looks = LOOKS;
            self.free_some(sp, &handles, &mut looks);
        }
        outcome
    }

    /// Frees those of which nobody is inside, by halves.
    fn free_some(&mut self, sp: u64, handles: &[Handle], looks: &mut usize) {
        if handles.len() < 2 {
            return;
        }
        for half in handles.chunks(handles.len().div_ceil(2)) {
            let Some(left) = looks.checked_sub(1) else { return };
            *looks = left;
            match self.free(sp, half, Instant::now() + SHORTLY) {
                Ok(()) | Err(Error::ThreadNotReached { .. }) => {}
                Err(_) => self.free_some(sp, half, looks),
            }
        }
    }

    fn free(&mut self, sp: u64, handles: &[Handle], until: Instant) -> Result<(), Error> {
        match self.free_others(sp, handles, until) {
            // Some of several may be free all the same.
            Err(Error::Inside) => Err(Error::Busy { calls: 1 }),
            outcome => outcome,
        }
    }

    /// Frees what nobody is inside of any more, unless the calling thread is.
    pub(super) fn free_others(&mut self, sp: u64, handles: &[Handle], until: Instant) -> Result<(), Error> {
        self.kdetour.drain_above(sp, handles, until)?;
        for handle in handles {
            let Some(kept) = self.kept.remove(handle) else { continue };
            if let Some(mid) = &kept.mid {
                mid.give_back(&mut self.kdetour);
            }
            self.gone.push(kept);
        }
        Ok(())
    }
}

/// So much later, or later than anybody waits.
fn after(timeout: Duration) -> Instant {
    const LONG: Duration = Duration::from_secs(1 << 30);
    let now = Instant::now();
    now.checked_add(timeout).or_else(|| now.checked_add(LONG)).unwrap_or(now)
}

pub(super) fn one(handles: Vec<Handle>) -> Result<Handle, Error> {
    handles.first().copied().ok_or(Error::NotAttached)
}

pub(super) fn commit(
    session: Session<'_, Host>,
    by: By<'_>,
    announce: &mut dyn FnMut(&Record, u64),
) -> Result<Vec<Handle>, SessionError> {
    match by {
        By::Alone(alone) => session.commit_local(alone, announce),
        By::Protocol(Protocol::Live) => session.commit_live(announce),
        By::Protocol(Protocol::Rendezvous) => session.commit_rendezvous(announce),
        By::Protocol(Protocol::Local) => {
            let alone = session.host().is_single_threaded();
            let refused = |error| SessionError { index: 0, error };
            if !alone.map_err(refused)? {
                return Err(refused(Error::OtherThreads));
            }
            // SAFETY: the caller is the only thread, and starts none before the commit.
            let alone = unsafe { Alone::promise() };
            session.commit_local(&alone, announce)
        }
        By::Protocol(_) => session.commit_exchange(announce),
    }
}
