//! SIGTRAP: threads that meet a breakpoint, or trap by a debug register.
//!
//! The handler decides by the address alone: whether a boundary is known one byte below the instruction pointer; where a debug register
//! has trapped, at the instruction pointer. What is not ours goes to the handler that was there before, as the kernel would have done
//! it; where there is none the process dies as it would have died.
//!
//! The kernel kills a thread that meets a breakpoint while it blocks SIGTRAP, whatever handler there is. So threads and
//! handlers that would block it are looked for before a breakpoint is written.

use super::registers;
use super::threads::chain::{Chain, Passed};
use super::threads::is_listening;
use super::threads::list::Tasks;
use super::threads::mask::{Mask, Told};
use super::threads::raw::{
    self, Action, Context, Info, SA_RESTORER, SIG_DFL, SIG_IGN, SIGNALS, SIGTRAP, SIGURG,
};
use crate::Error;
use crate::commit::breakpoints::Breakpoints;
use crate::host::process::inside::Inside;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use core::time::Duration;
use std::time::Instant;
use std::vec::Vec;

/// A thread that is in the handler does not block the signal: where all of many threads trap all the time, hardly any of them is
/// ever seen outside of it.
static CHAIN: Chain = Chain::open(SIGTRAP);
static BREAKPOINTS: AtomicPtr<Breakpoints> = AtomicPtr::new(ptr::null_mut());
/// The handlers that are running.
static INSIDE: Inside = Inside::new();

/// `si_code` of a trap after a single step, and of a debug register.
const TRAP_TRACE: i32 = 2;
const TRAP_HWBKPT: i32 = 4;
/// `si_code` of a perf event that asks for the signal.
const TRAP_PERF: i32 = 6;
/// The processor's number for a breakpoint.
const X86_TRAP_BP: u64 = 3;
/// The resume flag: the next instruction does not meet a debug register.
const RF: u64 = 1 << 16;

/// Makes ours the handler of SIGTRAP, and these the boundaries that it answers. If somebody else has installed one
/// since, ours is installed before it.
pub(super) fn install(breakpoints: &'static Breakpoints) -> Result<(), Error> {
    BREAKPOINTS.store(ptr::from_ref(breakpoints).cast_mut(), Ordering::SeqCst);
    // SAFETY: the handler may run in any thread at any moment: it reads atomics and the table, which is made for it.
    unsafe { CHAIN.install(handler) }
}

/// Whether a thread that meets a breakpoint now would get to our handler.
///
/// glibc blocks all signals for a moment where a thread or a process is started, and so does our handler of SIGURG while it runs:
/// what this says may be over when it is asked once more. Threads that have been seen to block it not are in `open`, sorted,
/// and are not asked again: where there are many, there may be no moment at which none of them is being started. One that has just been
/// woken in `sigtimedwait`, and not run since, seems to block nothing, and is taken for one that does not: to wait until each has run
/// would refuse those that start processes all the time.
///
/// # Errors
/// [`Error::TrapHandler`] or [`Error::TrapBlocked`].
pub(super) fn check(open: &mut Vec<i32>) -> Result<(), Error> {
    if !CHAIN.is_ours(handler)? {
        return Err(Error::TrapHandler);
    }
    for signal in (1..=SIGNALS).filter(|&signal| signal != SIGTRAP) {
        let Ok(action) = raw::action(signal) else { continue };
        let is_handled = !matches!(action.handler, SIG_DFL | SIG_IGN);
        // Ours of SIGURG runs through no code that can be detoured while it blocks everything.
        if is_handled && action.mask & raw::bit(SIGTRAP) != 0 && !(signal == SIGURG && is_listening()?) {
            return Err(Error::TrapBlocked { thread: 0 });
        }
    }
    let tasks = Tasks::open()?;
    let mut blocked = None;
    for thread in tasks.all()? {
        let Err(place) = open.binary_search(&thread) else { continue };
        let is_ours = tasks.stat(thread)?.is_some_and(|stat| !stat.is_none_of_ours());
        if is_ours && Mask::default().look(&tasks, thread, SIGTRAP) == Told::Blocks {
            blocked = Some(thread);
        } else {
            open.try_reserve(1)?;
            open.insert(place, thread);
        }
    }
    blocked.map_or(Ok(()), |thread| Err(Error::TrapBlocked { thread }))
}

/// Returns when nobody reads a table of boundaries any more that was replaced before; false if the time is up before.
pub(super) fn wait_for_handlers(until: Instant, pause: Duration) -> bool {
    INSIDE.wait(until, pause)
}

/// In the child of a `fork`, whose only thread is in no handler of ours: others were.
pub(super) fn forked() {
    INSIDE.forget();
}

/// Only the same signal interrupts it, sent by somebody: a breakpoint is nowhere in it.
unsafe extern "C" fn handler(_: i32, info: *mut Info, context: *mut Context) {
    // SAFETY: the kernel's, on this thread's stack; whoever passed the signal on to us passed on what it got.
    let (Some(trap), Some(interrupted)) = (unsafe { info.as_ref() }, unsafe { context.as_mut() }) else {
        return;
    };
    if trap.code == TRAP_PERF && trap.event_data() == registers::mark() {
        // It may have been late: sent while the thread blocked it, or to one whose detour has gone since. Such a thread goes on where
        // it is, past the register, since the kernel has set RF.
        if let Some(resume) = answered(interrupted.ip()) {
            interrupted.set_ip(resume);
            interrupted.set_eflags(interrupted.eflags() & !RF);
        }
        return;
    }
    if let Some(resume) = resume(trap.code, interrupted) {
        interrupted.set_ip(resume);
        return;
    }
    // A signal that somebody has sent can be ignored; one by which the processor says that it cannot go on, not.
    let was_sent = trap.code <= 0 || trap.code == TRAP_PERF;
    // SAFETY: both are what this handler was called with.
    match unsafe { CHAIN.pass(info, context) } {
        Passed::Handled => {}
        Passed::Ignored if was_sent => {}
        Passed::Ignored | Passed::Default => {
            // SAFETY: the kernel's, as above.
            if let Some(info) = unsafe { info.as_mut() } {
                die(info);
            }
        }
    }
}

fn resume(code: i32, context: &Context) -> Option<u64> {
    // A debugger that hands a trap on may make it look as if it had been sent.
    let is_breakpoint =
        !matches!(code, TRAP_TRACE | TRAP_HWBKPT | TRAP_PERF) && (code > 0 || context.trap() == X86_TRAP_BP);
    if is_breakpoint { answered(context.ip().wrapping_sub(1)) } else { None }
}

/// Where a thread goes on that has trapped at this address.
fn answered(at: u64) -> Option<u64> {
    let counted = INSIDE.enter();
    // SAFETY: null, or what was given to `install` for ever.
    let breakpoints = unsafe { BREAKPOINTS.load(Ordering::SeqCst).as_ref() };
    let resume = breakpoints.and_then(|breakpoints| breakpoints.resume(at));
    INSIDE.leave(counted);
    resume
}

/// Lets the process die of this signal where it met it: once the handler has returned, and does not block it any more.
fn die(info: &mut Info) {
    raw::set_mask(u64::MAX);
    info.mark = [0; 2];
    let default = Action { flags: SA_RESTORER, ..Action::default() };
    // SAFETY: no handler is installed.
    let _ = unsafe { raw::set_action(SIGTRAP, &default) };
    let _ = raw::send(raw::thread(), info);
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::undocumented_unsafe_blocks,
        reason = "libc, as its manual says, and functions of this file"
    )]

    use super::super::arch::{self, Masking};
    use super::super::threads::tests::{handle, in_child, signal};
    use super::*;
    use crate::commit::breakpoints::Boundary;
    use core::arch::global_asm;
    use core::sync::atomic::{AtomicBool, AtomicU32};
    use core::{mem, ptr};
    use std::boxed::Box;
    use std::sync::Mutex;
    use std::vec;

    /// What `check` says of the caller's process.
    fn asked() -> Result<(), Error> {
        check(&mut Vec::new())
    }

    global_asm!(
        ".pushsection .text.kdetour_trap_tests, \"ax\", @progbits",
        // Meets a breakpoint: the known one returns 1 where it goes on; the unknown one returns 2.
        ".globl kdetour_test_known",
        ".hidden kdetour_test_known",
        "kdetour_test_known:",
        "int3",
        "mov eax, 2",
        "ret",
        ".globl kdetour_test_resumed",
        ".hidden kdetour_test_resumed",
        "kdetour_test_resumed:",
        "mov eax, 1",
        "ret",
        ".globl kdetour_test_unknown",
        ".hidden kdetour_test_unknown",
        "kdetour_test_unknown:",
        "int3",
        "mov eax, 2",
        "ret",
        ".popsection",
    );

    #[cfg(target_arch = "x86_64")]
    global_asm!(
        ".pushsection .text.kdetour_trap_tests, \"ax\", @progbits",
        // Steps once: the trap arrives behind the instruction that follows `popfq`, a known boundary and one byte on.
        ".globl kdetour_test_step",
        ".hidden kdetour_test_step",
        "kdetour_test_step:",
        "pushfq",
        "or qword ptr [rsp], 0x100",
        "popfq",
        ".globl kdetour_test_stepped",
        ".hidden kdetour_test_stepped",
        "kdetour_test_stepped:",
        "nop",
        "pushfq",
        "and qword ptr [rsp], ~0x100",
        "popfq",
        "mov eax, 3",
        "ret",
        ".popsection",
    );

    #[cfg(target_arch = "x86")]
    global_asm!(
        ".pushsection .text.kdetour_trap_tests, \"ax\", @progbits",
        // Steps once: the trap arrives behind the instruction that follows `popfd`, a known boundary and one byte on.
        ".globl kdetour_test_step",
        ".hidden kdetour_test_step",
        "kdetour_test_step:",
        "pushfd",
        "or dword ptr [esp], 0x100",
        "popfd",
        ".globl kdetour_test_stepped",
        ".hidden kdetour_test_stepped",
        "kdetour_test_stepped:",
        "nop",
        "pushfd",
        "and dword ptr [esp], ~0x100",
        "popfd",
        "mov eax, 3",
        "ret",
        ".popsection",
    );

    unsafe extern "C" {
        fn kdetour_test_known() -> u32;
        fn kdetour_test_resumed() -> u32;
        fn kdetour_test_unknown() -> u32;
        fn kdetour_test_step() -> u32;
        fn kdetour_test_stepped();
    }

    fn breakpoints() -> &'static Breakpoints {
        let resume = (kdetour_test_resumed as *const ()).addr() as u64;
        let boundary = |at: *const ()| Boundary { at: at.addr() as u64, resume, attached: true, rank: 1 };
        let all = [boundary(kdetour_test_known as *const ()), boundary(kdetour_test_stepped as *const ())];
        let breakpoints = Box::leak(Box::new(Breakpoints::new()));
        // The old one is none.
        let _ = breakpoints.publish(vec![all[0], all[1]]).unwrap();
        breakpoints
    }

    static HEARD: AtomicU32 = AtomicU32::new(0);

    extern "C" fn hear(signal: i32) {
        assert_eq!(signal, SIGTRAP);
        HEARD.fetch_add(1, Ordering::SeqCst);
    }

    static BEHIND: Mutex<Option<libc::sigaction>> = Mutex::new(None);

    extern "C" fn hear_and_pass(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        HEARD.fetch_add(100, Ordering::SeqCst);
        let Some(behind) = BEHIND.lock().ok().and_then(|behind| *behind) else { return };
        let behind: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { mem::transmute(behind.sa_sigaction) };
        behind(signal, info, context);
    }

    fn set(handler: usize, flags: i32) -> libc::sigaction {
        let mut action = unsafe { mem::zeroed::<libc::sigaction>() };
        let mut old = unsafe { mem::zeroed::<libc::sigaction>() };
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        assert_eq!(unsafe { libc::sigaction(SIGTRAP, &raw const action, &raw mut old) }, 0);
        old
    }

    fn heard() -> u32 {
        HEARD.swap(0, Ordering::SeqCst)
    }

    #[test]
    fn known_breakpoints_are_answered_and_others_passed_on() {
        let status = in_child(|| {
            handle(SIGTRAP, hear, 0);
            install(breakpoints()).unwrap();
            install(breakpoints()).unwrap();
            assert_eq!((unsafe { kdetour_test_known() }, heard()), (1, 0));
            assert_eq!((unsafe { kdetour_test_unknown() }, heard()), (2, 1));
            // A step is none of ours, wherever it ends.
            assert_eq!(unsafe { kdetour_test_step() }, 3);
            assert!(heard() > 0);
            signal(raw::thread(), SIGTRAP);
            assert_eq!(heard(), 1);
            // Somebody else's handler, before ours: it passes on.
            *BEHIND.lock().unwrap() = Some(set((hear_and_pass as *const ()).addr(), libc::SA_SIGINFO));
            assert_eq!(asked(), Err(Error::TrapHandler));
            assert_eq!((unsafe { kdetour_test_known() }, heard()), (1, 100));
            assert_eq!((unsafe { kdetour_test_unknown() }, heard()), (2, 101));
            // Ours again, before theirs.
            install(breakpoints()).unwrap();
            assert_eq!(asked(), Ok(()));
            assert_eq!((unsafe { kdetour_test_known() }, heard()), (1, 0));
            assert_eq!((unsafe { kdetour_test_unknown() }, heard()), (2, 101));
            assert!(!INSIDE.any());
        });
        assert_eq!(status, 0, "{status:#x}");
    }

    #[test]
    fn a_handler_that_wants_to_be_called_once_is() {
        let status = in_child(|| {
            handle(SIGTRAP, hear, libc::SA_RESETHAND);
            install(breakpoints()).unwrap();
            assert_eq!((unsafe { kdetour_test_unknown() }, heard()), (2, 1));
            unsafe { kdetour_test_unknown() };
        });
        assert_eq!(status & 0x7f, SIGTRAP, "{status:#x}");
    }

    #[test]
    fn a_breakpoint_that_nobody_knows_kills() {
        for previous in [libc::SIG_DFL, libc::SIG_IGN] {
            let status = in_child(|| {
                set(previous, 0);
                install(breakpoints()).unwrap();
                assert_eq!(unsafe { kdetour_test_known() }, 1);
                unsafe { kdetour_test_unknown() };
            });
            assert_eq!(status & 0x7f, SIGTRAP, "{status:#x}");
        }
    }

    #[test]
    fn a_signal_that_is_ignored_is_harmless_and_else_kills() {
        for (previous, expected) in [(libc::SIG_IGN, 0), (libc::SIG_DFL, SIGTRAP)] {
            let status = in_child(|| {
                set(previous, 0);
                install(breakpoints()).unwrap();
                signal(raw::thread(), SIGTRAP);
            });
            assert_eq!(status & 0x7f, expected, "{status:#x}");
        }
    }

    #[test]
    fn who_blocks_the_trap_is_named() {
        let status = in_child(|| {
            install(breakpoints()).unwrap();
            assert_eq!(asked(), Ok(()));
            let mut set = unsafe { mem::zeroed::<libc::sigset_t>() };
            unsafe {
                libc::sigemptyset(&raw mut set);
                libc::sigaddset(&raw mut set, SIGTRAP);
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
            }
            assert_eq!(asked(), Err(Error::TrapBlocked { thread: raw::thread() }));
            unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
            assert_eq!(asked(), Ok(()));
            let mut action = unsafe { mem::zeroed::<libc::sigaction>() };
            action.sa_sigaction = (hear as *const ()).addr();
            action.sa_mask = set;
            assert_eq!(unsafe { libc::sigaction(libc::SIGHUP, &raw const action, ptr::null_mut()) }, 0);
            assert_eq!(asked(), Err(Error::TrapBlocked { thread: 0 }));
            action.sa_sigaction = libc::SIG_IGN;
            assert_eq!(unsafe { libc::sigaction(libc::SIGHUP, &raw const action, ptr::null_mut()) }, 0);
            assert_eq!(asked(), Ok(()));
            // A thread that waits for signals which it blocks: as long as it waits the kernel says that it blocks none.
            use core::sync::atomic::AtomicI32;
            static WAITS: AtomicI32 = AtomicI32::new(0);
            let waits = std::thread::spawn(|| unsafe {
                let mut all = mem::zeroed::<libc::sigset_t>();
                libc::sigfillset(&raw mut all);
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, ptr::null_mut());
                WAITS.store(raw::thread(), Ordering::SeqCst);
                libc::sigwaitinfo(&raw const all, ptr::null_mut());
            });
            let is_waiting = |number| arch::masking(number) == Some(Masking::Waits);
            let asleep = |thread| {
                Tasks::open().unwrap().asleep(thread).is_some_and(|asleep| is_waiting(asleep.number))
            };
            while !asleep(WAITS.load(Ordering::SeqCst)) {
                std::thread::yield_now();
            }
            let thread = WAITS.load(Ordering::SeqCst);
            assert_eq!(asked(), Err(Error::TrapBlocked { thread }));
            signal(thread, libc::SIGUSR1);
            waits.join().unwrap();
        });
        assert_eq!(status, 0, "{status:#x}");
    }

    #[test]
    fn threads_meet_known_breakpoints_at_once() {
        let status = in_child(|| {
            static DONE: AtomicBool = AtomicBool::new(false);
            static BEGUN: AtomicU32 = AtomicU32::new(0);
            install(breakpoints()).unwrap();
            let threads = [(); 8].map(|()| {
                std::thread::spawn(|| {
                    let mut calls = 0;
                    while !DONE.load(Ordering::Relaxed) || calls == 0 {
                        assert_eq!(unsafe { kdetour_test_known() }, 1);
                        BEGUN.fetch_add(u32::from(calls == 0), Ordering::SeqCst);
                        calls += 1;
                    }
                })
            });
            while BEGUN.load(Ordering::SeqCst) < 8 {
                std::thread::yield_now();
            }
            for _ in 0..20 {
                // Most of them are in the handler, which is not to be in the way.
                assert_eq!(asked(), Ok(()));
                // The table is replaced meanwhile.
                install(breakpoints()).unwrap();
                std::thread::sleep(core::time::Duration::from_millis(1));
            }
            DONE.store(true, Ordering::Relaxed);
            for thread in threads {
                thread.join().unwrap();
            }
            assert!(!INSIDE.any());
        });
        assert_eq!(status, 0, "{status:#x}");
    }
}
