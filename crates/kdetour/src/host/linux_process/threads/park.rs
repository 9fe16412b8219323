//! All threads but one wait while something is written.
//!
//! They wait in a signal handler, on a futex. A thread that slept in a system call is woken for it: the call is restarted
//! afterwards, or ends with EINTR where signal(7) says so (`nanosleep`, `poll`, `epoll_wait`).
//!
//! From the first signal to the release nothing is allocated and nothing is locked, and no function of libc is called
//! to tell the time or to sleep: a thread that is parked may have been in the middle of it.
//!
//! Children made by `vfork` and `posix_spawn` share the memory but are no threads of this process: they are not parked.

use super::list::Tasks;
use super::look::own;
use super::mask::{Masks, Told};
use super::raw::{self, SIGURG};
use super::roll::{Answer, Call, Deadline, Pause, Places, Roll, prepare};
use super::stack::{Regions, Seen};
use super::stack_pointer;
use crate::Error;
use std::time::Instant;
use std::vec::Vec;

/// Parks every other thread, runs `work`, and lets them go on.
///
/// `moves` are pairs, sorted: the address of an interior boundary, and where a thread that stands there goes on if the work
/// has succeeded. Such an address anywhere else, in a register or on a stack, stops it: somebody will return there.
///
/// They must not lie on the caller's stack, where they would be taken for return addresses if there is a call before
/// them.
///
/// `work` must not allocate, lock or wait: a thread that is parked may hold what it needs.
///
/// # Errors
/// [`Error::ThreadInWindow`], or [`Error::ThreadNotReached`] if a thread did not park in time: nothing has been done then.
/// Or what `work` returned.
#[inline(never)]
pub(in crate::host::linux_process) fn park(
    moves: &[(u64, u64)],
    until: Instant,
    work: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<(), Error> {
    park_above(stack_pointer(), moves, until, work)
}

/// The same for a caller who knows from where on its own stack counts.
#[inline(never)]
pub(in crate::host::linux_process) fn park_above(
    sp: u64,
    moves: &[(u64, u64)],
    until: Instant,
    work: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<(), Error> {
    let deadline = Deadline::new(until);
    let tasks = Tasks::open()?;
    let mut pause = Pause::default();
    // Room for those that are born meanwhile.
    let mut room = tasks.number()?.saturating_mul(2).saturating_add(64);
    loop {
        let why = match attempt(moves, sp, &tasks, room, &deadline, work)? {
            Outcome::Done => return Ok(()),
            Outcome::NoRoom => {
                room = room.saturating_mul(2);
                0
            }
            Outcome::Unclear { thread } => thread,
        };
        if deadline.has_passed() {
            return Err(Error::ThreadNotReached { thread: why });
        }
        pause.now();
    }
}

/// What came of one attempt.
enum Outcome {
    Done,
    /// More threads were born than there was room for.
    NoRoom,
    /// A thread's stack had been mapped only just before.
    Unclear {
        thread: i32,
    },
}

fn attempt(
    moves: &[(u64, u64)],
    sp: u64,
    tasks: &Tasks,
    room: usize,
    deadline: &Deadline,
    work: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<Outcome, Error> {
    let boundaries = || moves.iter().map(|&(from, _)| from..from.saturating_add(1));
    let places = Places::new(boundaries(), boundaries())?;
    let regions = Regions::read()?;
    match own(sp, &regions, |word| places.hold(word)) {
        Seen::Clean => {}
        Seen::Word(address) => return Err(Error::ThreadInWindow { address }),
        Seen::Unclear => return Ok(Outcome::Unclear { thread: raw::thread() }),
    }
    let mut copy = Vec::new();
    copy.try_reserve_exact(moves.len())?;
    copy.extend_from_slice(moves);
    prepare()?;
    let mut masks = Masks::new();
    masks.reserve(room)?;
    let call = Call::new(places, Some(copy.into_boxed_slice()), regions, room)?;
    let gate = Gate(&call);
    if let Some(outcome) = assemble(tasks, &call, &mut masks, deadline)? {
        return Ok(outcome);
    }
    for slot in call.slots() {
        match slot.answer() {
            Answer::Inside(address) => return Err(Error::ThreadInWindow { address }),
            Answer::Unclear => return Ok(Outcome::Unclear { thread: slot.thread() }),
            Answer::NotAsked | Answer::Awaited | Answer::Clean { .. } => {}
        }
    }
    work()?;
    gate.0.open(true);
    Ok(Outcome::Done)
}

/// Lets everybody go on, whatever happens.
struct Gate<'call>(&'call Roll);

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        self.0.open_if_closed();
    }
}

/// Returns when all other threads are parked.
fn assemble(
    tasks: &Tasks,
    roll: &Roll,
    masks: &mut Masks,
    deadline: &Deadline,
) -> Result<Option<Outcome>, Error> {
    let own = raw::thread();
    let mut pause = Pause::default();
    loop {
        let number = tasks.number()?;
        let (mut missing, mut no_room) = (None, false);
        let listed = tasks.each(|thread| {
            if thread == own {
                return Ok(());
            }
            let slot = roll.slot(thread);
            let is_parked = |answer| !matches!(answer, Answer::NotAsked | Answer::Awaited);
            if slot.is_some_and(|slot| is_parked(slot.answer())) {
                return Ok(());
            }
            if tasks.stat(thread)?.is_none_or(|stat| stat.is_none_of_ours()) {
                return Ok(());
            }
            missing = Some(thread);
            let Some(slot) = slot.or_else(|| roll.add(thread)) else {
                no_room = true;
                return Ok(());
            };
            // What it blocks would stay pending, and somebody who waits for signals would be given it. There is room for each
            // thread that has a slot.
            if slot.answer() == Answer::NotAsked
                && masks.of(thread)?.look(tasks, thread, SIGURG) == Told::Open
            {
                slot.ask()?;
            }
            Ok(())
        })?;
        // Nobody begins or ends a thread while all are parked; if the list is shorter it was cut off.
        match missing {
            None if listed >= number => return Ok(None),
            _ if no_room => return Ok(Some(Outcome::NoRoom)),
            missing if deadline.has_passed() => {
                return Err(Error::ThreadNotReached { thread: missing.unwrap_or_default() });
            }
            _ => pause.now(),
        }
    }
}
