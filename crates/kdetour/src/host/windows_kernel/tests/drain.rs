//! Waiting until nobody is inside.

use super::images::WHOLE;
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
