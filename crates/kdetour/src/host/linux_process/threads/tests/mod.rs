//! With real threads: at known instructions, asleep, in signal handlers.

#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "libc, as its manual says, and functions of this file"
)]

macro_rules! address {
    ($function:ident) => {
        ($function as *const ()).addr() as u64
    };
}

mod found;
mod frames;
mod handlers;
mod masks;
mod parked;

use super::look::look_above;
use super::park::park;
use super::raw::{SIGTRAP, SIGURG};
use super::roll::{is_listening, prepare};
use super::stack_pointer;
use super::{chain, list::Tasks, raw, roll};
use crate::Error;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use core::{mem, ptr};
use std::boxed::Box;
use std::sync::{Mutex, Once};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};
use std::{format, vec};

#[inline(never)]
fn look(places: &[Range<u64>], until: Instant) -> Result<(), Error> {
    look_above(stack_pointer(), places, places, until)
}

#[cfg(target_arch = "x86")]
#[path = "code/x86.rs"]
mod code;
#[cfg(target_arch = "x86_64")]
#[path = "code/x86_64.rs"]
mod code;

use code::NANOSLEEP;

unsafe extern "C" {
    fn kdetour_test_spin(flag: *const Flag) -> usize;
    fn kdetour_test_spin_end();
    fn kdetour_test_hold(flag: *const Flag) -> usize;
    fn kdetour_test_call(function: unsafe extern "C" fn(usize) -> usize, argument: usize) -> usize;
    fn kdetour_test_return();
    fn kdetour_test_call_end();
    fn kdetour_test_stand(flag: *const Flag) -> usize;
    fn kdetour_test_standing();
    fn kdetour_test_moved();
}

fn spinning() -> [Range<u64>; 1] {
    core::array::from_fn(|_| address!(kdetour_test_spin)..address!(kdetour_test_spin_end))
}

fn calling() -> [Range<u64>; 1] {
    core::array::from_fn(|_| address!(kdetour_test_call)..address!(kdetour_test_call_end))
}

fn within(milliseconds: u64) -> Instant {
    Instant::now() + Duration::from_millis(milliseconds)
}

/// Long enough on any machine.
fn long() -> Instant {
    within(30_000)
}

/// What ends a thread, and what it says when it has arrived.
#[repr(C)]
struct Flag {
    end: AtomicBool,
    arrived: AtomicBool,
}

impl Flag {
    const fn new() -> Self {
        Self { end: AtomicBool::new(false), arrived: AtomicBool::new(false) }
    }
}

/// Looks until as many are found as there are. It is an error if nobody is found: only who runs may be too slow.
#[track_caller]
fn found(places: &[Range<u64>], expected: u64) {
    let end = long();
    let mut patience = 50;
    loop {
        let outcome = look(places, within(patience));
        // On a busy machine a thread may get no processor for long.
        patience *= 2;
        match outcome {
            Err(Error::Busy { calls }) if calls == expected => return,
            Err(Error::Busy { calls }) if calls < expected && Instant::now() < end => {}
            Err(Error::ThreadNotReached { .. }) if Instant::now() < end => {}
            other => panic!("{other:?} instead of {expected}"),
        }
    }
}

/// A thread, and the flag that ends it.
struct Thread {
    number: i32,
    flag: &'static Flag,
    handle: JoinHandle<usize>,
}

impl Thread {
    /// Starts a thread, and waits until it is about to run `body`.
    fn start(body: impl FnOnce(&'static Flag) -> usize + Send + 'static) -> Self {
        let flag: &'static Flag = Box::leak(Box::new(Flag::new()));
        let number: &'static AtomicI32 = Box::leak(Box::new(AtomicI32::new(0)));
        let handle = thread::spawn(move || {
            number.store(raw::thread(), Ordering::SeqCst);
            body(flag)
        });
        while number.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        Self { number: number.load(Ordering::SeqCst), flag, handle }
    }

    /// Waits until the thread sleeps in this system call.
    fn asleep_in(self, call: i64) -> Self {
        let tasks = Tasks::open().unwrap();
        while tasks.asleep(self.number).is_none_or(|asleep| asleep.number != call) {
            thread::yield_now();
        }
        self
    }

    /// Waits until the thread is where it is to be.
    fn arrived(self) -> Self {
        while !self.flag.arrived.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        self
    }

    fn end(self) -> usize {
        self.flag.end.store(true, Ordering::SeqCst);
        self.handle.join().unwrap()
    }
}

extern "C" fn spin_outside(flag: &Flag) -> usize {
    while !flag.end.load(Ordering::Relaxed) {
        flag.arrived.store(true, Ordering::Relaxed);
        core::hint::spin_loop();
    }
    7
}

/// Sleeps once, without going on after an interruption; what the system call returned.
unsafe extern "C" fn nap(milliseconds: usize) -> usize {
    let nanoseconds = (milliseconds % 1000 * 1_000_000).try_into().unwrap();
    let seconds = (milliseconds / 1000).try_into().unwrap();
    let time = libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    usize::from(unsafe { libc::nanosleep(&raw const time, ptr::null_mut()) } != 0)
}

/// Waits until the other end of a pipe is closed.
unsafe extern "C" fn wait_for(pipe: usize) -> usize {
    let mut byte = 0_u8;
    let count = unsafe { libc::read(i32::try_from(pipe).unwrap(), (&raw mut byte).cast(), 1) };
    usize::from(count != 0)
}

fn pipe() -> (i32, i32) {
    let mut ends = [0; 2];
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    (ends[0], ends[1])
}

fn close(end: i32) {
    assert_eq!(unsafe { libc::close(end) }, 0);
}

const READ: i64 = libc::SYS_read as isize as i64;

/// What is blocked, while it is.
fn block_all() {
    let mut set = unsafe { mem::zeroed::<libc::sigset_t>() };
    unsafe {
        libc::sigfillset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
}

pub(in crate::host::linux_process) fn handle(signal: i32, handler: extern "C" fn(i32), flags: i32) {
    let mut action = unsafe { mem::zeroed::<libc::sigaction>() };
    action.sa_sigaction = (handler as *const ()).addr();
    action.sa_flags = flags;
    assert_eq!(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) }, 0);
}

pub(in crate::host::linux_process) fn signal(thread: i32, signal: i32) {
    assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) }, 0);
}

/// Whether this is a child, which must not wait for what another thread of its parent held.
static IN_A_CHILD: AtomicBool = AtomicBool::new(false);
/// What is told of a panic is decided once: in a child the place for that may be locked for ever.
static HOOK: Once = Once::new();

/// Runs this in a child, where the caller is the only thread and no stack has been used for anything else: what a thread
/// has left on its stack is found too, when another one has got that stack. And what is changed of the process is changed
/// there only. Says how the child ended.
pub(in crate::host::linux_process) fn in_child(body: impl FnOnce()) -> i32 {
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IN_A_CHILD.load(Ordering::SeqCst) {
                return usual(info);
            }
            let text = format!("in a child: {info}\n");
            unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
        }));
    });
    // No other thread may be in the middle of something when the child is made.
    let (calling, installing) = (roll::hold(), chain::hold());
    let child = unsafe { libc::fork() };
    drop((calling, installing));
    if child == 0 {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
        IN_A_CHILD.store(true, Ordering::SeqCst);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        unsafe { libc::_exit(if outcome.is_ok() { 0 } else { 101 }) };
    }
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// Runs a test in a child.
fn alone(body: impl FnOnce()) {
    let status = in_child(body);
    assert_eq!(status, 0, "{status:#x}");
}
