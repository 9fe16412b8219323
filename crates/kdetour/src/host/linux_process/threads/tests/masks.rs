//! What threads block, as the kernel tells it and as it is.

use super::super::mask::{Mask, Masks, Told};
use super::*;

/// From now on the caller, and whoever it starts, share one processor.
fn on_one_processor() {
    let mut set = unsafe { mem::zeroed::<libc::cpu_set_t>() };
    unsafe {
        libc::CPU_SET(usize::try_from(libc::sched_getcpu()).unwrap(), &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0);
    }
}

/// Blocks all signals, and waits for one of them again and again.
fn wait_for_signals(flag: &'static Flag) -> usize {
    block_all();
    let mut all = unsafe { mem::zeroed::<libc::sigset_t>() };
    let (mut heard, short) = (0, libc::timespec { tv_sec: 0, tv_nsec: 300_000 });
    unsafe { libc::sigfillset(&raw mut all) };
    while !flag.end.load(Ordering::Relaxed) {
        flag.arrived.store(true, Ordering::Relaxed);
        heard +=
            usize::from(unsafe { libc::sigtimedwait(&raw const all, ptr::null_mut(), &raw const short) } > 0);
    }
    heard
}

#[test]
fn who_is_woken_and_has_not_run_is_not_believed() {
    alone(|| {
        on_one_processor();
        let waiting = Thread::start(wait_for_signals).arrived();
        let tasks = Tasks::open().unwrap();
        // Told to be runnable and to block nothing: woken, since it blocks everything when it runs.
        let seems_open = || {
            let stat = tasks.stat(waiting.number).unwrap().unwrap();
            stat.is_runnable() && !stat.blocks(SIGURG)
        };
        let (mut mask, mut seemed) = (Mask::default(), 0);
        let end = long();
        while seemed < 10 {
            assert!(Instant::now() < end, "it has seemed so {seemed} times");
            if (0..4).all(|_| seems_open()) {
                seemed += 1;
                // As long as it stays so, which is what a loaded machine does.
                for _ in 0..4 {
                    assert_ne!(mask.look(&tasks, waiting.number, SIGURG), Told::Open);
                }
            }
            // It is given its turn.
            thread::yield_now();
        }
        let nothing = &mut || panic!("a thread is not parked");
        for _ in 0..20 {
            let _ = look(&calling(), within(5));
            let parked = park(&[], within(10), nothing);
            assert_eq!(parked, Err(Error::ThreadNotReached { thread: waiting.number }));
        }
        assert_eq!(waiting.end(), 0, "it was given a signal of ours");
    });
}

#[test]
fn who_runs_is_believed_until_it_sleeps() {
    alone(|| {
        on_one_processor();
        let running = Thread::start(|flag| spin_outside(flag)).arrived();
        let tasks = Tasks::open().unwrap();
        let mut mask = Mask::default();
        let end = long();
        while mask.look(&tasks, running.number, SIGURG) != Told::Open {
            assert!(Instant::now() < end);
            thread::yield_now();
        }
        // At once from now on, though it waits for the processor meanwhile.
        for _ in 0..50 {
            assert_eq!(mask.look(&tasks, running.number, SIGURG), Told::Open);
        }
        running.end();
        // Not so if it had slept since: a thread that spins, having slept after it was believed.
        static WAKE: AtomicBool = AtomicBool::new(false);
        let sleeper = Thread::start(|flag| {
            while !WAKE.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
            sleep(Duration::from_millis(1));
            spin_outside(flag)
        });
        let mut mask = Mask::default();
        while mask.look(&tasks, sleeper.number, SIGURG) != Told::Open {
            assert!(Instant::now() < end);
            thread::yield_now();
        }
        WAKE.store(true, Ordering::Relaxed);
        let sleeper = sleeper.arrived();
        assert_eq!(mask.look(&tasks, sleeper.number, SIGURG), Told::NotSure);
        sleeper.end();
    });
}

#[test]
fn who_sleeps_is_believed_and_who_blocks_is_not() {
    alone(|| {
        let tasks = Tasks::open().unwrap();
        let (read, write) = pipe();
        let asleep = Thread::start(move |_| unsafe { wait_for(read as usize) }).asleep_in(READ);
        let blocking = Thread::start(|flag| {
            block_all();
            spin_outside(flag)
        })
        .arrived();
        let mut masks = Masks::new();
        for signal in [SIGURG, SIGTRAP] {
            assert_eq!(masks.of(asleep.number).unwrap().look(&tasks, asleep.number, signal), Told::Open);
            assert_eq!(
                masks.of(blocking.number).unwrap().look(&tasks, blocking.number, signal),
                Told::Blocks
            );
            assert_eq!(masks.of(raw::thread()).unwrap().look(&tasks, raw::thread(), signal), Told::Open);
        }
        close(write);
        asleep.end();
        blocking.end();
    });
}
