//! The application's own handlers of the signal, and signals that come late.

use super::*;
use crate::address::narrow;

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
        let thread = Thread::start(move |_| unsafe { wait_for(read as usize) }).asleep_in(READ);
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
        let info = raw::Info::sent(SIGURG, raw::SI_QUEUE, (0, 0), narrow(chain::cookie()));
        let _ = look(&calling(), within(1));
        raw::send(blocked.number, &info).unwrap();
        let thread = blocked.number;
        assert_eq!(look(&calling(), within(50)), Err(Error::ThreadNotReached { thread }));
        assert_eq!(blocked.end(), 5);
        assert_eq!(look(&calling(), long()), Ok(()));
    });
}

/// The application's handler may need more room than an alternate stack has.
#[test]
fn a_handler_stays_on_the_stack_that_it_wants() {
    extern "C" fn nothing(_: i32) {}
    for (flags, expected) in [(0, 0), (libc::SA_ONSTACK, raw::SA_ONSTACK), (-1, raw::SA_ONSTACK)] {
        alone(|| {
            if flags >= 0 {
                handle(SIGURG, nothing, flags);
            }
            prepare().unwrap();
            let ours = raw::action(SIGURG).unwrap();
            assert!(is_listening().unwrap());
            assert_eq!(ours.flags & raw::SA_ONSTACK, expected, "{flags}");
        });
    }
}

/// A thread that blocks everything and waits for signals is told by the kernel to block none of those: it is given none of ours.
#[test]
fn who_waits_for_signals_is_given_none_of_ours() {
    alone(|| {
        let thread = Thread::start(|flag| {
            block_all();
            let mut all = unsafe { mem::zeroed::<libc::sigset_t>() };
            let (mut heard, short) = (0, libc::timespec { tv_sec: 0, tv_nsec: 20_000_000 });
            unsafe { libc::sigfillset(&raw mut all) };
            while !flag.end.load(Ordering::Relaxed) {
                flag.arrived.store(true, Ordering::Relaxed);
                heard += usize::from(
                    unsafe { libc::sigtimedwait(&raw const all, ptr::null_mut(), &raw const short) } > 0,
                );
            }
            heard
        })
        .arrived();
        for _ in 0..100 {
            let _ = look(&calling(), within(5));
        }
        let nothing = &mut || panic!("a thread is not parked");
        let number = thread.number;
        assert_eq!(park(&[], within(100), nothing), Err(Error::ThreadNotReached { thread: number }));
        assert_eq!(thread.end(), 0);
    });
}
