//! What each protocol writes, in which order, and what it does when that fails.

use super::simulated::{Event, Faults, Machine, Written};
use super::sites::{FAR, FAR_TOO, NEAR, NEAR_TOO, Site, T};
use super::{Change, Preempted, Protocol, SHAPES, restore_caves};
use crate::Error;
use kdetour_plan::{Refusal, Shape};
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

const PROTOCOLS: [Protocol; 4] = [Protocol::Live, Protocol::Rendezvous, Protocol::Exchange, Protocol::Local];

/// What was done, in short; addresses are distances from the target, or from its relay.
fn told(events: &[Event], site: &Site) -> Vec<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let place = |at: u64| match site.patch.relay().map(|relay| at.wrapping_sub(relay)) {
        Some(distance @ 0..14) => format!("relay+{distance}"),
        _ => format!("{:+}", at.wrapping_sub(T).cast_signed()),
    };
    let one = |event: &Event| match event {
        Event::Write { address, bytes } => format!("{} {}", place(*address), hex(bytes)),
        Event::Exchange(writes) => {
            let all = writes.iter().map(|(address, bytes)| format!(" {} {}", place(*address), hex(bytes)));
            format!("exchange{}", all.collect::<String>())
        }
        Event::Quiesce(places) => {
            format!("quiesce{}", places.iter().map(|at| format!(" {}", place(*at))).collect::<String>())
        }
        Event::Park(moves) => format!("park {}", moves.len()),
        Event::Lock => "lock".into(),
        Event::Unlock => "unlock".into(),
        Event::Prepare => "prepare".into(),
        Event::Sync => "sync".into(),
        Event::Release => "release".into(),
    };
    events.iter().map(one).collect()
}

fn commit(machine: &Machine, site: &Site, protocol: Protocol, change: Change) -> Vec<String> {
    let (events, outcome) = machine.commit(protocol, &[change]);
    assert_eq!(outcome, Ok(()));
    told(&events, site)
}

#[test]
fn a_free_jump_is_written_behind_a_quiesce() {
    let site = Site::one(Shape::Jump5, T);
    let machine = Machine::new(&site.memory);
    assert_eq!(
        commit(&machine, &site, Protocol::Live, site.attach()),
        ["lock", "+0 cc", "sync", "quiesce +1 +4", "+1 06800000", "sync", "+0 e9", "sync", "unlock"]
    );
    assert_eq!(
        commit(&machine, &site, Protocol::Live, site.detach()),
        ["lock", "+0 cc", "sync", "+1 4889e541", "sync", "+0 55", "sync", "unlock"]
    );
    assert_eq!(
        commit(&machine, &site, Protocol::Rendezvous, site.attach()),
        ["park 2", "+0 cc", "+1 06800000", "+0 e9", "release"]
    );
    assert_eq!(commit(&machine, &site, Protocol::Local, site.detach()), ["+0 554889e541", "sync"]);
}

#[test]
fn boundaries_that_trap_come_first_and_go_last() {
    let site = Site::one(Shape::Jump5Trapped, T);
    let machine = Machine::new(&site.memory);
    let new = site.patch.new_bytes();
    let between = format!("+2 {:02x}{:02x}", new[2], new[3]);
    assert_eq!(
        commit(&machine, &site, Protocol::Live, site.attach()),
        ["lock", "+0 cc", "+1 cc", "+4 cc", "sync", &between, "sync", "+0 e9", "sync", "unlock"]
    );
    assert_eq!(
        commit(&machine, &site, Protocol::Live, site.detach()),
        ["lock", "+0 cc", "sync", "+2 89e5", "sync", "+1 48", "+4 41", "sync", "+0 55", "sync", "unlock"]
    );
    let exchanged = format!("exchange +0 e9cc{:02x}{:02x}cc", new[2], new[3]);
    assert_eq!(
        commit(&machine, &site, Protocol::Exchange, site.attach()),
        ["lock", "prepare", &exchanged, "sync", "unlock"]
    );
}

#[test]
fn one_byte_is_one_store() {
    for (shape, byte) in [(Shape::Jump5Kept, "+0 e9"), (Shape::Breakpoint, "+0 cc")] {
        let site = Site::one(shape, T);
        assert!(site.attach().is_one_byte() && site.detach().is_one_byte());
        let machine = Machine::new(&site.memory);
        let stored = ["lock", byte, "sync", "unlock"];
        let taken_out = ["lock", "+0 55", "sync", "unlock"];
        assert_eq!(commit(&machine, &site, Protocol::Live, site.attach()), stored);
        assert_eq!(commit(&machine, &site, Protocol::Live, site.detach()), taken_out);
        assert_eq!(commit(&machine, &site, Protocol::Rendezvous, site.attach()), ["park 0", byte, "release"]);
        // Whatever is attached can be taken out by an exchange.
        assert_eq!(commit(&machine, &site, Protocol::Exchange, site.detach()), taken_out);
    }
}

#[test]
fn a_cave_is_filled_before_and_given_back_later() {
    let site = Site::one(Shape::ShortJump, T);
    let machine = Machine::new(&site.memory);
    let cave = format!("-5 {}", site.patch.cave().unwrap().new.map(|byte| format!("{byte:02x}")).concat());
    assert_eq!(
        commit(&machine, &site, Protocol::Live, site.attach()),
        ["lock", &cave, "sync", "+0 cc", "sync", "+1 f9", "sync", "+0 eb", "sync", "unlock"]
    );
    let patches = [site.patch];
    let restore = || restore_caves(&mut machine.text(), patches.iter());
    assert_eq!(
        commit(&machine, &site, Protocol::Live, site.detach()),
        ["lock", "+0 cc", "sync", "+1 57", "sync", "+0 41", "sync", "unlock"]
    );
    // It can be attached again as it is: the cave still holds the jump.
    commit(&machine, &site, Protocol::Live, site.attach());
    commit(&machine, &site, Protocol::Live, site.detach());
    machine.poke(T - 3, 0x12);
    let changed = Error::Changed { address: T - 3, expected: 0x90, found: 0x12 };
    assert_eq!(restore(), Err(changed));
    let (events, outcome) = machine.commit(Protocol::Live, &[site.attach()]);
    assert_eq!((events.len(), outcome.unwrap_err().error), (2, changed));
    machine.poke(T - 3, 0x90);
    assert_eq!(restore(), Ok(()));
    assert_eq!(machine.memory(), Machine::new(&site.memory).memory());
}

/// The jump that leads to the detour, in both of its forms, and in the window.
#[test]
fn a_patch_is_led_elsewhere() {
    let far = Site::one(Shape::Jump5Kept, T);
    let (near, far_too) = (far.leading_to(NEAR).unwrap(), far.leading_to(FAR_TOO).unwrap());
    let machine = Machine::new(&far.memory);
    let lead = |from: &Site, to: &Site| {
        commit(&machine, &far, Protocol::Live, Change::retarget(from.patch, to.patch))
    };
    let jump = near.patch.lead().bytes()[1..5].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    // jmp [rip+0] and a pointer; the pointer; jmp rel32; jmp [rip+0], and a pointer that is there already
    assert_eq!(
        lead(&far, &far_too),
        ["lock", "relay+0 cc", "sync", "relay+6 cdab89674523", "sync", "relay+0 ff", "sync", "unlock"]
    );
    let near_again = format!("relay+1 {jump}");
    assert_eq!(
        lead(&far_too, &near),
        ["lock", "relay+0 cc", "sync", &near_again, "sync", "relay+0 e9", "sync", "unlock"]
    );
    // What is behind a short jump is not relied on.
    machine.poke(far.patch.relay().unwrap() + 9, 0x77);
    assert_eq!(
        lead(&near, &far),
        [
            "lock",
            "relay+0 cc",
            "sync",
            "relay+1 2500000000bc9a785634120000",
            "sync",
            "relay+0 ff",
            "sync",
            "unlock"
        ]
    );
    let relay = far.memory.last().unwrap();
    assert!(relay.1[..14].iter().zip(relay.0..).all(|(byte, at)| machine.memory()[&at] == *byte));

    let direct = Site::all(Shape::Jump5, &[NEAR]).remove(0);
    let machine = Machine::new(&direct.memory);
    commit(&machine, &direct, Protocol::Live, direct.attach());
    let other = direct.leading_to(NEAR_TOO).unwrap();
    let change = Change::retarget(direct.patch, other.patch);
    assert!(!change.needs_quiesce());
    let written = commit(&machine, &direct, Protocol::Live, change);
    assert_eq!(written.iter().filter(|line| line.starts_with('+')).count(), 3, "{written:?}");
    commit(&machine, &direct, Protocol::Live, other.detach());

    // A breakpoint is led elsewhere by its answer.
    let site = Site::one(Shape::Breakpoint, T);
    let machine = Machine::new(&site.memory);
    commit(&machine, &site, Protocol::Live, site.attach());
    let change = Change::retarget(site.patch, site.leading_to(NEAR).unwrap().patch);
    assert_eq!(commit(&machine, &site, Protocol::Live, change), ["lock", "unlock"]);
}

/// What an exchange refuses, it refuses before it prepares anything.
#[test]
fn an_exchange_refuses_what_may_be_stood_on() {
    for shape in [Shape::Jump5, Shape::Jump14] {
        let sites = [Site::one(Shape::Jump5Kept, T + 0x10_0000), Site::one(shape, T)];
        let machine = Machine::new(&sites.each_ref().map(|site| site.memory.clone()).concat());
        let changes = sites.each_ref().map(Site::attach);
        let (events, outcome) = machine.commit(Protocol::Exchange, &changes);
        let error = outcome.unwrap_err();
        let refused = Error::Refused(Refusal::NoShape { address: T });
        assert_eq!((error.index, error.error, error.written), (1, refused, false));
        assert_eq!(events, [Event::Lock, Event::Unlock]);
        assert!(!Protocol::Exchange.shapes().contains(shape));
    }
}

/// What is stored in a page that is exchanged would be lost: it is exchanged with it.
#[test]
fn pages_are_exchanged_with_everything_that_is_written_in_them() {
    // Both in one page, and one in another.
    let kept = Site::one(Shape::Jump5Kept, T + 0x40);
    let long = Site::one(Shape::WholeInstruction, T);
    let other = Site::one(Shape::Jump5Kept, T + 0x1000);
    let short = Site::one(Shape::ShortJump, T + 0x80);
    let sites = [&kept, &long, &other, &short];
    let machine = Machine::new(&sites.map(|site| site.memory.clone()).concat());
    let before = machine.memory();
    let (events, outcome) = machine.commit(Protocol::Exchange, &sites.map(Site::attach));
    assert_eq!(outcome, Ok(()));
    let writes: Vec<u64> = events
        .iter()
        .filter_map(|event| if let Event::Write { address, .. } = event { Some(*address) } else { None })
        .collect();
    assert_eq!(writes, [T + 0x80 - 5, T + 0x1000]);
    let exchanged = events.iter().find_map(|event| match event {
        Event::Exchange(writes) => Some(writes.iter().map(|(address, _)| *address).collect()),
        _ => None,
    });
    assert_eq!(exchanged, Some(vec![T + 0x40, T, T + 0x80 - 5, T + 0x80]));
    assert!(sites.iter().all(|site| {
        let new = (site.patch.address()..).zip(site.patch.new_bytes());
        new.into_iter().all(|(at, byte)| machine.memory()[&at] == *byte)
    }));
    let (_, outcome) = machine.commit(Protocol::Exchange, &sites.map(Site::detach));
    assert_eq!(outcome, Ok(()));
    let patches = sites.map(|site| site.patch);
    restore_caves(&mut machine.text(), patches.iter()).unwrap();
    assert_eq!(machine.memory(), before);
}

/// One function of every shape that a protocol writes, each somewhere else.
fn set(protocol: Protocol) -> Vec<Site> {
    let shapes = protocol.shapes().iter().zip(1..);
    shapes.map(|(shape, place)| Site::one(shape, T + place * 0x10_0000)).collect()
}

/// As [`set`], many of each, in a machine.
fn machine_of(sites: &[Site]) -> Machine {
    Machine::new(&sites.iter().flat_map(|site| site.memory.clone()).collect::<Vec<_>>())
}

#[test]
fn a_set_shares_its_syncs() {
    let sites = set(Protocol::Live);
    let machine = machine_of(&sites);
    let count =
        |events: &[Event], wanted: fn(&Event) -> bool| events.iter().filter(|one| wanted(one)).count();
    let sync = |event: &Event| *event == Event::Sync;
    let quiesce = |event: &Event| matches!(event, Event::Quiesce(_));
    let (events, _) = machine.commit(Protocol::Live, &sites.iter().map(Site::attach).collect::<Vec<_>>());
    assert_eq!((count(&events, sync), count(&events, quiesce)), (4, 1));
    let (events, _) = machine.commit(Protocol::Live, &sites.iter().map(Site::detach).collect::<Vec<_>>());
    assert_eq!((count(&events, sync), count(&events, quiesce)), (4, 0));
}

/// More changes than are handed to the host at a time.
#[test]
fn a_large_set_is_written_whole() {
    for protocol in PROTOCOLS {
        let shapes: Vec<Shape> = protocol.shapes().iter().collect();
        let site = |place: u64| Site::one(shapes[place as usize % shapes.len()], T + place * 0x10_0000);
        let sites: Vec<Site> = (0..50).map(site).collect();
        let machine = machine_of(&sites);
        let before = machine.memory();
        let (_, outcome) = machine.commit(protocol, &sites.iter().map(Site::attach).collect::<Vec<_>>());
        assert_eq!(outcome, Ok(()));
        assert!(sites.iter().all(|site| {
            let mut new = (site.patch.address()..).zip(site.patch.new_bytes());
            new.all(|(at, byte)| machine.memory()[&at] == *byte)
        }));
        let (_, outcome) = machine.commit(protocol, &sites.iter().map(Site::detach).collect::<Vec<_>>());
        assert_eq!(outcome, Ok(()));
        restore_caves(&mut machine.text(), sites.iter().map(|site| &site.patch)).unwrap();
        assert_eq!(machine.memory(), before);
    }
}

#[test]
fn a_changed_byte_is_found_before_the_first_write() {
    for protocol in PROTOCOLS {
        let sites = set(protocol);
        let attach: Vec<Change> = sites.iter().map(Site::attach).collect();
        let detach: Vec<Change> = sites.iter().map(Site::detach).collect();
        for (index, site) in sites.iter().enumerate() {
            for at in 0..site.patch.original_bytes().len() as u64 {
                let at = site.patch.address() + at;
                let machine = machine_of(&sites);
                for changes in [&attach, &detach] {
                    let good = machine.memory()[&at];
                    machine.poke(at, good ^ 0x40);
                    let before = machine.memory();
                    let (events, outcome) = machine.commit(protocol, changes);
                    let changed = Error::Changed { address: at, expected: good, found: good ^ 0x40 };
                    let error = outcome.unwrap_err();
                    assert_eq!((error.index, error.error, error.written), (index, changed, false));
                    assert!(
                        !events.iter().any(|event| matches!(event, Event::Write { .. } | Event::Prepare))
                    );
                    assert_eq!(machine.memory(), before);
                    machine.poke(at, good);
                    assert_eq!(machine.commit(protocol, changes).1, Ok(()));
                }
            }
        }
    }
}

/// Each write of a set fails in turn, by itself and with all that follow at the same place.
#[test]
fn a_failed_write_is_taken_back() {
    for protocol in PROTOCOLS {
        let sites = set(protocol);
        let places = sites.iter().map(|site| Some(site.patch.address() - 64));
        for lasting in places.chain([None]) {
            for written in [Written::Nothing, Written::Half, Written::All] {
                for out in [false, true] {
                    let mut met = 0;
                    while fails(
                        protocol,
                        &sites,
                        Faults { write: Some(met), lasting, written, ..Faults::default() },
                        out,
                    ) {
                        met += 1;
                    }
                    assert!(met > 0 || lasting.is_some());
                }
            }
        }
    }
}

/// Whether the fault was met.
fn fails(protocol: Protocol, sites: &[Site], faults: Faults, out: bool) -> bool {
    let machine = machine_of(sites);
    let attach: Vec<Change> = sites.iter().map(Site::attach).collect();
    let detach: Vec<Change> = sites.iter().map(Site::detach).collect();
    if out {
        assert_eq!(machine.commit(protocol, &attach).1, Ok(()));
    }
    let before = machine.memory();
    machine.fail(faults);
    let (_, outcome) = machine.commit(protocol, if out { &detach } else { &attach });
    let Err(error) = outcome else { return false };
    assert_eq!((error.error, error.written), (Error::Host(5), true));
    // A cave stays filled until it is given back; what cannot be written stays as it is, but nothing else does.
    let cave = |at: u64| {
        sites.iter().any(|site| site.patch.cave().is_some_and(|cave| at.wrapping_sub(cave.cave.address) < 5))
    };
    let stuck = |at: u64| faults.lasting.is_some_and(|place| at.wrapping_sub(place) < 4096);
    for (at, byte) in machine.memory() {
        assert!(
            byte == before[&at] || cave(at) || stuck(at),
            "{protocol:?} {faults:?}: {at:x} is {byte:02x}"
        );
    }
    machine.fail(Faults::default());
    if faults.lasting.is_none() {
        // Again, and it works.
        assert_eq!(machine.commit(protocol, if out { &detach } else { &attach }).1, Ok(()));
    }
    true
}

#[test]
fn a_failed_quiesce_is_taken_back() {
    let sites = set(Protocol::Live);
    let machine = machine_of(&sites);
    let before = machine.memory();
    machine.fail(Faults { quiesce: true, ..Faults::default() });
    let (_, outcome) = machine.commit(Protocol::Live, &sites.iter().map(Site::attach).collect::<Vec<_>>());
    let error = outcome.unwrap_err();
    assert_eq!((error.error, error.written), (Error::ThreadNotReached { thread: 1 }, true));
    restore_caves(&mut machine.text(), sites.iter().map(|site| &site.patch)).unwrap();
    assert_eq!(machine.memory(), before);
}

#[test]
fn a_failed_exchange_is_taken_back() {
    let sites = set(Protocol::Exchange);
    let changes: Vec<Change> = sites.iter().map(Site::attach).collect();
    let machine = machine_of(&sites);
    let before = machine.memory();
    machine.fail(Faults { prepare: true, ..Faults::default() });
    let (events, outcome) = machine.commit(Protocol::Exchange, &changes);
    let error = outcome.unwrap_err();
    assert_eq!((error.index, error.written), (0, false));
    assert!(matches!(error.error, Error::NotExchangeable { .. }));
    assert_eq!(events, [Event::Lock, Event::Unlock]);
    machine.fail(Faults { exchange: true, ..Faults::default() });
    let (_, outcome) = machine.commit(Protocol::Exchange, &changes);
    let error = outcome.unwrap_err();
    assert_eq!((error.error, error.written), (Error::Host(12), true));
    restore_caves(&mut machine.text(), sites.iter().map(|site| &site.patch)).unwrap();
    assert_eq!(machine.memory(), before);
}

#[test]
fn a_rendezvous_writes_all_or_waits() {
    let sites = [Site::one(Shape::WholeInstruction, T + 0x10_0000), Site::one(Shape::Jump5, T)];
    let machine = machine_of(&sites);
    let changes = sites.each_ref().map(Site::attach);
    machine.fail(Faults { stands: Some(T + 1), ..Faults::default() });
    let (events, outcome) = machine.commit(Protocol::Rendezvous, &changes);
    let error = outcome.unwrap_err();
    assert_eq!(
        (error.index, error.error, error.written),
        (1, Error::ThreadInWindow { address: T + 1 }, false)
    );
    assert_eq!(events, []);
    // Behind the window, or not on a boundary, anybody may stand.
    machine.fail(Faults { stands: Some(T + 3), ..Faults::default() });
    assert_eq!(machine.commit(Protocol::Rendezvous, &changes).1, Ok(()));
}

/// What a session needs to know of a change.
#[test]
fn edits_tell_what_is_written() {
    for shape in SHAPES.iter() {
        for site in Site::all(shape, &[FAR]) {
            let change = site.attach();
            let (address, before, after) = change.edits().last().unwrap();
            assert_eq!((address, before, after), (T, site.patch.window_bytes(), site.patch.new_bytes()));
            let differing = before.iter().zip(after).filter(|(before, after)| before != after).count();
            assert_eq!(change.is_one_byte(), differing == 1);
            assert_eq!(change.needs_quiesce(), matches!(shape, Shape::Jump5 | Shape::Jump14));
            assert!(!site.detach().needs_quiesce());
            let cave = site.patch.cave().map(|cave| cave.cave.address);
            let first = change.edits().next().unwrap().0;
            assert_eq!((change.edits().count(), first), (1 + usize::from(cave.is_some()), cave.unwrap_or(T)));
        }
    }
}

/// What keeps every boundary is put in, by one write each; the rest needs a word, and what traps is refused.
#[test]
fn parked_it_is_written_as_one_or_refused() {
    let kept = [Shape::WholeInstruction, Shape::Jump5Kept, Shape::ShortJump];
    // SAFETY: the simulated machine runs nothing.
    let accepted = unsafe { Preempted::accept() };
    for shape in SHAPES.iter() {
        let site = Site::one(shape, T);
        let machine = Machine::new(&site.memory);
        let before = machine.memory();
        let (events, outcome) = machine.commit_parked(&[site.attach()], None);
        if kept.contains(&shape) {
            assert_eq!(outcome, Ok(()), "{shape}");
        } else {
            let refused = outcome.unwrap_err();
            let expected = match shape {
                Shape::Jump5 | Shape::Jump14 => Error::NoGracePeriod { address: T + 1 },
                _ => Refusal::NoShape { address: T }.into(),
            };
            assert_eq!((refused.error, refused.written, events.len()), (expected, false, 0), "{shape}");
            assert_eq!(machine.memory(), before);
        }
        if shape.needs_quiesce() {
            assert_eq!(machine.commit_parked(&[site.attach()], Some(&accepted)).1, Ok(()));
        }
        if kept.contains(&shape) || shape.needs_quiesce() {
            // Out again without a word.
            let (events, outcome) = machine.commit_parked(&[site.detach()], None);
            assert_eq!((outcome, events.first()), (Ok(()), Some(&Event::Park(Vec::new()))), "{shape}");
            restore_caves(&mut machine.text(), [&site.patch].into_iter()).unwrap();
            assert_eq!(machine.memory(), before, "{shape}");
        }
    }
}

/// Each write of a set fails in turn: everything is taken back before anybody goes on.
#[test]
fn parked_a_failed_write_is_taken_back() {
    let shapes = [Shape::WholeInstruction, Shape::Jump5Kept, Shape::WholeInstruction];
    let sites: Vec<Site> =
        shapes.into_iter().zip(1..).map(|(shape, place)| Site::one(shape, T + place * 0x10_0000)).collect();
    let attach: Vec<Change> = sites.iter().map(Site::attach).collect();
    for written in [Written::Nothing, Written::Half, Written::All] {
        for write in 0..attach.len() {
            let machine = machine_of(&sites);
            let before = machine.memory();
            machine.fail(Faults { write: Some(write), written, ..Faults::default() });
            let (events, outcome) = machine.commit_parked(&attach, None);
            let failed = outcome.unwrap_err();
            assert_eq!((failed.error, failed.written), (Error::Host(5), true));
            assert_eq!(machine.memory(), before, "{written:?} {write}");
            assert_eq!(events.last(), Some(&Event::Release));
            assert_eq!(machine.commit_parked(&attach, None).1, Ok(()), "again, and it works");
        }
    }
    // Somebody is not parked: nothing is written.
    let machine = machine_of(&sites);
    let before = machine.memory();
    machine.fail(Faults { stands: Some(T), ..Faults::default() });
    let (events, outcome) = machine.commit_parked(&attach, None);
    assert_eq!(outcome.unwrap_err().error, Error::ProcessorNotReached { missing: 1 });
    assert!(events.is_empty() && machine.memory() == before);
}
