//! Threads that call targets at full speed, check every result, and look at the clock between any two calls.

use crate::functions::Function;
use std::arch::x86_64::_rdtsc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What a call through the detour adds beside what the target adds.
pub(crate) const DETOURED: u64 = 1 << 32;
/// Classes of each power of two.
const FINE: u64 = 8;

/// What callers saw.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) calls: u64,
    pub(crate) wrong: u64,
    /// Ticks between calls, by classes.
    times: Vec<u64>,
    longest: u64,
}

impl Seen {
    fn new() -> Self {
        Self { calls: 0, wrong: 0, times: vec![0; 64 * FINE as usize], longest: 0 }
    }

    /// The ticks that this part of the calls stays below.
    fn quantile(&self, part: f64) -> u64 {
        let mut rest = (self.calls as f64 * part) as u64;
        for (class, &count) in self.times.iter().enumerate() {
            if count > rest {
                let class = class as u64;
                let power = class / FINE;
                return (1 << power) + ((class % FINE + 1) << power) / FINE;
            }
            rest -= count;
        }
        self.longest
    }

    /// Microseconds that 99.99 % of the calls stay below, and those of the longest.
    pub(crate) fn delays(&self, clock: Clock) -> (f64, f64) {
        (clock.microseconds(self.quantile(0.9999)), clock.microseconds(self.longest))
    }
}

/// Running callers.
pub(crate) struct Callers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Seen>>,
}

impl Callers {
    /// So many threads that call all targets in turn; the one with number N adds N and `base`. Returns when all run.
    pub(crate) fn start(threads: usize, targets: &[Function], base: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let running = Arc::new(AtomicUsize::new(0));
        let spawn = |_| {
            let (stop, running, targets) = (Arc::clone(&stop), Arc::clone(&running), targets.to_vec());
            thread::spawn(move || {
                running.fetch_add(1, Ordering::Release);
                call(&targets, base, &stop)
            })
        };
        let callers = Self { threads: (0..threads).map(spawn).collect(), stop: Arc::clone(&stop) };
        while running.load(Ordering::Acquire) < threads {
            thread::yield_now();
        }
        callers
    }

    pub(crate) fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Release);
        let mut all = Seen::new();
        for thread in self.threads {
            let Ok(seen) = thread.join() else { continue };
            all.calls += seen.calls;
            all.wrong += seen.wrong;
            all.longest = all.longest.max(seen.longest);
            all.times.iter_mut().zip(seen.times).for_each(|(all, one)| *all += one);
        }
        all
    }
}

fn ticks() -> u64 {
    // SAFETY: it reads a counter.
    unsafe { _rdtsc() }
}

fn call(targets: &[Function], base: u64, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::new();
    let mut before = ticks();
    while !stop.load(Ordering::Relaxed) {
        for (number, target) in targets.iter().enumerate() {
            let argument = seen.calls & 0xffff;
            let added = target(argument).wrapping_sub(argument).wrapping_sub(base + number as u64);
            seen.wrong += u64::from(added != 0 && added != DETOURED);
            seen.calls += 1;
            let now = ticks();
            let passed = now.wrapping_sub(before).max(1);
            before = now;
            let power = u64::from(passed.ilog2());
            let class = power * FINE + (((passed - (1 << power)) * FINE) >> power);
            if let Some(count) = seen.times.get_mut(class as usize) {
                *count += 1;
            }
            seen.longest = seen.longest.max(passed);
        }
    }
    seen
}

/// How fast the processor's counter runs.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    ticks_a_microsecond: f64,
}

impl Clock {
    pub(crate) fn measure() -> Self {
        let (begin, first) = (Instant::now(), ticks());
        thread::sleep(Duration::from_millis(50));
        let passed = ticks() - first;
        Self { ticks_a_microsecond: passed as f64 / (begin.elapsed().as_nanos() as f64 / 1000.0) }
    }

    fn microseconds(self, ticks: u64) -> f64 {
        ticks as f64 / self.ticks_a_microsecond
    }
}
