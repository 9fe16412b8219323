//! Waiting until nobody is inside.

use super::images::{OTHER, WHOLE};
use super::simulated::Setting;
use super::*;

#[test]
fn whoever_is_counted_is_waited_for() {
    let mut world = World::new(&[2]);
    let handle = world.attach(world.function(WHOLE), By::Dpc).unwrap();
    let short = Duration::from_millis(20);
    assert_eq!(world.kdetour.drain(&[handle], short), Err(Error::NotAttached), "it is attached");
    let gone = world.detach(handle, By::Dpc).unwrap();
    world.counter.fetch_add(3, Ordering::SeqCst);
    let failed = world.kdetour.drain(&gone, short);
    assert!(matches!(failed, Err(Error::Busy { calls: 3.. })), "{failed:?}");
    world.counter.fetch_sub(3, Ordering::SeqCst);
    world.kdetour.drain(&gone, PATIENCE).unwrap();
    assert_eq!(world.running.visits(), [1, 1]);
    world.kdetour.drain(&[], PATIENCE).unwrap();
    assert_eq!(world.running.visits(), [2, 2], "with nothing to drain, too");
}

#[test]
fn a_processor_that_leaves_no_time_is_told() {
    let mut world = World::new(&[3]);
    let handle = world.attach(world.function(WHOLE), By::Dpc).unwrap();
    let gone = world.detach(handle, By::Dpc).unwrap();
    world.running.set(Setting { starved: Some(1), ..Setting::default() });
    assert_eq!(world.kdetour.drain(&gone, Duration::from_millis(20)), Err(Error::Busy { calls: 0 }));
    world.running.set(Setting::default());
    world.kdetour.drain(&gone, PATIENCE).unwrap();
}

/// The struct's owner frees it, or uses it for something else.
#[test]
fn what_was_drained_is_let_go() {
    const POISON: u64 = 0x5a5a_5a5a;
    let mut world = World::new(&[2]);
    let target = world.function(OTHER);
    let cell: &'static AtomicAddress = Box::leak(Box::new(AtomicAddress::new(0)));
    let counter: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
    let in_flight = core::ptr::from_ref(counter).expose_provenance() as u64;
    let attach = Attach { cell: Some(cell), in_flight, ..world.attach_of(target) };
    let handle = world.commit(attach, By::Dpc, None).unwrap();
    let gone = world.detach(handle, By::Dpc).unwrap();
    let trampoline = cell.load(Ordering::SeqCst);
    assert_ne!(trampoline, 0);
    // Until it was drained somebody may be inside who reads the one and is counted by the other.
    cell.store(POISON, Ordering::SeqCst);
    let other = world.attach(target, By::Dpc).unwrap();
    assert_eq!(cell.load(Ordering::SeqCst), trampoline);
    counter.store(1, Ordering::SeqCst);
    let short = Duration::from_millis(20);
    assert_eq!(world.kdetour.drain(&gone, short), Err(Error::Busy { calls: 1 }));
    counter.store(0, Ordering::SeqCst);
    world.kdetour.drain(&gone, PATIENCE).unwrap();
    // From here on both are somebody else's.
    cell.store(POISON, Ordering::SeqCst);
    counter.store(u32::MAX, Ordering::SeqCst);
    let other = world.detach(other, By::Ipi).unwrap();
    let third = world.attach(target, By::Dpc).unwrap();
    assert_eq!(call(target), 44);
    let third = world.detach(third, By::Dpc).unwrap();
    let all = [gone[0], other[0], third[0]];
    world.kdetour.drain(&all, PATIENCE).unwrap();
    assert_eq!(cell.load(Ordering::SeqCst), POISON, "nobody has written there");
    // Its old handle attaches it again, in the same slot, with other places.
    let slot = world.kdetour.record(handle).unwrap().slot;
    let in_flight = core::ptr::from_ref(world.counter).expose_provenance() as u64;
    let original = world.original;
    original.store(0, Ordering::SeqCst);
    // SAFETY: both stay; it was drained.
    unsafe { world.kdetour.set_places(handle, in_flight, Some(original)) }.unwrap();
    // SAFETY: as when it was attached first.
    let session = unsafe { world.kdetour.session().reattach(handle, 0) };
    let again = session.commit_parked(By::Dpc, None, &mut |_, _| ()).unwrap();
    assert_eq!((original.load(Ordering::SeqCst), call(target)), (trampoline, 44));
    assert_eq!(world.kdetour.record(again[0]).unwrap().slot, slot);
    // SAFETY: refused.
    let refused = unsafe { world.kdetour.set_places(again[0], 0, None) };
    assert_eq!(refused, Err(Error::NotAttached), "it is attached");
    let again = world.detach(again[0], By::Dpc).unwrap();
    world.counter.store(2, Ordering::SeqCst);
    assert_eq!(world.kdetour.drain(&again, short), Err(Error::Busy { calls: 2 }), "the new counter is read");
    world.counter.store(0, Ordering::SeqCst);
    world.kdetour.drain(&again, PATIENCE).unwrap();
    assert_eq!(cell.load(Ordering::SeqCst), POISON);
}

/// One who is inside while `DriverUnload` waits attaches something.
#[test]
fn what_was_attached_meanwhile_is_seen() {
    let mut world = World::new(&[1]);
    assert!(world.kdetour.are_all_detached(&[]));
    let (one, other) = (world.function(WHOLE), world.function(OTHER));
    let handle = world.attach(one, By::Dpc).unwrap();
    assert!(!world.kdetour.are_all_detached(&[]) && !world.kdetour.are_all_detached(&[handle]));
    world.kdetour.detach_or_forget(&[handle], By::Dpc).unwrap();
    assert_eq!(call(one), 7);
    assert!(world.kdetour.are_all_detached(&[handle]));
    // SAFETY: as when it was attached first.
    let session = unsafe { world.kdetour.session().reattach(handle, 0) };
    let again = session.commit_parked(By::Dpc, None, &mut |_, _| ()).unwrap();
    assert!(!world.kdetour.are_all_detached(&[handle]));
    world.kdetour.detach_or_forget(&again, By::Dpc).unwrap();
    assert!(!world.kdetour.are_all_detached(&[handle]), "the new one was not waited for");
    assert!(world.kdetour.are_all_detached(&again));
    let attach = Attach { cell: None, ..world.attach_of(other) };
    let second = world.commit(attach, By::Dpc, None).unwrap();
    assert!(!world.kdetour.are_all_detached(&again) && !world.kdetour.are_all_detached(&[again[0], second]));
    world.kdetour.detach_or_forget(&[again[0], second], By::Dpc).unwrap();
    assert!(world.kdetour.are_all_detached(&[again[0], second]) && !world.kdetour.are_all_detached(&again));
    world.kdetour.drain(&[again[0], second], PATIENCE).unwrap();
}
