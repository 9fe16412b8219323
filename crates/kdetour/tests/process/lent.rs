//! A slot in memory of the attacher's own: bytes of this program's text that nothing runs in.

use crate::life::Target;
use crate::support::{functions, native, text, turn};
use kdetour::host::{Host, Span};
use kdetour::typed::with_process;
use kdetour::{AtomicAddress, Attach, Error, Session, State};
use std::mem::transmute;
use std::sync::atomic::Ordering::SeqCst;

const ROOM: usize = 48;

functions! {
    lent_target {
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

    lent_room {
        ".fill 48, 1, 0xcc"
    }
}

static ORIGINAL: AtomicAddress = AtomicAddress::new(0);

native! {
    extern "C" fn lent_detour(first: usize, second: usize) -> usize {
        // SAFETY: the session has put a function of this type there.
        let original = unsafe { transmute::<usize, Target>(ORIGINAL.load(SeqCst) as usize) };
        original(first, second) + 1000
    }
}

native! {
    extern "C" fn other_detour(_: usize, _: usize) -> usize {
        0
    }
}

fn address(function: Target) -> u64 {
    function as *const () as u64
}

fn request(slot: Option<Span>) -> Attach {
    let (target, detour) = (address(lent_target), address(lent_detour));
    Attach { target, detour, cell: Some(&ORIGINAL), chain: true, slot, ..Attach::default() }
}

fn add<H: Host>(session: Session<'_, H>, attach: Attach) -> Session<'_, H> {
    // SAFETY: all are functions of one type; nothing runs in the room.
    unsafe { session.attach(attach) }
}

#[test]
fn a_slot_that_was_lent_is_used_alone_and_given_back() {
    let turn = turn();
    let room = Span { address: address(lent_room), len: ROOM };
    let before = text(address(lent_target), 16);
    with_process(|kdetour| {
        let session = add(kdetour.session(), request(Some(Span { len: 4, ..room })));
        let failed = session.commit_local(&turn.alone, &mut |_, _| ()).unwrap_err();
        assert!(matches!(failed.error, Error::NoSlot { .. }), "{failed}");
        let session = add(kdetour.session(), request(Some(Span { address: 16, len: ROOM })));
        let failed = session.commit_local(&turn.alone, &mut |_, _| ()).unwrap_err();
        // In 32-bit mode it is in reach, but cannot be written, and on Windows not be read.
        let is_in_reach = cfg!(target_arch = "x86")
            && matches!(failed.error, Error::Host(_) | Error::Unreadable { address: 16 });
        assert!(matches!(failed.error, Error::NoSlot { .. }) || is_in_reach, "{failed}");
        assert_eq!(text(room.address, ROOM), [0xcc; ROOM]);

        let session = add(kdetour.session(), request(Some(room)));
        let handle = session.commit_local(&turn.alone, &mut |_, _| ())?[0];
        let record = *kdetour.record(handle).unwrap();
        assert_eq!(record.slot.address, room.address);
        assert!((room.address..room.address + ROOM as u64).contains(&ORIGINAL.load(SeqCst)));
        assert_eq!(lent_target(3, 4), 1007);

        // Whoever goes would take the other's slot along.
        let target = address(lent_target);
        let other = Attach { target, detour: address(other_detour), chain: true, ..Attach::default() };
        let session = add(kdetour.session(), other);
        let failed = session.commit_local(&turn.alone, &mut |_, _| ()).unwrap_err();
        assert_eq!(failed.error, Error::AlreadyDetoured { target });

        kdetour.session().detach(handle).commit_local(&turn.alone, &mut |_, _| ())?;
        assert_eq!((lent_target(3, 4), text(target, 16)), (7, before.clone()));
        // While it drains others have a slot of their own.
        let session = add(kdetour.session(), other);
        let theirs = session.commit_local(&turn.alone, &mut |_, _| ())?[0];
        assert!(kdetour.record(theirs).is_some_and(|record| record.slot.address != room.address));
        assert_eq!(lent_target(3, 4), 0);
        let session = add(kdetour.session(), request(Some(room)));
        let failed = session.commit_local(&turn.alone, &mut |_, _| ()).unwrap_err();
        assert_eq!(failed.error, Error::AlreadyDetoured { target });
        kdetour.session().detach(theirs).commit_local(&turn.alone, &mut |_, _| ())?;

        assert!(kdetour.record(handle).is_some_and(|record| record.state == State::Draining));
        // SAFETY: this is the only thread that calls them, and it is not inside.
        unsafe { kdetour.reclaim(&[handle, theirs]) }?;
        assert_eq!(text(room.address, record.slot.len), vec![0xcc; record.slot.len]);
        assert_eq!((lent_target(3, 4), text(target, 16)), (7, before));
        Ok(())
    })
    .unwrap();
}
