//! Who is found where: asleep, running, stopped, born meanwhile, blocking everything.

use super::*;

#[test]
fn a_sleeper_inside_is_found_and_not_woken() {
    alone(|| {
        let thread = Thread::start(|_| unsafe { kdetour_test_call(nap, 600) }).asleep_in(NANOSLEEP);
        found(&calling(), 1);
        assert_eq!(look(&spinning(), long()), Ok(()));
        // It leaves while it is waited for.
        assert_eq!(look(&calling(), long()), Ok(()));
        assert_eq!(thread.end(), 0, "interrupted");
    });
}

#[test]
fn a_sleeper_outside_is_not_woken() {
    alone(|| {
        let thread = Thread::start(|_| unsafe { nap(300) }).asleep_in(NANOSLEEP);
        for _ in 0..20 {
            assert_eq!(look(&calling(), long()), Ok(()));
        }
        assert_eq!(thread.end(), 0, "interrupted");
    });
}

#[test]
fn a_spinning_thread_is_found_where_it_is() {
    alone(|| {
        let thread = Thread::start(|flag| unsafe { kdetour_test_spin(flag) }).arrived();
        found(&spinning(), 1);
        assert_eq!(look(&calling(), long()), Ok(()));
        thread.end();
        assert_eq!(look(&spinning(), long()), Ok(()));
    });
}

#[test]
fn several_are_counted() {
    alone(|| {
        let spinning_one = Thread::start(|flag| unsafe { kdetour_test_spin(flag) }).arrived();
        let (read, write) = pipe();
        let sleeping = [(); 3].map(|()| {
            Thread::start(move |_| unsafe { kdetour_test_call(wait_for, read as usize) }).asleep_in(READ)
        });
        let mut places = [spinning(), calling()].concat();
        places.sort_by_key(|place| place.start);
        found(&places, 4);
        close(write);
        spinning_one.end();
        for thread in sleeping {
            assert_eq!(thread.end(), 0);
        }
        assert_eq!(look(&places, long()), Ok(()));
        close(read);
    });
}

#[test]
fn a_register_is_enough() {
    alone(|| {
        let thread = Thread::start(|flag| unsafe { kdetour_test_hold(flag) }).arrived();
        found(&spinning(), 1);
        thread.end();
        assert_eq!(look(&spinning(), long()), Ok(()));
    });
}

#[test]
fn the_caller_itself_counts() {
    alone(|| {
        unsafe extern "C" fn look_from_inside(expect_inside: usize) -> usize {
            let outcome = look(&calling(), long());
            usize::from(outcome == Err(Error::Inside)) + expect_inside
        }
        assert_eq!(unsafe { kdetour_test_call(look_from_inside, 40) }, 41);
        // The address itself, which every caller knows, is not in the way.
        let place = core::hint::black_box(calling());
        assert_eq!(look(&place, long()), Ok(()));
    });
}

#[test]
fn who_blocks_the_signal_is_reached_only_when_asleep() {
    alone(|| {
        let blocked = Thread::start(|flag| {
            block_all();
            spin_outside(flag)
        })
        .arrived();
        let number = blocked.number;
        assert_eq!(look(&calling(), within(100)), Err(Error::ThreadNotReached { thread: number }));
        assert_eq!(blocked.end(), 7);
        let (read, write) = pipe();
        let blocked = Thread::start(move |_| {
            block_all();
            unsafe { wait_for(read as usize) }
        })
        .asleep_in(READ);
        assert_eq!(look(&calling(), long()), Ok(()));
        let number = blocked.number;
        let nothing = &mut || panic!("a thread is not parked");
        assert_eq!(park(&[], within(100), nothing), Err(Error::ThreadNotReached { thread: number }));
        close(write);
        assert_eq!(blocked.end(), 0);
        close(read);
    });
}

#[test]
fn threads_come_and_go_meanwhile() {
    alone(|| {
        let busy = Thread::start(|flag| {
            while !flag.end.load(Ordering::SeqCst) {
                thread::spawn(|| 0).join().unwrap();
            }
            0
        });
        for _ in 0..30 {
            assert_eq!(look(&spinning(), long()), Ok(()));
            let mut done = 0;
            let work = &mut || {
                done += 1;
                Ok(())
            };
            assert_eq!(park(&[], long(), work), Ok(()));
            assert_eq!(done, 1);
        }
        busy.end();
    });
}

#[test]
fn a_stopped_thread_is_looked_at_from_outside() {
    alone(|| {
        // The child's threads are stopped by their tracer, its parent, one by one.
        let (read, write) = pipe();
        let thread = Thread::start(|flag| unsafe { kdetour_test_spin(flag) }).arrived();
        let tracer = unsafe { libc::fork() };
        if tracer == 0 {
            close(read);
            unsafe {
                libc::ptrace(libc::PTRACE_SEIZE, thread.number, 0, 0);
                libc::ptrace(libc::PTRACE_INTERRUPT, thread.number, 0, 0);
                let mut status = 0;
                libc::waitpid(thread.number, &raw mut status, libc::__WALL);
                libc::write(write, c"x".as_ptr().cast(), 1);
                libc::pause();
                libc::_exit(0);
            }
        }
        let mut byte = 0_u8;
        assert_eq!(unsafe { libc::read(read, (&raw mut byte).cast(), 1) }, 1);
        found(&spinning(), 1);
        assert_eq!(look(&calling(), long()), Ok(()));
        unsafe { libc::kill(tracer, libc::SIGKILL) };
        thread.end();
    });
}

#[test]
fn what_a_process_blocks_is_told() {
    alone(|| {
        let blocked = Thread::start(|flag| {
            block_all();
            spin_outside(flag)
        })
        .arrived();
        let tasks = Tasks::open().unwrap();
        let stat = tasks.stat(blocked.number).unwrap().unwrap();
        assert!(stat.blocks(SIGTRAP) && stat.blocks(SIGURG) && !stat.is_none_of_ours() && !stat.is_stopped());
        assert!(tasks.all().unwrap().contains(&blocked.number));
        let number = blocked.number;
        blocked.end();
        // It may be on its way out for a moment.
        let end = long();
        while tasks.stat(number).unwrap().is_some_and(|stat| !stat.is_none_of_ours()) {
            assert!(Instant::now() < end, "{}", format!("{number} is still there"));
        }
    });
}
