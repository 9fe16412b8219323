//! What is no instruction, what branches cannot be followed, and every instruction of a compiled function.

use super::*;
use kdetour::host::linux_process::LinuxProcess;
use kdetour::host::{Host, View};
use kdetour::plan::Refusal;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[test]
fn no_start_of_an_instruction() {
    for (offset, instruction) in [(1, 0), (3, 0), (5, 4), (7, 4), (9, 8)] {
        let (address, instruction) = (address(add_five, offset), address(add_five, instruction));
        assert_eq!(refusal(address), Error::Refused(Refusal::NotBoundary { address, instruction }));
    }
}

#[test]
fn no_function() {
    assert_eq!(padded(0, 0), 1);
    for offset in [6, 9, 15] {
        let address = (padded as Target).address() + offset;
        assert_eq!(refusal(address), Error::NotFunction { address, entry: 0 });
    }
    static DATA: [u8; 64] = [0x90; 64];
    let data = DATA.as_ptr().addr() as u64 + 16;
    assert_eq!(refusal(data), Error::NotCode { address: data });
    let turn = turn();
    // SAFETY: it is refused.
    let null = unsafe { MidDetour::attach_with(&turn.alone, 0, nothing) }.unwrap_err();
    assert_eq!(null, Error::Null);
}

#[test]
fn a_jump_of_a_part_that_lies_elsewhere() {
    let target = with_a_cold_part as Target;
    let into = address(target, 12);
    assert_eq!((target(0, 1), target(1, 1)), (102, 3));
    let error = refusal(address(target, 9));
    assert_eq!(error, Error::Refused(Refusal::BranchIntoWindow { from: into, into }));
    // To the address itself it may jump.
    let ten = |registers: &mut Registers| *result(registers) += 10;
    assert_eq!(during(into, ten, || (target(0, 1), target(1, 1))), (112, 13));
}

/// On x86-32 the table is relative to the global offset table.
#[test]
fn cases_of_a_switch() {
    let run = || [0, 1, 2].map(|case| cases(case, 10));
    assert_eq!(run(), [25, 17, 16]);
    let all = text(address(cases, 0), 48);
    // notrack jmp rcx
    let first = all.windows(3).position(|three| three == [0x3e, 0xff, 0xe1]).unwrap() as u64 + 3;
    // Three bytes each: the second case is inside the window.
    let into = address(cases, first + 3);
    let error = refusal(address(cases, first));
    assert!(
        matches!(error, Error::Refused(Refusal::BranchIntoWindow { into: found, .. }) if found == into),
        "{error}"
    );
    let error = refusal(into);
    let into = into + 3;
    assert!(
        matches!(error, Error::Refused(Refusal::BranchIntoWindow { into: found, .. }) if found == into),
        "{error}"
    );
    // The last case has none behind it.
    let ten = |registers: &mut Registers| *result(registers) += 100;
    let before = run();
    assert_eq!(during(into, ten, run), before.map(|result| result + 100));
}

/// `jmp rcx` and `jmp eax`.
const JUMP: [u8; 2] = [0xff, if cfg!(target_arch = "x86") { 0xe0 } else { 0xe1 }];

#[test]
fn a_computed_jump_that_nobody_can_follow() {
    let all = text(address(computed, 0), 48);
    let jump = address(computed, all.windows(2).position(|pair| pair == JUMP).unwrap() as u64);
    // Inside the window there would be boundaries.
    let error = refusal(jump + 2);
    assert_eq!(error, Error::Refused(Refusal::ComputedJump { address: jump }));
    // mov eax, 7 takes five bytes, so nothing can lead inside.
    let eight = jump + 2 + 2 + 5;
    let run = || (computed(0, 0), computed(7, 0), computed(12, 0));
    let more = |registers: &mut Registers| *ip(registers) += 5;
    assert_eq!(computed(0, 0), 8);
    let skipped = during(eight, more, || computed(0, 40));
    assert_eq!((skipped, run().1), (41, 8));
}

/// A function of the compiler's: loops, a `switch`, floating point, calls, division.
#[inline(never)]
extern "C" fn compiled(seed: usize, rounds: usize) -> usize {
    let (mut state, rounds) = (black_box(seed as u64), rounds as u64);
    let mut sum = 0.5_f64;
    for round in 0..rounds {
        state = match state % 7 {
            0 => state.rotate_left(5) ^ round,
            1 => state.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            2 => u64::from(state.count_ones()) + add_five(round as usize, state as usize & 0xff) as u64,
            3 => state / (round + 3),
            4 => state.swap_bytes() | 1,
            5 => {
                sum += (state >> 40) as f64 / (round + 1) as f64;
                !state
            }
            _ => state.wrapping_sub(sum as u64),
        };
        sum = sum.sqrt() + black_box(round) as f64;
    }
    (state ^ sum.to_bits()) as usize
}

/// Every place in it is either refused or harmless; most are not refused. Without optimization there are too many.
#[test]
fn instructions_of_a_compiled_function() {
    let turn = turn();
    let target = compiled as Target;
    let length =
        LinuxProcess::new().unwrap().view().unwrap().function(target.address()).unwrap().length.unwrap()
            as u64;
    let before = text(target.address(), length as usize);
    let run = || (0..20_usize).map(|seed| compiled(seed.wrapping_mul(0x1357_9bdf), 40)).collect::<Vec<_>>();
    let expected = run();
    let (mut boundaries, mut attached, mut passes) = (0, 0, 0);
    for offset in (0..length).step_by(if cfg!(debug_assertions) { 5 } else { 1 }) {
        let hits = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&hits);
        let count = move |_: &mut Registers| {
            count.fetch_add(1, Relaxed);
        };
        // SAFETY: nothing is changed.
        match unsafe { MidDetour::attach_closure_with(&turn.alone, target.address() + offset, count) } {
            Ok(mut detour) => {
                assert_eq!(run(), expected, "+{offset:#x}");
                detour.detach_with(&turn.alone).unwrap();
                boundaries += 1;
                attached += 1;
                passes += hits.load(Relaxed);
            }
            Err(Error::Refused(Refusal::NotBoundary { .. })) => {}
            Err(Error::Refused(_)) => boundaries += 1,
            Err(other) => panic!("+{offset:#x}: {other}"),
        }
    }
    assert_eq!(text(target.address(), length as usize), before);
    assert!(
        boundaries > 30 && attached * 2 > boundaries && passes > 1000,
        "{attached} of {boundaries}, {passes}"
    );
}
