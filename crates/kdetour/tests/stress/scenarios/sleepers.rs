//! Threads that sleep in system calls notice nothing: no EINTR, nothing ends early.

use crate::support::callers::Callers;
use crate::support::runner::{Clock, fail, tell};
use crate::support::sites::{self, Site};
use crate::support::system::{self, fork, process_number, wait_for};
use crate::support::targets::target;
use kdetour::{Error, Protocol, typed};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use std::{io, ptr, thread};

static WORD: AtomicU32 = AtomicU32::new(0);
static ENDING: AtomicU32 = AtomicU32::new(0);
static THREADS: [AtomicI32; 4] = [const { AtomicI32::new(0) }; 4];
static NAPS: AtomicU64 = AtomicU64::new(0);
/// Odd while a reclaim is under way.
static RECLAIMS: AtomicU64 = AtomicU64::new(0);

extern "C" fn nothing(_: i32) {}

fn sleep(milliseconds: u64) -> bool {
    let seconds = (milliseconds / 1000).try_into().expect("short");
    let rest = (milliseconds % 1000 * 1_000_000).try_into().expect("short");
    let length = libc::timespec { tv_sec: seconds, tv_nsec: rest };
    // SAFETY: a length is given.
    unsafe { libc::nanosleep(&raw const length, ptr::null_mut()) == 0 }
}

fn pipe() -> [i32; 2] {
    let mut ends = [0; 2];
    // SAFETY: two numbers are written.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    ends
}

fn interrupted(what: &str) -> ! {
    fail(&format!("{what} was interrupted: {}", io::Error::last_os_error()))
}

fn here(number: usize) {
    THREADS[number].store(system::thread_number(), SeqCst);
}

pub(crate) fn sleepers(clock: &Clock) -> String {
    let (polled, read) = (pipe(), pipe());
    let sleepers = [
        thread::spawn(move || {
            here(0);
            let mut waited = libc::pollfd { fd: polled[0], events: libc::POLLIN, revents: 0 };
            // SAFETY: one descriptor is given.
            if unsafe { libc::poll(&raw mut waited, 1, -1) } != 1 {
                interrupted("poll");
            }
        }),
        thread::spawn(|| {
            here(1);
            if !sleep(100_000_000) && ENDING.load(SeqCst) == 0 {
                interrupted("nanosleep");
            }
        }),
        thread::spawn(|| {
            here(2);
            while ENDING.load(SeqCst) == 0 {
                // SAFETY: a word of this program.
                let woken = unsafe {
                    libc::syscall(
                        libc::SYS_futex,
                        WORD.as_ptr(),
                        libc::FUTEX_WAIT,
                        0,
                        ptr::null::<libc::timespec>(),
                    )
                };
                if woken != 0 && ENDING.load(SeqCst) == 0 {
                    interrupted("futex");
                }
            }
        }),
        thread::spawn(move || {
            here(3);
            let mut byte = [0_u8; 1];
            // SAFETY: room for one byte.
            if unsafe { libc::read(read[0], byte.as_mut_ptr().cast(), 1) } != 1 {
                interrupted("read");
            }
        }),
        // One that is awake now and then: a reclaim may have to ask it, just before it sleeps again. Nothing else may.
        thread::spawn(|| {
            while ENDING.load(SeqCst) == 0 {
                let before = RECLAIMS.load(SeqCst);
                if !sleep(5) && before.is_multiple_of(2) && RECLAIMS.load(SeqCst) == before {
                    interrupted("a nap");
                }
                NAPS.fetch_add(1, SeqCst);
            }
        }),
    ];
    wait_for("sleepers", || {
        let is_asleep = |thread: &AtomicI32| {
            let task = PathBuf::from(format!("/proc/self/task/{}", thread.load(SeqCst)));
            system::state_at(&task) == Some('S')
        };
        THREADS.iter().all(is_asleep)
    });
    let call = target(0, 1);
    let callers = Callers::start(1, call, sites::either);
    // Page exchanges and single bytes in turn.
    let mut all = [Site::adding::<0>(call), Site::adding::<1>(target(1, 5)), Site::adding::<2>(target(3, 6))];
    let (mut toggles, mut stops, mut reclaims, mut late) = (0_u64, 0, 0, 0);
    while toggles < 2000 || !clock.is_over() {
        for site in &mut all {
            site.attach(Protocol::Exchange).unwrap_or_else(|error| panic!("attach: {error:?}"));
            site.detach(Protocol::Exchange).unwrap_or_else(|error| panic!("detach: {error:?}"));
            toggles += 1;
        }
        if toggles.is_multiple_of(300) {
            tell("reclaim");
            RECLAIMS.fetch_add(1, SeqCst);
            let outcome = typed::reclaim(Duration::from_secs(2));
            RECLAIMS.fetch_add(1, SeqCst);
            match outcome {
                Ok(_) => reclaims += 1,
                Err(Error::ThreadNotReached { .. } | Error::Busy { .. }) => late += 1,
                Err(error) => panic!("reclaim: {error:?}"),
            }
        }
        if toggles.is_multiple_of(900) {
            tell("stopped and continued");
            stop_and_continue();
            stops += 1;
        }
    }
    assert!(reclaims > 0, "{late} reclaims came too late");
    ENDING.store(1, SeqCst);
    system::handle(libc::SIGUSR1, nothing, 0, false);
    system::send(process_number(), THREADS[1].load(SeqCst), libc::SIGUSR1);
    // SAFETY: descriptors and a word of this program.
    unsafe {
        libc::write(polled[1], c"x".as_ptr().cast(), 1);
        libc::write(read[1], c"x".as_ptr().cast(), 1);
        WORD.store(1, SeqCst);
        libc::syscall(libc::SYS_futex, WORD.as_ptr(), libc::FUTEX_WAKE, 1);
    }
    for sleeper in sleepers {
        sleeper.join().expect("a sleeper");
    }
    let calls = callers.stop();
    for end in polled.into_iter().chain(read) {
        // SAFETY: opened above.
        unsafe { libc::close(end) };
    }
    format!(
        "{toggles} toggles, {calls} calls, {} naps, {stops} stops, {reclaims} reclaims and {late} too early, no EINTR",
        NAPS.load(SeqCst)
    )
}

/// Another process stops this one and lets it go on.
fn stop_and_continue() {
    let process = process_number();
    let helper = fork(|| {
        // SAFETY: signals for the parent, which waits for this process.
        unsafe {
            libc::kill(process, libc::SIGSTOP);
            libc::usleep(3000);
            libc::kill(process, libc::SIGCONT);
        }
        0
    });
    assert_eq!(system::wait(helper.expect("a process")), 0);
}
