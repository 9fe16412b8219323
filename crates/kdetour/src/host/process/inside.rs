//! How many signal handlers are running that may have read something old.
//!
//! Where many threads trap all the time there may be no moment at which none of them is in its handler: one has always just been
//! preempted there. So handlers count themselves in one of two counters, and those who wait switch to the other one first: the
//! first then only goes down.
//!
//! ```text
//!   handler   reads which counter, adds itself, reads what may be old, takes itself off
//!   waiting   (what is new is in its place) switches, waits until the other counter is 0; and once more
//! ```
//!
//! Once is not enough: a handler may have read which counter, and been preempted before it added itself. It reads what is new
//! then, as everybody does who adds itself later; but it is counted where the next one who waits does not look at first.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use std::thread::sleep;
use std::time::Instant;

/// Handlers that are running.
#[derive(Debug)]
pub(crate) struct Inside {
    which: AtomicUsize,
    counts: [AtomicU64; 2],
}

/// The counter that a handler is in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted(usize);

impl Inside {
    pub(crate) const fn new() -> Self {
        Self { which: AtomicUsize::new(0), counts: [AtomicU64::new(0), AtomicU64::new(0)] }
    }

    const fn count(&self, which: usize) -> &AtomicU64 {
        &self.counts[which & 1]
    }

    /// A handler begins: what it reads from now on is not freed before it has left.
    pub(crate) fn enter(&self) -> Counted {
        let which = self.which.load(Ordering::SeqCst);
        self.count(which).fetch_add(1, Ordering::SeqCst);
        Counted(which)
    }

    /// It has read what it needs.
    pub(crate) fn leave(&self, Counted(which): Counted) {
        self.count(which).fetch_sub(1, Ordering::SeqCst);
    }

    /// In a process whose only thread is in no handler: others were, in the process that it was copied from.
    #[cfg(feature = "linux-process")]
    pub(crate) fn forget(&self) {
        self.counts.iter().for_each(|count| count.store(0, Ordering::SeqCst));
    }

    /// Returns when every handler has left that was running when this was called; false if the time is up before. One waits
    /// at a time.
    pub(crate) fn wait(&self, until: Instant, pause: Duration) -> bool {
        for _ in 0..2 {
            let before = self.which.fetch_xor(1, Ordering::SeqCst);
            while self.count(before).load(Ordering::SeqCst) > 0 {
                if Instant::now() >= until {
                    return false;
                }
                sleep(pause);
            }
        }
        true
    }

    /// Whether any is running.
    #[cfg(test)]
    pub(crate) fn any(&self) -> bool {
        self.counts.iter().any(|count| count.load(Ordering::SeqCst) > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicBool;
    use std::thread::scope;

    const PAUSE: Duration = Duration::from_micros(50);

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    fn late() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn nobody_is_not_waited_for() {
        let inside = Inside::new();
        assert!(inside.wait(soon(), PAUSE) && inside.wait(soon(), PAUSE) && !inside.any());
    }

    /// Wherever it was counted, and however often somebody has waited for others.
    #[test]
    fn one_that_stays_is_waited_for() {
        for waits in 0..4 {
            let inside = Inside::new();
            for _ in 0..waits {
                inside.which.fetch_xor(1, Ordering::SeqCst);
            }
            let one = inside.enter();
            assert!(!inside.wait(soon(), PAUSE) && !inside.wait(soon(), PAUSE));
            inside.leave(one);
            assert!(inside.wait(soon(), PAUSE));
        }
    }

    /// It has read which counter, and adds itself only when others have waited twice since.
    #[test]
    fn one_that_was_late_to_count_itself_is_waited_for_by_the_next() {
        let inside = Inside::new();
        let late = inside.which.load(Ordering::SeqCst);
        assert!(inside.wait(soon(), PAUSE));
        inside.count(late).fetch_add(1, Ordering::SeqCst);
        assert!(!inside.wait(soon(), PAUSE));
        inside.leave(Counted(late));
        assert!(inside.wait(soon(), PAUSE));
    }

    /// At every moment somebody is inside, but nobody stays: a single counter would never be 0.
    #[test]
    fn those_who_come_later_are_not_waited_for() {
        let inside = Inside::new();
        let (begun, ends) = (AtomicBool::new(false), AtomicBool::new(false));
        scope(|scope| {
            scope.spawn(|| {
                let mut one = inside.enter();
                begun.store(true, Ordering::SeqCst);
                while !ends.load(Ordering::SeqCst) {
                    let other = inside.enter();
                    inside.leave(one);
                    one = other;
                }
                inside.leave(one);
            });
            while !begun.load(Ordering::SeqCst) {
                core::hint::spin_loop();
            }
            for _ in 0..100 {
                assert!(inside.any());
                assert!(inside.wait(late(), PAUSE));
            }
            ends.store(true, Ordering::SeqCst);
        });
        assert!(!inside.any());
    }
}
