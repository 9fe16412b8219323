//! Beside other detours and other threads; what is kept, and when it is freed.

use super::*;
use crate::support::in_a_process_of_its_own;
use kdetour::plan::Refusal;
use kdetour::typed::{Detour, reclaim};
use kdetour::{Record, State};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::time::Duration;

#[test]
fn entry_and_inside_at_once() {
    extern "C" fn doubled(first: usize, second: usize) -> usize {
        2 * (first + second)
    }
    extern "C" fn ten_more(registers: &mut Registers) {
        *result(registers) += 10;
    }
    let turn = turn();
    let (entry, inside) = (add_five as Target, address(add_five, 8));
    let before = text(entry.address(), 16);
    for entry_first in [true, false] {
        let attach_entry = || {
            // SAFETY: both have one signature.
            unsafe { Detour::attach_with(&turn.alone, entry, doubled) }.unwrap()
        };
        let attach_inside = || {
            // SAFETY: more in RAX is all that happens.
            unsafe { MidDetour::attach_with(&turn.alone, inside, ten_more) }.unwrap()
        };
        let (mut outer, mut inner) = if entry_first {
            let outer = attach_entry();
            (outer, attach_inside())
        } else {
            let inner = attach_inside();
            (attach_entry(), inner)
        };
        // The original runs through the detour inside it.
        assert_eq!((add_five(1, 2), outer.original()(1, 2)), (6, 18));
        // Bytes that one of them has are not for another one.
        // SAFETY: nothing is called.
        let error = unsafe { MidDetour::attach_with(&turn.alone, inside + 3, nothing) }.unwrap_err();
        let expected = [Error::AlreadyDetoured { target: inside + 3 }];
        assert!(expected.contains(&error) || matches!(error, Error::Refused(_)), "{error}");
        if entry_first {
            outer.detach_with(&turn.alone).unwrap();
            assert_eq!(add_five(1, 2), 18);
            inner.detach_with(&turn.alone).unwrap();
        } else {
            inner.detach_with(&turn.alone).unwrap();
            assert_eq!((add_five(1, 2), outer.original()(1, 2)), (6, 8));
            outer.detach_with(&turn.alone).unwrap();
        }
        assert_eq!((add_five(1, 2), text(entry.address(), 16)), (8, before.clone()));
    }
}

/// What a detour has displaced still branches where it did, though its bytes are not in the function any more.
#[test]
fn branches_that_another_detour_has_displaced_are_seen() {
    let turn = turn();
    let target = loop_in_the_window as Target;
    // The loop's branch back is at 9, its head at 4.
    // SAFETY: nothing is changed.
    let attach = |offset| unsafe { MidDetour::attach_with(&turn.alone, address(target, offset), nothing) };
    let into = address(target, 4);
    let is_refused = |error: Error| matches!(error, Error::Refused(Refusal::BranchIntoWindow { into: found, .. }) if found == into);
    assert!(is_refused(attach(2).unwrap_err()));
    let mut tail = attach(7).unwrap();
    assert_eq!(loop_in_the_window(4, 5), 20);
    assert!(is_refused(attach(2).unwrap_err()), "the branch is in a slot now");
    // The entry's window ends in front of the loop where the arguments are loaded first.
    if cfg!(target_arch = "x86_64") {
        // SAFETY: both have one signature.
        let entry = unsafe { Detour::attach_with(&turn.alone, target, add_five) }.unwrap_err();
        assert!(is_refused(entry));
    }
    tail.detach_with(&turn.alone).unwrap();
    assert_eq!(loop_in_the_window(4, 5), 20);
}

#[test]
fn toggling_takes_no_memory() {
    let turn = turn();
    let records = || with_process(|kdetour| Ok(kdetour.records().copied().collect::<Vec<_>>())).unwrap();
    let mut kept = None;
    for _ in 0..200 {
        // SAFETY: nothing is changed.
        let mut detour = unsafe { MidDetour::attach_with(&turn.alone, address(below, 3), nothing) }.unwrap();
        assert_eq!(below(1, 2), usize::MAX);
        detour.detach_with(&turn.alone).unwrap();
        let now = records().into_iter().map(|record| record.slot).collect::<Vec<_>>();
        assert_eq!(*kept.get_or_insert_with(|| now.clone()), now);
    }
    assert!(
        records().iter().all(|record| record.target != address(below, 3) || record.state == State::Draining)
    );
}

/// Whoever frees slots looks for addresses inside them on the stacks: a thread that is inside has one there.
#[test]
fn a_thread_that_is_inside_can_be_seen() {
    static FOUND: AtomicU64 = AtomicU64::new(0);
    /// Where in the stub its call seems to return to.
    const RETURNS: u64 = if cfg!(target_arch = "x86") { 9 } else { 15 };

    extern "C" fn looks(registers: &mut Registers) {
        let word = (&raw const *registers).cast::<usize>().wrapping_sub(1);
        // SAFETY: this is the thread's own stack, between the function's frame and this one's.
        FOUND.store(unsafe { word.read_volatile() } as u64, Relaxed);
    }

    let turn = turn();
    // SAFETY: nothing is changed.
    let mut detour = unsafe { MidDetour::attach_with(&turn.alone, address(add_five, 4), looks) }.unwrap();
    let stub = with_process(|kdetour| {
        let is_it =
            |record: &&Record| record.target == address(add_five, 4) && record.state == State::Attached;
        Ok(kdetour.records().find(is_it).unwrap().detour)
    });
    assert_eq!(add_five(1, 2), 8);
    assert_eq!(FOUND.load(Relaxed), stub.unwrap() + RETURNS);
    detour.detach_with(&turn.alone).unwrap();
}

#[test]
fn failures_take_no_memory() {
    let dropped = Arc::new(());
    let held = Arc::clone(&dropped);
    let turn = turn();
    let at = address(add_five, 5);
    // SAFETY: it is refused.
    let error = unsafe { MidDetour::attach_closure_with(&turn.alone, at, move |_| drop(held.clone())) };
    assert!(matches!(error, Err(Error::Refused(Refusal::NotBoundary { .. }))));
    assert_eq!(Arc::strong_count(&dropped), 1);
}

#[test]
fn several_at_one_instruction() {
    extern "C" fn ten_more(registers: &mut Registers) {
        *result(registers) += 10;
    }
    extern "C" fn doubled(registers: &mut Registers) {
        *result(registers) *= 2;
    }
    let _turn = turn();
    let at = address(add_five, 4);
    // SAFETY: nothing but RAX is changed, which the function gives back.
    let attach = |function| unsafe { MidDetour::attach(at, function) }.unwrap();
    let (mut older, mut younger) = (attach(ten_more), attach(doubled));
    assert_eq!(add_five(1, 2), 3 * 2 + 10 + 5);
    older.detach().unwrap();
    assert_eq!(add_five(1, 2), 3 * 2 + 5);
    // Now it is the younger one.
    older = attach(ten_more);
    assert_eq!(add_five(1, 2), (3 + 10) * 2 + 5);
    younger.detach().unwrap();
    assert_eq!(add_five(1, 2), 3 + 10 + 5);
    assert_eq!(younger.detach(), Err(Error::NotAttached));
    older.detach().unwrap();
    assert_eq!(add_five(1, 2), 8);
}

/// A detour of the function and one of its first instruction are two things.
#[test]
fn an_entry_has_detours_of_one_kind() {
    let turn = turn();
    let (target, before) = (four_times as Target, text((four_times as Target).address(), 16));
    // SAFETY: both have one signature.
    let attach_entry = || unsafe { Detour::attach_with(&turn.alone, target, add_five) };
    // SAFETY: nothing is changed.
    let attach_inside = || unsafe { MidDetour::attach_with(&turn.alone, target.address(), nothing) };
    let taken = Error::AlreadyDetoured { target: target.address() };
    for _ in 0..2 {
        let mut outer = attach_entry().unwrap();
        assert_eq!(attach_inside().unwrap_err(), taken);
        assert_eq!((four_times(1, 2), outer.original()(1, 2)), (8, 4));
        outer.detach_with(&turn.alone).unwrap();
        let mut inner = attach_inside().unwrap();
        assert_eq!(attach_entry().unwrap_err(), taken);
        assert_eq!(four_times(1, 2), 4);
        inner.detach_with(&turn.alone).unwrap();
        assert_eq!(text(target.address(), 16), before);
    }
}

/// Detours come and go while threads run through the function: at the head of a loop, and in straight code. Some are
/// used again, some are freed meanwhile. Going on elsewhere works from the first moment on.
#[test]
fn it_comes_and_goes_under_threads() {
    static CALLS: AtomicU64 = AtomicU64::new(0);

    extern "C" fn skips(registers: &mut Registers) {
        CALLS.fetch_add(1, Relaxed);
        // To the next instruction, which is displaced, with what this one would have done.
        *ip(registers) += SKIPPED.load(Relaxed) as Word;
        *result(registers) += ADDED.load(Relaxed) as Word;
    }
    static SKIPPED: AtomicU64 = AtomicU64::new(0);
    static ADDED: AtomicU64 = AtomicU64::new(0);

    if !in_a_process_of_its_own("mid::company::it_comes_and_goes_under_threads") {
        return;
    }
    for (target, offset, skipped, added) in [(long_loop as Target, 2, 4, 1), (add_five, 4, 4, 5)] {
        SKIPPED.store(skipped, Relaxed);
        ADDED.store(added, Relaxed);
        let (at, before) = (address(target, offset), text(target.address(), 32));
        let expected = target(9, 5);
        let (stop, calls) = (AtomicBool::new(false), CALLS.load(Relaxed));
        let closures = Arc::new(AtomicU64::new(0));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut wrong = 0;
                        while !stop.load(Relaxed) {
                            wrong += u64::from(target(9, 5) != expected);
                        }
                        wrong
                    })
                })
                .collect();
            let toggle = |round: u32| -> Result<(), Error> {
                let count = Arc::clone(&closures);
                let closure = move |_: &mut Registers| {
                    count.fetch_add(1, Relaxed);
                };
                let mut detour = match round % 8 {
                    // SAFETY: nothing is changed.
                    0 => unsafe { MidDetour::attach_closure(at, closure) },
                    // SAFETY: what is skipped is done by the callback.
                    _ => unsafe { MidDetour::attach(at, skips) },
                }?;
                if round.is_multiple_of(4) {
                    std::thread::sleep(Duration::from_micros(500));
                }
                detour.detach()?;
                if round % 16 == 15 {
                    reclaim(Duration::from_secs(120))?;
                }
                Ok(())
            };
            let outcome = (0..200).try_for_each(toggle);
            stop.store(true, Relaxed);
            let wrong: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            assert_eq!((outcome, wrong), (Ok(()), 0));
        });
        assert!(CALLS.load(Relaxed) > calls && closures.load(Relaxed) > 0);
        assert_eq!((target(9, 5), text(target.address(), 32)), (expected, before));
        reclaim(Duration::from_secs(120)).unwrap();
        assert_eq!(Arc::strong_count(&closures), 1);
    }
}

/// `endbr64` and `endbr32`.
const LANDING_PAD: [u8; 4] = [0xf3, 0x0f, 0x1e, if cfg!(target_arch = "x86") { 0xfb } else { 0xfa }];

/// Nothing is freed while a thread is inside the callback, and everything when it has left.
#[test]
fn what_is_detached_is_freed_when_nobody_is_inside() {
    if !in_a_process_of_its_own("mid::company::what_is_detached_is_freed_when_nobody_is_inside") {
        return;
    }
    let gate = Arc::new((Barrier::new(2), Barrier::new(2)));
    let inside = Arc::clone(&gate);
    let at = address(add_five, 4);
    let wait = move |registers: &mut Registers| {
        inside.0.wait();
        inside.1.wait();
        *result(registers) += 100;
    };
    // SAFETY: nothing but RAX is changed, which the function gives back.
    let mut detour = unsafe { MidDetour::attach_closure(at, wait) }.unwrap();
    let is_it = |record: &&Record| record.target == at;
    let stub = || with_process(|kdetour| Ok(kdetour.records().find(is_it).map(|record| record.detour)));
    let (place, waiting) = (stub().unwrap().unwrap(), std::thread::spawn(|| add_five(1, 2)));
    gate.0.wait();
    let detached = detour.detach();
    let busy = reclaim(Duration::from_millis(50));
    let (kept, code) = (Arc::strong_count(&gate), text(place, 4));
    gate.1.wait();
    assert_eq!((detached, busy, kept), (Ok(()), Err(Error::Busy { calls: 1 }), 2));
    assert_eq!((waiting.join().unwrap(), code), (108, LANDING_PAD.to_vec()));
    assert_eq!((reclaim(Duration::from_secs(20)), Arc::strong_count(&gate)), (Ok(1), 1));
    assert_eq!((stub(), add_five(1, 2)), (Ok(None), 8));
}
