//! Pointers that are exchanged: in read-only data, of tables that a linker made, in chains, in sets beside patches.

use crate::life::Target;
use crate::support::{
    assert_no_page_is_writable_and_executable, functions, in_a_process_of_its_own, native, permissions, poke,
    text, turn,
};
use kdetour::plan::Refusal;
use kdetour::typed::set::{self, Change, Member};
use kdetour::typed::{PointerDetour, reclaim, with_process};
use kdetour::{AtomicAddress, Attach, Error, Handle, Method, Protocol, SessionError, State};
use std::mem::transmute;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

functions! {
    pointed_sum {
        "lea rax, [rdi + rsi]"
        "ret"
    } {
        "mov eax, [esp + 4]"
        "add eax, [esp + 8]"
        "ret"
    }

    pointed_product {
        "mov rax, rdi"
        "imul rax, rsi"
        "ret"
    } {
        "mov eax, [esp + 4]"
        "imul eax, [esp + 8]"
        "ret"
    }

    beside_pointers {
        "push rbp"
        "mov rbp, rsp"
        "push rbx"
        "mov eax, 7"
        "pop rbx"
        "pop rbp"
        "ret"
    } {
        "push ebp"
        "mov ebp, esp"
        "push ebx"
        "mov eax, 7"
        "pop ebx"
        "pop ebp"
        "ret"
    }
}

// As a table of virtual functions is laid out: written by the loader, read-only afterwards.
#[cfg(not(windows))]
core::arch::global_asm!(
    ".pushsection .data.rel.ro.kdetour_tests, \"aw\", @progbits",
    ".balign 8",
    ".globl pointer_table",
    ".type pointer_table, @object",
    "pointer_table:",
    concat!(crate::support::pointers!(), " pointed_sum, pointed_product, 0, pointer_table"),
    ".size pointer_table, . - pointer_table",
    ".popsection",
);

#[cfg(all(windows, target_arch = "x86_64"))]
core::arch::global_asm!(
    ".section .rdata, \"dr\"",
    ".balign 8",
    ".globl pointer_table",
    "pointer_table:",
    ".quad pointed_sum, pointed_product, 0, pointer_table",
    ".text",
);
#[cfg(all(windows, target_arch = "x86"))]
core::arch::global_asm!(
    ".section .rdata, \"dr\"",
    ".balign 8",
    ".globl _pointer_table",
    "_pointer_table:",
    ".long _pointed_sum, _pointed_product, 0, _pointer_table",
    ".text",
);

unsafe extern "C" {
    static pointer_table: [AtomicAddress; 4];
}

const SUM: usize = 0;
const PRODUCT: usize = 1;
const EMPTY: usize = 2;
const NO_CODE: usize = 3;
pub(crate) const LONG: Duration = Duration::from_secs(10);

fn pointer(index: usize) -> &'static AtomicAddress {
    // SAFETY: it is there, and whoever writes it does so at one moment.
    unsafe { &pointer_table[index] }
}

fn place(index: usize) -> u64 {
    ptr::from_ref(pointer(index)).expose_provenance() as u64
}

fn call(index: usize, first: usize, second: usize) -> usize {
    // SAFETY: the table's functions are of this type, and so are their detours.
    let function = unsafe { transmute::<usize, Target>(pointer(index).load(SeqCst) as usize) };
    function(first, second)
}

static CELLS: [AtomicAddress; 4] = [const { AtomicAddress::new(0) }; 4];

fn original(number: usize, first: usize, second: usize) -> usize {
    // SAFETY: a function of this type is there before the first call gets here.
    let function = unsafe { transmute::<usize, Target>(CELLS[number].load(SeqCst) as usize) };
    function(first, second)
}

native! {
    /// So the digits of an answer tell who was called, and in which order.
    extern "C" fn digit<const NUMBER: usize>(first: usize, second: usize) -> usize {
        10 * original(NUMBER, first, second) + NUMBER + 1
    }
}

const DIGITS: [Target; 4] = [digit::<0>, digit::<1>, digit::<2>, digit::<3>];

fn address(function: Target) -> u64 {
    function as *const () as u64
}

fn member(index: usize, number: usize) -> Member {
    Member {
        method: Method::Pointer,
        target: place(index),
        detour: address(DIGITS[number]),
        cell: Some(&CELLS[number]),
        ..Member::default()
    }
}

fn patched(number: usize) -> Member {
    let target = address(beside_pointers);
    Member { target, detour: address(DIGITS[number]), cell: Some(&CELLS[number]), ..Member::default() }
}

fn attach(set: &[Member]) -> Result<Vec<Handle>, SessionError> {
    // SAFETY: all are functions of one type, of this program.
    unsafe { set::attach(Protocol::Exchange, set) }
}

fn detach(handles: &[Handle]) -> Result<(), SessionError> {
    set::detach(Protocol::Exchange, handles)
}

/// What the detours of a pointer do, the oldest one's first.
fn states(index: usize) -> Vec<State> {
    with_process(|kdetour| Ok(kdetour.detours_of(place(index)).map(|one| one.state).collect())).unwrap()
}

fn everything_is_as_it_was() {
    assert_eq!(
        (pointer(SUM).load(SeqCst), pointer(PRODUCT).load(SeqCst)),
        (address(pointed_sum), address(pointed_product))
    );
    assert_eq!((call(SUM, 3, 4), call(PRODUCT, 3, 4), beside_pointers(3, 4)), (7, 12, 7));
    assert_eq!(permissions(place(SUM)), "r--p");
}

#[test]
fn a_pointer_in_read_only_data_comes_and_goes() {
    if !in_a_process_of_its_own("pointers::a_pointer_in_read_only_data_comes_and_goes") {
        return;
    }
    let _turn = turn();
    // On a stack of its own: what calls leave there is no business of the drain's.
    thread::spawn(comes_and_goes).join().unwrap();
    // One record, however often it came.
    assert_eq!(states(SUM), [State::Draining]);
    reclaim(LONG).unwrap();
    assert_eq!(states(SUM), []);
}

fn comes_and_goes() {
    everything_is_as_it_was();
    // SAFETY: what the pointer leads to is of this type, it stays, and nobody keeps what was read of it.
    let mut detour = unsafe {
        PointerDetour::attach(ptr::with_exposed_provenance::<Target>(place(SUM) as usize), digit::<0>)
    }
    .unwrap();
    CELLS[0].store(address(detour.original()), SeqCst);
    assert_eq!((call(SUM, 3, 4), pointed_sum(3, 4), call(PRODUCT, 3, 4)), (71, 7, 12));
    assert_eq!((permissions(place(SUM)), detour.original()(3, 4)), ("r--p".to_owned(), 7));
    assert_no_page_is_writable_and_executable();
    // SAFETY: it is refused.
    let again = unsafe { detour.reattach() };
    assert_eq!(again, Err(Error::AlreadyDetoured { target: place(SUM) }));
    for _ in 0..3 {
        detour.detach().unwrap();
        assert_eq!(detour.detach(), Err(Error::NotAttached));
        everything_is_as_it_was();
        // SAFETY: as above.
        unsafe { detour.reattach() }.unwrap();
        assert_eq!(call(SUM, 3, 4), 71);
    }
    drop(detour);
    everything_is_as_it_was();
}

#[test]
fn a_pointer_can_be_left_detoured() {
    let _turn = turn();
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    LEFT.store(pointed_sum as *const () as usize, SeqCst);
    // SAFETY: as above; this one is never freed.
    let detour = unsafe { PointerDetour::attach(LEFT.as_ptr().cast::<Target>(), pointed_product) }.unwrap();
    assert_eq!(detour.leak()(3, 4), 7);
    assert_eq!(LEFT.load(SeqCst) as u64, address(pointed_product));
}

#[test]
fn detours_of_one_pointer_leave_in_any_order() {
    if !in_a_process_of_its_own("pointers::detours_of_one_pointer_leave_in_any_order") {
        return;
    }
    let _turn = turn();
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let handles: Vec<Handle> = (0..3).map(|number| attach(&[member(SUM, number)]).unwrap()[0]).collect();
        assert_eq!(call(SUM, 3, 4), 7123);
        let mut left = vec![0, 1, 2];
        for gone in order {
            detach(&[handles[gone]]).unwrap();
            left.retain(|&one| one != gone);
            let expected = left.iter().fold(7, |number, one| 10 * number + one + 1);
            assert_eq!(call(SUM, 3, 4), expected, "{order:?}, without {gone}");
            assert_eq!(
                pointer(SUM).load(SeqCst),
                left.last().map_or(address(pointed_sum), |&one| address(DIGITS[one]))
            );
        }
        everything_is_as_it_was();
        set::drain(&handles, LONG).unwrap();
    }
}

/// As one of a chain comes back it is the youngest; and what drains goes on with what is older than it.
#[test]
fn one_that_comes_back_is_called_first() {
    if !in_a_process_of_its_own("pointers::one_that_comes_back_is_called_first") {
        return;
    }
    let _turn = turn();
    let mut handles: Vec<Handle> = (0..2).map(|number| attach(&[member(SUM, number)]).unwrap()[0]).collect();
    detach(&handles[..1]).unwrap();
    assert_eq!((call(SUM, 3, 4), original(0, 3, 4), original(1, 3, 4)), (72, 7, 7));
    handles[0] = attach(&[Member { again: Some(handles[0]), ..member(SUM, 0) }]).unwrap()[0];
    assert_eq!((call(SUM, 3, 4), original(0, 3, 4)), (721, 72));
    // One set that takes two and brings another.
    let changes = [Change::Detach(handles[1]), Change::Attach(member(SUM, 2)), Change::Detach(handles[0])];
    // SAFETY: as for `attach`.
    let changed = unsafe { set::change(Protocol::Exchange, &changes) }.unwrap();
    assert_eq!((call(SUM, 3, 4), set::state(handles[0])), (73, Ok(Some(State::Draining))));
    detach(&changed[1..2]).unwrap();
    everything_is_as_it_was();
    set::drain(&[handles[0], handles[1], changed[1]], LONG).unwrap();
}

#[test]
fn what_somebody_else_wrote_is_told_and_left() {
    if !in_a_process_of_its_own("pointers::what_somebody_else_wrote_is_told_and_left") {
        return;
    }
    let _turn = turn();
    let ours = attach(&[member(SUM, 0), member(PRODUCT, 1), patched(2)]).unwrap();
    let during = text(address(beside_pointers), 16);
    let put = |index: usize, function: u64| poke(place(index), &(function as usize).to_ne_bytes());
    put(PRODUCT, address(pointed_sum));
    let changed = Error::PointerChanged {
        address: place(PRODUCT),
        expected: address(DIGITS[1]),
        found: address(pointed_sum),
    };
    // Nothing else of the set happens.
    for set in [&ours[..], &ours[..2]] {
        assert_eq!(detach(set), Err(SessionError { index: 1, error: changed }));
        assert_eq!((call(SUM, 3, 4), beside_pointers(3, 4)), (71, 73));
        assert_eq!(text(address(beside_pointers), 16), during);
        assert_eq!(set::state(ours[1]), Ok(Some(State::Attached)));
    }
    assert_eq!(attach(&[member(PRODUCT, 3)]), Err(SessionError { index: 0, error: changed }));
    assert!(changed.to_string().contains("somebody else wrote it"));
    // An older one needs no write.
    put(PRODUCT, address(DIGITS[1]));
    let younger = attach(&[member(PRODUCT, 3)]).unwrap();
    put(PRODUCT, address(pointed_sum));
    detach(&ours[1..2]).unwrap();
    put(PRODUCT, address(DIGITS[3]));
    assert_eq!(call(PRODUCT, 3, 4), 124);
    // What is as it was at first needs none either.
    put(PRODUCT, address(pointed_product));
    detach(&[ours[0], younger[0], ours[2]]).unwrap();
    everything_is_as_it_was();
    set::drain(&[ours[0], ours[1], ours[2], younger[0]], LONG).unwrap();
}

#[test]
fn places_that_are_none_are_refused_by_name() {
    if !in_a_process_of_its_own("pointers::places_that_are_none_are_refused_by_name") {
        return;
    }
    let _turn = turn();
    let with = |change: &dyn Fn(&mut Member)| {
        let mut one = member(SUM, 0);
        change(&mut one);
        // Beside others that could be attached.
        attach(&[patched(1), member(PRODUCT, 2), one]).unwrap_err()
    };
    let refused = |target: u64, error: Error| {
        assert_eq!(with(&|one| one.target = target), SessionError { index: 2, error }, "{target:#x}");
        everything_is_as_it_was();
    };
    let (sum, code) = (place(SUM), address(pointed_sum));
    refused(0, Error::Null);
    refused(sum + 2, Error::Misaligned { address: sum + 2 });
    refused(16, Error::Unreadable { address: 16 });
    refused(1 << 63, Error::Unreadable { address: 1 << 63 });
    refused(code, Error::NotData { address: code });
    refused(place(EMPTY), Error::NullPointer { address: place(EMPTY) });
    refused(place(NO_CODE), Error::NotCode { address: place(SUM) });
    assert_eq!(with(&|one| one.detour = 0).error, Error::Null);
    assert_eq!(with(&|one| one.detour = sum).error, Error::NotCode { address: sum });
    // Its original would be itself.
    assert_eq!(with(&|one| one.detour = code).error, Error::AlreadyDetoured { target: sum });
    let twice = attach(&[member(SUM, 0), member(SUM, 0)]).unwrap_err();
    assert_eq!(twice, SessionError { index: 1, error: Error::AlreadyDetoured { target: sum } });
    everything_is_as_it_was();
    // There is nothing to be planned.
    // SAFETY: it is refused.
    let planned = unsafe { set::plan(Protocol::Local, &[member(SUM, 0)]) }.unwrap_err();
    assert_eq!(planned.error, Error::Refused(Refusal::NoShape { address: sum }));
    // A target is no pointer and the other way round.
    let jump = Member { method: Method::Jump, ..member(SUM, 0) };
    assert_eq!(attach(&[jump]).unwrap_err().error, Error::NotCode { address: sum });
    let unchained = with_process(|kdetour| {
        let one =
            Attach { method: Method::Pointer, target: sum, detour: address(DIGITS[0]), ..Attach::default() };
        // SAFETY: all are functions of one type.
        let first = unsafe { kdetour.session().attach(one) }.commit_exchange(&mut |_, _| ())?;
        let other = Attach { detour: address(DIGITS[1]), ..one };
        // SAFETY: it is refused.
        let failed = unsafe { kdetour.session().attach(other) }.commit_exchange(&mut |_, _| ()).unwrap_err();
        kdetour.session().detach(first[0]).commit_exchange(&mut |_, _| ())?;
        Ok(failed.error)
    });
    assert_eq!(unchained, Ok(Error::AlreadyDetoured { target: sum }));
    everything_is_as_it_was();
    reclaim(LONG).unwrap();
}

/// Pointers and patches are one set: what fails at the last moment takes everything back.
#[test]
fn a_set_of_both_kinds_is_all_or_nothing() {
    if !in_a_process_of_its_own("pointers::a_set_of_both_kinds_is_all_or_nothing") {
        return;
    }
    let _turn = turn();
    let before = text(address(beside_pointers), 16);
    let handles = attach(&[member(SUM, 0), patched(1), member(PRODUCT, 2)]).unwrap();
    assert_eq!((call(SUM, 3, 4), beside_pointers(3, 4), call(PRODUCT, 3, 4)), (71, 72, 123));
    let methods = with_process(|kdetour| {
        Ok(handles.iter().map(|&one| kdetour.record(one).unwrap().method.name()).collect::<Vec<_>>())
    });
    assert_eq!(methods.unwrap(), ["pointer", "jump", "pointer"]);
    detach(&handles).unwrap();
    everything_is_as_it_was();
    assert_eq!(text(address(beside_pointers), 16), before);
    set::drain(&handles, LONG).unwrap();

    let requests = [member(SUM, 0), patched(1)].map(|one| Attach {
        method: one.method,
        target: one.target,
        detour: one.detour,
        cell: one.cell,
        ..Attach::default()
    });
    // Somebody writes the code, or a pointer, between the comparison and the write.
    for (at, byte) in [(address(beside_pointers), 0x90), (place(SUM), 0xff)] {
        let saved = text(at, 1);
        let failed = with_process(|kdetour| {
            // SAFETY: all are functions of one type.
            let session =
                unsafe { requests.iter().fold(kdetour.session(), |session, &one| session.attach(one)) };
            Ok(session.commit_exchange(&mut |_, _| poke(at, &[byte])).unwrap_err())
        });
        poke(at, &saved);
        let failed = failed.unwrap();
        match failed.error {
            Error::Changed { address, found, .. } => {
                assert_eq!((failed.index, address, found), (1, at, byte))
            }
            Error::PointerChanged { address, .. } => assert_eq!((failed.index, address), (0, at)),
            other => panic!("{other:?}"),
        }
        everything_is_as_it_was();
        assert_eq!(text(address(beside_pointers), 16), before);
        assert!(states(SUM).iter().all(|&state| state == State::Draining));
    }
    reclaim(LONG).unwrap();
    assert_eq!(states(SUM), []);
}

static GATES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

native! {
    extern "C" fn waits(first: usize, second: usize) -> usize {
        GATES[0].fetch_add(1, SeqCst);
        while GATES[1].load(SeqCst) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        original(0, first, second) + 1
    }
}

#[test]
fn calls_inside_are_waited_for() {
    if !in_a_process_of_its_own("pointers::calls_inside_are_waited_for") {
        return;
    }
    let _turn = turn();
    let handles = attach(&[Member { detour: address(waits), ..member(SUM, 0) }]).unwrap();
    let (sender, answers) = channel();
    let caller = thread::spawn(move || sender.send(call(SUM, 3, 4)).unwrap());
    while GATES[0].load(SeqCst) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    detach(&handles).unwrap();
    everything_is_as_it_was();
    let busy = set::drain(&handles, Duration::from_millis(50));
    assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
    GATES[1].store(1, SeqCst);
    set::drain(&handles, LONG).unwrap();
    assert_eq!(answers.recv().unwrap(), 8);
    caller.join().unwrap();
}
