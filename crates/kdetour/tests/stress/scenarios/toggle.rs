//! Attach and detach while every thread calls: each beginning at each place, beside few and many threads.

use crate::support::callers::Callers;
use crate::support::helper::Dice;
use crate::support::runner::{Clock, tell};
use crate::support::sites::{self, Mode, Site};
use crate::support::system::text;
use crate::support::targets::{LONGEST, PLACES, PROLOGUES, target};
use kdetour::plan::Shape;
use kdetour::{Error, Protocol, typed};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const THREADS: [usize; 4] = [1, 2, 8, 32];
/// How long one combination is toggled.
const SLICE: Duration = Duration::from_millis(60);

pub(crate) fn exchange(clock: &Clock) -> String {
    use sites::{EXCHANGE, EXCHANGE_KEPT, EXCHANGE_TRAPPED, EXCHANGE_WHOLE};
    toggle(clock, &[EXCHANGE, EXCHANGE_WHOLE, EXCHANGE_KEPT, EXCHANGE_TRAPPED])
}

pub(crate) fn live(clock: &Clock) -> String {
    use sites::{LIVE, LIVE_BREAKPOINT, LIVE_JUMP, LIVE_KEPT, LIVE_TRAPPED, LIVE_WHOLE};
    toggle(clock, &[LIVE, LIVE_WHOLE, LIVE_KEPT, LIVE_TRAPPED, LIVE_JUMP, LIVE_BREAKPOINT])
}

pub(crate) fn methods(clock: &Clock) -> String {
    toggle(clock, if cfg!(windows) { &[sites::BREAKPOINT] } else { &[sites::BREAKPOINT, sites::REGISTER] })
}

pub(crate) fn rendezvous(clock: &Clock) -> String {
    toggle(clock, &[sites::RENDEZVOUS, sites::RENDEZVOUS_JUMP])
}

#[derive(Clone, Copy)]
struct Combination {
    mode: usize,
    prologue: usize,
    place: usize,
    threads: usize,
}

impl Combination {
    /// What of it is to be covered soon: its values, and each beginning with each mode.
    fn covers(&self) -> [(usize, usize); 4] {
        [
            (0, self.mode * 100 + self.prologue),
            (1, self.place),
            (2, self.threads * 100 + self.mode),
            (3, self.mode),
        ]
    }
}

/// All of them, in an order in which each value comes soon.
fn combinations(modes: &[Mode]) -> Vec<Combination> {
    let mut all = Vec::new();
    for mode in 0..modes.len() {
        for prologue in 0..PROLOGUES.len() {
            for place in 0..PLACES.len() {
                for threads in 0..THREADS.len() {
                    all.push(Combination { mode, prologue, place, threads });
                }
            }
        }
    }
    Dice::new(4).shuffle(&mut all);
    let mut covered = BTreeSet::new();
    let mut is_new = |one: &Combination| {
        let before = covered.len();
        covered.extend(one.covers());
        covered.len() > before
    };
    let (mut first, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| is_new(one));
    first.extend(rest);
    // Before all each mode once, with what it is possible with, beside few threads.
    let possible = |(number, mode): (usize, &Mode)| {
        let prologue = match mode.shape {
            Some(Shape::WholeInstruction) => 3,
            // The only one that leaves the jump's last byte free, and so the choice of a place wherever a program of 32 bits is.
            Some(Shape::Jump5Kept) if cfg!(all(windows, target_arch = "x86")) => 5,
            _ => number % 3,
        };
        Combination { mode: number, prologue, place: 3 * number % PLACES.len(), threads: number % 2 }
    };
    let mut ordered: Vec<Combination> = modes.iter().enumerate().map(possible).collect();
    // And one beside as many as there ever are.
    ordered.insert(0, Combination { mode: 0, prologue: 0, place: 0, threads: THREADS.len() - 1 });
    ordered.extend(first);
    ordered
}

#[derive(Default)]
struct Totals {
    toggles: u64,
    calls: u64,
    combinations: u64,
    refused: u64,
    /// By mode and shape: toggles and the time that they took.
    rates: BTreeMap<String, (u64, Duration)>,
    refusals: BTreeMap<String, u64>,
}

fn toggle(clock: &Clock, modes: &[Mode]) -> String {
    let mut totals = Totals::default();
    let all = combinations(modes);
    for one in all.iter().cycle() {
        // However slow the machine: each mode at least once.
        let have_run = |mode: &Mode| totals.rates.keys().any(|name| name.starts_with(mode.name));
        if clock.is_over() && (modes.iter().all(have_run) || totals.combinations > all.len() as u64) {
            break;
        }
        slice(one, &modes[one.mode], &mut totals);
    }
    for mode in modes {
        let has_run = totals.rates.keys().any(|name| name.starts_with(mode.name));
        assert!(has_run, "{} was never possible: {:?}", mode.name, totals.refusals);
    }
    let rate = |(name, (count, time)): (&String, &(u64, Duration))| {
        format!("{name} {:.0}/s", *count as f64 / time.as_secs_f64())
    };
    let rates: Vec<String> = totals.rates.iter().map(rate).collect();
    format!(
        "{} toggles, {} calls, {} combinations, {} not possible; {}",
        totals.toggles,
        totals.calls,
        totals.combinations,
        totals.refused,
        rates.join(", ")
    )
}

fn slice(one: &Combination, mode: &Mode, totals: &mut Totals) {
    let count = THREADS[one.threads];
    let what = format!("{}, {}, {}, {count} threads", mode.name, PROLOGUES[one.prologue], PLACES[one.place]);
    tell(&what);
    let target = target(one.prologue, one.place);
    let mut site = Site::adding::<0>(target).with(mode);
    let original = text(site.target, LONGEST);
    let callers = Callers::start(count, target, sites::either);
    let begin = Instant::now();
    let (mut toggles, mut inside) = (0, Duration::ZERO);
    let mut shape = None;
    while begin.elapsed() < SLICE || toggles < 2 {
        let from = Instant::now();
        match site.attach(mode.protocol) {
            Ok(()) => {}
            // What cannot be is refused by name, the first time or never.
            Err(error @ (Error::Refused(_) | Error::NoSlot { .. }))
                if toggles == 0 && mode.shape.is_some() =>
            {
                *totals.refusals.entry(format!("{what}: {error}")).or_default() += 1;
                totals.refused += 1;
                totals.calls += callers.stop();
                assert_eq!(text(site.target, LONGEST), original, "{what}: {error}, and text has changed");
                return;
            }
            // A thread that stands in the window, or runs nowhere, may be in the way of those who need it gone.
            Err(Error::ThreadInWindow { .. } | Error::ThreadNotReached { .. }) if may_wait(mode) => continue,
            Err(error) => panic!("{what}: {error:?} after {toggles} toggles"),
        }
        // The first one reads files and plans.
        inside += if toggles == 0 { Duration::ZERO } else { from.elapsed() };
        if shape.is_none() {
            shape = site.shape();
            assert!(mode.shape.is_none_or(|wanted| Some(wanted) == shape), "{what} became {shape:?}");
        }
        let (first, second) = (toggles, 17);
        let answer = target(first, second);
        assert!(sites::is_detoured(first, second, answer), "{what}: {answer:#x} while attached");
        let from = Instant::now();
        loop {
            match site.detach(mode.protocol) {
                Ok(()) => break,
                Err(Error::ThreadInWindow { .. } | Error::ThreadNotReached { .. }) if may_wait(mode) => {}
                Err(error) => panic!("{what}: detach: {error:?} after {toggles} toggles"),
            }
        }
        inside += if toggles == 0 { Duration::ZERO } else { from.elapsed() };
        let answer = target(first, second);
        assert!(sites::is_original(first, second, answer), "{what}: {answer:#x} while detached");
        toggles += 1;
    }
    totals.calls += callers.stop();
    assert_eq!(text(site.target, LONGEST), original, "{what}: text");
    // Then nobody is inside, and the next combination finds everything free.
    let freed = typed::reclaim(Duration::from_secs(10));
    assert_eq!(freed, Ok(1), "{what}");
    totals.toggles += toggles;
    totals.combinations += 1;
    let shape = shape.map_or("", |shape| shape.name());
    let name = if mode.shape.is_some() { mode.name.to_owned() } else { format!("{} ({shape})", mode.name) };
    let rate = totals.rates.entry(format!("{name} x{count}")).or_default();
    rate.0 += toggles - 1;
    rate.1 += inside;
}

fn may_wait(mode: &Mode) -> bool {
    mode.protocol == Protocol::Rendezvous || mode.shape == Some(Shape::Jump5)
}
