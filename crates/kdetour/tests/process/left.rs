//! What a commit leaves that fails after it has begun: its detours drain, and what calls in them may need stays until they are freed.

use crate::imports::Library;
use crate::life::{Target, replacement};
use crate::support::{functions, in_a_process_of_its_own, turn};
use kdetour::typed::set::{self, Member};
use kdetour::typed::{reclaim, with_process};
use kdetour::{AtomicAddress, Error, Method, Protocol, SessionError, State};
use std::mem;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

functions! {
    beside_the_pointer {
        "lea rax, [rdi + rsi]"
        "ret"
    } {
        "mov eax, [esp + 4]"
        "add eax, [esp + 8]"
        "ret"
    }
}

static CELLS: [AtomicAddress; 2] = [const { AtomicAddress::new(0) }; 2];

fn address(function: Target) -> u64 {
    (function as *const ()).addr() as u64
}

/// Runs with a thread beside that blocks SIGTRAP: a breakpoint cannot be set then, which is found when the pointers of a set have been
/// exchanged already.
fn beside_one_that_blocks(work: impl FnOnce(i32)) {
    let (tell, told) = channel();
    let (go, gone) = channel::<()>();
    let blocks = thread::spawn(move || {
        // SAFETY: the thread's own mask.
        unsafe {
            let mut set = mem::zeroed::<libc::sigset_t>();
            libc::sigaddset(&raw mut set, libc::SIGTRAP);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            tell.send(libc::gettid()).unwrap();
        }
        gone.recv().unwrap_err();
    });
    work(told.recv().unwrap());
    drop(go);
    blocks.join().unwrap();
}

#[test]
fn what_a_failed_commit_leaves_is_kept_until_it_is_freed() {
    if !in_a_process_of_its_own("left::what_a_failed_commit_leaves_is_kept_until_it_is_freed") {
        return;
    }
    let _turn = turn();
    let library = Library::build("left", &[], libc::RTLD_NOW);
    let (place, function) = (library.symbol(c"kept"), library.symbol(c"one"));
    let is_mapped =
        || with_process(|kdetour| Ok(kdetour::host::Host::read(kdetour.host(), function, &mut [0]).is_ok()));
    let set = [
        Member {
            method: Method::Pointer,
            target: place,
            detour: address(replacement),
            cell: Some(&CELLS[0]),
            ..Member::default()
        },
        Member {
            method: Method::Breakpoint,
            target: address(beside_the_pointer),
            detour: address(replacement),
            cell: Some(&CELLS[1]),
            ..Member::default()
        },
    ];
    beside_one_that_blocks(|thread| {
        // SAFETY: nobody calls by the pointer.
        let failed = unsafe { set::attach(Protocol::Exchange, &set) };
        assert_eq!(failed, Err(SessionError { index: 1, error: Error::TrapBlocked { thread } }));
    });
    let left = with_process(|kdetour| {
        let records = kdetour.left_behind().iter().map(|&handle| *kdetour.record(handle).unwrap());
        Ok(records.map(|record| (record.target, record.state)).collect::<Vec<_>>())
    });
    assert_eq!(left.unwrap(), set.map(|member| (member.target, State::Draining)));
    assert_eq!(beside_the_pointer(5, 7), 12);

    library.close();
    assert!(is_mapped().unwrap(), "a call may be on its way");
    assert_eq!(reclaim(Duration::from_secs(10)), Ok(2));
    assert!(!is_mapped().unwrap());

    // A commit that succeeds leaves nothing.
    // SAFETY: the detour is of the target's type.
    let handles = unsafe { set::attach(Protocol::Exchange, &set[1..]) }.unwrap();
    assert_eq!(with_process(|kdetour| Ok(kdetour.left_behind().len())), Ok(0));
    set::detach(Protocol::Exchange, &handles).unwrap();
    set::drain(&handles, Duration::from_secs(10)).unwrap();
}
