//! Threads that are born and die during commits.

use crate::support::callers::wrong;
use crate::support::runner::{Clock, fail};
use crate::support::sites::{self, Site};
use crate::support::targets::{Target, target};
use kdetour::{Error, Protocol, typed};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

pub(crate) fn call_some(call: Target) {
    for first in 0..20 {
        let answer = black_box(call)(first, first + 5);
        if !sites::either(first, first + 5, answer) {
            wrong(call, first, first + 5, answer);
        }
    }
}

/// The beginning whose jump keeps bytes: a low program of 32 bits has a place for it with the one alone that leaves its last byte free.
const KEPT: usize = if cfg!(all(windows, target_arch = "x86")) { 5 } else { 2 };

/// Threads come and go, and call the target first thing and last.
pub(crate) fn threads(clock: &Clock) -> String {
    let call = target(0, 1);
    let trapped = target(1, 0);
    let stop = AtomicBool::new(false);
    let mut why = None;
    let (born, mut toggles, mut reclaims, mut late, mut refused) = (AtomicU64::new(0), 0_u64, 0, 0, 0);
    let mut crowded = 0;
    let mut sites = [
        (Site::adding::<0>(call), Protocol::Exchange),
        (Site::adding::<1>(trapped).with(&sites::EXCHANGE_TRAPPED), Protocol::Exchange),
        (Site::adding::<2>(target(KEPT, 5)).with(&sites::LIVE_KEPT), Protocol::Live),
    ];
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    let one = move || {
                        call_some(call);
                        call_some(trapped);
                        call_some(target(KEPT, 5));
                    };
                    let some: Vec<_> = (0..4).map(|_| thread::spawn(one)).collect();
                    for thread in some {
                        born.fetch_add(1, Relaxed);
                        if thread.join().is_err() {
                            fail("a thread panicked");
                        }
                    }
                }
            });
        }
        while !clock.is_over() || toggles < 50 || reclaims == 0 && late < 10 {
            for (site, protocol) in &mut sites {
                match site.attach(*protocol) {
                    Ok(()) => {}
                    // The C library blocks all signals where it makes a thread: such a one could be killed.
                    Err(Error::TrapBlocked { .. }) if site.shapes.is_some() => {
                        refused += 1;
                        continue;
                    }
                    // There are few places for its relay, and Windows gives each thread that is born its stack wherever it is free.
                    Err(Error::NoSlot { .. }) if cfg!(windows) && site.shapes.is_some() => {
                        crowded += 1;
                        continue;
                    }
                    Err(error) => panic!("attach: {error:?}"),
                }
                // What never needed a breakpoint goes without one, too.
                site.detach(Protocol::Exchange).unwrap_or_else(|error| panic!("detach: {error:?}"));
                toggles += 1;
            }
            if toggles % 50 < 3 {
                match typed::reclaim(Duration::from_millis(500)) {
                    Ok(_) => reclaims += 1,
                    Err(error @ (Error::Busy { .. } | Error::ThreadNotReached { .. })) => {
                        late += 1;
                        why = Some(error);
                    }
                    Err(error) => panic!("reclaim: {error:?}"),
                }
            }
        }
        stop.store(true, Relaxed);
    });
    assert!(reclaims > 0, "{late} reclaims were too late: {why:?}");
    format!(
        "{toggles} toggles, {} threads born, {reclaims} reclaims and {late} too early, {refused} refused to be trapped, \
         {crowded} without a place",
        born.load(Relaxed)
    )
}
