//! Whether no thread is inside of places: what is to be known before they are freed, or written.
//!
//! Nobody can come in any more when this is asked; so each thread needs to have been seen outside once, at whatever moment. A thread that is
//! born meanwhile begins outside, on a stack of its own: it is looked at if it is on the list when all are, and not waited for afterwards. Where
//! threads come and go all the time, one of them would always be at its beginning or its end, where it cannot be seen.
//!
//! Each is suspended for as long as its registers and its stack are looked at, and goes on. One at a time: all others run. Fibers that are
//! not running are not seen; whoever has left one inside of a place has done so by a call there.

use super::super::arch;
use super::super::flip::Turn;
use super::super::nt::Nt;
use super::stack::Room;
use super::{Attempt, Places, Seen, Thread, bytes, each, look_at, own};
use crate::Error;
use core::ops::Range;
use std::time::Instant;
use std::vec::Vec;

/// How long threads are left alone before they are looked at again, in microseconds.
const PAUSE: u32 = 500;

/// Returns when each thread has been seen outside of all places, which are sorted and disjoint: at some moment after the call began neither its
/// instruction pointer nor a register nor a word of its stack was in one of them.
///
/// The caller says from where on its own stack counts.
///
/// # Errors
/// [`Error::Inside`] if the caller itself is, [`Error::Busy`] if other threads are inside when time is up, [`Error::ThreadNotReached`] if one
/// could not be looked at.
#[inline(never)]
pub(in crate::host::windows_process) fn look_above(
    nt: &'static Nt,
    sp: u64,
    places: &[Range<u64>],
    until: Instant,
) -> Result<(), Error> {
    if places.is_empty() {
        return Ok(());
    }
    let places = Places(places);
    let mut room = Room::new()?;
    match own(nt, sp, &mut room, |word| places.hold_behind_start(word)) {
        Seen::Clean => {}
        // It will not leave while it waits here.
        Seen::Inside(_) => return Err(Error::Inside),
        Seen::Unclear => return Err(Error::ThreadNotReached { thread: arch::thread().cast_signed() }),
    }
    let outcome = outside(nt, places, &mut room, until, false);
    wipe();
    outcome.map_err(|left| match left {
        Left::Inside { calls, .. } => Error::Busy { calls },
        Left::Unclear(thread) => Error::ThreadNotReached { thread },
        Left::Failed(error) => error,
    })
}

/// The same for boundaries, which are not to be returned to either.
///
/// # Errors
/// [`Error::ThreadInWindow`] if one still stands there when time is up, or [`Error::ThreadNotReached`].
#[inline(never)]
pub(in crate::host::windows_process) fn left_above(
    nt: &'static Nt,
    sp: u64,
    boundaries: &[u64],
    until: Instant,
) -> Result<(), Error> {
    if boundaries.is_empty() {
        return Ok(());
    }
    let places = bytes(boundaries.iter().copied())?;
    let places = Places(&places);
    let mut room = Room::new()?;
    match own(nt, sp, &mut room, |word| places.hold(word)) {
        Seen::Clean => {}
        Seen::Inside(address) => return Err(Error::ThreadInWindow { address }),
        Seen::Unclear => return Err(Error::ThreadNotReached { thread: arch::thread().cast_signed() }),
    }
    let outcome = outside(nt, places, &mut room, until, true);
    wipe();
    outcome.map_err(|left| match left {
        Left::Inside { address, .. } => Error::ThreadInWindow { address },
        Left::Unclear(thread) => Error::ThreadNotReached { thread },
        Left::Failed(error) => error,
    })
}

/// Who was left when the time was up.
enum Left {
    Inside { calls: u64, address: u64 },
    Unclear(i32),
    Failed(Error),
}

/// Overwrites what such a look has left below the stack pointer: registers and words of others' stacks. An answer that is copied up whole would
/// bring some of that along, in the bytes that it does not use, and the next look would take it for what this thread itself has called.
#[inline(never)]
fn wipe() {
    /// Deeper than any look goes: a test finds nothing there that was somebody else's.
    const DEEP: usize = 24 << 10;
    let mut below = [0_u8; DEEP];
    core::hint::black_box(&mut below);
}

/// Looks at all others until each has been outside. Only if `told` an answer has an address in it.
fn outside(
    nt: &'static Nt,
    places: Places<'_>,
    room: &mut Room,
    until: Instant,
    told: bool,
) -> Result<(), Left> {
    // Those that have not been seen outside yet. A handle stays that of its thread, also when its number is given out again.
    let mut waited_for = others(nt).map_err(Left::Failed)?;
    loop {
        let (mut inside, mut unclear) = (None::<(u64, u64)>, None);
        waited_for.retain(|thread| match seen(nt, thread, places, room) {
            Seen::Clean => false,
            Seen::Inside(address) => {
                let (calls, _) = inside.unwrap_or((0, address));
                inside = Some((calls + 1, if told { address } else { 0 }));
                true
            }
            Seen::Unclear => {
                unclear = Some(thread.id.cast_signed());
                true
            }
        });
        let why = match (inside, unclear) {
            (None, None) => return Ok(()),
            (Some((calls, address)), _) => Left::Inside { calls, address },
            (None, Some(thread)) => Left::Unclear(thread),
        };
        if Instant::now() >= until {
            return Err(why);
        }
        nt.pause(PAUSE);
    }
}

/// All threads but the calling one. They are listed before any is looked at: looking takes longer than being born, and whoever is on the list
/// only because he was born meanwhile would be one more to look at.
fn others(nt: &'static Nt) -> Result<Vec<Thread>, Error> {
    let mut others = Vec::new();
    each(nt, |thread| {
        others.try_reserve(1)?;
        others.push(thread);
        Ok(None)
    })?;
    Ok(others)
}

/// Where a thread is now, which is suspended for that.
fn seen(nt: &'static Nt, thread: &Thread, places: Places<'_>, room: &mut Room) -> Seen {
    // Nor has it made a page one that cannot be executed.
    let _turn = Turn::take(nt);
    match thread.suspend() {
        Attempt::Gone => Seen::Clean,
        Attempt::Refused => Seen::Unclear,
        Attempt::Suspended => {
            let seen = match thread.context() {
                None => Seen::Unclear,
                Some(context) if places.hold(arch::ip(&context.0)) => Seen::Inside(arch::ip(&context.0)),
                Some(context) => look_at(thread, &context, room, |word| places.hold(word)),
            };
            thread.resume();
            seen
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::memory;
    use super::*;
    use crate::address::widen;
    use crate::host::process::caller::stack_pointer;
    use core::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    /// A word that nothing else has, in the other thread's stack; only its opposite is written down here.
    const OPPOSITE: usize = !(0x5a17_93c5_usize.rotate_right(1));

    /// A thread that sleeps with the word on its stack.
    fn sleeps(begun: &AtomicBool, done: &AtomicBool) {
        let words = [!core::hint::black_box(OPPOSITE); 512];
        begun.store(true, Ordering::SeqCst);
        while !done.load(Ordering::SeqCst) {
            core::hint::black_box(&words);
            thread::sleep(core::time::Duration::from_millis(1));
        }
    }

    /// How often the word lies in so many bytes below the stack pointer.
    #[inline(never)]
    fn below(nt: &Nt, sp: u64, room: &mut [u8]) -> usize {
        memory::read(nt, sp - room.len() as u64, room).unwrap();
        let words = room.as_chunks::<{ size_of::<usize>() }>().0.iter();
        words.filter(|word| !usize::from_le_bytes(**word) == OPPOSITE).count()
    }

    /// What a look has found of others is not left below the stack pointer of whoever looks: an answer that is copied up whole would bring it into the
    /// frames that the next look looks through.
    #[test]
    fn what_was_seen_of_others_is_wiped() {
        let nt = Nt::get().unwrap();
        super::super::super::trap::install(nt).unwrap();
        let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
        let mut room = std::vec![0; 20 << 10];
        thread::scope(|scope| {
            scope.spawn(|| sleeps(&begun, &done));
            while !begun.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            // By another thread: this one has never had the word.
            let sought = || {
                let word = widen(!core::hint::black_box(OPPOSITE));
                std::vec![word..word + 1]
            };
            let places = scope.spawn(sought).join().unwrap();
            let sp = stack_pointer();
            let outcome = look_above(nt, sp, &places, Instant::now());
            let left = below(nt, sp, &mut room);
            done.store(true, Ordering::SeqCst);
            assert!(matches!(outcome, Err(Error::Busy { .. })), "{outcome:?}");
            assert_eq!(left, 0);
        });
    }
}
