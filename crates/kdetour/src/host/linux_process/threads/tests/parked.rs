//! All threads but one wait.

use super::*;
use std::sync::OnceLock;

#[test]
fn park_moves_who_stands_at_a_boundary() {
    alone(|| {
        let thread = Thread::start(|flag| unsafe { kdetour_test_stand(flag) }).arrived();
        let moves = [(address!(kdetour_test_standing), address!(kdetour_test_moved))];
        // Nobody is moved if the work fails.
        assert_eq!(park(&moves, long(), &mut || Err(Error::TextBusy)), Err(Error::TextBusy));
        sleep(Duration::from_millis(10));
        assert!(!thread.handle.is_finished());
        assert_eq!(park(&moves, long(), &mut || Ok(())), Ok(()));
        assert_eq!(thread.end(), 1);
    });
}

/// A return address, and where to move who stands there; not on a stack.
fn moves() -> &'static [(u64, u64)] {
    static MOVES: OnceLock<[(u64, u64); 1]> = OnceLock::new();
    MOVES.get_or_init(|| [(address!(kdetour_test_return), address!(kdetour_test_moved))])
}

#[test]
fn park_finds_a_return_address() {
    alone(|| {
        let thread = Thread::start(|_| unsafe { kdetour_test_call(nap, 20_000) }).asleep_in(NANOSLEEP);
        let nothing = &mut || panic!("a thread returns there");
        let outcome = park(moves(), long(), nothing);
        // It was woken for it.
        assert_eq!(thread.end(), 1);
        assert_eq!(outcome, Err(Error::ThreadInWindow { address: address!(kdetour_test_return) }));
    });
}

#[test]
fn park_finds_the_callers_return_address() {
    alone(|| {
        unsafe extern "C" fn park_from_inside(_: usize) -> usize {
            let outcome = park(moves(), long(), &mut || Ok(()));
            usize::from(matches!(outcome, Err(Error::ThreadInWindow { .. })))
        }
        assert_eq!(unsafe { kdetour_test_call(park_from_inside, 0) }, 1);
    });
}

#[test]
fn nobody_runs_while_all_are_parked() {
    alone(|| {
        static STEPS: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];
        let threads = [0, 1, 2, 3].map(|index| {
            Thread::start(move |flag| {
                while !flag.end.load(Ordering::Relaxed) {
                    STEPS[index].fetch_add(1, Ordering::Relaxed);
                }
                0
            })
        });
        let (read, write) = pipe();
        let sleeper = Thread::start(move |_| unsafe { wait_for(read as usize) }).asleep_in(READ);
        for _ in 0..20 {
            let steps = || STEPS.each_ref().map(|steps| steps.load(Ordering::SeqCst));
            let mut seen = ([0; 4], [1; 4]);
            let work = &mut || {
                let before = steps();
                let _ = rustix::thread::nanosleep(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 2_000_000 });
                seen = (before, steps());
                Ok(())
            };
            assert_eq!(park(&[], long(), work), Ok(()));
            assert_eq!(seen.0, seen.1);
        }
        for thread in threads {
            thread.end();
        }
        // Its system call was restarted each time.
        close(write);
        assert_eq!(sleeper.end(), 0);
        close(read);
    });
}
