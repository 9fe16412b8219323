//! Pointers that are exchanged while every thread calls through them; and beside patches, as one set.

use crate::support::callers::Callers;
use crate::support::helper::Dice;
use crate::support::runner::{Clock, tell};
use crate::support::targets::{Target, expected, target};
use kdetour::typed::set::{self, Member};
use kdetour::typed::{self, Function};
use kdetour::{AtomicAddress, Error, Handle, Method, Protocol};
use std::mem::transmute;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const THREADS: [usize; 3] = [1, 4, 16];
const SLICE: Duration = Duration::from_millis(200);
const DETOURS: usize = 4;

/// The table: the page is made read-only, so that each change has to make it writable for a moment.
#[repr(align(4096))]
struct Table([AtomicUsize; 4096 / size_of::<usize>()]);

static TABLE: Table = Table([const { AtomicUsize::new(0) }; 4096 / size_of::<usize>()]);
static CELLS: [AtomicAddress; DETOURS] = [const { AtomicAddress::new(0) }; DETOURS];

fn place(index: usize) -> u64 {
    TABLE.0[index].as_ptr().expose_provenance() as u64
}

extern "C" fn through<const INDEX: usize>(first: u64, second: u64) -> u64 {
    // SAFETY: functions of this type are put there.
    let function = unsafe { transmute::<usize, Target>(TABLE.0[INDEX].load(SeqCst)) };
    function(first, second)
}

extern "C" fn added<const NUMBER: usize>(first: u64, second: u64) -> u64 {
    // SAFETY: a function of this type is there before the first call gets here.
    let original = unsafe { transmute::<usize, Target>(CELLS[NUMBER].load(SeqCst) as usize) };
    original(first, second).wrapping_add(1 << 44)
}

const ADDED: [Target; DETOURS] = [added::<0>, added::<1>, added::<2>, added::<3>];

/// However many detours of the chain are attached right now.
fn any_of_the_chain(first: u64, second: u64, answer: u64) -> bool {
    (0..=DETOURS as u64).any(|count| answer == expected(first, second).wrapping_add(count << 44))
}

fn member(index: usize, number: usize) -> Member {
    Member {
        method: Method::Pointer,
        target: place(index),
        detour: ADDED[number].address(),
        cell: Some(&CELLS[number]),
        ..Member::default()
    }
}

fn protect(writable: bool) {
    let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    // SAFETY: the page holds the table and nothing else, and nobody writes it while it is read-only.
    assert_eq!(unsafe { libc::mprotect(TABLE.0.as_ptr().cast_mut().cast(), 4096, protection) }, 0);
}

pub(crate) fn pointers(clock: &Clock) -> String {
    let mut dice = Dice::new(33);
    let (mut rounds, mut changes, mut calls, mut drained) = (0_u64, 0_u64, 0, 0_u64);
    while !clock.is_over() || rounds < 3 {
        let count = THREADS[rounds as usize % THREADS.len()];
        let read_only = rounds % 2 == 0;
        tell(&format!("round {rounds}, {count} threads, read-only: {read_only}"));
        let (one, other) = (target(0, 1), target(1, 2));
        TABLE.0[0].store(one as usize, SeqCst);
        TABLE.0[1].store(other as usize, SeqCst);
        protect(!read_only);
        let callers = [
            Callers::start(count, through::<0>, any_of_the_chain),
            Callers::start(count, through::<1>, any_of_the_chain),
            // The function itself, which the set patches.
            Callers::start(1, other, any_of_the_chain),
        ];
        let begin = Instant::now();
        while begin.elapsed() < SLICE {
            let mut attached: Vec<Handle> = Vec::new();
            for number in 0..DETOURS {
                attached.push(attach(&[member(0, number)])[0]);
            }
            dice.shuffle(&mut attached);
            for handle in &attached {
                detach(&[*handle]);
            }
            changes += 2 * DETOURS as u64;
            drained += drain(&attached);
            // A pointer and a patch at once.
            let patched = Member { method: Method::Jump, target: other.address(), ..member(1, 1) };
            let set = attach(&[member(1, 0)]);
            detach(&set);
            let mixed = attach(&[member(0, 2), patched]);
            detach(&mixed);
            changes += 6;
            drained += drain(&[set, mixed].concat());
        }
        calls += callers.into_iter().map(Callers::stop).sum::<u64>();
        assert_eq!(TABLE.0[0].load(SeqCst) as u64, one.address(), "the pointer is as it was");
        assert_eq!(TABLE.0[1].load(SeqCst) as u64, other.address(), "the pointer is as it was");
        protect(true);
        typed::reclaim(Duration::from_secs(10)).expect("nobody is inside any more");
        rounds += 1;
    }
    format!("{rounds} rounds, {changes} changes, {drained} drained at once, {calls} calls")
}

fn attach(set: &[Member]) -> Vec<Handle> {
    // SAFETY: all are functions of one type, which stay.
    unsafe { set::attach(Protocol::Exchange, set) }.unwrap_or_else(|error| panic!("attach: {error:?}"))
}

fn detach(handles: &[Handle]) {
    set::detach(Protocol::Exchange, handles).unwrap_or_else(|error| panic!("detach: {error:?}"));
}

/// How many are drained.
fn drain(handles: &[Handle]) -> u64 {
    match set::drain(handles, Duration::from_secs(3)) {
        Ok(()) => handles.len() as u64,
        Err(Error::Busy { .. } | Error::ThreadNotReached { .. }) => 0,
        Err(error) => panic!("drain: {error:?}"),
    }
}
