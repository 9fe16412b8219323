//! All threads but one are suspended while something is written.
//!
//! ```text
//!   take the writer's turn                     nobody who is suspended has it
//!   list the threads, suspend each new one     again, until a whole list has nobody new in it
//!   look at each                               a boundary on its stack, or in a register: nothing is written
//!   one that stands at a boundary              goes on at the copy of its instruction
//!   work
//!   resume all
//! ```
//!
//! From the first thread that is suspended to the last one that is resumed nothing is allocated, locked or waited for, but for short pauses by
//! the kernel; nobody asks for the time, either, since whoever does may be detoured.
//!
//! The kernel may start a thread at any moment, such as one of a pool or a debugger's. It is not parked. So as everywhere a breakpoint stands at
//! each window until the rest is written.

use super::super::arch;
use super::super::cores;
use super::super::flip::Turn;
use super::super::nt::Nt;
use super::stack::Room;
use super::{Attempt, Places, Seen, Thread, bytes, each, look_at, own};
use crate::Error;
use crate::commit::Move;
use std::vec::Vec;

/// How often the threads are listed in one attempt, and how many microseconds lie between.
const PASSES: usize = 50;
const PAUSE: u32 = 200;
/// How many attempts there are, and how many microseconds everybody runs between two: a second in all.
const ATTEMPTS: usize = 100;
const RESPITE: u32 = 10_000;

/// Parks every other thread, runs `work`, and lets them go on. `moves` are sorted by where they are from.
///
/// # Errors
/// [`Error::ThreadInWindow`], or [`Error::ThreadNotReached`]: nothing has been done then. Or what `work` returned.
#[inline(never)]
pub(in crate::host::windows_process) fn park_above(
    nt: &'static Nt,
    sp: u64,
    moves: &[Move],
    work: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<(), Error> {
    let places = bytes(moves.iter().map(|one| one.at))?;
    let places = Places(&places);
    let mut reading = Room::new()?;
    match own(nt, sp, &mut reading, |word| places.hold(word)) {
        Seen::Clean => {}
        Seen::Inside(address) => return Err(Error::ThreadInWindow { address }),
        Seen::Unclear => return Err(Error::ThreadNotReached { thread: arch::thread().cast_signed() }),
    }
    let _turn = Turn::take(nt);
    let mut room = 64;
    let mut left = Error::ThreadNotReached { thread: 0 };
    for _ in 0..ATTEMPTS {
        match attempt(nt, room, places, moves, &mut reading, work)? {
            Outcome::Done => return Ok(()),
            Outcome::NoRoom => room = room.saturating_mul(4),
            // One that is ending can be suspended no more, or tells nothing; it is gone soon.
            Outcome::NotReached(thread) => {
                left = Error::ThreadNotReached { thread: thread.cast_signed() };
                nt.pause(RESPITE);
            }
        }
    }
    Err(left)
}

/// What came of one attempt.
enum Outcome {
    Done,
    /// There are more threads than there was room for.
    NoRoom,
    /// This one could not be suspended, or looked at.
    NotReached(u32),
}

/// Whoever was suspended goes on when it is over.
fn attempt(
    nt: &'static Nt,
    room: usize,
    places: Places<'_>,
    moves: &[Move],
    reading: &mut Room,
    work: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<Outcome, Error> {
    let mut parked = Parked { threads: Vec::new(), moved: Vec::new(), done: false };
    parked.threads.try_reserve_exact(room)?;
    parked.moved.try_reserve_exact(room)?;
    if let Some(outcome) = assemble(nt, &mut parked)? {
        return Ok(outcome);
    }
    if let Some(outcome) = parked.settle(places, moves, reading)? {
        return Ok(outcome);
    }
    work()?;
    cores::sync(nt);
    parked.done = true;
    Ok(Outcome::Done)
}

/// Threads that are suspended. All of them go on before anything is freed.
struct Parked {
    threads: Vec<Thread>,
    /// Which of them have been moved; there is room for all.
    moved: Vec<(usize, Move)>,
    /// Whether what they were moved for has happened.
    done: bool,
}

impl Drop for Parked {
    fn drop(&mut self) {
        if !self.done {
            // Nobody is to be found in a slot that is given back.
            for (thread, one) in self.moved.iter().filter_map(|(at, one)| Some((self.threads.get(*at)?, one)))
            {
                let _ = go_on_at(thread, one.at);
            }
        }
        for thread in &self.threads {
            thread.resume();
        }
    }
}

impl Parked {
    /// Makes sure that nobody will come to one of the boundaries: who stands there goes on at the copy.
    fn settle(
        &mut self,
        places: Places<'_>,
        moves: &[Move],
        reading: &mut Room,
    ) -> Result<Option<Outcome>, Error> {
        for (at, thread) in self.threads.iter().enumerate() {
            match standing(thread, places, moves, reading)? {
                Stands::Elsewhere => {}
                Stands::At(one) => self.moved.push((at, one)),
                Stands::Unclear => return Ok(Some(Outcome::NotReached(thread.id))),
            }
        }
        for (thread, one) in self.moved.iter().filter_map(|(at, one)| Some((self.threads.get(*at)?, one))) {
            // One that may not be moved is one that stays.
            go_on_at(thread, one.resume).ok_or(Error::ThreadInWindow { address: one.at })?;
        }
        Ok(None)
    }
}

/// Suspends everybody, or says why not.
fn assemble(nt: &'static Nt, parked: &mut Parked) -> Result<Option<Outcome>, Error> {
    let threads = &mut parked.threads;
    let mut refused = 0;
    for _ in 0..PASSES {
        let (mut is_new, mut no_room) = (false, false);
        refused = 0;
        each(nt, |thread| {
            if no_room || threads.iter().any(|other| other.id == thread.id) {
                return Ok(Some(thread));
            }
            if threads.len() == threads.capacity() {
                no_room = true;
                return Ok(Some(thread));
            }
            match thread.suspend() {
                Attempt::Gone => return Ok(Some(thread)),
                Attempt::Refused => {
                    refused = thread.id;
                    return Ok(Some(thread));
                }
                Attempt::Suspended => {}
            }
            is_new = true;
            threads.push(thread);
            Ok(None)
        })?;
        if no_room {
            return Ok(Some(Outcome::NoRoom));
        }
        if !is_new && refused == 0 {
            return Ok(None);
        }
        if refused != 0 {
            nt.pause(PAUSE);
        }
    }
    Ok(Some(Outcome::NotReached(refused)))
}

/// Where a thread stands.
enum Stands {
    /// At none of the boundaries.
    Elsewhere,
    At(Move),
    /// It does not tell.
    Unclear,
}

/// Whether a thread stands at one of the boundaries, and nothing else says that it will come to one.
fn standing(
    thread: &Thread,
    places: Places<'_>,
    moves: &[Move],
    reading: &mut Room,
) -> Result<Stands, Error> {
    // Whether it really stands is known once its registers have been asked for.
    let Some(context) = thread.context() else { return Ok(Stands::Unclear) };
    if moves.is_empty() {
        return Ok(Stands::Elsewhere);
    }
    match look_at(thread, &context, reading, |word| places.hold(word)) {
        Seen::Clean => {}
        Seen::Inside(address) => return Err(Error::ThreadInWindow { address }),
        Seen::Unclear => return Ok(Stands::Unclear),
    }
    let ip = arch::ip(&context.0);
    let found = moves.binary_search_by_key(&ip, |one| one.at).ok();
    Ok(found.and_then(|index| moves.get(index)).map_or(Stands::Elsewhere, |one| Stands::At(*one)))
}

/// Has a thread that is suspended go on elsewhere.
fn go_on_at(thread: &Thread, ip: u64) -> Option<()> {
    let mut context = thread.context()?;
    arch::set_ip(&mut context.0, ip);
    // SAFETY: a boundary, or the copy of its instruction in a slot that is filled: the thread stands in front of the one or the other, with all
    // registers as they are.
    (unsafe { thread.nt.set_context(thread.handle, &mut context) } >= 0).then_some(())
}
