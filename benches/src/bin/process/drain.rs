//! How long it takes until the memory of a detour is given back.

use crate::attach::timed;
use crate::callers::Callers;
use crate::functions;
use crate::table::{Table, count, median, number, quantile};
use anyhow::Result;
use kdetour::typed::{self, Detour};
use std::sync::{Arc, Barrier, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

const ROUNDS: usize = 60;

extern "C" fn replaced(of: u64) -> u64 {
    of
}

/// The table.
pub(crate) fn measure() -> Result<Vec<Table>> {
    let mut table = Table::new("reclaim of one detour, microseconds", &["median", "90 %", "longest", "busy"]);
    for (sleepers, busy) in [(0, 0), (2, 0), (8, 0), (32, 0), (0, 2), (0, 8), (8, 8)] {
        let (mut times, mut refused) = (Vec::new(), 0);
        let sleeping = Sleepers::start(sleepers);
        let calling = Callers::start(busy, &[functions::first()], 0);
        for target in functions::dense().into_iter().skip(1).take(ROUNDS) {
            // SAFETY: a function of that type.
            let target = unsafe { functions::at(target) };
            // SAFETY: both have one type, and stay.
            drop(timed(|| unsafe { Detour::attach(target, replaced) })?.0);
            match timed(|| typed::reclaim(Duration::from_secs(5))) {
                Ok((_, time)) => times.push(time.wall),
                Err(_) => refused += 1,
            }
        }
        calling.stop();
        sleeping.stop();
        let cells = [
            number(median(&mut times), 0),
            number(quantile(&mut times, 0.9), 0),
            number(quantile(&mut times, 1.0), 0),
        ];
        table.row(
            format!("{sleepers} sleeping, {busy} busy threads"),
            cells.into_iter().chain([count(refused)]),
        );
    }
    Ok(vec![table])
}

/// Threads that wait for the end.
struct Sleepers {
    end: Arc<(Mutex<bool>, Condvar)>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Sleepers {
    fn start(count: usize) -> Self {
        let end = Arc::new((Mutex::new(false), Condvar::new()));
        let ready = Arc::new(Barrier::new(count + 1));
        let spawn = |_| {
            let (end, ready) = (Arc::clone(&end), Arc::clone(&ready));
            thread::spawn(move || {
                let mut over = end.0.lock().unwrap_or_else(PoisonError::into_inner);
                drop(over);
                ready.wait();
                over = end.0.lock().unwrap_or_else(PoisonError::into_inner);
                while !*over {
                    over = end.1.wait(over).unwrap_or_else(PoisonError::into_inner);
                }
            })
        };
        let threads = (0..count).map(spawn).collect();
        ready.wait();
        thread::sleep(Duration::from_millis(20));
        Self { end, threads }
    }

    fn stop(self) {
        *self.end.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.end.1.notify_all();
        for thread in self.threads {
            // A thread that waits cannot panic.
            _ = thread.join();
        }
    }
}
