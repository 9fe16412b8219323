//! Detours that are executed.

use super::images::{HOT, OTHER, SEVERAL, SHORT, WHOLE, room};
use super::simulated::Setting;
use super::*;
use crate::host::Span;
use crate::host::windows_kernel::nt::Nt as _;
use crate::plan::Shape;
use std::time::Instant;

#[test]
fn every_processor_comes_to_the_detour_and_back() {
    for by in [By::Ipi, By::Dpc] {
        let mut world = World::new(&[4]);
        let before = world.text();
        assert_eq!(world.fresh_results(4).iter().map(|one| one.0).collect::<Vec<_>>(), [7]);
        for _ in 0..3 {
            let handle = world.attach(world.function(WHOLE), by).unwrap();
            assert_ne!(world.text(), before);
            assert_eq!(world.kdetour.record(handle).unwrap().patch.unwrap().shape(), Shape::WholeInstruction);
            let found = world.fresh_results(4);
            assert_eq!(found.iter().map(|one| one.0).collect::<Vec<_>>(), [42], "{by:?}");
            assert_eq!(call(world.function(WHOLE)), 42);
            let gone = world.detach(handle, by).unwrap();
            assert_eq!(world.text(), before, "the very bytes");
            let found = world.fresh_results(4);
            assert_eq!(found.iter().map(|one| one.0).collect::<Vec<_>>(), [7], "{by:?}");
            world.kdetour.drain(&gone, PATIENCE).unwrap();
        }
        assert_eq!(world.running.parked(), [6; 4], "each processor, each commit");
        assert_eq!(world.counter.load(Ordering::SeqCst), 0);
        assert_eq!(world.running.waiting(), 0);
    }
}

#[test]
fn two_groups_of_more_than_64_processors_are_parked() {
    for by in [By::Dpc, By::Ipi] {
        let mut world = World::new(&[64, 6]);
        let handle = world.attach(world.function(WHOLE), by).unwrap();
        assert_eq!(call(world.function(WHOLE)), 42);
        let gone = world.detach(handle, by).unwrap();
        assert_eq!(world.running.parked(), [2; 70], "{by:?}");
        world.kdetour.drain(&gone, PATIENCE).unwrap();
        assert_eq!(world.running.visits(), [1; 70]);
    }
}

#[test]
fn one_processor_parks_nobody() {
    let mut world = World::new(&[1]);
    let handle = world.attach(world.function(WHOLE), By::Local).unwrap();
    assert_eq!(call(world.function(WHOLE)), 42);
    world.detach(handle, By::Local).unwrap();
    assert_eq!(call(world.function(WHOLE)), 7);
    // The other ways have nobody to park.
    for by in [By::Dpc, By::Ipi] {
        let handle = world.attach(world.function(WHOLE), by).unwrap();
        assert_eq!(call(world.function(WHOLE)), 42);
        world.detach(handle, by).unwrap();
    }
    assert_eq!(world.running.parked(), [6]);
}

#[test]
fn local_runs_beside_nobody() {
    let mut world = World::new(&[2]);
    let before = world.text();
    assert_eq!(world.attach(world.function(WHOLE), By::Local), Err(Error::OtherThreads));
    assert_eq!(world.text(), before);
    assert_eq!(call(world.function(WHOLE)), 7);
    assert_eq!(world.kdetour.len(), 0);
    assert_eq!(world.kdetour.slots().bytes_in_use(), 0);
}

#[test]
fn a_set_comes_as_one_or_not_at_all() {
    let mut world = World::new(&[3]);
    let (first, second) = (world.attach_of(world.function(WHOLE)), world.attach_of(world.function(OTHER)));
    let second = Attach { cell: None, ..second };
    let text = world.text();
    // The second one's bytes become others between plan and commit.
    let place = world.function(OTHER) + 1;
    let nt = world.running.nt.clone();
    // SAFETY: it fails.
    let session = unsafe { world.kdetour.session().attach(first).attach(second) };
    let mut is_first = true;
    let failed = session.commit_parked(By::Dpc, None, &mut |_, _| {
        if core::mem::take(&mut is_first) {
            nt.0.memory.poke(place, &[10]);
        }
    });
    let failed = failed.unwrap_err();
    assert_eq!((failed.index, failed.error), (1, Error::Changed { address: place, expected: 9, found: 10 }));
    world.memory().poke(place, &[9]);
    assert_eq!(world.text(), text, "nothing was written");
    assert_eq!((world.kdetour.len(), world.kdetour.slots().bytes_in_use()), (0, 0));
    // SAFETY: both functions have the detour's type; the second one's calls are not counted, and it does not go.
    let session =
        unsafe { world.kdetour.session().attach(first).attach(Attach { detour: second.detour, ..second }) };
    let handles = session.commit_parked(By::Dpc, None, &mut |_, _| ()).unwrap();
    assert_eq!((handles.len(), call(world.function(WHOLE))), (2, 42));
    let session = world.kdetour.session().detach(handles[0]).detach(handles[1]);
    session.commit_parked(By::Ipi, None, &mut |_, _| ()).unwrap();
    assert_eq!(world.text(), text);
}

#[test]
fn one_that_does_not_come_makes_the_commit_give_up() {
    let mut world = World::new(&[3]);
    let text = world.text();
    world.running.set(Setting { stuck: Some(2), ..Setting::default() });
    let mut host = WindowsKernel::new(world.running.nt.clone(), room(&world.own)).unwrap();
    host.set_patience(Duration::from_millis(300));
    world.kdetour = Kdetour::new(host);
    let start = Instant::now();
    let failed = world.attach(world.function(WHOLE), By::Dpc);
    assert!(matches!(failed, Err(Error::ProcessorNotReached { missing: 1..=2 })), "{failed:?}");
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(world.text(), text, "nothing was written");
    assert_eq!(world.running.waiting(), 0, "what was not begun was taken back");
    assert_eq!((world.kdetour.len(), world.kdetour.slots().bytes_in_use()), (0, 0));
    assert_eq!(world.fresh_results(2).iter().map(|one| one.0).collect::<Vec<_>>(), [7], "the others go on");
    // One that gets the interrupt and does not run what it was sent for.
    world.running.set(Setting { deaf: Some(1), ..Setting::default() });
    let failed = world.attach(world.function(WHOLE), By::Ipi);
    assert!(matches!(failed, Err(Error::ProcessorNotReached { missing: 1..=2 })), "{failed:?}");
    assert_eq!(world.text(), text);
    world.running.set(Setting { one_more: true, ..Setting::default() });
    assert_eq!(world.attach(world.function(WHOLE), By::Dpc), Err(Error::TextBusy), "another one has come");
    assert_eq!(world.text(), text);
}

/// NT says that it was not put into the queue: it will never come, and is not waited for.
#[test]
fn one_that_is_not_called_makes_the_commit_give_up() {
    let mut world = World::new(&[4]);
    let text = world.text();
    // Whoever commits is on the first one, or on another that need not be called.
    for unqueued in 0..4 {
        world.running.set(Setting { unqueued: Some(unqueued), ..Setting::default() });
        let failed = world.attach(world.function(WHOLE), By::Dpc);
        if let Ok(handle) = failed {
            world.running.set(Setting::default());
            let gone = world.detach(handle, By::Dpc).unwrap();
            world.kdetour.drain(&gone, PATIENCE).unwrap();
        } else {
            assert!(matches!(failed, Err(Error::ProcessorNotReached { missing: 1..=3 })), "{failed:?}");
            assert!(unqueued > 0);
        }
        assert_eq!((world.text() == text, world.running.waiting()), (true, 0), "{unqueued}");
    }
    assert!(world.running.parked().iter().sum::<usize>() <= 8, "at most one of four has committed, twice");
}

/// Its room stays until it has found out that nobody waits for it any more.
#[test]
fn one_that_begins_when_the_commit_has_given_up_is_waited_for() {
    let mut world = World::new(&[3]);
    let text = world.text();
    let late = Duration::from_millis(700);
    world.running.set(Setting { slow: Some((1, late)), ..Setting::default() });
    let mut host = WindowsKernel::new(world.running.nt.clone(), room(&world.own)).unwrap();
    host.set_patience(Duration::from_millis(100));
    world.kdetour = Kdetour::new(host);
    let start = Instant::now();
    let failed = world.attach(world.function(WHOLE), By::Dpc);
    assert!(matches!(failed, Err(Error::ProcessorNotReached { missing: 1..=2 })), "{failed:?}");
    assert!(start.elapsed() >= late);
    assert_eq!((world.text() == text, world.running.waiting()), (true, 0));
}

#[test]
fn a_jump_over_several_instructions_needs_a_word() {
    let mut world = World::new(&[2]);
    let text = world.text();
    let target = world.function(SEVERAL);
    assert_eq!(world.attach(target, By::Dpc), Err(Error::NoGracePeriod { address: target + 1 }));
    assert_eq!(world.text(), text);
    assert_eq!(world.kdetour.slots().bytes_in_use(), 0);
    // SAFETY: nobody calls this function here.
    let accepted = unsafe { Preempted::accept() };
    let handle = world.commit(world.attach_of(target), By::Ipi, Some(&accepted)).unwrap();
    assert_eq!(world.kdetour.record(handle).unwrap().patch.unwrap().shape(), Shape::Jump5);
    assert_eq!(call(target), 42);
    world.detach(handle, By::Dpc).unwrap();
    assert_eq!((call(target), world.text() == text), (7, true));
}

#[test]
fn a_short_jump_gives_its_padding_back_when_the_driver_goes() {
    // Into the padding behind the function, and into that in front of it.
    for function in [SHORT, HOT] {
        short_jump_and_back(function);
    }
}

fn short_jump_and_back(function: u64) {
    let mut world = World::new(&[2]);
    let text = world.text();
    let target = world.function(function);
    let handle = world.attach(target, By::Dpc).unwrap();
    assert_eq!(world.kdetour.record(handle).unwrap().patch.unwrap().shape(), Shape::ShortJump);
    assert_eq!(call(target), 42);
    world.kdetour.empty_caves().unwrap();
    assert_eq!(call(target), 42, "it is in use");
    let gone = world.detach(handle, By::Dpc).unwrap();
    assert_eq!(call(target), 7);
    world.kdetour.drain(&gone, PATIENCE).unwrap();
    let drained = world.text();
    assert_ne!(drained, text, "whoever was suspended on the long jump still goes on");
    // It may come back.
    for by in [By::Ipi, By::Dpc] {
        let handle = world.attach(target, by).unwrap();
        assert_eq!(call(target), 42);
        let gone = world.detach(handle, by).unwrap();
        world.kdetour.drain(&gone, PATIENCE).unwrap();
        assert_eq!(world.text(), drained);
    }
    world.kdetour.empty_caves().unwrap();
    assert_eq!(world.text(), text);
    // And then, too.
    let handle = world.attach(target, By::Ipi).unwrap();
    assert_eq!(call(target), 42);
    let gone = world.detach(handle, By::Ipi).unwrap();
    world.kdetour.drain(&gone, PATIENCE).unwrap();
    // What somebody else has put there stays, and what has gone is not touched.
    let cave = world.kdetour.record(gone[0]).unwrap().patch.unwrap().cave().unwrap().cave.address;
    let held = world.text();
    world.memory().poke(cave, &[0x0f, 0x0b]);
    let other = world.text();
    world.kdetour.empty_caves().unwrap();
    assert_eq!(world.text(), other);
    let own = world.running.nt.modules().unwrap().remove(1);
    world.running.set_modules(|modules| drop(modules.remove(1)));
    world.kdetour.empty_caves().unwrap();
    assert_eq!(world.text(), other);
    world.running.set_modules(|modules| modules.insert(1, own));
    let offset = usize::try_from(cave - world.memory().base()).unwrap();
    world.memory().poke(cave, &held[offset..offset + 2]);
    world.kdetour.empty_caves().unwrap();
    assert_eq!(world.text(), text);
}

/// Two drivers, each with kdetour of its own: the second one finds the first one's jump, and what that leaves in the padding.
#[test]
fn a_function_that_another_driver_detours_is_refused() {
    for function in [WHOLE, SHORT, HOT] {
        let world = World::new(&[2]);
        let text = world.text();
        let rooms = room(&world.own);
        let half = rooms.len / 2;
        let [mut first, mut second] = [0, half].map(|at| {
            let room = Span { address: rooms.address + at as u64, len: half };
            Kdetour::new(WindowsKernel::new(world.running.nt.clone(), room).unwrap())
        });
        let one = world.attach_of(world.function(function));
        let attach = |kdetour: &mut Kdetour<WindowsKernel<Simulated>>| {
            // SAFETY: of one type; one of them at a time keeps the original.
            let session = unsafe { kdetour.session().attach(one) };
            session.commit_parked(By::Dpc, None, &mut |_, _| ()).map_err(|failed| failed.error)
        };
        let handles = attach(&mut first).unwrap();
        let held = world.text();
        let refused = attach(&mut second).expect_err(&std::format!("{function:#x}"));
        assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
        assert_eq!((world.text() == held, call(one.target)), (true, 42));
        assert_eq!((second.len(), second.slots().bytes_in_use()), (0, 0));
        // The first one has gone, but for what stays in the padding until its driver goes.
        first.detach_or_forget(&handles, By::Dpc).unwrap();
        first.drain(&handles, PATIENCE).unwrap();
        let left = world.text();
        if let Ok(others) = attach(&mut second) {
            assert_eq!(call(one.target), 42);
            first.empty_caves().unwrap();
            assert_eq!(call(one.target), 42, "the padding that the second one uses is its own");
            second.detach_or_forget(&others, By::Dpc).unwrap();
            second.drain(&others, PATIENCE).unwrap();
        } else {
            assert_ne!(left, text, "nothing is in its way");
            first.empty_caves().unwrap();
        }
        second.empty_caves().unwrap();
        assert_eq!((world.text() == text, call(one.target)), (true, 7));
    }
}
