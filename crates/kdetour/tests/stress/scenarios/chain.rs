//! Several detours of one target, and several threads that attach and detach.

use crate::support::callers::Callers;
use crate::support::helper::{Dice, orders};
use crate::support::runner::{Clock, fail, tell};
use crate::support::sites::{self, Site, original};
use crate::support::system::{symbol, text};
use crate::support::targets::{LONGEST, PLACES, PROLOGUES, Target, expected, target};
use kdetour::typed::{Detour, Function};
use kdetour::{AtomicAddress, Error, Protocol, typed};
use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::time::Duration;
use std::{cell::Cell, ffi::c_void, thread};

/// Adds its digit to what is behind the original's answer: who was called first is the last digit.
extern "C" fn digit<const N: usize>(first: u64, second: u64) -> u64 {
    let inner = original::<N>()(first, second);
    // The answers to small arguments leave room for digits.
    (inner & 0xffff_ffff) | (inner >> 32) << 36 | (N as u64 + 1) << 32
}

/// Who was called, in the order in which they answered; none if the original's answer is wrong.
fn digits(first: u64, second: u64, answer: u64) -> Option<Vec<usize>> {
    if answer & 0xffff_ffff != expected(first, second) {
        return None;
    }
    let mut rest = answer >> 32;
    let mut called = Vec::new();
    while rest != 0 {
        called.push(usize::try_from(rest & 15).ok()?.checked_sub(1)?);
        rest >>= 4;
    }
    // The last one is the first that was called.
    called.reverse();
    Some(called)
}

const DIGITS: [Target; 5] = [digit::<0>, digit::<1>, digit::<2>, digit::<3>, digit::<4>];

/// Even while an order holds, odd while it changes.
static EPOCH: AtomicU64 = AtomicU64::new(0);
/// The order in which they are attached in this epoch, and how many.
static ORDER: Mutex<Vec<usize>> = Mutex::new(Vec::new());

struct Checkers {
    stop: AtomicBool,
    calls: AtomicU64,
    checked: AtomicU64,
}

/// Calls, and looks whether those who were called come in the order that they were attached in.
fn check(checkers: &Checkers, call: Target) {
    let mut first = 0;
    while !checkers.stop.load(Relaxed) {
        let epoch = EPOCH.load(SeqCst);
        let order = ORDER.lock().expect("not poisoned").clone();
        if epoch % 2 == 1 || EPOCH.load(SeqCst) != epoch {
            thread::yield_now();
            continue;
        }
        for _ in 0..200 {
            first = (first + 1) % 1000;
            let second = first / 3;
            let answer = black_box(call)(first, second);
            let called = digits(first, second, answer);
            let still = EPOCH.load(SeqCst) == epoch;
            let Some(called) = called else {
                fail(&format!(
                    "wrong: ({first}, {second}) = {answer:#x}, the original's is {:#x}",
                    expected(first, second)
                ))
            };
            if !still {
                break;
            }
            checkers.checked.fetch_add(1, Relaxed);
            let mut rest = order.iter();
            if !called.iter().all(|one| rest.any(|other| other == one)) {
                // The epoch may have ended since.
                if EPOCH.load(SeqCst) == epoch {
                    fail(&format!("called in the order {called:?}, attached in the order {order:?}"));
                }
            }
        }
        checkers.calls.fetch_add(200, Relaxed);
    }
}

pub(crate) fn orders_of_detach(clock: &Clock) -> String {
    let (mut rounds, mut sessions, mut reclaims) = (0_u64, 0_u64, 0_u64);
    let (mut calls, mut checked) = (0, 0);
    let mut dice = Dice::new(5);
    let mut plan = Vec::new();
    for count in [2, 3, 5] {
        for attaching in orders(count) {
            for detaching in orders(count) {
                plan.push((attaching.clone(), detaching));
            }
        }
    }
    dice.shuffle(&mut plan);
    // Few first: all orders of two and three.
    plan.sort_by_key(|(attaching, _)| attaching.len() > 3);
    let mut place = 0;
    let mut work = plan.iter().cycle();
    while rounds < 30 || !clock.is_over() {
        let call = target(place % PROLOGUES.len(), place * 2 % PLACES.len());
        place += 1;
        let original = text(call.address(), LONGEST);
        let mut sites: Vec<Site> =
            (0..5).map(|n| Site::new(call.address(), DIGITS[n].address(), n)).collect();
        for site in &mut sites {
            site.chain = true;
        }
        let checkers =
            Checkers { stop: AtomicBool::new(false), calls: AtomicU64::new(0), checked: AtomicU64::new(0) };
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| check(&checkers, call));
            }
            for (attaching, detaching) in work.by_ref().take(40) {
                tell(&format!("attach {attaching:?}, detach {detaching:?}"));
                *ORDER.lock().expect("not poisoned") = attaching.clone();
                EPOCH.fetch_add(1, SeqCst);
                let mut present: Vec<usize> = Vec::new();
                let is_right = |present: &[usize], when: &str| {
                    let found = digits(3, 4, black_box(call)(3, 4));
                    assert_eq!(found.as_deref(), Some(present), "{when}: {attaching:?} {detaching:?}");
                };
                if rounds % 5 == 4 {
                    // Two in one session.
                    let pair = &attaching[..2];
                    let mut all: Vec<&mut Site> =
                        sites.iter_mut().filter(|site| pair.contains(&site.number)).collect();
                    all.sort_by_key(|site| pair.iter().position(|&one| one == site.number));
                    sites::attach(&mut all, Protocol::Exchange).expect("attaches two");
                    present.extend(pair);
                    sessions += 1;
                    is_right(&present, "two in one session");
                }
                for &one in attaching {
                    if !present.contains(&one) {
                        sites[one]
                            .attach(Protocol::Exchange)
                            .unwrap_or_else(|error| panic!("attach {one}: {error:?}"));
                        present.push(one);
                        is_right(&present, "attaching");
                    }
                }
                if rounds % 7 == 6 {
                    // Two in one session, and one back in front of all.
                    let pair = &detaching[..2];
                    let mut all: Vec<&mut Site> =
                        sites.iter_mut().filter(|site| pair.contains(&site.number)).collect();
                    sites::detach(&all, Protocol::Exchange).expect("detaches two");
                    all.clear();
                    present.retain(|one| !pair.contains(one));
                    sessions += 1;
                    is_right(&present, "detached two");
                }
                for &one in detaching {
                    if present.contains(&one) {
                        sites[one]
                            .detach(Protocol::Exchange)
                            .unwrap_or_else(|error| panic!("detach {one}: {error:?}"));
                        present.retain(|other| *other != one);
                        is_right(&present, "detaching");
                    }
                }
                EPOCH.fetch_add(1, SeqCst);
                assert_eq!(text(call.address(), LONGEST), original, "text");
                rounds += 1;
                if rounds % 6 == 0 {
                    match typed::reclaim(Duration::from_secs(2)) {
                        Ok(_) => reclaims += 1,
                        Err(Error::Busy { .. } | Error::ThreadNotReached { .. }) => {}
                        Err(error) => panic!("reclaim: {error:?}"),
                    }
                }
                if clock.is_over() && rounds >= 30 {
                    break;
                }
            }
            checkers.stop.store(true, Relaxed);
        });
        calls += checkers.calls.load(Relaxed);
        checked += checkers.checked.load(Relaxed);
        typed::reclaim(Duration::from_secs(10)).expect("nobody is inside any more");
    }
    assert!(checked > 1000, "only {checked} calls were checked");
    format!(
        "{rounds} rounds, {sessions} sessions of two, {calls} calls, {checked} checked for order, {reclaims} reclaims"
    )
}

const THREADS: usize = 8;

static SHARED: [AtomicAddress; THREADS] = [const { AtomicAddress::new(0) }; THREADS];

/// Sets its bit.
extern "C" fn bit<const N: usize>(first: u64, second: u64) -> u64 {
    let original = SHARED[N].load(SeqCst);
    let inner = if original == 0 {
        fail("a detour without an original")
    } else {
        crate::support::targets::function(original)
    };
    inner(first, second) | 1 << (40 + N)
}

const BITS: [Target; THREADS] =
    [bit::<0>, bit::<1>, bit::<2>, bit::<3>, bit::<4>, bit::<5>, bit::<6>, bit::<7>];

/// Threads attach and detach detours of one target, and of targets of their own, at once.
pub(crate) fn at_once(clock: &Clock) -> String {
    let common = target(0, 3);
    let before = text(common.address(), LONGEST);
    let toggles = AtomicU64::new(0);
    let calls = AtomicU64::new(0);
    let right = |first: u64, second: u64, answer: u64| answer & 0xff_ffff_ffff == expected(first, second);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (toggles, calls) = (&toggles, &calls);
            scope.spawn(move || {
                let own = target(1 + number % 4, number);
                let mut common_site = Site::new(common.address(), BITS[number].address(), 0);
                common_site.cell = Some(&SHARED[number]);
                common_site.chain = true;
                let mut done = 0;
                while !clock.is_over() || done < 10 {
                    // A typed one on the thread's own target.
                    // SAFETY: both are functions of this program with one signature.
                    let detour = unsafe { Detour::attach(own, own_detour) };
                    let mut detour = detour.unwrap_or_else(|error| panic!("{number}: {error:?}"));
                    assert_eq!(black_box(own)(1, 2), 77, "its own");
                    assert_eq!(detour.original()(1, 2), expected(1, 2), "its own original");
                    common_site
                        .attach(Protocol::Exchange)
                        .unwrap_or_else(|error| panic!("{number}: {error:?}"));
                    for first in 0..50 {
                        let answer = black_box(common)(first, 2);
                        let mine = answer >> (40 + number) & 1 == 1;
                        assert!(right(first, 2, answer) && mine, "{number}: {answer:#x} while attached");
                    }
                    common_site
                        .detach(Protocol::Exchange)
                        .unwrap_or_else(|error| panic!("{number}: {error:?}"));
                    for first in 0..50 {
                        let answer = black_box(common)(first, 2);
                        let mine = answer >> (40 + number) & 1 == 1;
                        assert!(right(first, 2, answer) && !mine, "{number}: {answer:#x} while detached");
                    }
                    detour.detach().unwrap_or_else(|error| panic!("{number}: {error:?}"));
                    assert_eq!(black_box(own)(1, 2), expected(1, 2), "its own again");
                    calls.fetch_add(103, Relaxed);
                    done += 1;
                    toggles.fetch_add(2, Relaxed);
                    if number == 0 && done % 8 == 0 {
                        match typed::reclaim(Duration::from_millis(200)) {
                            Ok(_) | Err(Error::Busy { .. } | Error::ThreadNotReached { .. }) => {}
                            Err(error) => panic!("reclaim: {error:?}"),
                        }
                    }
                }
            });
        }
    });
    assert_eq!(text(common.address(), LONGEST), before, "text");
    format!("{} toggles by {THREADS} threads, {} calls", toggles.load(Relaxed), calls.load(Relaxed))
}

extern "C" fn own_detour(_: u64, _: u64) -> u64 {
    77
}

static NESTED: AtomicU64 = AtomicU64::new(0);
static BUSY: AtomicU64 = AtomicU64::new(0);
static ALLOCATES: AtomicAddress = AtomicAddress::new(0);

/// A function by which kdetour gets memory while it attaches.
const ALLOCATING: &str = if cfg!(windows) { "VirtualAlloc" } else { "malloc" };

type Allocating = extern "system" fn(usize, usize, usize, usize) -> *mut c_void;

thread_local! {
    /// Only the thread that is to try does.
    static TRIES: Cell<bool> = const { Cell::new(false) };
}

/// A detour that detours something else each time that it is called.
extern "C" fn nesting(first: u64, second: u64) -> u64 {
    let other = target(1, 0);
    // SAFETY: both are functions of this program with one signature.
    match unsafe { Detour::attach(other, own_detour) } {
        Ok(mut detour) => {
            detour.detach().unwrap_or_else(|error| panic!("nested: {error:?}"));
            NESTED.fetch_add(1, Relaxed);
        }
        Err(error) => panic!("nested: {error:?}"),
    }
    original::<0>()(first, second)
}

/// A detour of a function that kdetour calls, too: of one argument, or of four.
extern "system" fn allocating(one: usize, two: usize, three: usize, four: usize) -> *mut c_void {
    if TRIES.get() {
        // Not within itself: an attach allocates.
        TRIES.set(false);
        // SAFETY: both are functions of this program with one signature.
        match unsafe { Detour::attach(target(2, 0), own_detour) } {
            Ok(detour) => {
                NESTED.fetch_add(1, Relaxed);
                drop(detour);
            }
            Err(Error::TextBusy) => drop(BUSY.fetch_add(1, Relaxed)),
            Err(error) => panic!("from {ALLOCATING}: {error:?}"),
        }
        TRIES.set(true);
    }
    let code = std::ptr::with_exposed_provenance::<()>(ALLOCATES.load(SeqCst) as usize);
    // SAFETY: the original; one that has fewer arguments leaves the others alone.
    unsafe { std::mem::transmute::<*const (), Allocating>(code)(one, two, three, four) }
}

/// Calls it as others do.
fn allocate() {
    if cfg!(windows) {
        let code = std::ptr::with_exposed_provenance::<()>(symbol(ALLOCATING) as usize);
        // SAFETY: `VirtualAlloc`, for a page of this process, which stays.
        let memory = unsafe { std::mem::transmute::<*const (), Allocating>(code)(0, 4096, 0x3000, 4) };
        assert!(!memory.is_null());
    } else {
        drop(black_box(vec![1_u8; 100]));
    }
}

/// Detours that attach and detach.
pub(crate) fn nested(clock: &Clock) -> String {
    let call = target(0, 6);
    let before = text(call.address(), LONGEST);
    let mut site = Site::new(call.address(), (nesting as Target).address(), 0);
    let callers = Callers::start(2, call, sites::is_original);
    let mut toggles = 0_u64;
    let half = clock.part(2);
    while !half.is_over() || toggles < 10 {
        site.attach(Protocol::Exchange).unwrap_or_else(|error| panic!("{error:?}"));
        callers.wait_for_calls(64);
        site.detach(Protocol::Exchange).unwrap_or_else(|error| panic!("{error:?}"));
        toggles += 1;
    }
    let calls = callers.stop();
    let nested = NESTED.load(Relaxed);
    assert!(nested > 0, "nothing was nested");

    // The next slot needs memory of its own.
    typed::reclaim(Duration::from_secs(10)).expect("nobody is inside any more");
    tell("a detour of what allocates that attaches while its own thread attaches");
    let detour = allocating as Allocating;
    let mut allocates = Site::new(symbol(ALLOCATING), detour.address(), 1);
    allocates.cell = Some(&ALLOCATES);
    allocates.attach(Protocol::Exchange).unwrap_or_else(|error| panic!("{ALLOCATING}: {error:?}"));
    TRIES.set(true);
    let mut other = Site::adding::<2>(target(3, 0));
    for _ in 0..20 {
        other.attach(Protocol::Exchange).unwrap_or_else(|error| panic!("{error:?}"));
        assert!(sites::is_detoured(1, 2, target(3, 0)(1, 2)));
        other.detach(Protocol::Exchange).unwrap_or_else(|error| panic!("{error:?}"));
        allocate();
    }
    TRIES.set(false);
    allocates.detach(Protocol::Exchange).unwrap_or_else(|error| panic!("{ALLOCATING}: {error:?}"));
    let busy = BUSY.load(Relaxed);
    assert!(busy > 0, "kdetour's own allocations were never asked");
    assert!(NESTED.load(Relaxed) > nested, "others were never answered");
    assert_eq!(text(call.address(), LONGEST), before, "text");
    format!(
        "{toggles} toggles, {calls} calls, {} nested, {busy} refused inside kdetour",
        NESTED.load(Relaxed)
    )
}
