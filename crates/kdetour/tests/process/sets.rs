//! Sets by addresses: attached, detached and planned as one; and what comes between.

use crate::life::{Target, replacement};
use crate::support::{functions, in_a_process_of_its_own, native, poke, text, turn};
use kdetour::typed::set::{self, Change, Member};
use kdetour::typed::{Detour, reclaim, with_process};
use kdetour::{AtomicAddress, Error, Handle, Protocol, SessionError, State};
use std::hint::black_box;
use std::mem::transmute;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

functions! {
    set_sum {
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

    set_product {
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

    // Sixteen bytes each, so that the second begins where the first ends: with what could be a call, and is data here.
    set_first_of_two {
        "lea rax, [rdi + rsi]"
        "ret"
        ".fill 6, 1, 0xcc"
        ".byte 0xe8, 0x83, 0xc4, 0x1c, 0xc3"
    } {
        "mov eax, [esp + 4]"
        "add eax, [esp + 8]"
        "ret"
        ".fill 2, 1, 0xcc"
        ".byte 0xe8, 0x83, 0xc4, 0x1c, 0xc3"
    }

    set_second_of_two {
        "xor eax, eax"
        "ret"
    }
}

const LONG: Duration = Duration::from_secs(10);

static SUM: AtomicAddress = AtomicAddress::new(0);
static PRODUCT: AtomicAddress = AtomicAddress::new(0);

fn call(cell: &AtomicAddress, first: usize, second: usize) -> usize {
    // SAFETY: what a set has put there is a function of this type.
    let original = unsafe { transmute::<usize, Target>(cell.load(SeqCst) as usize) };
    original(first, second)
}

native! {
    extern "C" fn my_sum(first: usize, second: usize) -> usize {
        call(&SUM, first, second) + 1000
    }
}

native! {
    extern "C" fn my_product(first: usize, second: usize) -> usize {
        call(&PRODUCT, first, second) + 2000
    }
}

fn address(function: Target) -> u64 {
    function as *const () as u64
}

fn member(target: Target, detour: Target, cell: &'static AtomicAddress) -> Member {
    Member { target: address(target), detour: address(detour), cell: Some(cell), ..Member::default() }
}

fn attach(set: &[Member]) -> Result<Vec<Handle>, SessionError> {
    // SAFETY: all are functions of one type, of this program.
    unsafe { set::attach(Protocol::Exchange, set) }
}

fn plan(set: &[Member]) -> Result<Vec<Handle>, SessionError> {
    // SAFETY: as above.
    unsafe { set::plan(Protocol::Local, set) }
}

/// The address of a detour on one's own stack is no return address into the detour in front of it, though that may end in the bytes
/// of a call.
#[test]
fn detours_that_adjoin_are_left() {
    if !in_a_process_of_its_own("sets::detours_that_adjoin_are_left") {
        return;
    }
    let _turn = turn();
    assert_eq!(address(set_first_of_two) + 16, address(set_second_of_two));
    let kept = black_box([address(set_second_of_two) as usize; 8]);
    let both = [member(set_sum, set_first_of_two, &SUM), member(set_product, set_second_of_two, &PRODUCT)];
    let handles = attach(&both).unwrap();
    assert_eq!((set_sum(3, 4), set_product(3, 4)), (7, 0));
    set::detach(Protocol::Exchange, &handles).unwrap();
    assert_eq!(set::drain(&handles, LONG), Ok(()));
    black_box(&kept);
}

/// With one place for the original a detour that is its own original would call itself for ever.
#[test]
fn a_detour_comes_to_a_target_once() {
    if !in_a_process_of_its_own("sets::a_detour_comes_to_a_target_once") {
        return;
    }
    let _turn = turn();
    let (one, before) = (member(set_sum, my_sum, &SUM), text(address(set_sum), 16));
    let twice = Error::AlreadyDetoured { target: address(set_sum) };
    assert_eq!(attach(&[one, one]), Err(SessionError { index: 1, error: twice }));
    assert_eq!(text(address(set_sum), 16), before);
    let handles = attach(&[one]).unwrap();
    assert_eq!(attach(&[one]), Err(SessionError { index: 0, error: twice }));
    // Another function with that place, or that function with another place, is another detour.
    let others = attach(&[member(set_sum, my_product, &PRODUCT)]).unwrap();
    assert_eq!(set_sum(3, 4), 3007);
    set::detach(Protocol::Exchange, &handles).unwrap();
    // It comes back where it was.
    let again = attach(&[Member { again: Some(handles[0]), ..one }]).unwrap();
    assert_eq!(attach(&[one]), Err(SessionError { index: 0, error: twice }));
    assert_eq!(set_sum(3, 4), 3007);
    set::detach(Protocol::Exchange, &[others[0], again[0]]).unwrap();
    set::drain(&[others[0], again[0]], LONG).unwrap();
}

#[test]
fn a_set_comes_and_goes_and_comes_again() {
    if !in_a_process_of_its_own("sets::a_set_comes_and_goes_and_comes_again") {
        return;
    }
    let _turn = turn();
    let mut both = [member(set_sum, my_sum, &SUM), member(set_product, my_product, &PRODUCT)];
    let before = (text(both[0].target, 16), text(both[1].target, 16));
    let handles = attach(&both).unwrap();
    assert_eq!((set_sum(3, 4), set_product(3, 4)), (1007, 2012));
    assert_eq!(set::state(handles[0]), Ok(Some(State::Attached)));
    set::detach(Protocol::Exchange, &handles).unwrap();
    assert_eq!((set_sum(3, 4), set_product(3, 4)), (7, 12));
    for (member, handle) in both.iter_mut().zip(&handles) {
        member.again = Some(*handle);
    }
    let again = attach(&both).unwrap();
    assert_eq!((set_sum(3, 4), set_product(3, 4)), (1007, 2012));
    assert_eq!(set::detach(Protocol::Exchange, &handles).unwrap_err().error, Error::NotAttached);
    set::detach(Protocol::Exchange, &again).unwrap();
    set::drain(&again, LONG).unwrap();
    // What is freed is not waited for, and what was freed is planned anew.
    set::drain(&again, LONG).unwrap();
    assert_eq!(set::state(again[1]), Ok(None));
    for (member, handle) in both.iter_mut().zip(&again) {
        member.again = Some(*handle);
    }
    let anew = attach(&both).unwrap();
    assert_eq!((set_sum(3, 4), set_product(3, 4)), (1007, 2012));
    set::detach(Protocol::Exchange, &anew).unwrap();
    set::drain(&anew, LONG).unwrap();
    assert_eq!((text(both[0].target, 16), text(both[1].target, 16)), before);
}

/// One goes and another one comes, at one moment, or not at all.
#[test]
fn changes_of_both_kinds_are_one() {
    if !in_a_process_of_its_own("sets::changes_of_both_kinds_are_one") {
        return;
    }
    let _turn = turn();
    let sum = member(set_sum, my_sum, &SUM);
    let original = text(sum.target, 5);
    let handles = attach(&[sum]).unwrap();
    let product = member(set_product, my_product, &PRODUCT);
    let nowhere = Member { target: 16, ..product };
    let one = handles[0];
    // SAFETY: it is refused.
    let failed = unsafe { set::change(Protocol::Exchange, &[Change::Detach(one), Change::Attach(nowhere)]) };
    assert_eq!(failed, Err(SessionError { index: 1, error: Error::Unreadable { address: 16 } }));
    assert_eq!((set_sum(3, 4), set_product(3, 4)), (1007, 12));
    // SAFETY: as for `attach`.
    let changed = unsafe { set::change(Protocol::Exchange, &[Change::Detach(one), Change::Attach(product)]) };
    let changed = changed.unwrap();
    assert_eq!((changed[0], set_sum(3, 4), set_product(3, 4)), (one, 7, 2012));
    // The bytes of one of two are back by themselves.
    let again = attach(&[sum]).unwrap();
    poke(sum.target, &original);
    set::detach(Protocol::Exchange, &[again[0], changed[1]]).unwrap();
    assert_eq!((set_sum(3, 4), set_product(3, 4)), (7, 12));
    set::drain(&[one, again[0], changed[1]], LONG).unwrap();
}

#[test]
fn what_is_planned_is_written_later_by_whomever() {
    if !in_a_process_of_its_own("sets::what_is_planned_is_written_later_by_whomever") {
        return;
    }
    let _turn = turn();
    let sum = member(set_sum, my_sum, &SUM);
    let original = text(sum.target, 16);
    let handle = plan(&[sum]).unwrap()[0];
    assert_eq!((text(sum.target, 16), set_sum(3, 4), call(&SUM, 3, 4)), (original.clone(), 7, 7));
    assert_eq!(set::state(handle), Ok(Some(State::Draining)));
    // SAFETY: it is refused.
    assert!(matches!(unsafe { set::assume(handle) }, Err(Error::Changed { .. })));

    // By its own protocol.
    let attached = attach(&[Member { again: Some(handle), ..sum }]).unwrap();
    assert_eq!(set_sum(3, 4), 1007);
    // SAFETY: it is refused.
    assert_eq!(unsafe { set::assume(attached[0]) }, Err(Error::NotAttached));
    assert!(matches!(plan(&[sum]).unwrap_err().error, Error::AlreadyDetoured { .. }));
    set::detach(Protocol::Exchange, &attached).unwrap();
    set::drain(&attached, LONG).unwrap();

    // By plain stores, while this is the only thread that comes by.
    let handle = plan(&[sum]).unwrap()[0];
    let patch = with_process(|kdetour| {
        kdetour.record(handle).and_then(|record| record.patch).ok_or(Error::NotAttached)
    });
    let patch = patch.unwrap();
    poke(patch.address(), patch.new_bytes());
    assert_eq!(set_sum(3, 4), 1007);
    // SAFETY: it was written while nobody was inside; the kernel has written it, so it is fetched anew.
    unsafe { set::assume(handle) }.unwrap();
    assert_eq!(set::state(handle), Ok(Some(State::Attached)));
    // It is a detour like any other: another one comes before it, and stays when it goes.
    // SAFETY: both have one signature.
    let younger = unsafe { Detour::attach(set_sum as Target, replacement) }.unwrap();
    set::detach(Protocol::Exchange, &[handle]).unwrap();
    assert_ne!(set_sum(3, 4), 7);
    drop(younger);
    assert_eq!((set_sum(3, 4), text(sum.target, 16)), (7, original));
    set::drain(&[handle], LONG).unwrap();
}

#[test]
fn a_plan_that_is_given_up_leaves_nothing() {
    if !in_a_process_of_its_own("sets::a_plan_that_is_given_up_leaves_nothing") {
        return;
    }
    let _turn = turn();
    let both = [member(set_sum, my_sum, &SUM), member(set_product, my_product, &PRODUCT)];
    let count = with_process(|kdetour| Ok(kdetour.len())).unwrap();
    let failed = plan(&[both[0], Member { target: 16, ..both[1] }]).unwrap_err();
    assert_eq!(failed, SessionError { index: 1, error: Error::Unreadable { address: 16 } });
    assert_eq!(with_process(|kdetour| Ok(kdetour.len())).unwrap(), count);
    let handles = plan(&both).unwrap();
    // Somebody else comes to one of the targets meanwhile, by a slot of its own or by the same.
    // SAFETY: both have one signature.
    let other = unsafe { Detour::attach(set_sum as Target, replacement) }.unwrap();
    // SAFETY: it is refused.
    let assumed = unsafe { set::assume(handles[0]) };
    assert!(matches!(assumed, Err(Error::AlreadyDetoured { .. } | Error::Changed { .. })));
    // Nobody frees it unasked.
    reclaim(LONG).unwrap();
    assert_eq!((set::state(handles[1]), call(&PRODUCT, 3, 4)), (Ok(Some(State::Draining)), 12));
    drop(other);
    set::drain(&handles, LONG).unwrap();
    assert_eq!((set_sum(3, 4), set_product(3, 4)), (7, 12));
}

native! {
    extern "C" fn drains_itself(first: usize, second: usize) -> usize {
        let handle = Handle::from_raw(INSIDE.load(SeqCst));
        set::detach(Protocol::Exchange, &[handle]).unwrap();
        // Without end, if it waited for itself.
        assert_eq!(set::drain(&[handle], Duration::MAX), Err(Error::Inside));
        call(&SUM, first, second) + 1
    }
}

static INSIDE: AtomicU64 = AtomicU64::new(0);

#[test]
fn nobody_waits_for_oneself() {
    if !in_a_process_of_its_own("sets::nobody_waits_for_oneself") {
        return;
    }
    let _turn = turn();
    let handle = attach(&[member(set_sum, drains_itself, &SUM)]).unwrap()[0];
    INSIDE.store(handle.as_raw(), SeqCst);
    assert_eq!(set_sum(3, 4), 8);
    set::drain(&[handle], LONG).unwrap();
    assert_eq!(set_sum(3, 4), 7);
}

#[test]
fn a_stub_follows_its_cell() {
    let _turn = turn();
    static CELL: AtomicAddress = AtomicAddress::new(0);
    CELL.store(address(set_sum), SeqCst);
    let stub = set::stub(address(set_sum), &CELL).unwrap();
    // SAFETY: it leads to functions of this type.
    let stub = unsafe { transmute::<usize, Target>(stub as usize) };
    assert_eq!(stub(3, 4), 7);
    CELL.store(address(set_product), SeqCst);
    assert_eq!(stub(3, 4), 12);
}

#[test]
fn a_plan_whose_patch_may_be_in_the_text_is_kept() {
    if !in_a_process_of_its_own("sets::a_plan_whose_patch_may_be_in_the_text_is_kept") {
        return;
    }
    let _turn = turn();
    let sum = member(set_sum, my_sum, &SUM);
    let original = text(sum.target, 16);
    let handle = plan(&[sum]).unwrap()[0];
    let may_be_given_up = || with_process(|kdetour| kdetour.may_be_given_up(handle));
    let patch = with_process(|kdetour| {
        kdetour.record(handle).and_then(|record| record.patch).ok_or(Error::NotAttached)
    });
    let patch = patch.unwrap();
    assert_eq!(may_be_given_up(), Ok(()));
    poke(patch.address(), patch.new_bytes());
    assert_eq!(may_be_given_up(), Err(Error::AlreadyDetoured { target: sum.target }));
    // Under somebody's breakpoint.
    poke(patch.address(), &[0xcc]);
    let changed = Error::Changed { address: patch.address(), expected: 0xe9, found: 0xcc };
    assert_eq!(may_be_given_up(), Err(changed));
    // What is somebody else's is no reason to keep it.
    poke(patch.address(), &[0x90; 5]);
    assert_eq!(may_be_given_up(), Ok(()));
    // Its memory is about to go, patch and all.
    poke(patch.address(), patch.new_bytes());
    // SAFETY: nobody comes by until the bytes are what they were.
    let forget = || with_process(|kdetour| unsafe { kdetour.forget(handle, &mut |_, _| ()) });
    forget().unwrap();
    assert_eq!(may_be_given_up(), Ok(()));
    assert_eq!(forget(), Err(Error::NotAttached));
    poke(patch.address(), patch.window_bytes());
    set::drain(&[handle], LONG).unwrap();
    assert_eq!((set_sum(3, 4), text(sum.target, 16)), (7, original));
}
