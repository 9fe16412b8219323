//! One thread at a time: a lock that knows who holds it.
//!
//! Detours run wherever their targets are called, also from inside kdetour: a detour of `malloc` may want to attach
//! while its own thread is attaching. That thread is told so instead of waiting for itself for ever. `fork` may take the
//! lock before and give it back behind, in both processes. Waiting and waking are raw system calls, and memory is never
//! allocated, so nothing here can be detoured.

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use rustix::thread::futex;

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and somebody waits.
const WAITED_FOR: u32 = 2;
/// How often a waiter looks before it sleeps.
const SPINS: u32 = 100;

/// A value that one thread at a time works with.
pub(super) struct Turn<T> {
    state: AtomicU32,
    /// Which thread holds it; 0 for none.
    owner: AtomicUsize,
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
        Self { state: AtomicU32::new(FREE), owner: AtomicUsize::new(0), value: UnsafeCell::new(value) }
    }

    /// Works with the value, when its turn has come; none if the calling thread is at it already.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        if self.is_ours() {
            return None;
        }
        self.acquire();
        let holding = Holding(self);
        // SAFETY: the turn was acquired, and is given back when `holding` goes; this thread gets here once only.
        let value = unsafe { &mut *self.value.get() };
        let outcome = work(value);
        drop(holding);
        Some(outcome)
    }

    pub(super) fn is_ours(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == this_thread()
    }

    /// Waits for the turn. To be given back by [`release`](Self::release), once.
    pub(super) fn acquire(&self) {
        for _ in 0..SPINS {
            if self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                self.owner.store(this_thread(), Ordering::Relaxed);
                return;
            }
            spin_loop();
        }
        while self.state.swap(WAITED_FOR, Ordering::Acquire) != FREE {
            // Woken, interrupted, or too late: looked at again in any case.
            let _ = futex::wait(&self.state, futex::Flags::PRIVATE, WAITED_FOR, None);
        }
        self.owner.store(this_thread(), Ordering::Relaxed);
    }

    /// Gives the turn back that this thread has acquired.
    pub(super) fn release(&self) {
        self.owner.store(0, Ordering::Relaxed);
        if self.state.swap(FREE, Ordering::Release) == WAITED_FOR {
            let _ = futex::wake(&self.state, futex::Flags::PRIVATE, 1);
        }
    }
}

/// A number that no two living threads share, and that a thread keeps when it forks.
fn this_thread() -> usize {
    std::thread_local! {
        static HERE: u8 = const { 0 };
    }
    // A thread that is being torn down has no such place any more; it is the only one with this number.
    HERE.try_with(|here| ptr::from_ref(here).addr()).unwrap_or(1)
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
}
