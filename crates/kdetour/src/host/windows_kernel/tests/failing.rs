//! Memory that is not there: each piece that is asked for, one after the other. Nothing has happened then, and it can be tried again.

use super::images::{OTHER, SHORT, WHOLE};
use super::simulated::lacking;
use super::*;
use crate::State;

/// Works until no piece of memory was missing; each time before, `check` looks at what a failure has left.
fn until_all_is_there<T>(
    world: &mut World,
    onwards: bool,
    mut work: impl FnMut(&mut World) -> Result<T, Error>,
    check: impl Fn(&World),
) -> T {
    for place in 1..10_000 {
        let (outcome, was_missing) = lacking(place, onwards, || work(world));
        match outcome {
            Ok(done) => {
                assert!(!was_missing, "piece {place} was missing, and nobody has said so");
                assert!(place > 1, "no memory was asked for");
                return done;
            }
            Err(error) => {
                assert!(was_missing, "{error}");
                assert_eq!(error, Error::OutOfMemory, "piece {place}");
                check(world);
            }
        }
    }
    panic!("it never comes to an end");
}

#[test]
fn whatever_is_missing_nothing_has_happened() {
    for (by, onwards) in [(By::Ipi, false), (By::Dpc, true), (By::Dpc, false), (By::Ipi, true)] {
        let mut world = World::new(&[2]);
        let before = world.text();
        // One with a cave, and two at once.
        let attaches = [WHOLE, OTHER, SHORT].map(|target| world.attach_of(world.function(target)));
        let attach = |world: &mut World| {
            let mut session = world.kdetour.session();
            for (index, one) in attaches.iter().enumerate() {
                let cell = one.cell.filter(|_| index == 0);
                // SAFETY: of one type; nobody calls those whose original is not kept.
                session = unsafe { session.attach(Attach { cell, ..*one }) };
            }
            session.commit_parked(by, None, &mut |_, _| ()).map_err(|failed| failed.error)
        };
        let handles = until_all_is_there(&mut world, onwards, attach, |world| {
            assert_eq!(world.text(), before);
            assert_eq!((world.kdetour.len(), world.kdetour.slots().bytes_in_use()), (0, 0));
        });
        assert_eq!(call(world.function(WHOLE)), 42);

        let attached = world.text();
        let detach =
            |world: &mut World| world.kdetour.detach_or_forget(&handles, by).map_err(|failed| failed.error);
        until_all_is_there(&mut world, onwards, detach, |world| {
            assert_eq!(world.text(), attached);
            assert!(world.kdetour.records().all(|record| record.state == State::Attached));
        });
        assert_eq!(call(world.function(WHOLE)), 7);

        let drain = |world: &mut World| world.kdetour.drain(&handles, PATIENCE);
        until_all_is_there(&mut world, onwards, drain, |world| assert_eq!(world.kdetour.draining(), 3));

        // What was detached keeps its padding until the end.
        let empty = |world: &mut World| world.kdetour.empty_caves();
        until_all_is_there(&mut world, onwards, empty, |_| ());
        assert_eq!(world.text(), before);
    }
}
