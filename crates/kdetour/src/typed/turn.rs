//! One thread at a time: a lock that knows who holds it.
//!
//! Detours run wherever their targets are called, also from inside kdetour: a detour of `malloc` may want to attach
//! while its own thread is attaching. That thread is told so instead of waiting for itself for ever. `fork` may take the
//! lock before and give it back behind, in both processes. Waiting and waking call nothing that can be detoured, and memory is never
//! allocated.

use crate::host::process::{Holder, wait, wake};
use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, Ordering};

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and somebody waits.
const WAITED_FOR: u32 = 2;
/// How often a waiter looks before it sleeps.
const SPINS: u32 = 100;

/// A value that one thread at a time works with.
pub(super) struct Turn<T> {
    state: AtomicU32,
    holder: Holder,
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
        Self { state: AtomicU32::new(FREE), holder: Holder::new(), value: UnsafeCell::new(value) }
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
    pub(super) fn is_ours(&self) -> bool {
        self.holder.is_me()
    }

    /// Waits for the turn. To be given back by [`release`](Self::release), once. False if whoever has it will never give it back.
    pub(super) fn acquire(&self) -> bool {
        self.holder.waits();
        let taken = self.wait();
        if !taken {
            self.holder.leaves();
        }
        taken
    }

    fn wait(&self) -> bool {
        for _ in 0..SPINS {
            if self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                self.holder.has();
                return true;
            }
            spin_loop();
        }
        while self.state.swap(WAITED_FOR, Ordering::Acquire) != FREE {
            if self.holder.is_gone() {
                return false;
            }
            wait(&self.state, WAITED_FOR);
        }
        self.holder.has();
        true
    }

    /// Gives the turn back that this thread has acquired.
    pub(super) fn release(&self) {
        self.holder.gives();
        if self.state.swap(FREE, Ordering::Release) == WAITED_FOR {
            wake(&self.state);
        }
        self.holder.leaves();
    }
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

    #[test]
    #[cfg(not(windows))]
    fn nobody_waits_for_another_process() {
        static VALUE: Turn<u64> = Turn::new(0);
        VALUE.state.store(HELD, Ordering::Relaxed);
        VALUE.holder.held_elsewhere();
        assert_eq!(VALUE.with(|_| ()), None);
        assert!(!VALUE.is_ours(), "and it may be asked again");
    }
}
