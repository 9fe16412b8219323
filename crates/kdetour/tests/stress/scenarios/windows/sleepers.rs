//! Threads that sleep in system calls notice nothing: nothing ends early, also where they are suspended to be looked at.

use crate::support::callers::Callers;
use crate::support::runner::{Clock, fail, tell};
use crate::support::sites::{self, Site};
use crate::support::targets::target;
use kdetour::{Error, Protocol, typed};
use std::io::{Read, Write, pipe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use windows_sys::Win32::Foundation::{CloseHandle, HANDLE, WAIT_OBJECT_0};
use windows_sys::Win32::System::Threading::{CreateEventA, INFINITE, SetEvent, Sleep, WaitForSingleObject};

static ENDING: AtomicBool = AtomicBool::new(false);
static NAPS: AtomicU64 = AtomicU64::new(0);

struct Event(HANDLE);

// SAFETY: a number that the kernel knows, in every thread.
unsafe impl Sync for Event {}

fn early(what: &str) {
    if !ENDING.load(SeqCst) {
        fail(&format!("{what} ended early"));
    }
}

pub(crate) fn sleepers(clock: &Clock) -> String {
    // SAFETY: nothing but flags is given.
    let event = Event(unsafe { CreateEventA(ptr::null(), 0, 0, ptr::null()) });
    assert!(!event.0.is_null());
    let (mut read, mut write) = pipe().expect("a pipe");
    let (call, mut toggles, mut reclaims, mut late, mut met) = (target(0, 1), 0_u64, 0, 0, 0_u64);
    let callers = Callers::start(1, call, sites::either);
    thread::scope(|scope| {
        let event = &event;
        scope.spawn(move || {
            // SAFETY: an event that lives as long as this thread.
            assert_eq!(unsafe { WaitForSingleObject(event.0, INFINITE) }, WAIT_OBJECT_0);
            early("a wait");
        });
        scope.spawn(move || {
            let mut byte = [0];
            assert_eq!(read.read(&mut byte).expect("a byte"), 1);
            early("a read");
        });
        // It sleeps as long as it was told to, or longer.
        scope.spawn(|| {
            while !ENDING.load(SeqCst) {
                let begin = Instant::now();
                // SAFETY: a number is given.
                unsafe { Sleep(5) };
                if begin.elapsed() < Duration::from_micros(4500) {
                    fail("a nap ended early");
                }
                NAPS.fetch_add(1, SeqCst);
            }
        });
        let parked = scope.spawn(|| {
            while !ENDING.load(SeqCst) {
                thread::park();
            }
        });
        let mut all =
            [Site::adding::<0>(call), Site::adding::<1>(target(1, 5)), Site::adding::<2>(target(3, 6))];
        while toggles < 300 || !clock.is_over() {
            for site in &mut all {
                site.attach(Protocol::Exchange).unwrap_or_else(|error| panic!("attach: {error:?}"));
                site.detach(Protocol::Exchange).unwrap_or_else(|error| panic!("detach: {error:?}"));
                toggles += 1;
            }
            if toggles.is_multiple_of(60) {
                tell("reclaim");
                match typed::reclaim(Duration::from_secs(2)) {
                    Ok(_) => reclaims += 1,
                    Err(Error::ThreadNotReached { .. } | Error::Busy { .. }) => late += 1,
                    Err(error) => panic!("reclaim: {error:?}"),
                }
                tell("rendezvous");
                let mut site = Site::adding::<3>(target(2, 3));
                match site.attach(Protocol::Rendezvous).and_then(|()| site.detach(Protocol::Rendezvous)) {
                    Ok(()) => met += 1,
                    Err(error) => panic!("rendezvous: {error:?}"),
                }
            }
        }
        assert!(reclaims > 0, "{late} reclaims came too late");
        ENDING.store(true, SeqCst);
        // SAFETY: the event is there.
        assert_ne!(unsafe { SetEvent(event.0) }, 0);
        write.write_all(b"x").expect("a byte");
        parked.thread().unpark();
    });
    let calls = callers.stop();
    // SAFETY: nobody waits for it any more.
    unsafe { CloseHandle(event.0) };
    format!(
        "{toggles} toggles, {calls} calls, {} naps, {met} rendezvous, {reclaims} reclaims and {late} too early, nothing ended early",
        NAPS.load(SeqCst)
    )
}
