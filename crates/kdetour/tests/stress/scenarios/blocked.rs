//! Threads that block every signal, SIGTRAP too: a breakpoint would kill them.

use crate::support::callers::Callers;
use crate::support::runner::{Clock, tell};
use crate::support::sites::{self, Site};
use crate::support::system::{self, block_all, text};
use crate::support::targets::{LONGEST, PROLOGUES, target};
use kdetour::plan::Shape;
use kdetour::{Error, Protocol, typed};
use std::time::{Duration, Instant};

extern "C" fn nothing(_: i32) {}

pub(crate) fn blocked(clock: &Clock) -> String {
    // The patch is one byte: nobody traps, nobody waits.
    let target = target(0, 1);
    let mut site = Site::adding::<0>(target);
    let original = text(site.target, LONGEST);
    // What is in already can go: that lets nobody trap who would not have trapped before.
    let mut trapping =
        Site::adding::<3>(crate::support::targets::target(1, 5)).with(&sites::EXCHANGE_TRAPPED);
    trapping.attach(Protocol::Exchange).expect("nobody blocks SIGTRAP yet");
    let callers = Callers::start_with(3, target, sites::either, |_| block_all(true));
    tell("toggles beside threads that block all signals");
    let begin = Instant::now();
    let mut toggles = 0_u64;
    while toggles < 20_000 || !clock.is_over() {
        site.attach(Protocol::Exchange).unwrap_or_else(|error| panic!("attach {toggles}: {error:?}"));
        site.detach(Protocol::Exchange).unwrap_or_else(|error| panic!("detach {toggles}: {error:?}"));
        toggles += 1;
    }
    let rate = toggles as f64 / begin.elapsed().as_secs_f64();
    assert_eq!(site.shape(), Some(Shape::Jump5Kept));
    tell("what could kill them is refused");
    trapping.detach(Protocol::Exchange).expect("needs no breakpoint");
    assert!(matches!(trapping.attach(Protocol::Exchange), Err(Error::TrapBlocked { .. })), "again");
    let numbers = callers.numbers();
    let blocks = |error: &Error| matches!(error, Error::TrapBlocked { thread } if numbers.contains(thread));
    for mode in [
        sites::LIVE,
        sites::LIVE_KEPT,
        sites::LIVE_TRAPPED,
        sites::LIVE_JUMP,
        sites::LIVE_BREAKPOINT,
        sites::EXCHANGE_TRAPPED,
    ] {
        // Targets of their own: where others have mapped what a shape needs, another one has it.
        let refused = (0..PROLOGUES.len()).any(|prologue| {
            let mut other = Site::adding::<1>(crate::support::targets::target(prologue, 2)).with(&mode);
            let before = text(other.target, LONGEST);
            let error = other.attach(mode.protocol).expect_err(mode.name);
            assert_eq!(text(other.target, LONGEST), before, "{}: text", mode.name);
            let no_slot = matches!(error, Error::NoSlot { .. });
            assert!(no_slot || blocks(&error), "{}: {error:?}", mode.name);
            !no_slot
        });
        assert!(refused, "{}: no slot for any target", mode.name);
    }
    // Detaching by a breakpoint, too; and it stays as it was.
    site.attach(Protocol::Exchange).expect("attaches");
    if text(site.target + 1, 4) != original[1..5] {
        let error = site.detach(Protocol::Live).expect_err("it would write a breakpoint");
        assert!(blocks(&error), "{error:?}");
        assert!(sites::is_detoured(1, 2, target(1, 2)));
    }
    site.detach(Protocol::Exchange).expect("detaches");
    // They cannot be asked, and run all the time: nothing is freed.
    let error = typed::reclaim(Duration::from_millis(100)).expect_err("nobody can tell where they are");
    assert!(matches!(error, Error::ThreadNotReached { thread } if numbers.contains(&thread)), "{error:?}");
    let calls = callers.stop();
    assert_eq!(typed::reclaim(Duration::from_secs(10)), Ok(2), "nobody is left");

    tell("a handler that blocks everything");
    system::handle(libc::SIGUSR1, nothing, 0, true);
    for mode in [sites::LIVE_TRAPPED, sites::EXCHANGE_TRAPPED] {
        let mut other = Site::adding::<1>(target).with(&mode);
        assert_eq!(other.attach(mode.protocol), Err(Error::TrapBlocked { thread: 0 }), "{}", mode.name);
    }
    let mut other = Site::adding::<1>(target);
    other.attach(Protocol::Exchange).expect("needs no breakpoint");
    other.detach(Protocol::Exchange).expect("needs no breakpoint");
    // SAFETY: back to what it was.
    unsafe { libc::signal(libc::SIGUSR1, libc::SIG_DFL) };
    let mut other = Site::adding::<2>(target).with(&sites::LIVE_TRAPPED);
    other.attach(Protocol::Live).expect("nobody blocks SIGTRAP any more");
    other.detach(Protocol::Live).expect("nobody blocks SIGTRAP any more");
    assert_eq!(text(site.target, LONGEST), original, "text");
    format!("{toggles} toggles, {calls} calls, {rate:.0} toggles/s")
}
