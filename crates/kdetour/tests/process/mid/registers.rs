//! Registers and flags before and after; loops; the red zone; calls; leaving by another way.

use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

#[test]
fn registers_are_read_and_changed() {
    let seen = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&seen);
    let at = address(add_five, 4);
    let result = during(
        at,
        move |registers| {
            assert_eq!((*first(registers), *second(registers), *ip(registers)), (30, 12, at as Word));
            let above = stack_pointer(registers) + size_of::<Word>() as Word;
            assert!(above.is_multiple_of(16), "a return address is all that is on the stack");
            assert!(format!("{registers:?}").contains(&format!("{FIRST}: 0x1e")));
            told.store(*result(registers) as usize, Relaxed);
            *result(registers) = 1000;
        },
        || add_five(30, 12),
    );
    assert_eq!((seen.load(Relaxed), result, add_five(30, 12)), (42, 1005, 47));
}

/// An entry is an instruction like any other.
#[test]
fn an_entry() {
    let other = |registers: &mut Registers| *first_at_entry(registers) = 100;
    assert_eq!(during((add_five as Target).address(), other, || add_five(30, 12)), 117);
}

#[test]
fn a_vector_register_is_changed() {
    let result = during(
        address(twice_as_float, 9),
        |registers| {
            let value = f64::from_bits(registers.xmm()[0] as u64);
            registers.xmm_mut()[0] = u128::from((value * 10.0).to_bits());
        },
        || twice_as_float(21, 0),
    );
    assert_eq!((result, twice_as_float(21, 0)), (420, 42));
}

/// XSAVE says that registers that are as after a reset are not in use, and XRSTOR would not read them then.
#[test]
fn a_vector_register_that_was_not_in_use_is_changed() {
    #[repr(align(64))]
    struct Area([u8; 1024]);

    let result = during(
        address(first_vector, 3),
        |registers| registers.xmm_mut()[0] = u128::from(7.0_f64.to_bits()),
        || {
            let mut area = Area([0; 1024]);
            area.0[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
            let result: usize;
            // SAFETY: the area says that x87 and SSE are as after a reset, but for MXCSR, which is what it was. The
            // function is called as its convention asks, and is one that changes what its caller says it may.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                std::arch::asm!(
                    "xrstor64 [rsi]",
                    "call {}",
                    sym first_vector,
                    in("rsi") &raw const area,
                    in("rdi") 0_u64,
                    inout("rax") 3_u64 => result,
                    inout("rdx") 0_u64 => _,
                    clobber_abi("C"),
                );
            }
            // SAFETY: as above; the arguments are on the stack.
            #[cfg(target_arch = "x86")]
            unsafe {
                std::arch::asm!(
                    "xrstor [ecx]",
                    "push 0",
                    "push 0",
                    "call {}",
                    "add esp, 8",
                    sym first_vector,
                    in("ecx") &raw const area,
                    inout("eax") 3_u32 => result,
                    inout("edx") 0_u32 => _,
                    clobber_abi("C"),
                );
            }
            result
        },
    );
    assert_eq!(result, 7);
}

#[test]
fn a_flag_is_changed() {
    const CARRY: Word = 1;
    let flip = |registers: &mut Registers| *flags(registers) ^= CARRY;
    let results = during(address(below, 3), flip, || (below(1, 2), below(2, 1)));
    assert_eq!(results, (0, usize::MAX));
    assert_eq!((below(1, 2), below(2, 1)), (usize::MAX, 0));
}

#[test]
fn instructions_are_skipped() {
    // The next one is displaced, too: the copy of it is where the function goes on.
    let skip_one = |registers: &mut Registers| *ip(registers) += 4;
    assert_eq!(during(address(add_five, 4), skip_one, || add_five(30, 12)), 42);
    // To the return, which is not.
    let leave = |registers: &mut Registers| {
        *result(registers) = 77;
        *ip(registers) += 10;
    };
    assert_eq!(during(address(add_five, 4), leave, || add_five(30, 12)), 77);
    // Out of the function, as its caller would see it return, is another function's business: to its own entry it may.
    let again = address(add_five, 0);
    let rounds = AtomicU64::new(0);
    let once = move |registers: &mut Registers| {
        if rounds.fetch_add(1, Relaxed) == 0 {
            *first(registers) += 100;
            *ip(registers) = again as Word;
        }
    };
    assert_eq!(during(address(add_five, 4), once, || add_five(30, 12)), 147);
}

/// Each round is seen, whether or not the branch back is displaced.
#[test]
fn loops_are_counted() {
    for (target, offset, result) in [(short_loop as Target, 2, 9), (long_loop, 2, 9 + 9 * 5)] {
        let rounds = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&rounds);
        let counted = during(
            address(target, offset),
            move |_| {
                count.fetch_add(1, Relaxed);
            },
            || target(9, 5),
        );
        assert_eq!((rounds.load(Relaxed), counted), (9, result));
    }
    // Inside the loop, and behind it.
    for (offset, expected) in [(2, 9), (6, 9), (9, 9)] {
        let rounds = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&rounds);
        let counted = during(
            address(long_loop, offset),
            move |_| {
                count.fetch_add(1, Relaxed);
            },
            || long_loop(9, 5),
        );
        assert_eq!((rounds.load(Relaxed), counted), (expected, 54), "+{offset}");
    }
}

/// On x86-32 there is none.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_red_zone_is_left_alone() {
    let clobbers = |_: &mut Registers| {
        std::hint::black_box([0xff_u8; 4096]);
    };
    assert_eq!(during(address(red_zone, 19), clobbers, || red_zone(1, 2)), 6);
}

#[test]
fn the_callback_may_call_what_it_is_in() {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let nested = move |registers: &mut Registers| {
        counted.fetch_add(1, Relaxed);
        if *first(registers) > 0 {
            let inner = four_times(*first(registers) as usize - 1, 0);
            *result(registers) += inner as Word;
        }
    };
    // rax is 2n plus the inner result, and then doubled: f(n) = 2 (2 n + f(n - 1)).
    let expected = (1..=5).fold(0, |inner, n| 2 * (2 * n + inner));
    assert_eq!(during(address(four_times, 4), nested, || four_times(5, 0)), expected);
    assert_eq!((calls.load(Relaxed), four_times(5, 0)), (6, 20));
}

#[test]
fn a_displaced_call_returns_where_it_did() {
    // The call is at 3, so it returns to 8.
    let rounds = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&rounds);
    let count = move |_: &mut Registers| {
        count.fetch_add(1, Relaxed);
    };
    assert_eq!(during(address(calls_inside, 3), count, || calls_inside(0, 0)), 9);
    assert_eq!(rounds.load(Relaxed), 1);
}

#[test]
fn a_landing_pad_stays_first() {
    let at = address(with_a_landing_pad, 3);
    let add = move |registers: &mut Registers| {
        assert_eq!(*ip(registers), at as Word);
        *result(registers) += 100;
    };
    let before = text(at, 4);
    let (result, first) = during(at, add, || (with_a_landing_pad(1, 2), text(at, 4)));
    assert_eq!((result, first), (104, before));
}
