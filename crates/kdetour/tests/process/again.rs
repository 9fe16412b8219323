//! Detours that come back, and sessions that fail: whose cell it is, which site, which handle, what was promised.

use crate::life::{Target, replacement, subtract};
use crate::support::{AWAY, code_at, functions, in_a_process_of_its_own, native, poke, text, turn};
use kdetour::plan::{Refusal, Shape, Shapes};
use kdetour::typed::{Detour, Function, reclaim, with_process};
use kdetour::{Attach, Error, Protocol, State, detour};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

functions! {
    sum {
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

    product {
        "push rbp"
        "mov rbp, rsp"
        "push rbx"
        "mov rax, rdi"
        "imul rax, rsi"
        "pop rbx"
        "pop rbp"
        "ret"
    } {
        "push ebp"
        "mov ebp, esp"
        "push ebx"
        "mov eax, [ebp + 8]"
        "imul eax, [ebp + 12]"
        "pop ebx"
        "pop ebp"
        "ret"
    }
}

detour! {
    static MOVED: Target = sum => thousand_more;
}

#[cfg(all(target_arch = "x86_64", windows))]
detour! {
    static COUNTED: extern "sysv64" fn(first: usize, second: usize) -> usize = sum;
}
#[cfg(not(all(target_arch = "x86_64", windows)))]
detour! {
    static COUNTED: extern "C" fn(first: usize, second: usize) -> usize = sum;
}

native! {
    extern "C" fn thousand_more(first: usize, second: usize) -> usize {
        MOVED.original()(first, second) + 1000
    }
}

const LONG: Duration = Duration::from_secs(10);

/// A static that has gone to another target has one cell for both records: the older one must not write there.
#[test]
fn a_static_that_moved_keeps_its_original() {
    if !in_a_process_of_its_own("again::a_static_that_moved_keeps_its_original") {
        return;
    }
    let _turn = turn();
    for other in [false, true] {
        // SAFETY: all have one signature.
        unsafe { MOVED.attach_to(sum) }.unwrap();
        MOVED.detach().unwrap();
        // SAFETY: as above.
        unsafe { MOVED.attach_to(product) }.unwrap();
        assert_eq!(product(3, 4), 1012);
        let one = other.then(|| {
            // SAFETY: as above.
            unsafe { Detour::attach(sum as Target, replacement) }.unwrap()
        });
        assert_eq!(product(3, 4), 1012, "somebody else has come to the former target");
        reclaim(LONG).unwrap();
        assert_eq!(product(3, 4), 1012, "its former record was freed");
        drop(one);
        MOVED.detach().unwrap();
        assert_eq!((sum(3, 4), product(3, 4)), (7, 12));
    }
    reclaim(LONG).unwrap();
}

/// By one protocol and then by another one there are two sites, with one cell.
#[test]
fn two_sites_of_one_target() {
    if !in_a_process_of_its_own("again::two_sites_of_one_target") {
        return;
    }
    let turn = turn();
    let records =
        || with_process(|kdetour| Ok(kdetour.detours_of((sum as Target).address()).count())).unwrap();
    // SAFETY: all have one signature.
    let mut detour = unsafe { Detour::attach_with(&turn.alone, sum as Target, replacement) }.unwrap();
    detour.detach().unwrap();
    // SAFETY: as above.
    unsafe { detour.reattach() }.unwrap();
    reclaim(LONG).unwrap();
    assert_eq!((sum(1, 2), detour.original()(1, 2), records()), (1002, 3, 1));
    detour.detach().unwrap();

    // The patched site is the one that others chain on, whichever was made last.
    // SAFETY: as above.
    let mut early = unsafe { Detour::attach_with(&turn.alone, product as Target, replacement) }.unwrap();
    early.detach().unwrap();
    // SAFETY: as above.
    let mut late = unsafe { Detour::attach(product as Target, subtract as Target) }.unwrap();
    late.detach().unwrap();
    // SAFETY: as above.
    unsafe { early.reattach_by(Protocol::Live) }.unwrap();
    // SAFETY: as above.
    unsafe { late.reattach() }.unwrap();
    assert_eq!((product(9, 2), late.original()(9, 2)), (subtract(9, 2), replacement(9, 2)));
    drop((early, late, detour));
    assert_eq!(product(9, 2), 18);
    reclaim(LONG).unwrap();
    assert_eq!(records(), 0);
}

/// A handle that a session names several times is the same for all of them.
#[test]
fn handles_of_one_detour_agree() {
    if !in_a_process_of_its_own("again::handles_of_one_detour_agree") {
        return;
    }
    let _turn = turn();
    let attach = Attach {
        target: (sum as Target).address(),
        detour: (replacement as Target).address(),
        ..Attach::default()
    };
    let handles = with_process(|kdetour| {
        // SAFETY: all have one signature.
        let first = unsafe { kdetour.session().attach(attach) }.commit_exchange(&mut |_, _| ())?[0];
        kdetour.session().detach(first).commit_exchange(&mut |_, _| ())?;
        // SAFETY: as above.
        let session = unsafe { kdetour.session().reattach(first, 0).detach(first).reattach(first, 0) };
        Ok(session.commit_exchange(&mut |_, _| ())?)
    })
    .unwrap();
    let known = with_process(|kdetour| Ok(kdetour.record(handles[0]).map(|record| record.state))).unwrap();
    assert_eq!(known, Some(State::Attached));
    assert!(handles.iter().all(|handle| *handle == handles[0]), "{handles:?}");
    with_process(|kdetour| Ok(kdetour.session().detach(handles[0]).commit_exchange(&mut |_, _| ())?))
        .unwrap();
    reclaim(LONG).unwrap();
}

/// What a session calls may unwind: nothing has happened then.
#[test]
fn an_announcement_that_panics_leaves_nothing_behind() {
    if !in_a_process_of_its_own("again::an_announcement_that_panics_leaves_nothing_behind") {
        return;
    }
    let _turn = turn();
    let before = text((sum as Target).address(), 16);
    let attach = Attach {
        target: (sum as Target).address(),
        detour: (replacement as Target).address(),
        ..Attach::default()
    };
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        with_process(|kdetour| {
            // SAFETY: both have one signature.
            let session = unsafe { kdetour.session().attach(attach) };
            Ok(session.commit_exchange(&mut |_, _| panic!("on purpose"))?)
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(text((sum as Target).address(), 16), before);
    // SAFETY: both have one signature.
    let detour = unsafe { Detour::attach(sum as Target, replacement) }.unwrap();
    assert_eq!(sum(1, 2), 1002);
    drop(detour);
    assert_eq!(sum(1, 2), 3);
    reclaim(LONG).unwrap();
}

/// Nobody would answer the breakpoint that a local commit puts in, or leads elsewhere.
#[test]
fn breakpoints_are_not_committed_locally() {
    if !in_a_process_of_its_own("again::breakpoints_are_not_committed_locally") {
        return;
    }
    let turn = turn();
    let target = (product as Target).address();
    let attach = |detour: Target, shapes| Attach {
        target,
        detour: detour.address(),
        shapes,
        chain: true,
        ..Attach::default()
    };
    let breakpoint = Some(Shapes::only(Shape::Breakpoint));
    let local = |attach| {
        with_process(|kdetour| {
            // SAFETY: all have one signature.
            let session = unsafe { kdetour.session().attach(attach) };
            Ok(session.commit_local(&turn.alone, &mut |_, _| ())?)
        })
    };
    let refused = |outcome: Result<_, Error>| matches!(outcome, Err(Error::Refused(Refusal::NoShape { .. })));
    assert!(refused(local(attach(replacement, breakpoint))));
    let live = with_process(|kdetour| {
        // SAFETY: as above.
        let session = unsafe { kdetour.session().attach(attach(replacement, breakpoint)) };
        Ok(session.commit_live(&mut |_, _| ())?)
    });
    assert_eq!(product(3, 4), replacement(3, 4));
    assert!(refused(local(attach(subtract, None))), "a second one would never be called");
    assert_eq!(product(3, 4), replacement(3, 4));
    let handle = live.unwrap()[0];
    with_process(|kdetour| Ok(kdetour.session().detach(handle).commit_live(&mut |_, _| ())?)).unwrap();
    assert_eq!(product(3, 4), 12);
    reclaim(LONG).unwrap();
}

/// The patch changes one byte, and keeps every boundary; but each branch back to the start would enter the detour.
#[test]
fn a_branch_to_the_start_that_is_new_is_seen() {
    if !in_a_process_of_its_own("again::a_branch_to_the_start_that_is_new_is_seen") {
        return;
    }
    let _turn = turn();
    // push rbx / mov rbx, rdi / lea rax, [rbx + rsi] / pop rbx / nops / ret: 0x8d48fb89 further on nothing lies.
    #[cfg(target_arch = "x86_64")]
    let code = [0x53, 0x48, 0x89, 0xfb, 0x48, 0x8d, 0x04, 0x33, 0x5b, 0x90, 0x90, 0xc3];
    // push ebx / mov eax, [esp + 8] / add eax, [esp + 12] / nops / pop ebx / ret: 0x0824448b further on nothing lies.
    #[cfg(target_arch = "x86")]
    let code = [0x53, 0x8b, 0x44, 0x24, 0x08, 0x03, 0x44, 0x24, 0x0c, 0x90, 0x90, 0x5b, 0xc3];
    let address = code_at(AWAY[0], AWAY[1], &code);
    // SAFETY: a function of this type was written there, and is never freed.
    let target = unsafe { std::mem::transmute::<usize, Target>(usize::try_from(address).unwrap()) };
    // SAFETY: both have one signature.
    let detour = unsafe { Detour::attach(target, replacement) }.unwrap();
    assert_eq!(target(1, 2), 1002);
    drop(detour);
    poke(address + 9, &[0x75, 0xf5]); // jnz -11: to the start
    // SAFETY: it is refused.
    let refused = unsafe { Detour::attach(target, replacement) };
    assert!(matches!(refused, Err(Error::Refused(Refusal::BranchToStart { .. }))), "{refused:?}");
    reclaim(LONG).unwrap();
}

/// A call that is waited for may itself want to attach something.
#[test]
fn a_reclaim_lets_others_have_their_turn() {
    if !in_a_process_of_its_own("again::a_reclaim_lets_others_have_their_turn") {
        return;
    }
    static INSIDE: AtomicU64 = AtomicU64::new(0);
    native! {
        extern "C" fn attaches(first: usize, second: usize) -> usize {
            INSIDE.store(1, SeqCst);
            while INSIDE.load(SeqCst) == 1 {
                thread::yield_now();
            }
            // SAFETY: both have one signature.
            let other = unsafe { Detour::attach(product as Target, replacement) };
            drop(other.unwrap());
            first + second + 1
        }
    }
    let _turn = turn();
    // SAFETY: both have one signature.
    let mut detour = unsafe { Detour::attach(sum as Target, attaches) }.unwrap();
    let caller = thread::spawn(|| sum(1, 2));
    while INSIDE.load(SeqCst) == 0 {
        thread::yield_now();
    }
    detour.detach().unwrap();
    let begin = Instant::now();
    INSIDE.store(2, SeqCst);
    let freed = reclaim(Duration::from_secs(60));
    assert!(freed.is_ok_and(|freed| freed > 0) && begin.elapsed() < Duration::from_secs(30), "{freed:?}");
    assert_eq!(caller.join().unwrap(), 4);
}

/// An original that is another detour of a chain stays when a younger one goes; and so does the slot that both use.
#[test]
fn what_is_left_of_a_chain_keeps_its_slot() {
    if !in_a_process_of_its_own("again::what_is_left_of_a_chain_keeps_its_slot") {
        return;
    }
    let _turn = turn();
    // SAFETY: all have one signature.
    let older = unsafe { Detour::attach(sum as Target, replacement) }.unwrap();
    // SAFETY: as above.
    let younger = unsafe { Detour::attach(sum as Target, subtract as Target) }.unwrap();
    let slot = with_process(|kdetour| {
        Ok(kdetour.detours_of((sum as Target).address()).next().map(|record| record.slot))
    });
    let slot = slot.unwrap().unwrap();
    drop(younger);
    let before = text(slot.address, slot.len);
    assert_eq!(reclaim(LONG), Ok(1));
    assert_eq!(text(slot.address, slot.len), before, "one of its users is attached");
    assert_eq!((sum(5, 6), older.original()(5, 6)), (replacement(5, 6), 11));
    drop(older);
    reclaim(LONG).unwrap();
    assert_eq!(sum(5, 6), 11);
}

/// While it is found out whether somebody is inside, nobody is given the trampoline; and if somebody is, it is there again.
#[test]
fn originals_are_turned_away_while_a_drain_looks() {
    if !in_a_process_of_its_own("again::originals_are_turned_away_while_a_drain_looks") {
        return;
    }
    static INSIDE: AtomicU64 = AtomicU64::new(0);
    native! {
        extern "C" fn stays(first: usize, second: usize) -> usize {
            INSIDE.store(1, SeqCst);
            while INSIDE.load(SeqCst) == 1 {
                thread::sleep(Duration::from_millis(1));
            }
            first + second + 1
        }
    }
    let _turn = turn();
    // SAFETY: both have one signature.
    let mut detour = unsafe { Detour::attach(sum as Target, stays) }.unwrap();
    let caller = thread::spawn(|| sum(1, 2));
    while INSIDE.load(SeqCst) == 0 {
        thread::yield_now();
    }
    detour.detach().unwrap();
    let (target, trampoline) = ((sum as Target).address(), detour.original().address());
    assert_ne!(target, trampoline);
    let (mut away, detour) = (0_u64, &detour);
    thread::scope(|scope| {
        let looks = scope.spawn(|| reclaim(Duration::from_millis(300)));
        while !looks.is_finished() {
            away += u64::from(detour.original().address() == target);
        }
        assert!(matches!(looks.join().unwrap(), Err(Error::Busy { .. })));
    });
    assert!(away > 0);
    assert_eq!(detour.original().address(), trampoline);
    assert_eq!(detour.original()(3, 4), 7);
    INSIDE.store(2, SeqCst);
    assert_eq!(caller.join().unwrap(), 4);
    reclaim(LONG).unwrap();
    assert_eq!(detour.original().address(), target);
}

/// A call of a closure that has counted itself is waited for, wherever it is.
#[test]
fn a_closure_is_not_dropped_while_a_call_is_counted() {
    if !in_a_process_of_its_own("again::a_closure_is_not_dropped_while_a_call_is_counted") {
        return;
    }
    let _turn = turn();
    // SAFETY: the closure does as the target does.
    unsafe { COUNTED.attach(Box::new(|first, second| first + second + 1)) }.unwrap();
    assert_eq!(sum(1, 2), 4);
    COUNTED.detach().unwrap();
    // As if from the closure's function, of which nothing is on this stack.
    let busy = COUNTED.enter(|_| reclaim(Duration::from_millis(50)));
    assert_eq!(busy, Err(Error::Busy { calls: 1 }));
    assert_eq!(reclaim(LONG), Ok(1));
}

/// Whoever comes to a slot that is free is stopped at once.
#[test]
fn what_is_free_traps() {
    if !in_a_process_of_its_own("again::what_is_free_traps") {
        return;
    }
    let turn = turn();
    // Local commits pack their slots: both are in one page.
    // SAFETY: all have one signature.
    let kept = unsafe { Detour::attach_with(&turn.alone, product as Target, replacement) }.unwrap();
    // SAFETY: as above.
    let mut gone = unsafe { Detour::attach_with(&turn.alone, sum as Target, replacement) }.unwrap();
    let slots = with_process(|kdetour| {
        Ok([sum as Target, product].map(|target| kdetour.detours_of(target.address()).next().unwrap().slot))
    });
    let [free, used] = slots.unwrap();
    assert_eq!(free.address / 4096, used.address / 4096);
    gone.detach_with(&turn.alone).unwrap();
    drop(gone);
    assert_ne!(text(free.address, free.len), vec![0xcc; free.len], "it drains");
    reclaim(LONG).unwrap();
    assert_eq!(text(free.address, free.len), vec![0xcc; free.len]);
    assert_eq!(product(3, 4), replacement(3, 4));
    drop(kept);
}
