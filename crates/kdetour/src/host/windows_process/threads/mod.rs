//! Who else runs in this process, and where.
//!
//! * this file: which threads there are, and one of them suspended;
//! * `settled`: whether its registers are those with which it will go on; `stack`: what lies on its stack;
//! * `frames`: what of the caller's own stack is no return address;
//! * `look`: whether no thread is inside of places; `park`: all threads but one are suspended while something is written.
//!
//! Threads are asked of the kernel one after the other (`NtGetNextThread`, since Windows Vista), those of this process only: a Toolhelp
//! snapshot lists those of all processes. Somebody who is suspended may hold the heap's lock, the loader's, or any other. So while one is,
//! nothing is allocated, locked or waited for, and nothing is called but `ntdll.dll`'s entries of the kernel.

mod frames;
mod look;
mod park;
mod settled;
mod stack;

pub(super) use look::{left_above, look_above};
pub(super) use park::park_above;

use super::arch;
use super::nt::{Context, Handle, Nt, TERMINATING};
use crate::Error;
use core::ops::Range;
use core::ptr;
use stack::{Room, Stack};
use std::vec::Vec;

/// A handle of a thread.
struct Thread {
    nt: &'static Nt,
    handle: Handle,
    /// Its number.
    id: u32,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.nt.close(self.handle);
    }
}

/// What came of an attempt to suspend a thread.
enum Attempt {
    Suspended,
    /// It is ending: it runs nothing of the process any more.
    Gone,
    /// The kernel refuses: its number.
    Refused,
}

impl Thread {
    /// Suspends it. Its registers cannot be trusted before they have been asked for: the kernel waits then until it really stands.
    fn suspend(&self) -> Attempt {
        match self.nt.suspend(self.handle) {
            TERMINATING => Attempt::Gone,
            // Wine says that it must not be, as of any thread.
            status if status < 0 && self.nt.has_ended(self.handle) => Attempt::Gone,
            status if status < 0 => Attempt::Refused,
            _ => Attempt::Suspended,
        }
    }

    fn resume(&self) {
        self.nt.resume(self.handle);
    }

    /// Where it is, while it is suspended; none if the kernel does not tell, or what it tells may be something else.
    fn context(&self) -> Option<Context> {
        let mut context = Context::of(arch::REGISTERS | settled::ASKED);
        if self.nt.context(self.handle, &mut context) < 0 {
            return None;
        }
        let flags = core::mem::replace(&mut context.0.ContextFlags, arch::REGISTERS);
        settled::is_settled(self.nt, flags, arch::ip(&context.0)).then_some(context)
    }
}

/// Calls `work` with each thread but the calling one, in the order in which they were started: those that are started meanwhile, too.
fn each(nt: &'static Nt, mut work: impl FnMut(Thread) -> Result<Option<Thread>, Error>) -> Result<(), Error> {
    let me = arch::thread();
    // The one from which the search goes on has to be open.
    let mut last: Option<Thread> = None;
    let mut kept: Handle = ptr::null_mut();
    loop {
        let from = last.as_ref().map_or(kept, |last| last.handle);
        let Some(handle) = nt.next_thread(from)? else { return Ok(()) };
        drop(last.take());
        kept = ptr::null_mut();
        let Some(id) = nt.number(handle) else {
            last = Some(Thread { nt, handle, id: 0 });
            continue;
        };
        let thread = Thread { nt, handle, id };
        if id == me {
            last = Some(thread);
            continue;
        }
        match work(thread)? {
            Some(given_back) => last = Some(given_back),
            // Whoever keeps it keeps it open.
            None => kept = handle,
        }
    }
}

/// Whether the calling thread is the only one that runs: those that are ending do not.
///
/// # Errors
/// [`Error::Host`].
pub(super) fn only_this_one(nt: &'static Nt) -> Result<bool, Error> {
    let mut others = 0_usize;
    each(nt, |thread| {
        match thread.suspend() {
            Attempt::Gone => return Ok(Some(thread)),
            Attempt::Suspended => thread.resume(),
            Attempt::Refused => {}
        }
        others += 1;
        Ok(Some(thread))
    })?;
    Ok(others == 0)
}

/// What was seen of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// None of the places anywhere.
    Clean,
    /// An address in one of them.
    Inside(u64),
    /// It could not be seen.
    Unclear,
}

/// Addresses that are looked for: sorted and disjoint ranges.
#[derive(Clone, Copy)]
struct Places<'a>(&'a [Range<u64>]);

impl Places<'_> {
    fn hold(&self, word: u64) -> bool {
        let at = self.0.partition_point(|place| place.end <= word);
        self.0.get(at).is_some_and(|place| place.start <= word)
    }

    /// As a return address: nothing in front of a place returns to its first byte.
    fn hold_behind_start(&self, word: u64) -> bool {
        let at = self.0.partition_point(|place| place.end <= word);
        self.0.get(at).is_some_and(|place| place.start < word)
    }
}

/// Looks at a thread that is suspended: its registers but for the instruction pointer, and every word of its stack.
fn look_at(thread: &Thread, context: &Context, room: &mut Room, sought: impl Fn(u64) -> bool) -> Seen {
    if let Some(word) = arch::words(&context.0).into_iter().find(|&word| sought(word)) {
        return Seen::Inside(word);
    }
    match Stack::of(thread.nt, arch::sp(&context.0)) {
        Some(stack) => stack.search(thread.nt, room, |_, word| sought(word)),
        None => Seen::Unclear,
    }
}

/// The calling thread's own stack from `sp` on: return addresses only. What lies below is not used by a caller, which is in a call,
/// and has been used by calls that are long over.
///
/// A word that lies within a frame is none, if the unwinder knows that frame.
fn own(nt: &Nt, sp: u64, room: &mut Room, sought: impl Fn(u64) -> bool) -> Seen {
    match Stack::of(nt, sp) {
        Some(stack) => stack.search(nt, room, |place, word| {
            sought(word) && stack::follows_call(nt, word) && !frames::hold(nt, place)
        }),
        None => Seen::Unclear,
    }
}

/// Ranges as long as one byte each.
fn bytes(addresses: impl ExactSizeIterator<Item = u64>) -> Result<Vec<Range<u64>>, Error> {
    let mut places = Vec::new();
    places.try_reserve_exact(addresses.len())?;
    places.extend(addresses.map(|address| address..address.saturating_add(1)));
    Ok(places)
}
