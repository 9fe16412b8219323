//! Threads that call the target all the time and check every answer.

use super::runner::fail;
use super::system;
use super::targets::{Target, expected};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

/// Whether an answer is right: it is given the arguments too.
pub(crate) type Check = fn(u64, u64, u64) -> bool;

#[derive(Default)]
#[repr(align(128))]
struct Counter {
    calls: AtomicU64,
    thread: AtomicI32,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    counters: Vec<Counter>,
}

pub(crate) struct Callers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Callers {
    /// Starts so many threads and waits until each has called.
    pub(crate) fn start(count: usize, target: Target, check: Check) -> Self {
        Self::start_with(count, target, check, |_| {})
    }

    /// The same, where each thread gets ready first: it is told its number.
    pub(crate) fn start_with(count: usize, target: Target, check: Check, ready: fn(usize)) -> Self {
        let counters = (0..count).map(|_| Counter::default()).collect();
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), counters });
        let spawn = |number: usize| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                ready(number);
                let counter = &shared.counters[number];
                counter.thread.store(system::thread_number(), Relaxed);
                call(&shared.stop, counter, target, check, number as u64);
            })
        };
        let threads = (0..count).map(spawn).collect();
        let callers = Self { shared, threads };
        callers.wait_for_calls(1);
        callers
    }

    /// Waits until each of them has called so often since now.
    pub(crate) fn wait_for_calls(&self, more: u64) {
        for counter in &self.shared.counters {
            let before = counter.calls.load(Relaxed);
            system::wait_for("callers to go on", || counter.calls.load(Relaxed) >= before + more);
        }
    }

    #[cfg(not(windows))]
    pub(crate) fn calls(&self) -> u64 {
        self.shared.counters.iter().map(|counter| counter.calls.load(Relaxed)).sum()
    }

    /// Their numbers, to send signals to.
    #[cfg(not(windows))]
    pub(crate) fn numbers(&self) -> Vec<i32> {
        self.shared.counters.iter().map(|counter| counter.thread.load(Relaxed)).collect()
    }

    /// Stops them. How often they called.
    pub(crate) fn stop(self) -> u64 {
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads {
            if thread.join().is_err() {
                fail("a caller panicked");
            }
        }
        self.shared.counters.iter().map(|counter| counter.calls.load(Relaxed)).sum()
    }
}

fn call(stop: &AtomicBool, counter: &Counter, target: Target, check: Check, seed: u64) {
    let mut first = seed;
    while !stop.load(Relaxed) {
        for _ in 0..64 {
            first = first.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let second = first >> 7;
            let answer = black_box(target)(first, second);
            if !check(first, second, answer) {
                wrong(target, first, second, answer);
            }
        }
        counter.calls.fetch_add(64, Relaxed);
    }
}

/// Ends the scenario over a wrong answer.
pub(crate) fn wrong(target: Target, first: u64, second: u64, answer: u64) -> ! {
    fail(&format!(
        "wrong: {:#x}({first:#x}, {second:#x}) = {answer:#x}, the original's answer is {:#x}; the text there is {:02x?}",
        target as usize,
        expected(first, second),
        system::text(target as *const () as u64, 16),
    ))
}
