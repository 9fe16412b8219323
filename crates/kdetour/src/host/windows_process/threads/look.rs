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
use super::{Attempt, Places, Seen, bytes, each, look_at, own};
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
    match own(nt, sp, |word| places.hold_behind_start(word)) {
        Seen::Clean => {}
        // It will not leave while it waits here.
        Seen::Inside(_) => return Err(Error::Inside),
        Seen::Unclear => return Err(Error::ThreadNotReached { thread: arch::thread().cast_signed() }),
    }
    let outcome = outside(nt, places, until, false);
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
    match own(nt, sp, |word| places.hold(word)) {
        Seen::Clean => {}
        Seen::Inside(address) => return Err(Error::ThreadInWindow { address }),
        Seen::Unclear => return Err(Error::ThreadNotReached { thread: arch::thread().cast_signed() }),
    }
    let outcome = outside(nt, places, until, true);
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
    const DEEP: usize = 24 << 10;
    let mut below = [0_u8; DEEP];
    core::hint::black_box(&mut below);
}

/// Looks at all others until each has been outside. Only if `told` an answer has an address in it.
fn outside(nt: &'static Nt, places: Places<'_>, until: Instant, told: bool) -> Result<(), Left> {
    // Those that have not been seen outside yet, sorted; at first nobody knows. A number that is given out again is one of a thread that
    // began outside.
    let mut waited_for: Option<Vec<u32>> = None;
    loop {
        let (mut inside, mut unclear) = (None::<(u64, u64)>, None);
        let mut left: Vec<u32> = Vec::new();
        let outcome = each(nt, |thread| {
            if waited_for.as_ref().is_some_and(|numbers| numbers.binary_search(&thread.id).is_err()) {
                return Ok(Some(thread));
            }
            // Before it is suspended: it may have the heap's lock then.
            left.try_reserve(1)?;
            // Nor has it made a page one that cannot be executed.
            let _turn = Turn::take(nt);
            let seen = match thread.suspend() {
                Attempt::Gone => Seen::Clean,
                Attempt::Refused => Seen::Unclear,
                Attempt::Suspended => {
                    let seen = match thread.context() {
                        None => Seen::Unclear,
                        Some(context) if places.hold(arch::ip(&context.0)) => {
                            Seen::Inside(arch::ip(&context.0))
                        }
                        Some(context) => look_at(&thread, &context, |word| places.hold(word)),
                    };
                    thread.resume();
                    seen
                }
            };
            match seen {
                Seen::Clean => return Ok(Some(thread)),
                Seen::Inside(address) => {
                    let (calls, _) = inside.unwrap_or((0, address));
                    inside = Some((calls + 1, if told { address } else { 0 }));
                }
                Seen::Unclear => unclear = Some(thread.id.cast_signed()),
            }
            left.push(thread.id);
            Ok(Some(thread))
        });
        outcome.map_err(Left::Failed)?;
        let why = match (inside, unclear) {
            (None, None) => return Ok(()),
            (Some((calls, address)), _) => Left::Inside { calls, address },
            (None, Some(thread)) => Left::Unclear(thread),
        };
        if Instant::now() >= until {
            return Err(why);
        }
        left.sort_unstable();
        waited_for = Some(left);
        nt.pause(PAUSE);
    }
}
