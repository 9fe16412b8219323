//! Nothing is freed while somebody is inside, and everything afterwards.

use crate::support::callers::Callers;
use crate::support::helper::Dice;
use crate::support::runner::{Clock, tell};
use crate::support::sites::{self, Site, original};
use crate::support::system::{text, wait_for};
use crate::support::targets::{LONGEST, PLACES, PROLOGUES, Target, expected, target};
use kdetour::typed::{Function, with_process};
use kdetour::{Error, Protocol, detour, typed};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

static INSIDE: AtomicU32 = AtomicU32::new(0);
static MAY_LEAVE: AtomicU32 = AtomicU32::new(0);

fn sleep_inside() {
    INSIDE.fetch_add(1, SeqCst);
    while MAY_LEAVE.load(SeqCst) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    INSIDE.fetch_sub(1, SeqCst);
}

/// Sleeps in the detour, before it calls the original.
extern "C" fn sleeping_before(first: u64, second: u64) -> u64 {
    sleep_inside();
    original::<0>()(first, second) + 1
}

/// Sleeps in the detour, when the original has answered.
extern "C" fn sleeping_behind(first: u64, second: u64) -> u64 {
    let answer = original::<1>()(first, second) + 1;
    sleep_inside();
    answer
}

/// A target that sleeps: a trampoline's caller is inside the original then.
#[inline(never)]
extern "C" fn sleeping(first: u64, second: u64) -> u64 {
    if MAY_LEAVE.load(SeqCst) == 0 {
        sleep_inside();
    }
    expected(first, second)
}

extern "C" fn through(first: u64, second: u64) -> u64 {
    original::<2>()(first, second) + 1
}

detour! {
    static WITH_STATE: extern "C" fn(first: u64, second: u64) -> u64 = declared;
}

extern "C" fn declared(_: u64, _: u64) -> u64 {
    0
}

struct Flag(Arc<AtomicU32>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

pub(crate) fn sleeping_calls(clock: &Clock) -> String {
    let mut rounds = 0_u64;
    while !clock.is_over() || rounds < 3 {
        for (what, call, detour, number) in [
            ("before the original", target(0, 1), sleeping_before as Target, 0),
            ("behind the original", target(1, 5), sleeping_behind, 1),
            ("in the original", sleeping, through, 2),
        ] {
            tell(what);
            let mut site = Site::new(call.address(), detour.address(), number);
            let before = text(site.target, LONGEST);
            MAY_LEAVE.store(0, SeqCst);
            site.attach(Protocol::Exchange).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let callers: Vec<_> = (0..4).map(|first| thread::spawn(move || call(first, 7))).collect();
            wait_for("calls to be inside", || INSIDE.load(SeqCst) == 4);
            site.detach(Protocol::Exchange).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            assert_eq!(text(site.target, LONGEST), before, "{what}: text");
            stays_busy(what, 1);
            // What cannot be freed can be attached again, and detached.
            site.attach(Protocol::Exchange).unwrap_or_else(|error| panic!("{what}, again: {error:?}"));
            site.detach(Protocol::Exchange).unwrap_or_else(|error| panic!("{what}, again: {error:?}"));
            stays_busy(what, 1);
            MAY_LEAVE.store(1, SeqCst);
            for (first, caller) in callers.into_iter().enumerate() {
                let answer = caller.join().expect("a caller");
                assert_eq!(answer, expected(first as u64, 7) + 1, "{what}");
            }
            assert_eq!(typed::reclaim(Duration::from_secs(10)), Ok(1), "{what}");
        }
        closure();
        rounds += 1;
    }
    format!("{rounds} rounds, 4 calls asleep in each of 4 ways")
}

fn stays_busy(what: &str, draining: usize) {
    let begin = Instant::now();
    let error = typed::reclaim(Duration::from_millis(30)).expect_err("somebody is inside");
    assert!(matches!(error, Error::Busy { .. }), "{what}: {error:?}");
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{what}: a reclaim of 30 ms took {:?}",
        begin.elapsed()
    );
    let left = with_process(|kdetour| Ok(kdetour.len())).expect("nobody is at it");
    assert_eq!(left, draining, "{what}: everything stays");
}

fn closure() {
    let call = target(2, 2);
    tell("in a closure");
    let dropped = Arc::new(AtomicU32::new(0));
    let flag = Flag(Arc::clone(&dropped));
    MAY_LEAVE.store(0, SeqCst);
    let body = Box::new(move |first, second| {
        let _held = &flag;
        sleep_inside();
        assert_eq!(flag.0.load(SeqCst), 0, "dropped while a call is inside");
        WITH_STATE.original()(first, second) + 1
    });
    // SAFETY: the closure may be called in place of the target.
    unsafe { WITH_STATE.attach_by(Protocol::Exchange, call, body) }.expect("attaches");
    let callers: Vec<_> = (0..4).map(|first| thread::spawn(move || call(first, 7))).collect();
    wait_for("calls to be inside", || INSIDE.load(SeqCst) == 4);
    assert_eq!(WITH_STATE.in_flight(), 4);
    WITH_STATE.detach().expect("detaches");
    stays_busy("a closure", 1);
    assert_eq!(dropped.load(SeqCst), 0, "dropped too early");
    // Another one comes while calls are in the old one.
    let second = Arc::new(AtomicU32::new(0));
    let flag = Flag(Arc::clone(&second));
    let body = Box::new(move |first, second| {
        let _held = &flag;
        WITH_STATE.original()(first, second) + 2
    });
    // SAFETY: the closure may be called in place of the target.
    unsafe { WITH_STATE.attach_by(Protocol::Exchange, call, body) }.expect("attaches another one");
    assert_eq!(call(5, 6), expected(5, 6) + 2);
    WITH_STATE.detach().expect("detaches another one");
    assert_eq!((dropped.load(SeqCst), second.load(SeqCst)), (0, 0), "dropped too early");
    MAY_LEAVE.store(1, SeqCst);
    for (first, caller) in callers.into_iter().enumerate() {
        assert_eq!(caller.join().expect("a caller"), expected(first as u64, 7) + 1);
    }
    typed::reclaim(Duration::from_secs(10)).expect("nobody is inside any more");
    assert_eq!((dropped.load(SeqCst), second.load(SeqCst)), (1, 1), "each is dropped once");
}

/// Slots are freed and used again by others while everybody calls.
pub(crate) fn reuse(clock: &Clock) -> String {
    let mut dice = Dice::new(21);
    let (mut freed, mut late, mut calls, mut attaches) = (0_u64, 0_u64, 0, 0_u64);
    let mut rounds = 0;
    while !clock.is_over() || rounds < 2 {
        rounds += 1;
        let some: Vec<Target> =
            (0..6).map(|number| target(number % PROLOGUES.len(), dice.below(PLACES.len()))).collect();
        let callers: Vec<Callers> = some.iter().map(|&call| Callers::start(1, call, sites::either)).collect();
        let until = Instant::now() + Duration::from_millis(1500);
        let mut turn = 0;
        while Instant::now() < until {
            turn += 1;
            let mut all: Vec<Site> = Vec::new();
            for (number, &call) in some.iter().enumerate() {
                let mut site = ADDING[number](call);
                // All kinds of slots.
                if dice.below(3) == 0 {
                    site = site.with(&[sites::EXCHANGE_TRAPPED, sites::EXCHANGE_KEPT][dice.below(2)]);
                }
                let mut attached = site.attach(Protocol::Exchange);
                if let Err(Error::Refused(_) | Error::NoSlot { .. }) = attached {
                    site.shapes = None;
                    attached = site.attach(Protocol::Exchange);
                }
                attached.unwrap_or_else(|error| panic!("attach: {error:?}"));
                attaches += 1;
                all.push(site);
            }
            tell(&format!("round {rounds}, turn {turn}"));
            dice.shuffle(&mut all);
            for site in &mut all {
                site.detach(Protocol::Exchange).unwrap_or_else(|error| panic!("detach: {error:?}"));
            }
            match typed::reclaim(Duration::from_secs(3)) {
                Ok(count) => freed += count as u64,
                Err(Error::Busy { .. } | Error::ThreadNotReached { .. }) => late += 1,
                Err(error) => panic!("reclaim: {error:?}"),
            }
        }
        calls += callers.into_iter().map(Callers::stop).sum::<u64>();
        freed += typed::reclaim(Duration::from_secs(10)).expect("nobody is inside any more") as u64;
    }
    assert!(freed > 0, "nothing was ever freed");
    assert_eq!(freed, attaches, "all that was attached is freed once");
    format!("{attaches} attaches, {freed} freed, {late} reclaims too early, {calls} calls")
}

const ADDING: [fn(Target) -> Site; 6] = [
    Site::adding::<10>,
    Site::adding::<11>,
    Site::adding::<12>,
    Site::adding::<13>,
    Site::adding::<14>,
    Site::adding::<15>,
];
