//! Whose turn it is, and waiting for it: raw system calls, and memory that every thread has from the start. So nothing here can be
//! detoured.

use core::cell::Cell;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use rustix::process::getpid;
use rustix::thread::{Timespec, futex};

std::thread_local! {
    /// Whether this thread is at its turn, or waits for it. A thread is at one turn at a time.
    static AT_IT: Cell<bool> = const { Cell::new(false) };
}

/// How long a waiter sleeps before it looks whether somebody holds it at all.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Who holds a turn: a thread of a process. A child that was made without the handlers of `fork` may find it held by a thread that it does
/// not have.
#[derive(Debug)]
pub(crate) struct Holder {
    /// 0 for none.
    process: AtomicI32,
}

impl Holder {
    pub(crate) const fn new() -> Self {
        Self { process: AtomicI32::new(0) }
    }

    /// Whether it is the calling thread, or is about to be.
    #[expect(clippy::unused_self, reason = "a thread is at one turn at a time")]
    pub(crate) fn is_me(&self) -> bool {
        AT_IT.try_with(Cell::get).unwrap_or(false)
    }

    /// The calling thread is about to wait. Said before the turn is taken: a signal handler that comes between is told, too.
    #[expect(clippy::unused_self, reason = "a thread is at one turn at a time")]
    pub(crate) fn waits(&self) {
        let _ = AT_IT.try_with(|at_it| at_it.set(true));
    }

    /// It does not wait any more, and does not hold it.
    #[expect(clippy::unused_self, reason = "a thread is at one turn at a time")]
    pub(crate) fn leaves(&self) {
        let _ = AT_IT.try_with(|at_it| at_it.set(false));
    }

    /// It holds the turn now.
    pub(crate) fn has(&self) {
        self.process.store(process(), Ordering::Relaxed);
    }

    /// It is about to give it back.
    pub(crate) fn gives(&self) {
        self.process.store(0, Ordering::Relaxed);
    }

    /// Whether whoever holds it will never give it back: it is in another process, of which this one is a copy.
    pub(crate) fn is_gone(&self) -> bool {
        let holder = self.process.load(Ordering::Relaxed);
        holder != 0 && holder != process()
    }

    /// As in a child that was made while a thread that it does not have was at it.
    #[cfg(test)]
    pub(crate) fn held_elsewhere(&self) {
        self.process.store(process() + 1, Ordering::Relaxed);
    }
}

fn process() -> i32 {
    getpid().as_raw_nonzero().get()
}

/// Sleeps while `state` is `value`; returns when woken, interrupted, too late, or when it is time to look at the holder again.
pub(crate) fn wait(state: &AtomicU32, value: u32) {
    let _ = futex::wait(state, futex::Flags::PRIVATE, value, Some(&LOOK));
}

/// Wakes one who waits.
pub(crate) fn wake(state: &AtomicU32) {
    let _ = futex::wake(state, futex::Flags::PRIVATE, 1);
}
