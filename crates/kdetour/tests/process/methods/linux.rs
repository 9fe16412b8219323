//! What Linux has of them: debug registers, and the signal by which threads trap.

use super::{LONG, TRAPPING, address, attach, product, targets, trapped};
use crate::life::Target;
use crate::support::{functions, in_a_process_of_its_own, text, turn};
use kdetour::typed::set::{self, Member};
use kdetour::typed::{Detour, reclaim};
use kdetour::{Error, Method, Protocol};
use std::mem;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

targets! { first_of_five second_of_five third_of_five fourth_of_five fifth_of_five for_somebody_else }

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Of four: where somebody else has some, tests of them cannot run, and say so.
pub(super) fn all_registers() -> [Detour<Target>; 4] {
    let targets: [Target; 4] = [first_of_five, second_of_five, third_of_five, fourth_of_five];
    targets.map(|target| {
        let attached = attach(Method::DebugRegister, target, product);
        attached.unwrap_or_else(|error| panic!("this machine's debug registers: {error}"))
    })
}

#[test]
fn a_thread_that_blocks_the_signal_is_named() {
    if !in_a_process_of_its_own("methods::linux::a_thread_that_blocks_the_signal_is_named") {
        return;
    }
    static BLOCKS: AtomicU64 = AtomicU64::new(0);
    static GO: AtomicU64 = AtomicU64::new(0);
    let _turn = turn();
    let files = open_files();
    let thread = thread::spawn(|| {
        // SAFETY: the thread's own mask.
        unsafe {
            let mut set = mem::zeroed::<libc::sigset_t>();
            libc::sigaddset(&raw mut set, libc::SIGTRAP);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            BLOCKS.store(u64::try_from(libc::gettid()).unwrap(), SeqCst);
        }
        while GO.load(SeqCst) == 0 {
            thread::yield_now();
        }
    });
    while BLOCKS.load(SeqCst) == 0 {
        thread::yield_now();
    }
    let blocks = i32::try_from(BLOCKS.load(SeqCst)).unwrap();
    for method in TRAPPING {
        let before = text(address(trapped), 16);
        let refused = attach(method, trapped, product).map(drop);
        assert_eq!(refused, Err(Error::TrapBlocked { thread: blocks }), "{method:?}");
        assert_eq!((trapped(5, 7), text(address(trapped), 16)), (12, before));
    }
    GO.store(1, SeqCst);
    thread.join().unwrap();
    for method in TRAPPING {
        let detour = attach(method, trapped, product).unwrap();
        assert_eq!(trapped(5, 7), 35);
        drop(detour);
        reclaim(LONG).unwrap();
    }
    // kdetour itself keeps one open: the memory of this process.
    assert!(open_files() <= files + 1, "{} and {files}", open_files());
}

/// Its signal comes when it listens again, at some other place: that is not to be taken for another call.
#[test]
fn who_blocks_the_signal_later_misses_a_register() {
    if !in_a_process_of_its_own("methods::linux::who_blocks_the_signal_later_misses_a_register") {
        return;
    }
    let _turn = turn();
    let detour = attach(Method::DebugRegister, trapped, product).unwrap();
    let answers = thread::spawn(|| {
        let first = trapped(5, 7);
        // SAFETY: the thread's own mask.
        let missed = unsafe {
            let mut set = mem::zeroed::<libc::sigset_t>();
            libc::sigaddset(&raw mut set, libc::SIGTRAP);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            let missed = trapped(5, 7);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
            missed
        };
        (first, missed, trapped(5, 7))
    });
    assert_eq!(answers.join().unwrap(), (35, 12, 35));
    drop(detour);
    reclaim(LONG).unwrap();
}

#[test]
fn there_are_four_debug_registers() {
    if !in_a_process_of_its_own("methods::linux::there_are_four_debug_registers") {
        return;
    }
    let _turn = turn();
    drop(all_registers());
    reclaim(LONG).unwrap();
    let files = open_files();
    let mut four = all_registers();
    let refused = attach(Method::DebugRegister, fifth_of_five, product).map(drop);
    assert_eq!(refused, Err(Error::NoDebugRegister { address: address(fifth_of_five) }));
    assert_eq!((fifth_of_five(5, 7), fourth_of_five(5, 7), first_of_five(5, 7)), (12, 35, 35));
    // A set with one too many does nothing at all, its jump included.
    let (detour, cell, again) = (address(product), None, None);
    let set = [(trapped as Target, Method::Jump), (fifth_of_five, Method::DebugRegister)];
    let set = set.map(|(target, method)| Member {
        target: address(target),
        detour,
        cell,
        method,
        again,
        loose: false,
    });
    // SAFETY: all have one signature.
    let failed = unsafe { set::attach(Protocol::Exchange, &set) }.unwrap_err();
    assert_eq!((failed.index, failed.error), (1, Error::NoDebugRegister { address: address(fifth_of_five) }));
    assert_eq!((trapped(5, 7), fifth_of_five(5, 7)), (12, 12));
    // When one goes there is room.
    four[2].detach().unwrap();
    // SAFETY: as above.
    let both = unsafe { set::attach(Protocol::Exchange, &set) }.unwrap();
    assert_eq!((trapped(5, 7), fifth_of_five(5, 7), third_of_five(5, 7)), (35, 35, 12));
    // SAFETY: as above.
    let refused = unsafe { four[2].reattach() };
    assert!(matches!(refused, Err(Error::NoDebugRegister { .. })), "{refused:?}");
    set::detach(Protocol::Live, &both).unwrap();
    assert_eq!((trapped(5, 7), fifth_of_five(5, 7)), (12, 12));
    drop(four);
    reclaim(LONG).unwrap();
    assert_eq!(open_files(), files, "every event is closed");
}

/// The resume flag of a thread that trapped must not hide the next register.
#[test]
fn a_detour_may_be_detoured_by_a_register_itself() {
    if !in_a_process_of_its_own("methods::linux::a_detour_may_be_detoured_by_a_register_itself") {
        return;
    }
    let _turn = turn();
    let outer = attach(Method::DebugRegister, trapped, first_of_five).unwrap();
    let inner = attach(Method::DebugRegister, first_of_five, product).unwrap();
    assert_eq!((trapped(5, 7), outer.original()(5, 7), inner.original()(5, 7)), (35, 12, 12));
    drop(outer);
    assert_eq!((trapped(5, 7), first_of_five(5, 7)), (12, 35));
    drop(inner);
    reclaim(LONG).unwrap();
}

/// A child of `fork` has detours as its parent has, until it executes another program; and keeps no register of its parent's.
#[test]
fn a_child_has_them_too() {
    if !in_a_process_of_its_own("methods::linux::a_child_has_them_too") {
        return;
    }
    let _turn = turn();
    for method in TRAPPING {
        let mut detour = attach(method, trapped, product).unwrap();
        let (mut to_child, mut to_parent) = ([0; 2], [0; 2]);
        // SAFETY: two files are written there.
        unsafe {
            assert_eq!(libc::pipe(to_child.as_mut_ptr()) | libc::pipe(to_parent.as_mut_ptr()), 0);
        }
        // SAFETY: the child calls, reads, writes and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let mut byte = [u8::from(trapped(5, 7) == 35)];
            // SAFETY: there is room for one byte.
            unsafe {
                libc::write(to_parent[1], byte.as_ptr().cast(), 1);
                libc::read(to_child[0], byte.as_mut_ptr().cast(), 1);
                // What its parent does is not its own business.
                libc::_exit(i32::from(trapped(5, 7) != 35));
            }
        }
        let mut byte = [0_u8];
        // SAFETY: there is room for one byte.
        assert_eq!(unsafe { libc::read(to_parent[0], byte.as_mut_ptr().cast(), 1) }, 1);
        assert_eq!(byte, [1], "{method:?} in the child");
        detour.detach().unwrap();
        assert_eq!(trapped(5, 7), 12);
        drop(all_registers());
        let mut status = -1;
        // SAFETY: one byte, and a status.
        unsafe {
            libc::write(to_child[1], byte.as_ptr().cast(), 1);
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            to_child.iter().chain(&to_parent).for_each(|&file| {
                let _ = libc::close(file);
            });
        }
        assert_eq!(status, 0, "{method:?} stays in the child");
        drop(detour);
        reclaim(LONG).unwrap();
    }
}

/// SIGTRAP is everybody's: what is not ours goes to whoever was there before.
#[test]
fn what_somebody_else_s_event_sends_is_passed_on() {
    if !in_a_process_of_its_own("methods::linux::what_somebody_else_s_event_sends_is_passed_on") {
        return;
    }
    const TRAP_PERF: i32 = 6;
    static HEARD: AtomicU64 = AtomicU64::new(0);
    extern "C" fn hear(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel's.
        let code = unsafe { (*info).si_code };
        HEARD.fetch_add(if code == TRAP_PERF { 1 } else { 100 }, SeqCst);
    }
    let _turn = turn();
    // SAFETY: a handler that counts, before kdetour's.
    unsafe {
        let mut action = mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = (hear as *const ()).addr();
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()), 0);
    }
    let detour = attach(Method::DebugRegister, trapped, product).unwrap();
    // struct perf_event_attr: a breakpoint of this thread at a function, with a signal and data of its own.
    let mut event = [0_u64; 16];
    event[0] = 5 | 128 << 32; // PERF_TYPE_BREAKPOINT; the size
    event[2] = 1; // each time
    event[5] = 1 << 5 | 1 << 6 | 1 << 36 | 1 << 37; // exclude_kernel, exclude_hv, remove_on_exec, sigtrap
    event[6] = 4 << 32; // HW_BREAKPOINT_X
    event[7] = address(for_somebody_else);
    event[8] = 8;
    event[15] = 7;
    // SAFETY: it is as long as it says.
    let file = unsafe {
        libc::syscall(libc::SYS_perf_event_open, event.as_ptr(), 0_usize, -1_isize, -1_isize, 0_usize)
    };
    assert!(file >= 0, "{}", std::io::Error::last_os_error());
    assert_eq!((for_somebody_else(5, 7), HEARD.load(SeqCst)), (12, 1));
    assert_eq!((trapped(5, 7), HEARD.load(SeqCst)), (35, 1), "ours is not theirs");
    drop(detour);
    // SAFETY: the thread sends itself a signal.
    assert_eq!(unsafe { libc::raise(libc::SIGTRAP) }, 0);
    assert_eq!(HEARD.load(SeqCst), 101);
    // SAFETY: it was opened above.
    assert_eq!(unsafe { libc::close(i32::try_from(file).unwrap()) }, 0);
    reclaim(LONG).unwrap();
}
