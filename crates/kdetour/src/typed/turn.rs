//! One thread at a time: a lock that knows who holds it.
//!
//! Detours run wherever their targets are called, also from inside kdetour: a detour of `malloc` may want to attach
//! while its own thread is attaching. That thread is told so instead of waiting for itself for ever. `fork` may take the
//! lock before and give it back behind, in both processes. Waiting and waking are raw system calls, and memory is never
//! allocated, so nothing here can be detoured.

use core::cell::{Cell, UnsafeCell};
use core::hint::spin_loop;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use rustix::process::getpid;
use rustix::thread::{Timespec, futex};

std::thread_local! {
    /// Whether this thread is at its turn, or waits for it.
    static AT_IT: Cell<bool> = const { Cell::new(false) };
}

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and somebody waits.
const WAITED_FOR: u32 = 2;
/// How long a waiter sleeps before it looks whether somebody holds it at all.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// How often a waiter looks before it sleeps.
const SPINS: u32 = 100;

/// A value that one thread at a time works with.
pub(super) struct Turn<T> {
    state: AtomicU32,
    /// Which process holds it; 0 for none. A child that was made without the handlers of `fork` may find it held by a thread that it
    /// does not have.
    process: AtomicI32,
    value: UnsafeCell<T>,
}

// SAFETY: `with` gives out the value to one thread at a time.
unsafe impl<T: Send> Sync for Turn<T> {}

/// Gives the turn back.
struct Holding<'a, T>(&'a Turn<T>);

impl<T> Drop for Holding<'_, T> {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl<T> Turn<T> {
    pub(super) const fn new(value: T) -> Self {
        Self { state: AtomicU32::new(FREE), process: AtomicI32::new(0), value: UnsafeCell::new(value) }
    }

    /// Works with the value, when its turn has come; none if the calling thread is at it already, or if nobody will ever
    /// give it back.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        if self.is_ours() {
            return None;
        }
        if !self.acquire() {
            return None;
        }
        let holding = Holding(self);
        // SAFETY: the turn was acquired, and is given back when `holding` goes; this thread gets here once only.
        let value = unsafe { &mut *self.value.get() };
        let outcome = work(value);
        drop(holding);
        Some(outcome)
    }

    /// Whether the calling thread is at it, or about to be.
    #[expect(clippy::unused_self, reason = "a thread is at one turn at a time")]
    pub(super) fn is_ours(&self) -> bool {
        AT_IT.try_with(Cell::get).unwrap_or(false)
    }

    /// Waits for the turn. To be given back by [`release`](Self::release), once. False if whoever has it is in another
    /// process, of which this one is a copy.
    pub(super) fn acquire(&self) -> bool {
        // Before the turn is taken: a signal handler that comes between is told, too.
        let _ = AT_IT.try_with(|at_it| at_it.set(true));
        let taken = self.wait();
        if !taken {
            let _ = AT_IT.try_with(|at_it| at_it.set(false));
        }
        taken
    }

    fn wait(&self) -> bool {
        for _ in 0..SPINS {
            if self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                self.taken();
                return true;
            }
            spin_loop();
        }
        while self.state.swap(WAITED_FOR, Ordering::Acquire) != FREE {
            let holder = self.process.load(Ordering::Relaxed);
            if holder != 0 && holder != process() {
                return false;
            }
            // Woken, interrupted, too late, or time to look at the holder again.
            let _ = futex::wait(&self.state, futex::Flags::PRIVATE, WAITED_FOR, Some(&LOOK));
        }
        self.taken();
        true
    }

    fn taken(&self) {
        self.process.store(process(), Ordering::Relaxed);
    }

    /// Gives the turn back that this thread has acquired.
    pub(super) fn release(&self) {
        self.process.store(0, Ordering::Relaxed);
        if self.state.swap(FREE, Ordering::Release) == WAITED_FOR {
            let _ = futex::wake(&self.state, futex::Flags::PRIVATE, 1);
        }
        let _ = AT_IT.try_with(|at_it| at_it.set(false));
    }
}

fn process() -> i32 {
    getpid().as_raw_nonzero().get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn one_at_a_time_and_never_twice() {
        static COUNT: Turn<u64> = Turn::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let nested = COUNT.with(|count| {
                            let before = *count;
                            *count = before + 1;
                            (COUNT.with(|_| ()), *count - before)
                        });
                        assert_eq!(nested, Some((None, 1)));
                    }
                });
            }
        });
        assert_eq!(COUNT.with(|count| *count), Some(80_000));
    }

    #[test]
    fn a_panic_gives_the_turn_back() {
        static VALUE: Turn<u64> = Turn::new(0);
        let panicked = thread::spawn(|| VALUE.with(|_| panic!("on purpose"))).join();
        assert!(panicked.is_err());
        assert_eq!(VALUE.with(|value| *value), Some(0));
    }

    /// As in a child that was made while a thread that it does not have was at it.
    #[test]
    fn nobody_waits_for_another_process() {
        static VALUE: Turn<u64> = Turn::new(0);
        VALUE.state.store(HELD, Ordering::Relaxed);
        VALUE.process.store(process() + 1, Ordering::Relaxed);
        assert_eq!(VALUE.with(|_| ()), None);
        assert!(!VALUE.is_ours(), "and it may be asked again");
    }
}
