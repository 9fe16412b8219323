//! What the model shows.

use super::super::simulated::{Event, Faults, Written};
use super::super::sites::{FAR, FAR_TOO, NEAR, NEAR_TOO, Site, T};
use super::super::{Protocol, SHAPES};
use super::Step;
use super::scenario::{Act, Life, role};
use kdetour_plan::Shape;
use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::vec::Vec;

const PROTOCOLS: [Protocol; 3] = [Protocol::Live, Protocol::Exchange, Protocol::Rendezvous];
const DETOURS: [u64; 4] = [NEAR, NEAR_TOO, FAR, FAR_TOO];

/// In, elsewhere and back, out, in again, out, away: and a thread may stand on a boundary all the time.
#[test]
fn no_order_of_events_leads_astray() {
    for protocol in PROTOCOLS {
        let mut retargets = 0;
        for site in protocol.shapes().iter().flat_map(|shape| Site::all(shape, &[NEAR, FAR])) {
            let mut life = Life::new(&site, protocol);
            life.commit(Act::Attach);
            let mut last = site.patch.detour();
            for detour in DETOURS.into_iter().filter(|detour| *detour != site.patch.detour()) {
                if life.commit(Act::Retarget(detour)).is_some() {
                    life.free_detour(last);
                    last = detour;
                    retargets += 1;
                }
            }
            life.commit(Act::Detach);
            life.commit(Act::Attach);
            life.commit(Act::Detach);
            life.reclaim();
            assert_eq!(life.explore(), Ok(()), "{protocol:?}, {:x?}", site.patch);
        }
        assert!(retargets > 100, "{retargets}");
    }
}

/// What a step is for: it is named by the write that it is, or that it follows.
fn name(steps: &[Step], at: usize, site: &Site) -> Option<String> {
    let written = |at: usize| match &steps[at] {
        Step::Did(Event::Exchange(_)) => Some("exchange"),
        Step::Did(event) => role(event, site),
        _ => None,
    };
    let Step::Did(event) = &steps[at] else { return None };
    Some(match event {
        Event::Write { .. } | Event::Exchange(_) => written(at)?.into(),
        Event::Sync => format!("sync after {}", (0..at).rev().find_map(written)?),
        Event::Quiesce(_) => "quiesce".into(),
        Event::Park(_) => "park".into(),
        Event::Lock | Event::Unlock | Event::Prepare | Event::Release => return None,
    })
}

/// Leaves out each step of each commit, in each function. For each kind of step: in how many functions that leads
/// astray, and in how many it does not.
fn left_out(protocol: Protocol) -> BTreeMap<String, (usize, usize)> {
    let mut table: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for site in protocol.shapes().iter().flat_map(|shape| Site::all(shape, &[FAR])) {
        for act in ["attach", "retarget", "detach"] {
            let mut life = Life::new(&site, protocol);
            let mut span = life.commit(Act::Attach).unwrap();
            if act == "retarget" {
                span =
                    life.commit(Act::Retarget(NEAR)).or_else(|| life.commit(Act::Retarget(FAR_TOO))).unwrap();
                life.free_detour(FAR);
            }
            let detached = life.commit(Act::Detach).unwrap();
            if act == "detach" {
                span = detached;
            }
            life.reclaim();
            assert_eq!(life.explore(), Ok(()));
            for step in span.0..span.1 {
                let Some(name) = name(&life.steps, step, life.site()) else { continue };
                let mut fewer = life.steps.clone();
                fewer.remove(step);
                let what = format!("{act} {}: {name}", site.patch.shape());
                let (astray, not) = table.entry(what).or_default();
                *(if life.explore_other(&fewer).is_err() { astray } else { not }) += 1;
            }
        }
    }
    table
}

/// Asserts that every kind of step is needed everywhere, but for these: needed in some functions only, or in none.
fn assert_needed(protocol: Protocol, in_some: &[&str], in_none: &[&str]) {
    let table = left_out(protocol);
    assert!(table.len() > 30, "{}", table.len());
    let found = |wanted: fn(&(usize, usize)) -> bool| -> Vec<&str> {
        table.iter().filter(|(_, count)| wanted(count)).map(|(what, _)| what.as_str()).collect()
    };
    assert_eq!(found(|&(astray, not)| astray > 0 && not > 0), in_some);
    assert_eq!(found(|&(astray, _)| astray == 0), in_none);
}

/// Leave out any one step, and there is a way to crash, or calls do not get where they should.
///
/// Not everywhere: behind a breakpoint that is not needed where the first instruction is one byte, since the boundary
/// behind it traps; a cave's sync where those of the window follow before anything leads to the cave; and a sync
/// between bytes of a window none of which is an operand. The sync behind the boundaries of a detach is never needed: a
/// boundary that still seems to trap is still answered. It stays, so that nobody who enters a target that is whole
/// again meets a breakpoint there.
#[test]
fn every_step_of_a_live_commit_is_needed() {
    assert_needed(
        Protocol::Live,
        &[
            "attach Jump5Trapped: the INT3",
            "attach ShortJump: sync after the cave",
            "detach Jump5Trapped: sync after the others",
        ],
        &["detach Jump5Trapped: sync after a boundary"],
    );
}

/// But for a breakpoint that is led elsewhere: the byte that is stored is the one that was there, and the answer is what changes.
#[test]
fn every_step_of_an_exchange_is_needed() {
    assert_needed(Protocol::Exchange, &[], &["retarget Breakpoint: sync after the first byte"]);
}

/// Nobody need be parked while one byte is stored.
#[test]
fn every_step_of_a_rendezvous_is_needed() {
    assert_needed(
        Protocol::Rendezvous,
        &[
            "attach Jump5Kept: park",
            "attach Jump5Trapped: the INT3",
            "detach Jump5Kept: park",
            "detach ShortJump: park",
        ],
        &["attach Breakpoint: park", "detach Breakpoint: park", "retarget Breakpoint: park"],
    );
}

/// A life in which a change is committed, taken back, and everything freed.
fn in_and_out(site: &Site, protocol: Protocol) -> Life {
    let mut life = Life::new(site, protocol);
    life.commit(Act::Attach);
    life.commit(Act::Detach);
    life.reclaim();
    assert_eq!(life.explore(), Ok(()));
    life
}

#[test]
fn a_quiesce_is_for_interior_boundaries() {
    for site in SHAPES.iter().flat_map(|shape| Site::all(shape, &[FAR])) {
        let life = in_and_out(&site, Protocol::Live);
        let boundaries = site.patch.boundaries().count() - 1;
        let quiesces = life.steps.iter().filter(|step| matches!(step, Step::Did(Event::Quiesce(_)))).count();
        assert_eq!(quiesces, usize::from(site.patch.shape().needs_quiesce()));
        // It waits for each of them.
        for left_out in 0..boundaries * quiesces {
            let mut steps = life.steps.clone();
            for step in &mut steps {
                if let Step::Did(Event::Quiesce(places)) = step {
                    assert_eq!(places.len(), boundaries);
                    places.remove(left_out);
                }
            }
            assert!(life.explore_other(&steps).is_err(), "without {left_out}");
        }
    }
}

/// A rendezvous moves threads only where they may not stay.
#[test]
fn moves_are_for_interior_boundaries() {
    for site in SHAPES.iter().flat_map(|shape| Site::all(shape, &[FAR])) {
        let life = in_and_out(&site, Protocol::Rendezvous);
        let mut steps = life.steps.clone();
        for step in &mut steps {
            if let Step::Did(Event::Park(moves)) = step {
                moves.clear();
            }
        }
        assert_eq!(life.explore_other(&steps).is_err(), site.patch.shape().needs_quiesce());
    }
}

/// Every answer is needed: at the first byte, at the jump that is led elsewhere, on the boundaries that trap.
#[test]
fn answers_are_needed() {
    for protocol in PROTOCOLS {
        for site in protocol.shapes().iter().map(|shape| Site::one(shape, T)) {
            let mut life = Life::new(&site, protocol);
            life.commit(Act::Attach);
            life.commit(Act::Retarget(NEAR)).or_else(|| life.commit(Act::Retarget(FAR_TOO)));
            life.commit(Act::Detach);
            life.reclaim();
            assert_eq!(life.explore(), Ok(()));
            let places: Vec<u64> = life
                .steps
                .iter()
                .filter_map(|step| if let Step::Answer(answers) = step { Some(answers.keys()) } else { None })
                .flatten()
                .copied()
                .collect();
            let traps: Vec<u64> = match site.patch.shape() {
                Shape::Jump5Trapped => site.patch.boundaries().map(|one| T + u64::from(one.offset)).collect(),
                _ => Vec::new(),
            };
            for place in places {
                let mut steps = life.steps.clone();
                for step in &mut steps {
                    if let Step::Answer(answers) = step {
                        answers.remove(&place);
                    }
                }
                // Without one nothing is met but a boundary; but for an interrupt, nothing at a rendezvous either.
                let one_byte = site.attach().is_one_byte() && place == T;
                let needed = match protocol {
                    Protocol::Exchange => {
                        let stays = site.patch.shape() == Shape::Breakpoint && place == T;
                        stays || traps.iter().skip(1).any(|trap| *trap == place)
                    }
                    _ => !one_byte || site.patch.shape() == Shape::Breakpoint,
                };
                let astray = life.explore_other(&steps);
                assert_eq!(
                    astray.is_err(),
                    needed,
                    "{protocol:?} {} {place:x}: {astray:?}",
                    site.patch.shape()
                );
            }
        }
    }
}

/// What was freed is run by somebody, unless a drain was waited for.
#[test]
fn drains_are_needed() {
    for protocol in PROTOCOLS {
        for site in protocol.shapes().iter().map(|shape| Site::one(shape, T)) {
            let mut life = Life::new(&site, protocol);
            life.commit(Act::Attach);
            if life.commit(Act::Retarget(FAR_TOO)).is_some() {
                life.free_detour(FAR);
            }
            life.commit(Act::Detach);
            life.reclaim();
            let drains: Vec<usize> =
                (0..life.steps.len()).filter(|&at| life.steps[at] == Step::Drain).collect();
            for drain in drains {
                let mut steps = life.steps.clone();
                steps.remove(drain);
                assert!(life.explore_other(&steps).is_err(), "{protocol:?} {}", site.patch.shape());
            }
        }
    }
}

/// Moves the steps for which `moved` holds behind the last one for which `behind` does, each part followed by a sync.
fn reordered(steps: &[Step], moved: impl Fn(&Step) -> bool, behind: impl Fn(&Step) -> bool) -> Vec<Step> {
    let last = steps.iter().rposition(behind).unwrap();
    let (late, mut early): (Vec<Step>, Vec<Step>) = steps[..=last].iter().cloned().partition(moved);
    assert!(!late.is_empty());
    early.push(Step::Did(Event::Sync));
    early.extend(late);
    early.push(Step::Did(Event::Sync));
    early.extend_from_slice(&steps[last + 1..]);
    early
}

/// A boundary traps before the bytes behind it change, and until they are back, or somebody fetches half of each.
#[test]
fn boundaries_trap_before_the_bytes_behind_them_change() {
    let mut functions = 0;
    for site in Site::all(Shape::Jump5Trapped, &[FAR]) {
        let is = |wanted: &'static str| {
            let site = &site;
            move |step: &Step| matches!(step, Step::Did(event) if role(event, site) == Some(wanted))
        };
        // Whether an operand behind a boundary changes.
        let first = usize::try_from(site.instructions[1].0 - T).unwrap();
        let is_boundary = |offset: usize| site.instructions.iter().any(|(at, _)| *at == T + offset as u64);
        let between = |offset: &usize| {
            let changes = site.patch.new_bytes()[*offset] != site.patch.window_bytes()[*offset];
            changes && !is_boundary(*offset)
        };
        let operands: Vec<usize> = (first..5).filter(between).collect();
        if operands.is_empty() {
            continue;
        }
        functions += 1;
        let mut life = Life::new(&site, Protocol::Live);
        let (_, attached) = life.commit(Act::Attach).unwrap();
        let mut steps = reordered(&life.steps[..attached], is("a boundary"), is("the others"));
        steps.extend_from_slice(&life.steps[attached..]);
        assert!(life.explore_other(&steps).is_err(), "{:x?}", site.patch);

        let (start, _) = life.commit(Act::Detach).unwrap();
        life.reclaim();
        let mut steps = life.steps[..start].to_vec();
        steps.extend(reordered(&life.steps[start..], is("the others"), is("a boundary")));
        assert!(life.explore_other(&steps).is_err(), "{:x?}", site.patch);

        // And by exchange: at one moment, not the operands at another.
        let mut life = in_and_out(&site, Protocol::Exchange);
        let at = life.steps.iter().position(|step| matches!(step, Step::Did(Event::Exchange(_)))).unwrap();
        let byte = |offset: usize| (T + offset as u64, [site.patch.new_bytes()[offset]].to_vec());
        let earlier = operands.into_iter().map(byte).collect();
        life.steps.insert(at, Step::Did(Event::Exchange(earlier)));
        assert!(life.explore().is_err(), "{:x?}", site.patch);
    }
    assert!(functions > 20, "{functions}");
}

/// What needs a quiesce cannot be exchanged: somebody may stand on what changes.
#[test]
fn what_is_exchanged_keeps_its_boundaries_or_lets_them_trap() {
    for shape in [Shape::Jump5, Shape::Jump14] {
        for site in Site::all(shape, &[FAR]) {
            let mut life = Life::new(&site, Protocol::Live);
            let (start, end) = life.commit(Act::Attach).unwrap();
            let window = (T, site.patch.new_bytes().to_vec());
            let steps = [Event::Exchange([window].to_vec()), Event::Sync].map(Step::Did);
            life.steps.splice(start..end, steps);
            assert!(life.explore().is_err());
        }
    }
}

/// A cave is filled before the window leads there, and given back when nobody can be on the way.
#[test]
fn caves_are_filled_first_and_given_back_last() {
    for protocol in PROTOCOLS {
        for site in Site::all(Shape::ShortJump, &[NEAR, FAR]) {
            let is_cave =
                |step: &Step| matches!(step, Step::Did(event) if role(event, &site) == Some("the cave"));
            let mut life = Life::new(&site, protocol);
            let (_, end) = life.commit(Act::Attach).unwrap();
            // As if the window were written first.
            let mut steps = life.steps[..end].to_vec();
            let cave = steps.iter().position(is_cave).unwrap();
            let cave = steps.remove(cave);
            steps.push(cave);
            assert!(life.explore_other(&steps).is_err());
            let (_, end) = life.commit(Act::Detach).unwrap();
            let reclaim = life.reclaim();
            assert_eq!(life.explore(), Ok(()));
            // As if the detach gave it back.
            let mut steps = life.steps.clone();
            let cave = reclaim + steps[reclaim..].iter().position(is_cave).unwrap();
            let cave = steps.remove(cave);
            steps.insert(end, cave);
            assert!(life.explore_other(&steps).is_err());
        }
    }
}

/// Whatever fails is taken back, in an order that is safe itself; and what cannot be taken back is safe as it is.
#[test]
fn failures_are_taken_back() {
    let mut failures = 0;
    for protocol in PROTOCOLS {
        let sites = protocol.shapes().iter().flat_map(|shape| {
            // Some functions: all lengths of first instructions are among them.
            Site::all(shape, &[NEAR, FAR]).into_iter().step_by(31)
        });
        for site in sites {
            for act in [Act::Attach, Act::Retarget(NEAR_TOO), Act::Retarget(FAR_TOO), Act::Detach] {
                let none = Faults::default();
                let others = [
                    Faults { quiesce: true, ..none },
                    Faults { prepare: true, ..none },
                    Faults { exchange: true, ..none },
                ];
                let mut met = |faults: &[Faults]| {
                    let met = faults.iter().filter(|fault| fail(&site, protocol, act, **fault)).count();
                    failures += met;
                    met > 0
                };
                met(&others);
                for write in 0..20 {
                    assert!(write < 19);
                    if !met(&faults(write, act == Act::Detach)) {
                        break;
                    }
                }
            }
        }
    }
    assert!(failures > 500, "{failures}");
}

/// The ways in which a write fails.
fn faults(write: usize, quiesces_back: bool) -> Vec<Faults> {
    let mut faults = Vec::new();
    for written in [Written::Nothing, Written::Half, Written::All] {
        let once = Faults { write: Some(write), written, ..Faults::default() };
        faults.extend([once, Faults { lasting: Some(T - 64), ..once }]);
        if quiesces_back {
            faults.push(Faults { quiesce: true, ..once });
        }
    }
    faults
}

/// Whether the fault was met.
fn fail(site: &Site, protocol: Protocol, act: Act, faults: Faults) -> bool {
    let mut life = Life::new(site, protocol);
    if act != Act::Attach {
        life.commit(Act::Attach);
    }
    let memory = life.machine().memory();
    let start = life.steps.len();
    let Some(error) = life.fail(act, faults) else { return false };
    let case = || format!("{protocol:?} {act:?} {faults:?} {:x?}", site.patch);
    if !error.written {
        assert_eq!(life.machine().memory(), memory, "{}", case());
    }
    // Bytes behind a relay that did not become longer are nobody's; and a cave stays filled until it is reclaimed.
    let lead = site.patch.lead();
    let nobodys =
        |at: u64| at.wrapping_sub(lead.address) < 14 && at - lead.address >= lead.bytes().len() as u64;
    let after = life.machine().memory();
    let window = T..T + site.memory[1].1.len() as u64;
    let restored = after.iter().all(|(at, byte)| {
        memory[at] == *byte || nobodys(*at) && !window.contains(at) || *at < T && act == Act::Attach
    });
    let stuck = faults.lasting.is_some() || faults.quiesce && act == Act::Detach;
    assert!(restored || stuck, "not taken back: {}", case());
    if restored {
        life.steps.push(life.expectation());
        if act != Act::Attach {
            life.commit(Act::Detach);
        }
        life.reclaim();
        let text = |life: &Life| {
            life.machine().memory().into_iter().filter(|(at, _)| *at < window.end && *at > T - 16)
        };
        assert!(text(&life).eq(text(&Life::new(site, protocol))), "{}", case());
    }
    assert_eq!(life.explore(), Ok(()), "{}", case());
    // A detach that fails when calls may be inside again waits for them.
    let quiesce = |step: &Step| matches!(step, Step::Did(Event::Quiesce(_)));
    if act == Act::Detach && protocol == Protocol::Live {
        let waited: Vec<usize> = (start..life.steps.len()).filter(|&at| quiesce(&life.steps[at])).collect();
        for at in waited {
            let mut steps = life.steps.clone();
            steps.remove(at);
            // Only if the original was written was it needed.
            assert_eq!(life.explore_other(&steps).is_err(), faults.written == Written::All, "{}", case());
        }
    }
    true
}
