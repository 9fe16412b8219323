//! Whether no thread is inside of places: what is to be known before they are freed.
//!
//! Nobody can come in any more when this is asked; so each thread needs to have been seen outside once, at whatever
//! moment. A thread that is born meanwhile begins outside, on a stack of its own, and needs not be looked at.
//!
//! A thread that sleeps in a system call, or is stopped, is looked at from outside and not disturbed: its instruction
//! pointer and its stack. The registers that it has saved in the kernel are not to be seen; they need not be, since whoever
//! sleeps there and is to come back has a return address on its stack, and the detour functions are among the places. A
//! thread that runs is asked by a signal ([`roll`](super::roll)).
//!
//! A signal ends some system calls with EINTR (`poll`, `nanosleep`: signal(7)), also if the thread was only on its way back to
//! sleep: woken for a moment, or continued after a stop, and not scheduled since. So a thread is asked only when it has used
//! the processor for [`A_WHILE`] since the look began and has not been seen asleep.
//!
//! The calling thread is in a call of `look`: it can only come back by a return address. Other words of its stack do not count,
//! since its caller's books name the places.

use super::super::arch;
use super::list::{Asleep, Tasks, Where};
use super::raw::{self, SIGURG};
use super::roll::{Answer, Call, Deadline, Pause, Places, Slot, prepare};
use super::stack::{Regions, Seen, Stack, follows_call, search};
use crate::Error;
use core::ops::Range;
use std::time::Instant;
use std::vec::Vec;

/// Returns when each thread has been seen outside of all places, which are sorted and disjoint: at some moment after
/// the call began neither its instruction pointer nor a register nor a word of its stack was in one of them.
///
/// Below a stack pointer only the `slots` among them count, sorted and disjoint, too: there is no return address to a function.
///
/// The caller says from where on its own stack counts: deeper frames have gaps, in which calls that are long over have
/// left return addresses.
///
/// # Errors
/// [`Error::Inside`] if the caller itself is, [`Error::Busy`] if other threads are inside when time is up, [`Error::ThreadNotReached`] if one could not be asked.
#[inline(never)]
pub(in crate::host::linux_process) fn look_above(
    sp: u64,
    places: &[Range<u64>],
    slots: &[Range<u64>],
    until: Instant,
) -> Result<(), Error> {
    if places.is_empty() {
        return Ok(());
    }
    let deadline = Deadline::new(until);
    let regions = Regions::read()?;
    let places = Places::new(places.iter().cloned(), slots.iter().cloned())?;
    match own(sp, &regions, |word| places.hold_behind_start(word)) {
        Seen::Clean => {}
        // It will not leave while it waits here.
        Seen::Word(_) => return Err(Error::Inside),
        Seen::Unclear => return Err(Error::ThreadNotReached { thread: raw::thread() }),
    }
    let tasks = Tasks::open()?;
    let threads = tasks.all()?;
    let mut seekers = Vec::new();
    seekers.try_reserve_exact(threads.len())?;
    let mut call = Call::new(places, None, regions, threads.len())?;
    for thread in threads.into_iter().filter(|&thread| thread != raw::thread()) {
        let _ = call.add(thread);
        seekers.push(Seeker::default());
    }
    let mut pause = Pause::default();
    loop {
        prepare()?;
        round(&tasks, &mut call, &mut seekers)?;
        let awaited =
            |(seeker, slot): (&Seeker, &Slot)| (!seeker.done).then_some((seeker.inside, slot.thread()));
        let mut left = seekers.iter().zip(call.slots()).filter_map(awaited).peekable();
        let Some(&(_, thread)) = left.peek() else { return Ok(()) };
        if deadline.has_passed() {
            let calls = left.filter(|&(inside, _)| inside).count() as u64;
            return Err(if calls > 0 { Error::Busy { calls } } else { Error::ThreadNotReached { thread } });
        }
        pause.now();
    }
}

/// The calling thread's own stack from `sp` on: return addresses only. What lies below is not used by a caller, which is in a call,
/// and has been used by calls that are long over.
pub(super) fn own(sp: u64, regions: &Regions, sought: impl Fn(u64) -> bool + Copy) -> Seen {
    let stack = Stack { thread: raw::thread(), sp, alternate: (0, 0) };
    search::<512>(regions, stack, |word, below| !below && sought(word) && follows_call(word))
}

/// What is known of one thread.
#[derive(Debug, Default)]
struct Seeker {
    /// It has been seen outside, or has ended.
    done: bool,
    /// It was inside when it was last seen.
    inside: bool,
    /// Where it sleeps, if it does.
    asleep: Option<Asleep>,
    /// In how many looks in a row it ran and did not block the signal.
    open: u32,
    /// The kernel does not tell whether it sleeps.
    unknown: bool,
    /// How much processor time it had used when it was first seen running.
    used: Option<u64>,
}

/// In so many looks in a row it has to run with the signal unblocked. A thread that runs into a system call which waits for
/// signals, or out of one, seems to block nothing for that moment.
const LOOKS: u32 = 4;
/// So many nanoseconds a thread has to run before it is interrupted. Who only wakes to sleep again needs less.
const A_WHILE: u64 = 200_000;

impl Seeker {
    /// Whether it is asked by a signal: it interrupts nothing, and is no signal that the thread waits for.
    fn may_be_asked(&mut self, thread: i32) -> bool {
        if self.unknown { self.open > 0 } else { self.open >= LOOKS && self.has_run(thread) }
    }

    /// Whether a thread that runs is not just on its way to sleep. Where the kernel does not tell the time, it may be.
    fn has_run(&mut self, thread: i32) -> bool {
        let Some(used) = raw::processor_time(thread) else { return true };
        used.saturating_sub(*self.used.get_or_insert(used)) >= A_WHILE
    }
}

/// Asks all who are not done once more.
fn round(tasks: &Tasks, call: &mut Call, seekers: &mut [Seeker]) -> Result<(), Error> {
    for (seeker, slot) in seekers.iter_mut().zip(call.slots()).filter(|(seeker, _)| !seeker.done) {
        let stat = tasks.stat(slot.thread())?.filter(|stat| !stat.is_none_of_ours());
        let Some(stat) = stat else {
            seeker.done = true;
            continue;
        };
        let place = tasks.whereabouts(slot.thread());
        // Elsewhere in the kernel, such as in a page fault, a thread has more registers than it has saved on its stack.
        seeker.asleep = match place {
            Where::Asleep(asleep) if asleep.number >= 0 || stat.is_stopped() => Some(asleep),
            _ => None,
        };
        // Of one that sleeps while it is asked for its mask, this may be another one than its own.
        let may_be_asked = !stat.blocks(SIGURG) && (stat.is_runnable() || place == Where::Unknown);
        seeker.open = if may_be_asked { seeker.open.saturating_add(1) } else { 0 };
        // Somebody who waits for signals is known by now, and is taken for runnable whenever it is woken.
        if stat.blocks(SIGURG) || matches!(place, Where::Asleep(asleep) if asleep.hides_mask(SIGURG)) {
            seeker.used = None;
        }
        seeker.unknown = place == Where::Unknown;
    }
    // Read after the stack pointers are known, and after those have answered who have: their stacks are in it.
    call.renew(Regions::read()?)?;
    for (seeker, slot) in seekers.iter_mut().zip(call.slots()).filter(|(seeker, _)| !seeker.done) {
        match slot.answer() {
            Answer::NotAsked | Answer::Awaited => {}
            Answer::Clean { sp, end } => {
                // Unless the stack was mapped anew after the regions had been read that it was given.
                seeker.done = call.regions().end(sp) == end;
                slot.forget();
            }
            Answer::Inside(_) => {
                seeker.inside = true;
                slot.forget();
            }
            Answer::Unclear => slot.forget(),
        }
        if seeker.done {
            continue;
        }
        if let Some(asleep) = seeker.asleep {
            from_outside(tasks, call, seeker, slot.thread(), asleep);
        } else if slot.answer() == Answer::NotAsked && seeker.may_be_asked(slot.thread()) {
            seeker.done = !slot.ask()?;
        }
    }
    Ok(())
}

/// Looks at a thread that sleeps.
fn from_outside(tasks: &Tasks, call: &Call, seeker: &mut Seeker, thread: i32, asleep: Asleep) {
    // Its child runs in this memory, on a stack of its own or below this one, and is no thread to be looked at.
    if arch::WITH_A_CHILD.contains(&asleep.number) {
        seeker.inside = true;
        return;
    }
    let sought = |word, below| call.places.hold_word(word, below);
    let seen = if call.places.hold(asleep.pc) {
        Seen::Word(asleep.pc)
    } else {
        search::<512>(call.regions(), Stack { thread, sp: asleep.sp, alternate: (0, 0) }, sought)
    };
    // Otherwise it ran meanwhile, and its stack was another one.
    if tasks.asleep(thread) == Some(asleep) {
        match seen {
            Seen::Clean => seeker.done = true,
            Seen::Word(_) => seeker.inside = true,
            Seen::Unclear => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::thread::{park, sleep, spawn};
    use std::time::Duration;

    #[test]
    fn who_does_not_run_is_not_asked() {
        let (tell, told) = channel();
        let sleeper = spawn(move || {
            tell.send(raw::thread()).unwrap();
            park();
        });
        let number = told.recv().unwrap();
        let (mut asleep, mut running) = (Seeker::default(), Seeker::default());
        // It may still be on its way to sleep.
        sleep(Duration::from_millis(20));
        assert!(!asleep.has_run(number) && !running.has_run(raw::thread()));
        let begin = Instant::now();
        while !running.has_run(raw::thread()) {
            assert!(begin.elapsed() < Duration::from_secs(10));
        }
        assert!(!asleep.has_run(number));
        sleeper.thread().unpark();
        sleeper.join().unwrap();
        // A thread that was joined is still there for a moment.
        while raw::processor_time(number).is_some() {
            assert!(begin.elapsed() < Duration::from_secs(10));
        }
        assert!(Seeker::default().has_run(number));
    }
}
