//! With real threads: at known instructions, asleep, in signal handlers.

#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "libc, as its manual says, and functions of this file"
)]

use super::look::{look_above, stack_pointer};
use super::park::park;
use super::raw::{SIGTRAP, SIGURG};
use super::roll::{is_listening, prepare};
use super::{chain, list::Tasks, raw, roll};
use crate::Error;
use core::arch::global_asm;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use core::{mem, ptr};
use std::boxed::Box;
use std::sync::Mutex;
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};
use std::{format, vec};

#[inline(never)]
fn look(places: &[Range<u64>], until: Instant) -> Result<(), Error> {
    look_above(stack_pointer(), places, until)
}

global_asm!(
    ".pushsection .text.kdetour_threads_tests, \"ax\", @progbits",
    // Whatever the linker puts before this is not to look like the end of a call.
    ".skip 16, 0xcc",
    // Spins until the byte at rdi is not 0, and says so in the next one.
    ".globl kdetour_test_spin",
    ".hidden kdetour_test_spin",
    "kdetour_test_spin:",
    "1: mov byte ptr [rdi + 1], 1",
    "pause",
    "cmp byte ptr [rdi], 0",
    "je 1b",
    "ret",
    ".globl kdetour_test_spin_end",
    ".hidden kdetour_test_spin_end",
    "kdetour_test_spin_end:",
    "int3",
    // Calls rdi with rsi.
    ".globl kdetour_test_call",
    ".hidden kdetour_test_call",
    "kdetour_test_call:",
    "push rbx",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    ".globl kdetour_test_return",
    ".hidden kdetour_test_return",
    "kdetour_test_return:",
    "pop rbx",
    "ret",
    ".globl kdetour_test_call_end",
    ".hidden kdetour_test_call_end",
    "kdetour_test_call_end:",
    "int3",
    // Holds its own address in a register, but spins elsewhere.
    ".globl kdetour_test_hold",
    ".hidden kdetour_test_hold",
    "kdetour_test_hold:",
    "lea r12, [rip + kdetour_test_spin]",
    "1: mov byte ptr [rdi + 1], 1",
    "pause",
    "cmp byte ptr [rdi], 0",
    "je 1b",
    "ret",
    // Stands at one instruction for ever; leads to 0. Where it can be moved to, there is a 1.
    ".globl kdetour_test_stand",
    ".hidden kdetour_test_stand",
    "kdetour_test_stand:",
    "mov byte ptr [rdi + 1], 1",
    ".globl kdetour_test_standing",
    ".hidden kdetour_test_standing",
    "kdetour_test_standing:",
    "jmp kdetour_test_standing",
    ".globl kdetour_test_moved",
    ".hidden kdetour_test_moved",
    "kdetour_test_moved:",
    "mov eax, 1",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn kdetour_test_spin(flag: *const Flag) -> u64;
    fn kdetour_test_spin_end();
    fn kdetour_test_call(function: unsafe extern "C" fn(u64) -> u64, argument: u64) -> u64;
    fn kdetour_test_return();
    fn kdetour_test_call_end();
    fn kdetour_test_stand(flag: *const Flag) -> u64;
    fn kdetour_test_standing();
    fn kdetour_test_moved();
}

macro_rules! address {
    ($function:ident) => {
        ($function as *const ()).addr() as u64
    };
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
    loop {
        match look(places, within(50)) {
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
    handle: JoinHandle<u64>,
}

impl Thread {
    /// Starts a thread, and waits until it is about to run `body`.
    fn start(body: impl FnOnce(&'static Flag) -> u64 + Send + 'static) -> Self {
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

    fn end(self) -> u64 {
        self.flag.end.store(true, Ordering::SeqCst);
        self.handle.join().unwrap()
    }
}

extern "C" fn spin_outside(flag: &Flag) -> u64 {
    while !flag.end.load(Ordering::Relaxed) {
        flag.arrived.store(true, Ordering::Relaxed);
        core::hint::spin_loop();
    }
    7
}

/// Sleeps once, without going on after an interruption; what the system call returned.
unsafe extern "C" fn nap(milliseconds: u64) -> u64 {
    let nanoseconds = i64::try_from(milliseconds % 1000 * 1_000_000).unwrap();
    let seconds = i64::try_from(milliseconds / 1000).unwrap();
    let time = libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    u64::from(unsafe { libc::nanosleep(&raw const time, ptr::null_mut()) } != 0)
}

/// Waits until the other end of a pipe is closed.
unsafe extern "C" fn wait_for(pipe: u64) -> u64 {
    let mut byte = 0_u8;
    let count = unsafe { libc::read(i32::try_from(pipe).unwrap(), (&raw mut byte).cast(), 1) };
    u64::from(count != 0)
}

fn pipe() -> (i32, i32) {
    let mut ends = [0; 2];
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    (ends[0], ends[1])
}

fn close(end: i32) {
    assert_eq!(unsafe { libc::close(end) }, 0);
}

const NANOSLEEP: i64 = libc::SYS_clock_nanosleep;
const READ: i64 = libc::SYS_read;

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

/// Runs this in a child, where the caller is the only thread and no stack has been used for anything else: what a thread
/// has left on its stack is found too, when another one has got that stack. And what is changed of the process is changed
/// there only. Says how the child ended.
pub(in crate::host::linux_process) fn in_child(body: impl FnOnce()) -> i32 {
    // No other thread may be in the middle of something when the child is made.
    let (calling, installing) = (roll::hold(), chain::hold());
    let child = unsafe { libc::fork() };
    drop((calling, installing));
    if child == 0 {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
        std::panic::set_hook(Box::new(|info| {
            let text = format!("in a child: {info}\n");
            unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
        }));
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
            Thread::start(move |_| unsafe { kdetour_test_call(wait_for, read as u64) }).asleep_in(READ)
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
        unsafe extern "C" {
            fn kdetour_test_hold(flag: *const Flag);
        }
        let thread = Thread::start(|flag| {
        unsafe {
            core::arch::asm!("call {}", sym kdetour_test_hold, in("rdi") flag, out("r12") _, clobber_abi("C"));
        }
        0
    })
    .arrived();
        found(&spinning(), 1);
        thread.end();
        assert_eq!(look(&spinning(), long()), Ok(()));
    });
}

#[test]
fn the_caller_itself_counts() {
    alone(|| {
        unsafe extern "C" fn look_from_inside(expect_busy: u64) -> u64 {
            let outcome = look(&calling(), within(50));
            u64::from(outcome == Err(Error::Busy { calls: 1 })) + expect_busy
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
            unsafe { wait_for(read as u64) }
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

static IN_HANDLER: AtomicU32 = AtomicU32::new(0);
static LEAVE: AtomicBool = AtomicBool::new(false);
static SLEEP: AtomicBool = AtomicBool::new(false);

/// Stays until it may leave: running, or asleep.
extern "C" fn stay(_: i32) {
    IN_HANDLER.fetch_add(1, Ordering::SeqCst);
    while !LEAVE.load(Ordering::SeqCst) {
        if SLEEP.load(Ordering::SeqCst) {
            unsafe { nap(3) };
        }
    }
    IN_HANDLER.fetch_sub(1, Ordering::SeqCst);
}

/// A thread in a signal handler that has interrupted it inside of a place.
fn interrupted(flags: i32, sleeping: bool) {
    handle(libc::SIGUSR1, stay, flags);
    SLEEP.store(sleeping, Ordering::SeqCst);
    LEAVE.store(false, Ordering::SeqCst);
    let thread = Thread::start(move |flag| {
        if flags & libc::SA_ONSTACK != 0 {
            // In the middle of a heap block: above it lies other data, which names the place.
            let start = spinning()[0].start;
            let block = vec![start; 32 << 10].leak();
            let base = block[4096..].as_mut_ptr().cast();
            let stack = libc::stack_t { ss_sp: base, ss_flags: 0, ss_size: 64 << 10 };
            assert_eq!(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) }, 0);
        }
        unsafe { kdetour_test_spin(flag) }
    })
    .arrived();
    signal(thread.number, libc::SIGUSR1);
    while IN_HANDLER.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    for _ in 0..5 {
        found(&spinning(), 1);
        assert_eq!(look(&calling(), long()), Ok(()));
    }
    LEAVE.store(true, Ordering::SeqCst);
    thread.end();
    while IN_HANDLER.load(Ordering::SeqCst) != 0 {
        thread::yield_now();
    }
    assert_eq!(look(&spinning(), long()), Ok(()));
}

#[test]
fn a_frame_of_a_signal_is_found() {
    alone(|| {
        interrupted(0, false);
    });
    alone(|| interrupted(0, true));
}

#[test]
fn a_frame_on_an_alternate_stack_is_found() {
    alone(|| {
        interrupted(libc::SA_ONSTACK, false);
    });
    alone(|| interrupted(libc::SA_ONSTACK, true));
}

/// Like `interrupted`, but it is a caller further up that is inside: only the outer stack tells.
#[test]
fn the_stack_under_an_alternate_one_is_searched() {
    alone(|| {
        unsafe extern "C" fn spin(flag: u64) -> u64 {
            spin_outside(unsafe { &*ptr::with_exposed_provenance(flag as usize) })
        }
        for sleeping in [false, true] {
            handle(libc::SIGUSR1, stay, libc::SA_ONSTACK);
            SLEEP.store(sleeping, Ordering::SeqCst);
            LEAVE.store(false, Ordering::SeqCst);
            let thread = Thread::start(|flag| unsafe {
                // The one that Rust gives to its threads has room for little more than what the kernel puts there twice.
                let base = vec![0_u64; 8 << 10].leak().as_mut_ptr().cast();
                let stack = libc::stack_t { ss_sp: base, ss_flags: 0, ss_size: 64 << 10 };
                assert_eq!(libc::sigaltstack(&raw const stack, ptr::null_mut()), 0);
                kdetour_test_call(spin, ptr::from_ref(flag).expose_provenance() as u64)
            })
            .arrived();
            signal(thread.number, libc::SIGUSR1);
            while IN_HANDLER.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            for _ in 0..5 {
                found(&calling(), 1);
                assert_eq!(look(&spinning(), long()), Ok(()));
            }
            LEAVE.store(true, Ordering::SeqCst);
            thread.end();
            assert_eq!(look(&calling(), long()), Ok(()));
        }
    });
}

#[test]
fn what_lies_above_a_stack_does_not_count() {
    alone(|| {
        extern "C" fn on_given_stack(flag: *mut libc::c_void) -> *mut libc::c_void {
            spin_outside(unsafe { &*flag.cast_const().cast() });
            ptr::null_mut()
        }
        let flag = Flag::new();
        let mut block = vec![0; 512 << 10];
        let (stack, above) = block.split_at_mut(128 << 10);
        above.fill(spinning()[0].start);
        let (base, size) = (stack.as_mut_ptr(), size_of_val(stack));
        let mut id = 0;
        unsafe {
            let mut attributes = mem::zeroed::<libc::pthread_attr_t>();
            libc::pthread_attr_init(&raw mut attributes);
            assert_eq!(libc::pthread_attr_setstack(&raw mut attributes, base.cast(), size), 0);
            let argument = (&raw const flag).cast_mut().cast();
            assert_eq!(libc::pthread_create(&raw mut id, &raw const attributes, on_given_stack, argument), 0);
        }
        assert_eq!(look(&spinning(), long()), Ok(()));
        flag.end.store(true, Ordering::SeqCst);
        assert_eq!(unsafe { libc::pthread_join(id, ptr::null_mut()) }, 0);
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
#[repr(C)]
struct Move([unsafe extern "C" fn(); 2]);

impl Move {
    fn moves(&'static self) -> &'static [(u64, u64)] {
        let moves = self.0.as_ptr().cast();
        unsafe { core::slice::from_raw_parts(moves, 1) }
    }
}

static RETURN: Move = Move([kdetour_test_return, kdetour_test_moved]);

#[test]
fn park_finds_a_return_address() {
    alone(|| {
        let thread = Thread::start(|_| unsafe { kdetour_test_call(nap, 20_000) }).asleep_in(NANOSLEEP);
        let nothing = &mut || panic!("a thread returns there");
        let outcome = park(RETURN.moves(), long(), nothing);
        // It was woken for it.
        assert_eq!(thread.end(), 1);
        assert_eq!(outcome, Err(Error::ThreadInWindow { address: address!(kdetour_test_return) }));
    });
}

#[test]
fn park_finds_the_callers_return_address() {
    alone(|| {
        unsafe extern "C" fn park_from_inside(_: u64) -> u64 {
            let outcome = park(RETURN.moves(), long(), &mut || Ok(()));
            u64::from(matches!(outcome, Err(Error::ThreadInWindow { .. })))
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
        let sleeper = Thread::start(move |_| unsafe { wait_for(read as u64) }).asleep_in(READ);
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
