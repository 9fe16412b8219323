//! The application's own handlers of the signal, and signals that come late.

use super::*;

static HEARD: AtomicU32 = AtomicU32::new(0);

extern "C" fn hear(_: i32) {
    HEARD.fetch_add(1, Ordering::SeqCst);
}

static BEHIND: Mutex<Option<libc::sigaction>> = Mutex::new(None);

/// Passes on to what was installed before.
extern "C" fn hear_and_pass(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    HEARD.fetch_add(100, Ordering::SeqCst);
    let Some(behind) = BEHIND.lock().ok().and_then(|behind| *behind) else { return };
    let behind: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
        unsafe { mem::transmute(behind.sa_sigaction) };
    behind(signal, info, context);
}

#[test]
fn the_applications_own_handlers_still_hear() {
    alone(|| {
        // Before ours.
        handle(SIGURG, hear, 0);
        let thread = Thread::start(|flag| unsafe { kdetour_test_spin(flag) }).arrived();
        assert_eq!(look(&calling(), long()), Ok(()));
        assert!(is_listening().unwrap());
        assert_eq!(HEARD.load(Ordering::SeqCst), 0, "ours was passed on");
        unsafe { libc::raise(SIGURG) };
        assert_eq!(HEARD.load(Ordering::SeqCst), 1);
        // After ours, passing on to it.
        let mut action = unsafe { mem::zeroed::<libc::sigaction>() };
        let mut behind = unsafe { mem::zeroed::<libc::sigaction>() };
        action.sa_sigaction = (hear_and_pass as *const ()).addr();
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(unsafe { libc::sigaction(SIGURG, &raw const action, &raw mut behind) }, 0);
        *BEHIND.lock().unwrap() = Some(behind);
        assert!(!is_listening().unwrap());
        assert_eq!(look(&calling(), long()), Ok(()));
        assert!(is_listening().unwrap());
        // Ours, theirs, ours again, and the first one: each once.
        unsafe { libc::raise(SIGURG) };
        assert_eq!(HEARD.load(Ordering::SeqCst), 102);
        found(&spinning(), 1);
        assert_eq!(HEARD.load(Ordering::SeqCst), 102, "ours was passed on");
        thread.end();
    });
}

#[test]
fn an_interruption_that_was_wanted_is_still_one() {
    alone(|| {
        handle(SIGURG, hear, 0);
        prepare().unwrap();
        let thread = Thread::start(|_| unsafe { nap(20_000) }).asleep_in(NANOSLEEP);
        signal(thread.number, SIGURG);
        assert_eq!(thread.end(), 1);
        assert_eq!(HEARD.load(Ordering::SeqCst), 1);
        // A call that would be restarted.
        let (read, write) = pipe();
        let thread = Thread::start(move |_| unsafe { wait_for(read as u64) }).asleep_in(READ);
        signal(thread.number, SIGURG);
        assert_eq!(thread.end(), 1);
        close(write);
    });
}

#[test]
fn a_late_signal_does_no_harm() {
    alone(|| {
        let blocked = Thread::start(|flag| {
            let mut set = unsafe { mem::zeroed::<libc::sigset_t>() };
            unsafe {
                libc::sigemptyset(&raw mut set);
                libc::sigaddset(&raw mut set, SIGURG);
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
            }
            spin_outside(flag);
            unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
            5
        })
        .arrived();
        // Sent though it is blocked, as if it had been blocked a moment after it was looked at.
        let info =
            raw::Info { signal: SIGURG, code: raw::SI_QUEUE, value: chain::cookie(), ..Default::default() };
        let _ = look(&calling(), within(1));
        raw::send(blocked.number, &info).unwrap();
        let thread = blocked.number;
        assert_eq!(look(&calling(), within(50)), Err(Error::ThreadNotReached { thread }));
        assert_eq!(blocked.end(), 5);
        assert_eq!(look(&calling(), long()), Ok(()));
    });
}
