//! Detours inside functions: every register before and after, loops, leaving by another way, refusals.

use crate::support::{
    assert_no_page_is_writable_and_executable, functions, in_a_process_of_its_own, text, turn,
};
use kdetour::host::linux_process::LinuxProcess;
use kdetour::host::{Host, View};
use kdetour::plan::Refusal;
use kdetour::typed::{Detour, Function, MidDetour, Registers, reclaim, with_process};
use kdetour::{Error, Record, State};
use std::arch::global_asm;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::time::Duration;

type Target = extern "C" fn(u64, u64) -> u64;

functions! {
    // 48 8d 04 37 | 48 83 c0 05 | 48 89 c1 | 48 89 c8 | c3
    add_five {
        "lea rax, [rdi + rsi]"
        "add rax, 5"
        "mov rcx, rax"
        "mov rax, rcx"
        "ret"
    }

    // f3 48 0f 2a..: 0: cvtsi2sd, 5: addsd (4), 9: cvttsd2si (5), 14: ret
    twice_as_float {
        "cvtsi2sd xmm0, rdi"
        "addsd xmm0, xmm0"
        "cvttsd2si rax, xmm0"
        "ret"
    }

    // 48 89 f8 | 0f 1f 44 00 00 | f2 48 0f 2c c0 | c3
    first_vector {
        "mov rax, rdi"
        "nop dword ptr [rax + rax]"
        "cvttsd2si rax, xmm0"
        "ret"
    }

    // 48 39 f7 | 90 | 48 8d 40 00 | 48 19 c0 | c3
    below {
        "cmp rdi, rsi"
        "nop"
        "lea rax, [rax + 0]"
        "sbb rax, rax"
        "ret"
    }

    // 31 c0 | ff c0 ff cf 75 fa | c3: the whole loop is displaced.
    short_loop {
        "xor eax, eax"
        "2: inc eax"
        "dec edi"
        "jnz 2b"
        "ret"
    }

    // 31 c0 | 48 8d 40 01 | 48 01 f0 | ff cf | 75 f3 | c3: the branch back is behind the window.
    long_loop {
        "xor eax, eax"
        "2: lea rax, [rax + 1]"
        "add rax, rsi"
        "dec edi"
        "jnz 2b"
        "ret"
    }

    // 31 c0 | 48 01 f0 | ff cf | 75 f9 | c3: the same, but the loop's head is inside a window two bytes in front.
    loop_in_the_window {
        "xor eax, eax"
        "nop"
        "nop"
        "2: add rax, rsi"
        "dec edi"
        "jnz 2b"
        "ret"
    }

    // The red zone is written, read back and summed; 8 bytes at -8, -64 and -128.
    red_zone {
        "mov [rsp - 8], rdi"
        "mov [rsp - 64], rsi"
        "mov qword ptr [rsp - 128], 3"
        "nop"
        "nop"
        "nop"
        "nop"
        "nop"
        "mov rax, [rsp - 8]"
        "add rax, [rsp - 64]"
        "add rax, [rsp - 128]"
        "ret"
    }

    // 4 * rdi, by itself; the callback calls it again.
    four_times {
        "lea rax, [rdi + rdi]"
        "lea rcx, [rax + rax]"
        "mov rax, rcx"
        "ret"
    }

    // A call is what is detoured: the callee sees its own return address.
    calls_inside {
        "mov rax, rdi"
        "call 2f"
        "mov rcx, rax"
        "lea rax, [rcx + 1]"
        "ret"
        "2: mov rax, [rsp]"
        "lea rcx, [rip + calls_inside]"
        "sub rax, rcx"
        "ret"
    }

    // 0f 1f.. f3 0f 1e fa ..: a landing pad is where a switch comes to.
    cases {
        "mov eax, esi"
        "lea rcx, [rip + 3f]"
        "movsxd rdx, dword ptr [rcx + rdi * 4]"
        "add rcx, rdx"
        "notrack jmp rcx"
        "4: add eax, 8"
        "5: add eax, 1"
        "6: add eax, 2"
        "add eax, 4"
        "ret"
        ".pushsection .rodata"
        ".balign 4"
        "3: .long 4b - 3b"
        ".long 5b - 3b"
        ".long 6b - 3b"
        ".popsection"
    }

    // The same without a table.
    computed {
        "lea rcx, [rip + 4f]"
        "add rcx, rdi"
        "jmp rcx"
        "4: mov eax, esi"
        "nop"
        "nop"
        "nop"
        "nop"
        "nop"
        "mov eax, 7"
        "add eax, 1"
        "ret"
    }

    // It has a part elsewhere, which no symbol names, and which comes back.
    with_a_cold_part {
        "test rdi, rdi"
        ".byte 0x0f, 0x84"
        ".long 8f - . - 4"
        "mov rax, rsi"
        ".Lwith_a_cold_part: inc rax"
        "inc rax"
        "ret"
        ".pushsection .text.kdetour_cold, \"ax\", @progbits"
        ".balign 16"
        "8: mov rax, 100"
        ".byte 0xe9"
        ".long .Lwith_a_cold_part - . - 4"
        ".popsection"
    }

    with_a_landing_pad {
        "mov rax, rdi"
        "endbr64"
        "add rax, rsi"
        "add rax, 1"
        "ret"
    }
}

global_asm!(
    ".pushsection .text.kdetour_tests, \"ax\", @progbits",
    ".globl padded",
    ".type padded, @function",
    ".balign 16",
    "padded: mov eax, 1",
    "ret",
    ".size padded, . - padded",
    ".balign 16, 0xcc",
    ".popsection",
);

unsafe extern "C" {
    safe fn padded(first: u64, second: u64) -> u64;
}

fn address(target: Target, offset: u64) -> u64 {
    target.address() + offset
}

extern "C" fn nothing(_: &mut Registers) {}

/// Attaches a closure while `work` runs, and looks whether the bytes are back afterwards.
fn during<R>(
    address: u64,
    closure: impl Fn(&mut Registers) + Send + Sync + 'static,
    work: impl Fn() -> R,
) -> R {
    let turn = turn();
    let before = text(address, 32);
    // SAFETY: the closures here leave the functions in a state in which they can go on.
    let mut detour = unsafe { MidDetour::attach_closure_with(&turn.alone, address, closure) }.unwrap();
    assert!(detour.is_attached() && detour.address() == address);
    assert_ne!(text(address, 32), before);
    assert_no_page_is_writable_and_executable();
    let result = work();
    detour.detach_with(&turn.alone).unwrap();
    assert_eq!(text(address, 32), before);
    assert_eq!(detour.detach_with(&turn.alone), Err(Error::NotAttached));
    result
}

/// What the attempt to detour an address says, with nothing written.
fn refusal(address: u64) -> Error {
    let turn = turn();
    let records = || with_process(|kdetour| Ok(kdetour.records().count())).unwrap();
    let before = (text(address & !15, 48), records());
    // SAFETY: nothing is called.
    let error = unsafe { MidDetour::attach_with(&turn.alone, address, nothing) }.unwrap_err();
    assert_eq!((text(address & !15, 48), records()), before);
    assert!(!error.to_string().is_empty());
    error
}

#[test]
fn registers_are_read_and_changed() {
    let seen = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&seen);
    let at = address(add_five, 4);
    let result = during(
        at,
        move |registers| {
            assert_eq!((registers.rdi, registers.rsi, registers.rip), (30, 12, at));
            assert!(registers.rsp() % 16 == 8, "a return address is all that is on the stack");
            assert!(format!("{registers:?}").contains("rdi: 0x1e"));
            told.store(registers.rax, Relaxed);
            registers.rax = 1000;
        },
        || add_five(30, 12),
    );
    assert_eq!((seen.load(Relaxed), result, add_five(30, 12)), (42, 1005, 47));
}

/// An entry is an instruction like any other.
#[test]
fn an_entry() {
    let other = |registers: &mut Registers| registers.rdi = 100;
    assert_eq!(during(address(add_five, 0), other, || add_five(30, 12)), 117);
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
            let result: u64;
            // SAFETY: the area says that x87 and SSE are as after a reset, but for MXCSR, which is what it was. The
            // function is called as its convention asks, and is one that changes what its caller says it may.
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
            result
        },
    );
    assert_eq!(result, 7);
}

#[test]
fn a_flag_is_changed() {
    const CARRY: u64 = 1;
    let flip = |registers: &mut Registers| registers.rflags ^= CARRY;
    let results = during(address(below, 3), flip, || (below(1, 2), below(2, 1)));
    assert_eq!(results, (0, u64::MAX));
    assert_eq!((below(1, 2), below(2, 1)), (u64::MAX, 0));
}

#[test]
fn instructions_are_skipped() {
    // The next one is displaced, too: the copy of it is where the function goes on.
    let skip_one = |registers: &mut Registers| registers.rip += 4;
    assert_eq!(during(address(add_five, 4), skip_one, || add_five(30, 12)), 42);
    // To the return, which is not.
    let leave = |registers: &mut Registers| {
        registers.rax = 77;
        registers.rip += 10;
    };
    assert_eq!(during(address(add_five, 4), leave, || add_five(30, 12)), 77);
    // Out of the function, as its caller would see it return, is another function's business: to its own entry it may.
    let again = address(add_five, 0);
    let rounds = AtomicU64::new(0);
    let once = move |registers: &mut Registers| {
        if rounds.fetch_add(1, Relaxed) == 0 {
            registers.rdi += 100;
            registers.rip = again;
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

#[test]
fn the_red_zone_is_left_alone() {
    let clobbers = |_: &mut Registers| {
        black_box([0xff_u8; 4096]);
    };
    assert_eq!(during(address(red_zone, 19), clobbers, || red_zone(1, 2)), 6);
}

#[test]
fn the_callback_may_call_what_it_is_in() {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let nested = move |registers: &mut Registers| {
        counted.fetch_add(1, Relaxed);
        if registers.rdi > 0 {
            let inner = four_times(registers.rdi - 1, 0);
            registers.rax += inner;
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
        assert_eq!(registers.rip, at);
        registers.rax += 100;
    };
    let before = text(at, 4);
    let (result, first) = during(at, add, || (with_a_landing_pad(1, 2), text(at, 4)));
    assert_eq!((result, first), (104, before));
}

#[test]
fn entry_and_inside_at_once() {
    extern "C" fn doubled(first: u64, second: u64) -> u64 {
        2 * (first + second)
    }
    extern "C" fn ten_more(registers: &mut Registers) {
        registers.rax += 10;
    }
    let turn = turn();
    let (entry, inside) = (add_five as Target, address(add_five, 8));
    let before = text(entry.address(), 16);
    for entry_first in [true, false] {
        let attach_entry = || {
            // SAFETY: both have one signature.
            unsafe { Detour::attach_with(&turn.alone, entry, doubled) }.unwrap()
        };
        let attach_inside = || {
            // SAFETY: more in RAX is all that happens.
            unsafe { MidDetour::attach_with(&turn.alone, inside, ten_more) }.unwrap()
        };
        let (mut outer, mut inner) = if entry_first {
            let outer = attach_entry();
            (outer, attach_inside())
        } else {
            let inner = attach_inside();
            (attach_entry(), inner)
        };
        // The original runs through the detour inside it.
        assert_eq!((add_five(1, 2), outer.original()(1, 2)), (6, 18));
        // Bytes that one of them has are not for another one.
        // SAFETY: nothing is called.
        let error = unsafe { MidDetour::attach_with(&turn.alone, inside + 3, nothing) }.unwrap_err();
        let expected = [Error::AlreadyDetoured { target: inside + 3 }];
        assert!(expected.contains(&error) || matches!(error, Error::Refused(_)), "{error}");
        if entry_first {
            outer.detach_with(&turn.alone).unwrap();
            assert_eq!(add_five(1, 2), 18);
            inner.detach_with(&turn.alone).unwrap();
        } else {
            inner.detach_with(&turn.alone).unwrap();
            assert_eq!((add_five(1, 2), outer.original()(1, 2)), (6, 8));
            outer.detach_with(&turn.alone).unwrap();
        }
        assert_eq!((add_five(1, 2), text(entry.address(), 16)), (8, before.clone()));
    }
}

/// What a detour has displaced still branches where it did, though its bytes are not in the function any more.
#[test]
fn branches_that_another_detour_has_displaced_are_seen() {
    let turn = turn();
    let target = loop_in_the_window as Target;
    // The loop's branch back is at 9, its head at 4.
    // SAFETY: nothing is changed.
    let attach = |offset| unsafe { MidDetour::attach_with(&turn.alone, address(target, offset), nothing) };
    let into = target.address() + 4;
    let is_refused = |error: Error| matches!(error, Error::Refused(Refusal::BranchIntoWindow { into: found, .. }) if found == into);
    assert!(is_refused(attach(2).unwrap_err()));
    let mut tail = attach(7).unwrap();
    assert_eq!(loop_in_the_window(4, 5), 20);
    assert!(is_refused(attach(2).unwrap_err()), "the branch is in a slot now");
    // SAFETY: both have one signature.
    let entry = unsafe { Detour::attach_with(&turn.alone, target, add_five) }.unwrap_err();
    assert!(is_refused(entry));
    tail.detach_with(&turn.alone).unwrap();
    assert_eq!(loop_in_the_window(4, 5), 20);
}

#[test]
fn toggling_takes_no_memory() {
    let turn = turn();
    let records = || with_process(|kdetour| Ok(kdetour.records().copied().collect::<Vec<_>>())).unwrap();
    let mut kept = None;
    for _ in 0..200 {
        // SAFETY: nothing is changed.
        let mut detour = unsafe { MidDetour::attach_with(&turn.alone, address(below, 3), nothing) }.unwrap();
        assert_eq!(below(1, 2), u64::MAX);
        detour.detach_with(&turn.alone).unwrap();
        let now = records().into_iter().map(|record| record.slot).collect::<Vec<_>>();
        assert_eq!(*kept.get_or_insert_with(|| now.clone()), now);
    }
    assert!(
        records().iter().all(|record| record.target != address(below, 3) || record.state == State::Draining)
    );
}

/// Whoever frees slots looks for addresses inside them on the stacks: a thread that is inside has one there.
#[test]
fn a_thread_that_is_inside_can_be_seen() {
    static FOUND: AtomicU64 = AtomicU64::new(0);

    extern "C" fn looks(registers: &mut Registers) {
        let word = (&raw const *registers).cast::<u64>().wrapping_sub(1);
        // SAFETY: this is the thread's own stack, between the function's frame and this one's.
        FOUND.store(unsafe { word.read_volatile() }, Relaxed);
    }

    let turn = turn();
    // SAFETY: nothing is changed.
    let mut detour = unsafe { MidDetour::attach_with(&turn.alone, address(add_five, 4), looks) }.unwrap();
    let stub = with_process(|kdetour| {
        let is_it =
            |record: &&Record| record.target == address(add_five, 4) && record.state == State::Attached;
        Ok(kdetour.records().find(is_it).unwrap().patch.detour())
    });
    assert_eq!(add_five(1, 2), 8);
    assert_eq!(FOUND.load(Relaxed), stub.unwrap() + 15);
    detour.detach_with(&turn.alone).unwrap();
}

#[test]
fn failures_take_no_memory() {
    let dropped = Arc::new(());
    let held = Arc::clone(&dropped);
    let turn = turn();
    let at = address(add_five, 5);
    // SAFETY: it is refused.
    let error = unsafe { MidDetour::attach_closure_with(&turn.alone, at, move |_| drop(held.clone())) };
    assert!(matches!(error, Err(Error::Refused(Refusal::NotBoundary { .. }))));
    assert_eq!(Arc::strong_count(&dropped), 1);
}

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
        let address = address(padded, offset);
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
    let into = target.address() + 12;
    assert_eq!((target(0, 1), target(1, 1)), (102, 3));
    let error = refusal(address(target, 9));
    assert_eq!(error, Error::Refused(Refusal::BranchIntoWindow { from: into, into }));
    // To the address itself it may jump.
    let ten = |registers: &mut Registers| registers.rax += 10;
    assert_eq!(during(into, ten, || (target(0, 1), target(1, 1))), (112, 13));
}

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
    let ten = |registers: &mut Registers| registers.rax += 100;
    let before = run();
    assert_eq!(during(into, ten, run), before.map(|result| result + 100));
}

#[test]
fn a_computed_jump_that_nobody_can_follow() {
    let all = text(address(computed, 0), 48);
    let jump = address(computed, all.windows(2).position(|pair| pair == [0xff, 0xe1]).unwrap() as u64);
    // Inside the window there would be boundaries.
    let error = refusal(jump + 2);
    assert_eq!(error, Error::Refused(Refusal::ComputedJump { address: jump }));
    // mov eax, 7 takes five bytes, so nothing can lead inside.
    let eight = jump + 2 + 2 + 5;
    let run = || (computed(0, 0), computed(7, 0), computed(12, 0));
    let more = |registers: &mut Registers| registers.rip += 5;
    assert_eq!(computed(0, 0), 8);
    let skipped = during(eight, more, || computed(0, 40));
    assert_eq!((skipped, run().1), (41, 8));
}

/// A function of the compiler's: loops, a `switch`, floating point, calls, division.
#[inline(never)]
extern "C" fn compiled(seed: u64, rounds: u64) -> u64 {
    let mut state = black_box(seed);
    let mut sum = 0.5_f64;
    for round in 0..rounds {
        state = match state % 7 {
            0 => state.rotate_left(5) ^ round,
            1 => state.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            2 => u64::from(state.count_ones()) + add_five(round, state & 0xff),
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
    state ^ sum.to_bits()
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
    let run = || (0..20).map(|seed| compiled(seed * 0x1357_9bdf, 40)).collect::<Vec<_>>();
    let expected = run();
    let (mut boundaries, mut attached, mut passes) = (0, 0, 0);
    for offset in (0..length).step_by(if cfg!(debug_assertions) { 5 } else { 1 }) {
        let hits = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&hits);
        let count = move |_: &mut Registers| {
            count.fetch_add(1, Relaxed);
        };
        // SAFETY: nothing is changed.
        match unsafe { MidDetour::attach_closure_with(&turn.alone, address(target, offset), count) } {
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

#[test]
fn several_at_one_instruction() {
    extern "C" fn ten_more(registers: &mut Registers) {
        registers.rax += 10;
    }
    extern "C" fn doubled(registers: &mut Registers) {
        registers.rax *= 2;
    }
    let _turn = turn();
    let at = address(add_five, 4);
    // SAFETY: nothing but RAX is changed, which the function gives back.
    let attach = |function| unsafe { MidDetour::attach(at, function) }.unwrap();
    let (mut older, mut younger) = (attach(ten_more), attach(doubled));
    assert_eq!(add_five(1, 2), 3 * 2 + 10 + 5);
    older.detach().unwrap();
    assert_eq!(add_five(1, 2), 3 * 2 + 5);
    // Now it is the younger one.
    older = attach(ten_more);
    assert_eq!(add_five(1, 2), (3 + 10) * 2 + 5);
    younger.detach().unwrap();
    assert_eq!(add_five(1, 2), 3 + 10 + 5);
    assert_eq!(younger.detach(), Err(Error::NotAttached));
    older.detach().unwrap();
    assert_eq!(add_five(1, 2), 8);
}

/// A detour of the function and one of its first instruction are two things.
#[test]
fn an_entry_has_detours_of_one_kind() {
    let turn = turn();
    let (target, before) = (four_times as Target, text(address(four_times, 0), 16));
    // SAFETY: both have one signature.
    let attach_entry = || unsafe { Detour::attach_with(&turn.alone, target, add_five) };
    // SAFETY: nothing is changed.
    let attach_inside = || unsafe { MidDetour::attach_with(&turn.alone, target.address(), nothing) };
    let taken = Error::AlreadyDetoured { target: target.address() };
    for _ in 0..2 {
        let mut outer = attach_entry().unwrap();
        assert_eq!(attach_inside().unwrap_err(), taken);
        assert_eq!((four_times(1, 2), outer.original()(1, 2)), (8, 4));
        outer.detach_with(&turn.alone).unwrap();
        let mut inner = attach_inside().unwrap();
        assert_eq!(attach_entry().unwrap_err(), taken);
        assert_eq!(four_times(1, 2), 4);
        inner.detach_with(&turn.alone).unwrap();
        assert_eq!(text(target.address(), 16), before);
    }
}

/// Detours come and go while threads run through the function: at the head of a loop, and in straight code. Some are
/// used again, some are freed meanwhile. Going on elsewhere works from the first moment on.
#[test]
fn it_comes_and_goes_under_threads() {
    extern "C" fn skips(registers: &mut Registers) {
        CALLS.fetch_add(1, Relaxed);
        // To the next instruction, which is displaced, with what this one would have done.
        registers.rip += SKIPPED.load(Relaxed);
        registers.rax += ADDED.load(Relaxed);
    }
    static SKIPPED: AtomicU64 = AtomicU64::new(0);
    static ADDED: AtomicU64 = AtomicU64::new(0);

    if !in_a_process_of_its_own("mid::it_comes_and_goes_under_threads") {
        return;
    }
    for (target, offset, skipped, added) in [(long_loop as Target, 2, 4, 1), (add_five, 4, 4, 5)] {
        SKIPPED.store(skipped, Relaxed);
        ADDED.store(added, Relaxed);
        let (at, before) = (address(target, offset), text(target.address(), 32));
        let expected = target(9, 5);
        let (stop, calls) = (AtomicBool::new(false), CALLS.load(Relaxed));
        let closures = Arc::new(AtomicU64::new(0));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut wrong = 0;
                        while !stop.load(Relaxed) {
                            wrong += u64::from(target(9, 5) != expected);
                        }
                        wrong
                    })
                })
                .collect();
            let toggle = |round: u32| -> Result<(), Error> {
                let count = Arc::clone(&closures);
                let closure = move |_: &mut Registers| {
                    count.fetch_add(1, Relaxed);
                };
                let mut detour = match round % 8 {
                    // SAFETY: nothing is changed.
                    0 => unsafe { MidDetour::attach_closure(at, closure) },
                    // SAFETY: what is skipped is done by the callback.
                    _ => unsafe { MidDetour::attach(at, skips) },
                }?;
                if round.is_multiple_of(4) {
                    std::thread::sleep(Duration::from_micros(500));
                }
                detour.detach()?;
                if round % 16 == 15 {
                    reclaim(Duration::from_secs(20))?;
                }
                Ok(())
            };
            let outcome = (0..200).try_for_each(toggle);
            stop.store(true, Relaxed);
            let wrong: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            assert_eq!((outcome, wrong), (Ok(()), 0));
        });
        assert!(CALLS.load(Relaxed) > calls && closures.load(Relaxed) > 0);
        assert_eq!((target(9, 5), text(target.address(), 32)), (expected, before));
        reclaim(Duration::from_secs(20)).unwrap();
        assert_eq!(Arc::strong_count(&closures), 1);
    }
}

/// Nothing is freed while a thread is inside the callback, and everything when it has left.
#[test]
fn what_is_detached_is_freed_when_nobody_is_inside() {
    if !in_a_process_of_its_own("mid::what_is_detached_is_freed_when_nobody_is_inside") {
        return;
    }
    let gate = Arc::new((Barrier::new(2), Barrier::new(2)));
    let inside = Arc::clone(&gate);
    let at = address(add_five, 4);
    let wait = move |registers: &mut Registers| {
        inside.0.wait();
        inside.1.wait();
        registers.rax += 100;
    };
    // SAFETY: nothing but RAX is changed, which the function gives back.
    let mut detour = unsafe { MidDetour::attach_closure(at, wait) }.unwrap();
    let is_it = |record: &&Record| record.target == at;
    let stub =
        || with_process(|kdetour| Ok(kdetour.records().find(is_it).map(|record| record.patch.detour())));
    let (place, waiting) = (stub().unwrap().unwrap(), std::thread::spawn(|| add_five(1, 2)));
    gate.0.wait();
    let detached = detour.detach();
    let busy = reclaim(Duration::from_millis(50));
    let (kept, code) = (Arc::strong_count(&gate), text(place, 4));
    gate.1.wait();
    assert_eq!((detached, busy, kept), (Ok(()), Err(Error::Busy { calls: 1 }), 2));
    assert_eq!((waiting.join().unwrap(), code), (108, vec![0xf3, 0x0f, 0x1e, 0xfa]));
    assert_eq!((reclaim(Duration::from_secs(20)), Arc::strong_count(&gate)), (Ok(1), 1));
    assert_eq!((stub(), add_five(1, 2)), (Ok(None), 8));
}

/// Everything that a thread has, but the stack pointer: loaded before the detoured instruction, stored behind it.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Everything {
    /// rax, rcx, rdx, rbx, rbp, rsi, rdi, r8 to r15
    general: [u64; 15],
    flags: u64,
    red_zone: [u64; 16],
    x87: [u64; 2],
    mxcsr: u32,
    x87_control: u32,
    /// As far as the processor has them.
    vectors: [[u64; 8]; 32],
    masks: [u64; 8],
}

static SCRATCH: AtomicU64 = AtomicU64::new(0);

/// A function that loads everything, does nothing, and stores everything: from `rdi`, to `rsi`. The stack is aligned
/// where it does nothing if `extra` is 0, and not if it is 8.
macro_rules! carries {
    ($name:ident, $here:ident, $extra:literal, [$($load:literal)*], [$($store:literal)*]) => {
        global_asm!(
            ".pushsection .text.kdetour_tests, \"ax\", @progbits",
            ".balign 16",
            concat!(".globl ", stringify!($name), ", ", stringify!($here)),
            concat!(".type ", stringify!($name), ", @function"),
            concat!(stringify!($name), ":"),
            "push rbx",
            "push rbp",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "sub rsp, 24 + {extra}",
            "mov [rsp], rsi",
            "stmxcsr [rsp + 8]",
            "fnstcw [rsp + 12]",
            $($load,)*
            // As many as there may be, whether they were used or not.
            ".set used, {vectors} + {masks}",
            "fldcw [rdi + {x87_control}]",
            "ldmxcsr [rdi + {mxcsr}]",
            "fld qword ptr [rdi + {x87}]",
            "fld qword ptr [rdi + {x87} + 8]",
            "push qword ptr [rdi + {flags}]",
            "popfq",
            ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "mov rax, [rdi + {red_zone} + 8 * \\i]",
            "mov [rsp - 8 - 8 * \\i], rax",
            ".endr",
            "mov rax, [rdi]",
            "mov rcx, [rdi + 8]",
            "mov rdx, [rdi + 16]",
            "mov rbx, [rdi + 24]",
            "mov rbp, [rdi + 32]",
            "mov rsi, [rdi + 40]",
            ".irp i,8,9,10,11,12,13,14,15",
            "mov r\\i, [rdi + 8 * \\i - 8]",
            ".endr",
            "mov rdi, [rdi + 48]",
            concat!(stringify!($here), ":"),
            "nop",
            "nop",
            "nop",
            "nop",
            "nop",
            "mov [rip + {scratch}], rdi",
            "mov rdi, [rsp]",
            "mov [rdi], rax",
            "mov [rdi + 8], rcx",
            "mov [rdi + 16], rdx",
            "mov [rdi + 24], rbx",
            "mov [rdi + 32], rbp",
            "mov [rdi + 40], rsi",
            ".irp i,8,9,10,11,12,13,14,15",
            "mov [rdi + 8 * \\i - 8], r\\i",
            ".endr",
            "mov rax, [rip + {scratch}]",
            "mov [rdi + 48], rax",
            ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "mov rax, [rsp - 8 - 8 * \\i]",
            "mov [rdi + {red_zone} + 8 * \\i], rax",
            ".endr",
            "pushfq",
            "pop qword ptr [rdi + {flags}]",
            "cld",
            "fstp qword ptr [rdi + {x87} + 8]",
            "fstp qword ptr [rdi + {x87}]",
            "fnstcw [rdi + {x87_control}]",
            "stmxcsr [rdi + {mxcsr}]",
            $($store,)*
            "ldmxcsr [rsp + 8]",
            "fldcw [rsp + 12]",
            "add rsp, 24 + {extra}",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop rbp",
            "pop rbx",
            "ret",
            concat!(".size ", stringify!($name), ", . - ", stringify!($name)),
            ".popsection",
            extra = const $extra,
            flags = const std::mem::offset_of!(Everything, flags),
            red_zone = const std::mem::offset_of!(Everything, red_zone),
            x87 = const std::mem::offset_of!(Everything, x87),
            mxcsr = const std::mem::offset_of!(Everything, mxcsr),
            x87_control = const std::mem::offset_of!(Everything, x87_control),
            vectors = const std::mem::offset_of!(Everything, vectors),
            masks = const std::mem::offset_of!(Everything, masks),
            scratch = sym SCRATCH,
        );
    };
}

/// The same for a stack that is aligned, and for one that is not.
macro_rules! carries_both {
    ($one:ident, $one_here:ident, $two:ident, $two_here:ident, $load:tt, $store:tt) => {
        carries!($one, $one_here, 0, $load, $store);
        carries!($two, $two_here, 8, $load, $store);
        unsafe extern "C" {
            fn $one(from: &Everything, to: &mut Everything);
            fn $two(from: &Everything, to: &mut Everything);
            fn $one_here();
            fn $two_here();
        }
    };
}

carries_both!(
    sse_one,
    sse_one_here,
    sse_two,
    sse_two_here,
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
        "movdqu xmm\\i, [rdi + {vectors} + 64 * \\i]"
        ".endr"
    ],
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
        "movdqu [rdi + {vectors} + 64 * \\i], xmm\\i"
        ".endr"
    ]
);
carries_both!(
    avx_one,
    avx_one_here,
    avx_two,
    avx_two_here,
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
        "vmovdqu ymm\\i, [rdi + {vectors} + 64 * \\i]"
        ".endr"
    ],
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
        "vmovdqu [rdi + {vectors} + 64 * \\i], ymm\\i"
        ".endr"
        "vzeroupper"
    ]
);
carries_both!(
    avx512_one,
    avx512_one_here,
    avx512_two,
    avx512_two_here,
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
        "vmovdqu64 zmm\\i, [rdi + {vectors} + 64 * \\i]"
        ".endr"
        ".irp i,0,1,2,3,4,5,6,7"
        "kmovq k\\i, [rdi + {masks} + 8 * \\i]"
        ".endr"
    ],
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
        "vmovdqu64 [rdi + {vectors} + 64 * \\i], zmm\\i"
        ".endr"
        ".irp i,0,1,2,3,4,5,6,7"
        "kmovq [rdi + {masks} + 8 * \\i], k\\i"
        ".endr"
        "vzeroupper"
    ]
);

/// What a callback found when it was called.
static CALLS: AtomicU64 = AtomicU64::new(0);
static STACK: AtomicU64 = AtomicU64::new(0);
static FLAGS: AtomicU64 = AtomicU64::new(0);
static MXCSR: AtomicU64 = AtomicU64::new(0);
static X87_CONTROL: AtomicU64 = AtomicU64::new(0);
static X87_STATUS: AtomicU64 = AtomicU64::new(0);

/// A callback that remembers what it found, and leaves nothing as it was that it may change, and more.
macro_rules! clobbers {
    ($name:ident, [$($vectors:literal)*]) => {
        global_asm!(
            ".pushsection .text.kdetour_tests, \"ax\", @progbits",
            ".balign 16",
            concat!(".globl ", stringify!($name)),
            concat!(stringify!($name), ":"),
            "mov [rip + {stack}], rsp",
            "pushfq",
            "pop [rip + {flags}]",
            "stmxcsr [rip + {mxcsr}]",
            "fnstcw [rip + {x87_control}]",
            // An empty stack takes eight values without an exception.
            "fld1",
            "fldpi",
            "fld1",
            "fldpi",
            "fld1",
            "fldpi",
            "fld1",
            "fldpi",
            "fnstsw [rip + {x87_status}]",
            "push 0x0c7f",
            "fldcw [rsp]",
            "mov dword ptr [rsp], 0xffbf",
            "ldmxcsr [rsp]",
            "pop rax",
            "lock inc qword ptr [rip + {calls}]",
            ".irp i,rax,rcx,rdx,rsi,rdi,r8,r9,r10,r11",
            "mov \\i, 0x5a5a5a5a",
            ".endr",
            // The red zone of whoever called has to lie above this.
            ".irp i,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
            "mov [rsp - 8 * \\i], rax",
            ".endr",
            $($vectors,)*
            "cmp rax, -1",
            "ret",
            ".popsection",
            stack = sym STACK,
            flags = sym FLAGS,
            mxcsr = sym MXCSR,
            x87_control = sym X87_CONTROL,
            x87_status = sym X87_STATUS,
            calls = sym CALLS,
        );
        unsafe extern "C" {
            safe fn $name(registers: &mut Registers);
        }
    };
}

clobbers!(
    clobbers_sse,
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
        "pcmpeqd xmm\\i, xmm\\i"
        ".endr"
    ]
);
clobbers!(
    clobbers_avx,
    [
        "vpcmpeqd xmm0, xmm0, xmm0"
        "vinsertf128 ymm0, ymm0, xmm0, 1"
        ".irp i,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
        "vmovdqa ymm\\i, ymm0"
        ".endr"
    ]
);
clobbers!(
    clobbers_avx512,
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
        "vpternlogd zmm\\i, zmm\\i, zmm\\i, 0xff"
        ".endr"
        ".irp i,0,1,2,3,4,5,6,7"
        "kxnorw k\\i, k\\i, k\\i"
        ".endr"
    ]
);

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// `lanes` of eight bytes of so many vectors have values.
    fn everything(&mut self, vectors: usize, lanes: usize, masks: usize) -> Everything {
        let mut all = Everything::default();
        all.general.fill_with(|| self.next());
        all.red_zone.fill_with(|| self.next());
        // CF, PF, AF, ZF, SF, DF, OF; IF and the bit that is always set.
        all.flags = self.next() & 0xcd5 | 0x202;
        // What fits a double exactly.
        all.x87.fill_with(|| ((self.next() >> 12) as f64).to_bits());
        // Flags, DAZ, rounding, FTZ; all exceptions masked.
        all.mxcsr = self.next() as u32 & 0xe07f | 0x1f80;
        // Precision and rounding; likewise.
        all.x87_control = [0x037f, 0x077f, 0x0b7f, 0x0f7f, 0x027f][(self.next() % 5) as usize];
        for vector in all.vectors.iter_mut().take(vectors) {
            vector.iter_mut().take(lanes).for_each(|lane| *lane = self.next());
        }
        // Now and then all of them are zero, and the processor may say that they are not in use.
        if self.next().is_multiple_of(8) {
            all.vectors = Default::default();
        }
        all.masks.iter_mut().take(masks).for_each(|mask| *mask = self.next());
        all
    }
}

type Carry = unsafe extern "C" fn(&Everything, &mut Everything);

fn place(here: unsafe extern "C" fn()) -> u64 {
    (here as *const ()).addr() as u64
}

/// Random values go through a detour whose callback leaves nothing as it was.
fn carried(
    functions: [(Carry, u64); 2],
    sizes: (usize, usize, usize),
    callback: extern "C" fn(&mut Registers),
) {
    const ROUNDS: u64 = 3000;
    let turn = turn();
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut check = |carry: Carry, detoured: bool| {
        let from = random.everything(sizes.0, sizes.1, sizes.2);
        let mut to = Everything::default();
        let calls = CALLS.load(Relaxed);
        // SAFETY: the function keeps what its convention says, and the processor has the registers.
        unsafe { carry(&from, &mut to) };
        assert!(from == to, "{detoured}: {from:#x?}\n{to:#x?}");
        assert_eq!(CALLS.load(Relaxed) - calls, u64::from(detoured));
    };
    for (carry, here) in functions {
        (0..100).for_each(|_| check(carry, false));
        let before = text(here, 16);
        // SAFETY: nothing that the function uses is changed, as is to be shown.
        let mut detour = unsafe { MidDetour::attach_with(&turn.alone, here, callback) }.unwrap();
        for _ in 0..ROUNDS {
            check(carry, true);
            assert_eq!(STACK.load(Relaxed) % 16, 8, "a call from an aligned stack");
            assert_eq!(FLAGS.load(Relaxed) & 0x400, 0, "the direction flag is clear");
            assert_eq!(MXCSR.load(Relaxed), 0x1f80);
            assert_eq!((X87_CONTROL.load(Relaxed), X87_STATUS.load(Relaxed) & 0x7f), (0x37f, 0));
        }
        detour.detach_with(&turn.alone).unwrap();
        assert_eq!(text(here, 16), before);
        check(carry, false);
    }
}

#[test]
fn everything_is_kept() {
    let functions = [(sse_one as Carry, place(sse_one_here)), (sse_two, place(sse_two_here))];
    carried(functions, (16, 2, 0), clobbers_sse);
}

#[test]
fn upper_halves_are_kept() {
    if !is_x86_feature_detected!("avx") {
        eprintln!("not tested: this processor has no AVX");
        return;
    }
    let functions = [(avx_one as Carry, place(avx_one_here)), (avx_two, place(avx_two_here))];
    carried(functions, (16, 4, 0), clobbers_avx);
}

#[test]
fn wide_vectors_and_masks_are_kept() {
    if !is_x86_feature_detected!("avx512bw") {
        eprintln!("not tested: this processor has no AVX-512");
        return;
    }
    let functions = [(avx512_one as Carry, place(avx512_one_here)), (avx512_two, place(avx512_two_here))];
    carried(functions, (32, 8, 8), clobbers_avx512);
}

/// Whatever a callback writes is what the function goes on with.
#[test]
fn everything_can_be_changed() {
    extern "C" fn turns_over(registers: &mut Registers) {
        CALLS.fetch_add(1, Relaxed);
        let Registers { rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, .. } =
            registers;
        for register in [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] {
            *register = !*register;
        }
        registers.rflags ^= 0xcd5;
        registers.xmm_mut().iter_mut().for_each(|register| *register = !*register);
    }
    let turn = turn();
    let mut random = Random(0xfedc_ba98_7654_3211);
    // SAFETY: the function stores what it has, and gives what it must keep back from its stack.
    let mut detour = unsafe { MidDetour::attach_with(&turn.alone, place(sse_two_here), turns_over) }.unwrap();
    for _ in 0..1000 {
        let from = random.everything(16, 2, 0);
        let mut to = Everything::default();
        // SAFETY: as above.
        unsafe { sse_two(&from, &mut to) };
        let mut expected = from;
        expected.general.iter_mut().for_each(|register| *register = !*register);
        expected.flags ^= 0xcd5;
        expected
            .vectors
            .iter_mut()
            .take(16)
            .flat_map(|vector| &mut vector[..2])
            .for_each(|lane| *lane = !*lane);
        assert!(to == expected, "{expected:#x?}\n{to:#x?}");
    }
    detour.detach_with(&turn.alone).unwrap();
}

/// Signals come at every place of the stub and the thunk, and their frames lie below whatever the stack pointer is then.
#[test]
fn signals_change_nothing() {
    static SIGNALS: AtomicU64 = AtomicU64::new(0);

    extern "C" fn handler(_: libc::c_int) {
        SIGNALS.fetch_add(1, Relaxed);
        black_box([0xa5_u8; 2048]);
    }

    let turn = turn();
    // SAFETY: the handler does nothing that a handler may not do, and no other test uses this signal.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = (handler as extern "C" fn(libc::c_int) as *const ()).addr();
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()), 0);
    }
    // SAFETY: nothing that the function uses is changed.
    let mut detour =
        unsafe { MidDetour::attach_with(&turn.alone, place(sse_one_here), clobbers_sse) }.unwrap();
    // SAFETY: it has no conditions.
    let here = unsafe { libc::pthread_self() };
    let (stop, calls) = (AtomicU64::new(0), CALLS.load(Relaxed));
    let mut random = Random(0x0bad_cafe_dead_beef);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while stop.load(Relaxed) == 0 {
                // SAFETY: that thread waits for this one before it ends.
                unsafe { libc::pthread_kill(here, libc::SIGUSR2) };
            }
        });
        // However much the signals hold it up.
        while SIGNALS.load(Relaxed) < 3000 || CALLS.load(Relaxed) - calls <= 100 {
            let from = random.everything(16, 2, 0);
            let mut to = Everything::default();
            // SAFETY: the function keeps what its convention says.
            unsafe { sse_one(&from, &mut to) };
            // The thread would be waited for before a panic went on.
            if from != to {
                stop.store(1, Relaxed);
            }
            assert!(from == to, "{from:#x?}\n{to:#x?}");
        }
        stop.store(1, Relaxed);
    });
    detour.detach_with(&turn.alone).unwrap();
}
