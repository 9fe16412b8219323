//! Breakpoints and debug registers as methods: what holds for a jump holds for them.
//!
//! Each test has a process of its own. What a trap has left on a stack names the detour, and a test that waits for its turn may be on
//! such a stack, of a thread that has ended: then it is taken for one that is inside.

use crate::life::Target;
use crate::support::{functions, in_a_process_of_its_own, native, text, turn};
use kdetour::plan::Refusal;
use kdetour::typed::{Detour, reclaim, with_process};
use kdetour::{Attach, Error, Method};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

#[cfg(not(windows))]
mod linux;

macro_rules! targets {
    ($($name:ident)+) => {
        functions! {
            $($name {
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
            })+
        }
    };
}
targets! { trapped }
#[cfg(not(windows))]
use targets;

#[cfg(not(windows))]
const TRAPPING: [Method; 2] = [Method::Breakpoint, Method::DebugRegister];
#[cfg(windows)]
const TRAPPING: [Method; 1] = [Method::Breakpoint];
const LONG: Duration = Duration::from_secs(10);

native! {
    extern "C" fn product(first: usize, second: usize) -> usize {
        first * second
    }
}

native! {
    extern "C" fn difference(first: usize, second: usize) -> usize {
        first.abs_diff(second)
    }
}

fn address(function: Target) -> u64 {
    function as *const () as u64
}

fn attach(method: Method, target: Target, detour: Target) -> Result<Detour<Target>, Error> {
    // SAFETY: all functions here have one signature.
    unsafe { Detour::attach_as(method, target, detour) }
}

#[test]
fn each_comes_and_goes_and_comes_again() {
    if !in_a_process_of_its_own("methods::each_comes_and_goes_and_comes_again") {
        return;
    }
    let _turn = turn();
    for method in TRAPPING {
        let before = text(address(trapped), 16);
        let mut detour = attach(method, trapped, product).unwrap();
        for round in 0..3 {
            assert_eq!(trapped(5, 7), 35, "{method:?}, round {round}");
            assert_eq!(detour.original()(5, 7), 12);
            let now = text(address(trapped), 16);
            match method {
                Method::Breakpoint => {
                    assert_eq!((now[0], &now[1..]), (0xcc, &before[1..]), "one byte has changed");
                }
                _ => assert_eq!(now, before, "no byte has changed"),
            }
            detour.detach().unwrap();
            assert_eq!(trapped(5, 7), 12);
            assert_eq!(text(address(trapped), 16), before);
            // SAFETY: as for the attach.
            unsafe { detour.reattach() }.unwrap();
        }
        let method_of = with_process(|kdetour| {
            Ok(kdetour.detours_of(address(trapped)).map(|record| record.method).collect::<Vec<_>>())
        });
        assert_eq!(method_of, Ok(vec![method]), "it was used again");
        drop(detour);
        assert_eq!(trapped(5, 7), 12);
        reclaim(LONG).unwrap();
    }
}

#[test]
fn detours_of_one_method_form_a_chain_and_those_of_another_are_refused() {
    if !in_a_process_of_its_own(
        "methods::detours_of_one_method_form_a_chain_and_those_of_another_are_refused",
    ) {
        return;
    }
    let _turn = turn();
    for method in TRAPPING {
        let mut older = attach(method, trapped, product).unwrap();
        let younger = attach(method, trapped, difference).unwrap();
        assert_eq!((trapped(5, 7), younger.original()(5, 7), older.original()(5, 7)), (2, 35, 12));
        for other in [Method::Jump, Method::Breakpoint, Method::DebugRegister] {
            if other != method {
                let target = address(trapped);
                let refused = attach(other, trapped, product).map(drop);
                assert_eq!(refused, Err(Error::AlreadyDetoured { target }), "{other:?} on {method:?}");
            }
        }
        older.detach().unwrap();
        assert_eq!((trapped(5, 7), younger.original()(5, 7)), (2, 12));
        drop(younger);
        assert_eq!(trapped(5, 7), 12);
        // SAFETY: as for the attach.
        unsafe { older.reattach() }.unwrap();
        assert_eq!(trapped(5, 7), 35);
        drop(older);
        reclaim(LONG).unwrap();
        // What drains, or has gone, keeps nobody away.
        let jump = attach(Method::Jump, trapped, product).unwrap();
        assert_eq!(trapped(5, 7), 35);
        let refused = attach(method, trapped, difference).map(drop);
        assert!(matches!(refused, Err(Error::AlreadyDetoured { .. })), "{refused:?}");
        drop(jump);
        let after = attach(method, trapped, product).unwrap();
        assert_eq!(trapped(5, 7), 35);
        drop(after);
        reclaim(LONG).unwrap();
    }
}

/// Threads that were there before, and those that come later.
#[test]
fn every_thread_reaches_the_detour() {
    if !in_a_process_of_its_own("methods::every_thread_reaches_the_detour") {
        return;
    }
    let _turn = turn();
    for method in TRAPPING {
        let [begun, attached, detached] = [(); 3].map(|()| Arc::new(Barrier::new(5)));
        let threads = [(); 4].map(|()| {
            let [begun, attached, detached] = [&begun, &attached, &detached].map(Arc::clone);
            thread::spawn(move || {
                begun.wait();
                attached.wait();
                let with = trapped(5, 7);
                // Started by one that was there: it has what that one has.
                let child = thread::spawn(|| trapped(5, 7)).join().unwrap();
                detached.wait();
                detached.wait();
                (with, child, trapped(5, 7))
            })
        });
        begun.wait();
        let detour = attach(method, trapped, product).unwrap();
        attached.wait();
        assert_eq!(thread::spawn(|| trapped(5, 7)).join().unwrap(), 35);
        detached.wait();
        drop(detour);
        detached.wait();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), (35, 35, 12), "{method:?}");
        }
        reclaim(LONG).unwrap();
    }
}

#[test]
fn calls_go_on_while_it_comes_and_goes() {
    if !in_a_process_of_its_own("methods::calls_go_on_while_it_comes_and_goes") {
        return;
    }
    static DONE: AtomicU64 = AtomicU64::new(0);
    static DETOURED: AtomicU64 = AtomicU64::new(0);
    let _turn = turn();
    for method in TRAPPING {
        DONE.store(0, SeqCst);
        DETOURED.store(0, SeqCst);
        let begun = Arc::new(Barrier::new(5));
        let threads: Vec<_> = (0..4_u64)
            .map(|index| {
                let begun = Arc::clone(&begun);
                thread::spawn(move || {
                    begun.wait();
                    let mut births = 0;
                    while DONE.load(SeqCst) == 0 {
                        let answer = trapped(5, 7);
                        assert!(answer == 12 || answer == 35, "{answer}");
                        DETOURED.fetch_add(u64::from(answer == 35), SeqCst);
                        // New threads, while the old ones get their registers.
                        if index == 0 && births < 200 {
                            births += 1;
                            let answer = thread::spawn(|| trapped(5, 7)).join().unwrap();
                            assert!(answer == 12 || answer == 35, "{answer}");
                        }
                    }
                })
            })
            .collect();
        begun.wait();
        let mut detour = attach(method, trapped, product).unwrap();
        for _ in 0..30 {
            assert_eq!(trapped(5, 7), 35, "{method:?}");
            thread::sleep(Duration::from_millis(1));
            detour.detach().unwrap();
            assert_eq!(trapped(5, 7), 12);
            // SAFETY: as for the attach.
            unsafe { detour.reattach() }.unwrap();
        }
        drop(detour);
        DONE.store(1, SeqCst);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(DETOURED.load(SeqCst) > 0, "{method:?}");
        reclaim(LONG).unwrap();
    }
    #[cfg(not(windows))]
    assert_eq!(linux::all_registers().len(), 4, "all registers are free again");
}

/// Nobody would answer whoever traps.
#[test]
fn a_local_commit_refuses_both() {
    if !in_a_process_of_its_own("methods::a_local_commit_refuses_both") {
        return;
    }
    let turn = turn();
    for method in TRAPPING {
        let attach =
            Attach { target: address(trapped), detour: address(product), method, ..Attach::default() };
        let refused = with_process(|kdetour| {
            // SAFETY: both have one signature.
            let session = unsafe { kdetour.session().attach(attach) };
            Ok(session.commit_local(&turn.alone, &mut |_, _| ()).map_err(|failed| failed.error))
        });
        let refused = refused.unwrap().unwrap_err();
        assert!(matches!(refused, Error::Refused(Refusal::NoShape { .. })), "{method:?}: {refused:?}");
        assert_eq!(trapped(5, 7), 12);
    }
    #[cfg(not(windows))]
    {
        let mut detour = self::attach(Method::DebugRegister, trapped, product).unwrap();
        let refused = detour.detach_with(&turn.alone);
        assert!(matches!(refused, Err(Error::Refused(Refusal::NoShape { .. }))), "{refused:?}");
        assert_eq!(trapped(5, 7), 35, "it stays");
        detour.detach().unwrap();
        drop(detour);
    }
    reclaim(LONG).unwrap();
}

#[cfg(windows)]
#[test]
fn debug_registers_are_missing() {
    let _turn = turn();
    let refused = attach(Method::DebugRegister, trapped, product).map(drop);
    assert_eq!((refused, trapped(5, 7)), (Err(Error::DebugRegistersMissing), 12));
}
