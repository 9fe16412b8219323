//! Signals all the time: their handlers interrupt callers anywhere, and call the target themselves.

use crate::support::callers::{Callers, wrong};
use crate::support::helper::Dice;
use crate::support::runner::{Clock, tell};
use crate::support::sites::{self, Mode, Site};
use crate::support::system::{self, alternate_stack, process_number, send, text, wait_for};
use crate::support::targets::{LONGEST, PLACES, PROLOGUES, function, target};
use kdetour::{Error, typed};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

static CALLED: AtomicU64 = AtomicU64::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn handler(number: i32) {
    let call = function(CALLED.load(Relaxed));
    for first in 0..50 {
        let second = 7 * first + number as u64;
        let answer = black_box(call)(first, second);
        if !sites::either(first, second, answer) {
            wrong(call, first, second, answer);
        }
    }
    HANDLED.fetch_add(1, Relaxed);
}

const MODES: [Mode; 6] = [
    sites::EXCHANGE,
    sites::EXCHANGE_TRAPPED,
    sites::LIVE,
    sites::LIVE_TRAPPED,
    sites::LIVE_BREAKPOINT,
    sites::RENDEZVOUS,
];

pub(crate) fn storm(clock: &Clock) -> String {
    let (mut toggles, mut calls, mut reclaims, mut busy) = (0_u64, 0, 0_u64, 0_u64);
    let mut dice = Dice::new(11);
    for (round, mode) in MODES.iter().cycle().enumerate() {
        if clock.is_over() && round >= MODES.len() {
            break;
        }
        let part = clock.part(MODES.len() as u32);
        let prologue = if round < MODES.len() { round % 3 } else { dice.below(PROLOGUES.len()) };
        let target = target(prologue, dice.below(PLACES.len()));
        let what = format!("{}, {}", mode.name, PROLOGUES[prologue]);
        tell(&what);
        CALLED.store(target as *const () as u64, Relaxed);
        // Each interrupts the other, but not itself: stacks are short.
        system::handle(libc::SIGUSR1, handler, libc::SA_ONSTACK | libc::SA_RESTART, false);
        system::handle(libc::SIGUSR2, handler, libc::SA_RESTART, false);
        let mut site = Site::adding::<0>(target).with(mode);
        let original = text(site.target, LONGEST);
        let callers = Callers::start_with(4, target, sites::either, |number| {
            // Half of them have none: what Rust gives each thread is too short for handlers within handlers.
            alternate_stack(number % 2 == 0);
        });
        let (numbers, stop) = (callers.numbers(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let process = process_number();
                while !stop.load(Relaxed) {
                    let handled = HANDLED.load(Relaxed);
                    for &thread in &numbers {
                        send(process, thread, libc::SIGUSR1);
                        send(process, thread, libc::SIGUSR2);
                    }
                    wait_for("handlers", || HANDLED.load(Relaxed) >= handled + numbers.len() as u64 / 2);
                }
            });
            let mut done = 0;
            while !part.is_over() || done == 0 {
                match site.attach(mode.protocol) {
                    Ok(()) => {}
                    Err(Error::Refused(_) | Error::NoSlot { .. }) if done == 0 && mode.shape.is_some() => {
                        break;
                    }
                    Err(Error::ThreadInWindow { .. } | Error::ThreadNotReached { .. })
                        if mode.protocol == kdetour::Protocol::Rendezvous =>
                    {
                        continue;
                    }
                    Err(error) => panic!("{what}: {error:?}"),
                }
                while let Err(error) = site.detach(mode.protocol) {
                    let in_the_way =
                        matches!(error, Error::ThreadInWindow { .. } | Error::ThreadNotReached { .. });
                    assert!(
                        in_the_way && mode.protocol == kdetour::Protocol::Rendezvous,
                        "{what}: {error:?}"
                    );
                }
                done += 1;
                if done % 16 == 0 {
                    reclaims += 1;
                    match typed::reclaim(Duration::from_millis(50)) {
                        Ok(count) => assert_eq!(count, 1),
                        Err(Error::Busy { .. } | Error::ThreadNotReached { .. }) => busy += 1,
                        Err(error) => panic!("{what}: reclaim: {error:?}"),
                    }
                }
            }
            toggles += done;
            stop.store(true, Relaxed);
        });
        calls += callers.stop();
        assert_eq!(text(site.target, LONGEST), original, "{what}: text");
        typed::reclaim(Duration::from_secs(10)).expect("nobody is inside any more");
    }
    let handled = HANDLED.load(Relaxed);
    assert!(handled > 100, "only {handled} handlers ran");
    format!(
        "{toggles} toggles, {calls} calls, {handled} handlers, {reclaims} reclaims of which {busy} too early"
    )
}
