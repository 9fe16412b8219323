//! A detour's life in a process: attached, dropped, leaked, disturbed, far away.

use crate::support::{functions, native, poke, text, turn};
#[cfg(not(windows))]
use kdetour::detour;
use kdetour::typed::{Detour, Function, with_process};
use kdetour::{Attach, Error, Protocol, State};
use std::hint::black_box;

native! {
    pub(crate) type Target = extern "C" fn(usize, usize) -> usize;
}

functions! {
    add {
        "lea rax, [rdi + rsi]"
        "nop dword ptr [rax + rax]"
        "ret"
    } {
        "mov eax, [esp + 4]"
        "add eax, [esp + 8]"
        "ret"
    }

    subtract {
        "mov rax, rdi"
        "sub rax, rsi"
        "ret"
    } {
        "mov eax, [esp + 4]"
        "sub eax, [esp + 8]"
        "ret"
    }

    leaked {
        "mov eax, 9"
        "ret"
    }

    in_a_chain {
        "mov eax, 7"
        "ret"
    }

    oldest {
        "mov eax, 1"
        "ret"
    }

    middle {
        "mov eax, 2"
        "ret"
    }

    youngest {
        "mov eax, 3"
        "ret"
    }
}

native! {
    pub(crate) extern "C" fn replacement(first: usize, second: usize) -> usize {
        first * 1000 + second
    }
}

#[test]
fn other_threads_forbid_the_local_protocol_unless_they_are_answered_for() {
    let turn = turn();
    // SAFETY: both have one signature.
    let error = unsafe { Detour::attach_by(Protocol::Local, add as Target, replacement) }.unwrap_err();
    assert_eq!(error, Error::OtherThreads);
    // SAFETY: both have one signature.
    let mut detour = unsafe { Detour::attach_with(&turn.alone, add as Target, replacement) }.unwrap();
    assert_eq!(detour.detach_by(Protocol::Local), Err(Error::OtherThreads));
    assert!(detour.is_attached());
    assert_eq!(add(1, 2), 1002);
    detour.detach_with(&turn.alone).unwrap();
    assert_eq!(detour.detach_with(&turn.alone), Err(Error::NotAttached));
    assert_eq!((add(1, 2), detour.original()(1, 2)), (3, 3));
}

#[test]
fn toggling_takes_no_memory() {
    let turn = turn();
    let records = || with_process(|kdetour| Ok(kdetour.len())).unwrap();
    let mut kept = None;
    for _ in 0..1000 {
        // SAFETY: both have one signature.
        let mut detour =
            unsafe { Detour::attach_with(&turn.alone, subtract as Target, replacement) }.unwrap();
        assert_eq!((subtract(1, 2), detour.original()(3, 2)), (1002, 1));
        detour.detach_with(&turn.alone).unwrap();
        assert_eq!(subtract(3, 2), 1);
        assert_eq!(*kept.get_or_insert_with(records), records(), "the slot is used again");
    }
}

#[test]
fn a_session_detours_a_target_once_unless_it_asks_for_a_chain() {
    let turn = turn();
    // SAFETY: both have one signature.
    let mut detour = unsafe { Detour::attach_with(&turn.alone, add as Target, replacement) }.unwrap();
    let (target, other) = ((add as Target).address(), (subtract as Target).address());
    let error = with_process(|kdetour| {
        let attach = Attach { target, detour: other, ..Attach::default() };
        // SAFETY: both have one signature.
        let session = unsafe { kdetour.session().attach(attach) };
        session.commit_local(&turn.alone, &mut |_, _| ()).map_err(|failure| failure.error)
    });
    assert_eq!(error, Err(Error::AlreadyDetoured { target }));
    assert_eq!(add(1, 2), 1002);
    detour.detach_with(&turn.alone).unwrap();
}

#[test]
fn what_others_wrote_is_not_overwritten() {
    let turn = turn();
    let address = (add as Target).address();
    let original = text(address, 16);
    // SAFETY: both have one signature.
    let mut detour = unsafe { Detour::attach_with(&turn.alone, add as Target, replacement) }.unwrap();
    let patched = text(address, 5);
    poke(address + 2, &[patched[2] ^ 0xff]);
    let expected = Error::Changed { address: address + 2, expected: patched[2], found: patched[2] ^ 0xff };
    assert_eq!(detour.detach_with(&turn.alone), Err(expected));
    assert!(detour.is_attached());
    assert_eq!(text(address, 2), patched[..2]);
    poke(address, &patched);
    assert_eq!(add(1, 2), 1002);
    detour.detach_with(&turn.alone).unwrap();
    assert_eq!(text(address, 16), original);
}

#[test]
fn a_leaked_detour_stays() {
    let turn = turn();
    // SAFETY: both have one signature.
    let original = unsafe { Detour::attach_with(&turn.alone, leaked as Target, replacement) }.unwrap().leak();
    assert_eq!((leaked(3, 4), original(3, 4)), (3004, 9));
}

#[test]
fn a_session_commits_several_at_once() {
    let turn = turn();
    let targets = [add as Target, subtract];
    let handles = with_process(|kdetour| {
        let mut session = kdetour.session();
        for (index, target) in targets.into_iter().enumerate() {
            let (target, detour) = (target.address(), (replacement as Target).address());
            let attach = Attach { target, detour, owner: 7, original: index as u64, ..Attach::default() };
            // SAFETY: both have one signature.
            session = unsafe { session.attach(attach) };
        }
        let mut announced = Vec::new();
        let handles = session.commit_local(&turn.alone, &mut |record, trampoline| {
            // Others may be draining there.
            if record.state == State::Attached {
                announced.push((record.original, trampoline));
            }
        });
        let handles = handles.map_err(|failure| failure.error)?;
        let slots = handles.iter().map(|&handle| kdetour.record(handle).unwrap().slot.address);
        assert_eq!(announced, [0, 1].into_iter().zip(slots).collect::<Vec<_>>());
        Ok(handles)
    })
    .unwrap();
    assert_eq!((add(5, 1), subtract(5, 1)), (5001, 5001));
    with_process(|kdetour| {
        let session = handles.iter().fold(kdetour.session(), |session, &handle| session.detach(handle));
        session.commit_local(&turn.alone, &mut |_, _| ()).map_err(|failure| failure.error)?;
        assert!(handles.iter().all(|&handle| kdetour.record(handle).unwrap().state == State::Draining));
        Ok(())
    })
    .unwrap();
    assert_eq!((add(5, 1), subtract(5, 1)), (6, 4));
}

/// A call that sleeps inside a detour that was detached goes on with its original later: it must not come to a detour that
/// has left meanwhile.
#[test]
fn those_that_drain_are_told_of_neighbours_that_leave() {
    let turn = turn();
    let target = (in_a_chain as Target).address();
    let detours = [oldest as Target, middle, youngest].map(|detour| detour.address());
    with_process(|kdetour| {
        let attach = |detour, original| Attach { target, detour, original, chain: true, ..Attach::default() };
        let mut session = kdetour.session();
        for (number, detour) in (1..).zip(detours) {
            // SAFETY: both have one signature.
            session = unsafe { session.attach(attach(detour, number)) };
        }
        let handles = session.commit_local(&turn.alone, &mut |_, _| ())?;
        let trampoline = kdetour.record(handles[0]).unwrap().patch.unwrap().trampoline();
        assert_eq!(in_a_chain(0, 0), 3);

        // SAFETY: it is refused: its original would be itself.
        let session = unsafe { kdetour.session().attach(attach(detours[1], 4)) };
        let failure = session.commit_local(&turn.alone, &mut |_, _| ()).unwrap_err();
        assert_eq!(failure.error, Error::AlreadyDetoured { target });

        let mut told = Vec::new();
        let session = kdetour.session().detach(handles[1]);
        session.commit_local(&turn.alone, &mut |record, original| told.push((record.original, original)))?;
        assert_eq!(told, [(1, trampoline), (2, detours[0]), (3, detours[0])]);
        told.clear();
        let session = kdetour.session().detach(handles[0]);
        session.commit_local(&turn.alone, &mut |record, original| told.push((record.original, original)))?;
        assert_eq!(told, [(1, trampoline), (2, trampoline), (3, trampoline)]);
        assert_eq!(in_a_chain(0, 0), 3);
        let session = kdetour.session().detach(handles[2]);
        session.commit_local(&turn.alone, &mut |_, _| ())?;
        assert_eq!(in_a_chain(0, 0), 7);

        // The target's memory goes: nobody who is inside one comes to another one.
        // SAFETY: as for the first.
        let session =
            unsafe { kdetour.session().attach(attach(detours[0], 5)).attach(attach(detours[1], 6)) };
        let handles = session.commit_local(&turn.alone, &mut |_, _| ())?;
        let trampoline = kdetour.record(handles[0]).unwrap().patch.unwrap().trampoline();
        told.clear();
        // SAFETY: nobody calls it any more.
        unsafe {
            kdetour.forget(handles[0], &mut |record, original| told.push((record.original, original)))
        }?;
        assert!(told.ends_with(&[(5, trampoline), (6, trampoline)]), "{told:x?}");
        assert!(told.iter().all(|&(_, original)| original == trampoline));
        Ok(())
    })
    .unwrap();
}

#[test]
fn nobody_waits_for_the_process() {
    let _turn = turn();
    let inner = with_process(|_| Ok(with_process(|_| Ok(())))).unwrap();
    assert_eq!(inner, Err(Error::TextBusy));
}

/// In 32-bit mode a jump reaches everything.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_detour_may_be_further_away_than_a_jump_reaches() {
    use crate::support::{AWAY, assert_no_page_is_writable_and_executable, code_at};

    #[rustfmt::skip]
    let code = [
        0x48, 0x8d, 0x04, 0x37, // lea rax, [rdi + rsi]
        0x90,                   // nop
        0xc3,                   // ret
    ];
    let turn = turn();
    let address = code_at(AWAY[0], AWAY[1], &code);
    // SAFETY: this very function was written there, and is never freed.
    let target = unsafe { std::mem::transmute::<usize, Target>(address as usize) };
    assert!((replacement as Target).address().abs_diff(address) > 1 << 31);
    // SAFETY: both have one signature.
    let mut detour = unsafe { Detour::attach_with(&turn.alone, target, replacement) }.unwrap();
    // e9 rel32: to the relay, in the detour's slot.
    let patch = text(address, 5);
    let displacement = i32::from_le_bytes(patch[1..].try_into().unwrap());
    let relay = (address + 5).wrapping_add_signed(displacement.into());
    let trampoline = detour.original().address();
    assert!(patch[0] == 0xe9 && (trampoline..trampoline + 64).contains(&relay));
    assert_eq!(text(relay, 6), [0xff, 0x25, 0, 0, 0, 0]); // jmp qword ptr [rip + 0]
    assert_eq!((target(1, 2), detour.original()(1, 2)), (1002, 3));
    assert_no_page_is_writable_and_executable();
    detour.detach_with(&turn.alone).unwrap();
    assert_eq!((target(1, 2), text(address, 6)), (3, code.to_vec()));
}

#[cfg(not(windows))]
detour! {
    static GETPPID: unsafe extern "C" fn() -> libc::pid_t = libc::getppid => one_more;
}

#[cfg(not(windows))]
unsafe extern "C" fn one_more() -> libc::pid_t {
    // SAFETY: it has no conditions.
    unsafe { GETPPID.original()() + 1 }
}

#[cfg(not(windows))]
#[test]
fn a_function_of_libc() {
    let turn = turn();
    let getppid = || {
        // SAFETY: it has no conditions.
        unsafe { libc::getppid() }
    };
    let parent = std::os::unix::process::parent_id().cast_signed();
    assert_eq!(getppid(), parent);
    // SAFETY: both have one signature, and only this test needs the right answer.
    unsafe { GETPPID.attach_with(&turn.alone, libc::getppid) }.unwrap();
    assert_eq!(getppid(), parent + 1);
    // SAFETY: as above.
    let again = unsafe { GETPPID.attach_with(&turn.alone, libc::getppid) };
    assert!(matches!(again, Err(Error::AlreadyDetoured { .. })));
    GETPPID.detach_with(&turn.alone).unwrap();
    assert_eq!(getppid(), parent);
    assert_eq!(GETPPID.detach_with(&turn.alone), Err(Error::NotAttached));
}

/// Every kind of function, with arguments in registers and on the stack.
#[test]
fn signatures() {
    #[inline(never)]
    fn rust(text: &'static str, factor: f64) -> (usize, f64) {
        (black_box(text).len(), factor * 2.0)
    }
    fn rust_detour(text: &'static str, factor: f64) -> (usize, f64) {
        (text.len() + 100, factor)
    }
    type Twelve = unsafe extern "system" fn(u8, u16, u32, u64, i8, i16, i32, i64, f32, f64, u64, u64) -> f64;
    #[inline(never)]
    unsafe extern "system" fn twelve(
        a: u8,
        b: u16,
        c: u32,
        d: u64,
        e: i8,
        f: i16,
        g: i32,
        h: i64,
        i: f32,
        j: f64,
        k: u64,
        l: u64,
    ) -> f64 {
        let integers = u64::from(a) + u64::from(b) + u64::from(c) + d + k + l;
        let signed = i64::from(e) + i64::from(f) + i64::from(g) + h;
        black_box(integers) as f64 + signed as f64 + f64::from(i) + j
    }
    unsafe extern "system" fn twelve_detour(
        _: u8,
        _: u16,
        _: u32,
        _: u64,
        _: i8,
        _: i16,
        _: i32,
        _: i64,
        i: f32,
        j: f64,
        _: u64,
        l: u64,
    ) -> f64 {
        f64::from(i) * j * l as f64
    }
    #[inline(never)]
    extern "C" fn nothing() {
        black_box(());
    }

    let turn = turn();
    type Rust = fn(&'static str, f64) -> (usize, f64);
    let call = black_box(rust as Rust);
    // SAFETY: both have one signature.
    let mut detour = unsafe { Detour::attach_with(&turn.alone, rust as Rust, rust_detour) }.unwrap();
    assert_eq!((call("abc", 1.5), detour.original()("abc", 1.5)), ((103, 1.5), (3, 3.0)));
    detour.detach_with(&turn.alone).unwrap();
    assert_eq!(call("abc", 1.5), (3, 3.0));

    let call = |function: Twelve| {
        // SAFETY: it has no conditions.
        unsafe { function(1, 2, 3, 4, -5, -6, -7, -8, 0.5, 0.25, 11, 12) }
    };
    let target = black_box(twelve as Twelve);
    assert_eq!(call(target), 7.75);
    // SAFETY: both have one signature.
    let mut detour = unsafe { Detour::attach_with(&turn.alone, target, twelve_detour as Twelve) }.unwrap();
    assert_eq!((call(target), call(detour.original())), (1.5, 7.75));
    detour.detach_with(&turn.alone).unwrap();

    assert_ne!((nothing as extern "C" fn()).address(), 0);
}
