//! Beside other threads: attached, chained, detached and reclaimed while they run.

use crate::life::{Target, replacement, subtract};
use crate::support::{AWAY, code_at, functions, in_a_process_of_its_own, native, poke, text, turn};
use kdetour::plan::{Refusal, Shape, Shapes};
use kdetour::typed::{Detour, Function, reclaim, with_process};
use kdetour::{Attach, Error, Handle, Protocol, Record, State, detour};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

functions! {
    busy {
        "push rbp"
        "mov rbp, rsp"
        "push rbx"
        "lea rax, [rdi + rsi]"
        "pop rbx"
        "pop rbp"
        "ret"
    } {
        "push ebp"
        "mov ebp, esp"
        "push ebx"
        "mov eax, [ebp + 8]"
        "add eax, [ebp + 12]"
        "pop ebx"
        "pop ebp"
        "ret"
    }

    chained {
        "push rbp"
        "mov rbp, rsp"
        "push rbx"
        "lea rax, [rdi + rsi]"
        "pop rbx"
        "pop rbp"
        "ret"
    } {
        "push ebp"
        "mov ebp, esp"
        "push ebx"
        "mov eax, [ebp + 8]"
        "add eax, [ebp + 12]"
        "pop ebx"
        "pop ebp"
        "ret"
    }

    // 41 54 49 89 fc: as a displacement these bytes lead below the program, where nothing lies.
    two_by_two {
        "push r12"
        "mov r12, rdi"
        "lea rax, [r12 + rsi]"
        "pop r12"
        "ret"
    } {
        "mov edx, edx"
        "mov eax, [esp + 4]"
        "add eax, [esp + 8]"
        "ret"
    }

    one_long {
        "lea rax, [rdi + rsi + 0x1000]"
        "sub rax, 0x1000"
        "ret"
    } {
        "lea eax, [esp + 0x1000]"
        "mov eax, [eax - 0x1000 + 4]"
        "add eax, [esp + 8]"
        "ret"
    }

    slept_in {
        "push rbp"
        "mov rbp, rsp"
        "push rbx"
        "lea rax, [rdi + rsi]"
        "pop rbx"
        "pop rbp"
        "ret"
    } {
        "push ebp"
        "mov ebp, esp"
        "push ebx"
        "mov eax, [ebp + 8]"
        "add eax, [ebp + 12]"
        "pop ebx"
        "pop ebp"
        "ret"
    }
}

/// Calls a function from several threads as long as `work` lasts, and fails if an answer is neither of the two.
fn under_calls(function: Target, answers: [usize; 2], work: impl FnOnce()) {
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let answer = function(7, 3);
                        assert!(answers.contains(&answer), "{answer}");
                    }
                })
            })
            .collect();
        let finished = Done(&done);
        work();
        drop(finished);
        callers.into_iter().for_each(|caller| caller.join().unwrap());
    });
}

/// Attaches a function in one of some shapes, by a protocol, with nobody to be told of the original.
fn attach_as(protocol: Protocol, target: Target, shapes: Option<Shapes>) -> Result<Handle, Error> {
    with_process(|kdetour| {
        let (target, detour) = (target.address(), (replacement as Target).address());
        // SAFETY: both have one signature.
        let session =
            unsafe { kdetour.session().attach(Attach { target, detour, shapes, ..Attach::default() }) };
        let nobody: &mut dyn FnMut(&Record, u64) = &mut |_, _| ();
        let handles = match protocol {
            Protocol::Live => session.commit_live(nobody),
            Protocol::Rendezvous => session.commit_rendezvous(nobody),
            _ => session.commit_exchange(nobody),
        };
        Ok(handles.map_err(|failure| failure.error)?[0])
    })
}

fn detach_as(protocol: Protocol, handle: Handle) -> Result<(), Error> {
    with_process(|kdetour| {
        let session = kdetour.session().detach(handle);
        let nobody: &mut dyn FnMut(&Record, u64) = &mut |_, _| ();
        let outcome = match protocol {
            Protocol::Live => session.commit_live(nobody),
            Protocol::Rendezvous => session.commit_rendezvous(nobody),
            _ => session.commit_exchange(nobody),
        };
        outcome.map(drop).map_err(|failure| failure.error)
    })
}

#[test]
fn one_byte_comes_and_goes_under_calls() {
    let _turn = turn();
    for target in [busy as Target, two_by_two, one_long] {
        let before = text(target.address(), 16);
        under_calls(target, [10, 7003], || {
            // SAFETY: both have one signature.
            let mut detour = unsafe { Detour::attach(target, replacement) }.unwrap();
            let now = text(target.address(), 16);
            // One byte has changed, unless something lies where the relay would have to be.
            assert!(now[0] == 0xe9 && (now[1..] == before[1..] || now[5..] == before[5..]));
            for _ in 0..200 {
                detour.detach().unwrap();
                // SAFETY: as above.
                unsafe { detour.reattach() }.unwrap();
            }
        });
        assert_eq!(text(target.address(), 16), before);
        assert_eq!(target(7, 3), 10);
    }
}

#[test]
fn every_shape_and_protocol_under_calls() {
    if !in_a_process_of_its_own("beside::every_shape_and_protocol_under_calls") {
        return;
    }
    let _turn = turn();
    let kept = Some(Shapes::only(Shape::Jump5Kept));
    let trapped = Some(Shapes::only(Shape::Jump5Trapped));
    let free = Some(Shapes::only(Shape::Jump5));
    let cases: [(Protocol, Option<Shapes>); 8] = [
        (Protocol::Exchange, kept),
        (Protocol::Exchange, trapped),
        (Protocol::Live, None),
        (Protocol::Live, kept),
        (Protocol::Live, trapped),
        (Protocol::Live, free),
        (Protocol::Rendezvous, None),
        (Protocol::Rendezvous, free),
    ];
    for (protocol, shapes) in cases {
        let target = two_by_two as Target;
        let before = text(target.address(), 16);
        under_calls(target, [10, 7003], || {
            for _ in 0..20 {
                // A thread may be in the way of a rendezvous, or be too busy to answer.
                let handle = loop {
                    match attach_as(protocol, target, shapes) {
                        Err(Error::ThreadInWindow { .. } | Error::ThreadNotReached { .. }) => {}
                        outcome => {
                            break outcome.unwrap_or_else(|error| panic!("{protocol:?} {shapes:?}: {error}"));
                        }
                    }
                };
                assert_ne!(text(target.address(), 16), before);
                while detach_as(protocol, handle)
                    .is_err_and(|error| matches!(error, Error::ThreadNotReached { .. }))
                {}
            }
        });
        assert_eq!(text(target.address(), 16), before, "{protocol:?} {shapes:?}");
        reclaim(Duration::from_secs(5)).unwrap();
    }
}

detour! {
    static FIRST: Target = chained => first;
    static SECOND: Target = chained => second;
    static THIRD: Target = chained => third;
}

native! {
    extern "C" fn first(a: usize, b: usize) -> usize {
        FIRST.original()(a, b) * 10 + 1
    }
}

native! {
    extern "C" fn second(a: usize, b: usize) -> usize {
        SECOND.original()(a, b) * 10 + 2
    }
}

native! {
    extern "C" fn third(a: usize, b: usize) -> usize {
        THIRD.original()(a, b) * 10 + 3
    }
}

#[test]
fn a_chain_is_called_in_order_and_taken_apart_in_any() {
    let _turn = turn();
    let all = [(&FIRST, 1), (&SECOND, 2), (&THIRD, 3)];
    let before = text((chained as Target).address(), 16);
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        // SAFETY: all have one signature.
        all.iter().for_each(|(detour, _)| unsafe { detour.attach() }.unwrap());
        assert_eq!(chained(1, 2), 3123);
        let mut left: Vec<_> = all.iter().map(|(_, digit)| *digit).collect();
        for index in order {
            let (detour, digit) = all[index];
            detour.detach().unwrap();
            left.retain(|one| *one != digit);
            assert_eq!(chained(1, 2), left.iter().fold(3, |number, digit| number * 10 + digit), "{order:?}");
        }
        assert_eq!(text((chained as Target).address(), 16), before);
    }
}

#[cfg(all(target_arch = "x86_64", windows))]
detour! {
    static COUNTED: extern "sysv64" fn(first: usize, second: usize) -> usize = slept_in;
}
#[cfg(not(all(target_arch = "x86_64", windows)))]
detour! {
    static COUNTED: extern "C" fn(first: usize, second: usize) -> usize = slept_in;
}

#[test]
fn what_is_slept_in_is_not_freed() {
    if !in_a_process_of_its_own("beside::what_is_slept_in_is_not_freed") {
        return;
    }
    struct Dropped(Arc<AtomicU64>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let _turn = turn();
    let (dropped, inside, leave) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let state = Dropped(Arc::clone(&dropped));
    let closure = {
        let (inside, leave) = (Arc::clone(&inside), Arc::clone(&leave));
        move |a, b| {
            let _kept = &state;
            inside.store(true, Ordering::SeqCst);
            while !leave.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            COUNTED.original()(a, b) + 100
        }
    };
    // SAFETY: the closure does as the target does.
    unsafe { COUNTED.attach(Box::new(closure)) }.unwrap();
    let caller = thread::spawn(|| slept_in(1, 2));
    while !inside.load(Ordering::SeqCst) {
        thread::yield_now();
    }
    COUNTED.detach().unwrap();
    assert_eq!((slept_in(1, 2), COUNTED.in_flight()), (3, 1));
    assert_eq!(reclaim(Duration::from_millis(20)), Err(Error::Busy { calls: 1 }));
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    leave.store(true, Ordering::SeqCst);
    assert_eq!(caller.join().unwrap(), 103, "the trampoline was still there");
    reclaim(Duration::from_secs(5)).unwrap();
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    assert!(
        with_process(|kdetour| Ok(kdetour.records().all(|record| record.state == State::Attached))).unwrap()
    );
}

/// A function that a test may write over, as those do that make code at run time.
fn made(code: &[u8]) -> (u64, Target) {
    let address = code_at(AWAY[0], AWAY[1], code);
    // SAFETY: a function of this type was written there, and is never freed.
    (address, unsafe { std::mem::transmute::<usize, Target>(address as usize) })
}

#[test]
fn a_patch_that_went_by_itself_is_noticed() {
    let _turn = turn();
    // lea rax, [rdi + rsi] / nop / ret
    #[cfg(target_arch = "x86_64")]
    let (address, target) = made(&[0x48, 0x8d, 0x04, 0x37, 0x90, 0xc3]);
    // mov eax, [esp + 4] / add eax, [esp + 8] / ret
    #[cfg(target_arch = "x86")]
    let (address, target) = made(&[0x8b, 0x44, 0x24, 0x04, 0x03, 0x44, 0x24, 0x08, 0xc3]);
    let before = text(address, 8);
    // SAFETY: both have one signature.
    let mut detour = unsafe { Detour::attach(target, replacement) }.unwrap();
    assert_eq!(target(1, 2), 1002);
    poke(address, &before);
    // SAFETY: both have one signature.
    let on_top = unsafe { Detour::attach(target, subtract as Target) };
    assert!(matches!(on_top, Err(Error::Changed { .. })), "there is nothing to chain on");
    detour.detach().unwrap();
    // SAFETY: both have one signature.
    let mut again = unsafe { Detour::attach(target, replacement) }.unwrap();
    assert_eq!(target(1, 2), 1002);
    again.detach().unwrap();
    assert_eq!(text(address, 8), before);
}

#[test]
fn another_function_at_the_same_place_is_surveyed_anew() {
    let turn = turn();
    // xor eax, eax / inc eax / dec edi / nops / ret, then with a branch back to the second instruction.
    #[cfg(target_arch = "x86_64")]
    let (code, branch) = ([0x31, 0xc0, 0xff, 0xc0, 0xff, 0xcf, 0x90, 0x90, 0xc3], [0x75, 0xfa]); // jnz +2
    // xor eax, eax / inc eax / cmp eax, [esp + 4] / nops / ret
    #[cfg(target_arch = "x86")]
    let (code, branch) = ([0x31, 0xc0, 0x40, 0x3b, 0x44, 0x24, 0x04, 0x90, 0x90, 0xc3], [0x75, 0xf9]); // jne +2
    let behind = code.len() as u64 - 3;
    let (address, target) = made(&code);
    // SAFETY: both have one signature.
    let mut detour = unsafe { Detour::attach_with(&turn.alone, target, replacement) }.unwrap();
    detour.detach_with(&turn.alone).unwrap();
    drop(detour);
    poke(address + behind, &branch);
    // SAFETY: both have one signature.
    let refused = unsafe { Detour::attach_with(&turn.alone, target, replacement) };
    let into = address + 2;
    assert!(
        matches!(refused, Err(Error::Refused(Refusal::BranchIntoWindow { into: found, .. })) if found == into),
        "{refused:?}"
    );
    assert_eq!(target(3, 0), 3);
}

#[test]
fn a_target_is_not_its_own_detour() {
    let _turn = turn();
    // SAFETY: it is refused.
    let error = unsafe { Detour::attach(busy as Target, busy) }.unwrap_err();
    assert!(matches!(error, Error::Refused(Refusal::DetourInWindow { .. })));
}

/// A child of `vfork` runs in its parent's memory, and no thread of the parent's is inside.
#[cfg(not(windows))]
#[test]
fn a_child_that_borrows_the_memory_counts() {
    if !in_a_process_of_its_own("beside::a_child_that_borrows_the_memory_counts") {
        return;
    }
    unsafe extern "C" {
        fn vfork() -> libc::pid_t;
    }
    let _turn = turn();
    // SAFETY: both have one signature.
    let mut detour = unsafe { Detour::attach(slept_in as Target, replacement) }.unwrap();
    detour.detach().unwrap();
    drop(detour);
    let parent = thread::spawn(|| {
        // SAFETY: the child calls what a signal handler may call, and ends.
        unsafe {
            if vfork() == 0 {
                libc::usleep(300_000);
                libc::_exit(0);
            }
        }
    });
    thread::sleep(Duration::from_millis(100));
    assert!(matches!(reclaim(Duration::from_millis(20)), Err(Error::Busy { .. })));
    parent.join().unwrap();
}
