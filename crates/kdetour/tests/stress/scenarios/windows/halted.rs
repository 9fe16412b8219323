//! The thread that commits is suspended at any moment, for a while: callers wait, or go on, and none goes astray.
//!
//! Only by protocols that suspend nobody: two threads that suspend each other at the same moment stand for ever.

use crate::support::callers::Callers;
use crate::support::helper::Dice;
use crate::support::runner::{Clock, tell};
use crate::support::sites::{self, Mode, Site};
use crate::support::system::{Thread, thread_number, wait_for};
use crate::support::targets::{PLACES, PROLOGUES, target};
use kdetour::{Error, typed};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

const MODES: [Mode; 4] = [sites::EXCHANGE, sites::EXCHANGE_TRAPPED, sites::LIVE, sites::LIVE_TRAPPED];

pub(crate) fn stopped(clock: &Clock) -> String {
    let (toggles, stops) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut calls = 0;
    let mut dice = Dice::new(77);
    for number in 0.. {
        let (prologue, place) = (number % PROLOGUES.len(), number * 5 % PLACES.len());
        let mode = MODES[number % MODES.len()];
        if clock.is_over() && number >= MODES.len() {
            break;
        }
        tell(&format!("{}, {}, {}", mode.name, PROLOGUES[prologue], PLACES[place]));
        let call = target(prologue, place);
        let callers = Callers::start(3, call, sites::either);
        let (stop, committer) = (AtomicBool::new(false), AtomicI32::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                committer.store(thread_number(), SeqCst);
                let mut site = Site::adding::<0>(call).with(&mode);
                while !stop.load(SeqCst) {
                    match site.attach(mode.protocol).and_then(|()| site.detach(mode.protocol)) {
                        Ok(()) => drop(toggles.fetch_add(1, SeqCst)),
                        Err(Error::Refused(_) | Error::NoSlot { .. }) if mode.shape.is_some() => break,
                        Err(error) => panic!("{}: {error:?}", mode.name),
                    }
                }
                stop.store(true, SeqCst);
            });
            wait_for("the committer", || committer.load(SeqCst) != 0);
            let thread = Thread::of(committer.load(SeqCst));
            for _ in 0..60 {
                thread::sleep(Duration::from_micros(dice.below(3000) as u64));
                if !thread.suspend() {
                    break;
                }
                thread::sleep(Duration::from_micros(dice.below(2000) as u64));
                thread.resume();
                stops.fetch_add(1, SeqCst);
            }
            stop.store(true, SeqCst);
        });
        callers.wait_for_calls(64);
        calls += callers.stop();
        typed::reclaim(Duration::from_secs(10)).expect("nobody is inside any more");
    }
    assert!(toggles.load(SeqCst) > 10, "hardly anything was toggled");
    format!("{} toggles, {} stops, {calls} calls", toggles.load(SeqCst), stops.load(SeqCst))
}
