//! Targets that are refused by name, with nothing written.

use crate::support::{AWAY, Turn, code_at, functions, native, poke, text, turn};
#[cfg(not(windows))]
use kdetour::host::{Host, View};
use kdetour::plan::Refusal;
use kdetour::typed::{Detour, Function, with_process};
use kdetour::{Attach, Error};
use std::sync::atomic::AtomicU64;

native! {
    type Target = extern "C" fn(usize, usize) -> usize;
}

functions! {
    // 31 c0 ff c0 ff cf 75 fa: the loop's head is two bytes into the window.
    branch_back_into_the_window {
        "xor eax, eax"
        "2: inc eax"
        "dec edi"
        "jnz 2b"
        "ret"
    } {
        "xor eax, eax"
        "2: inc eax"
        "cmp eax, [esp + 4]"
        "jne 2b"
        "ret"
    }

    // 55 cc ...
    breakpoint_in_the_window {
        "push rbp"
        "int3"
        "mov rbp, rsp"
        "pop rbp"
        "ret"
    } {
        "push ebp"
        "int3"
        "mov ebp, esp"
        "pop ebp"
        "ret"
    }

    // 31 c0 c3, and then it is over: what follows is not inside its bounds, and no padding either.
    too_short {
        "xor eax, eax"
        "ret"
    }

    // Its entry has a neighbour that others may call, two bytes in.
    #[cfg_attr(windows, expect(dead_code, reason = "nobody has its symbols there"))]
    with_a_second_entry {
        "xor eax, eax"
        "second_entry: mov eax, edi"
        "add rax, rsi"
        "ret"
    } {
        "xor eax, eax"
        "second_entry: mov eax, [esp + 4]"
        "add eax, [esp + 8]"
        "ret"
    }

    // ff d0 c3 ...: the callee returns into the window, whenever it likes.
    returns_into_the_window {
        "call rsi"
        "nop"
        "nop"
        "ret"
    } {
        "call esi"
        "nop"
        "nop"
        "ret"
    }

    good {
        "lea rax, [rdi + rsi]"
        "nop dword ptr [rax + rax]"
        "ret"
    } {
        "mov eax, [esp + 4]"
        "add eax, [esp + 8]"
        "ret"
    }

    also_good {
        "mov eax, 5"
        "ret"
    }
}

// What stands behind `too_short` is another function's code.
#[cfg(not(windows))]
core::arch::global_asm!(
    ".pushsection .text.kdetour_tests, \"ax\", @progbits",
    ".type cramped, @function",
    ".balign 16",
    "cramped: xor eax, eax",
    "ret",
    ".size cramped, . - cramped",
    ".type neighbour, @function",
    "neighbour: mov eax, 1",
    "ret",
    ".size neighbour, . - neighbour",
    ".popsection",
);

#[cfg(all(windows, target_arch = "x86_64"))]
core::arch::global_asm!(
    ".text",
    ".balign 16, 0xcc",
    ".seh_proc cramped",
    "cramped:",
    ".seh_endprologue",
    "xor eax, eax",
    "ret",
    ".seh_endproc",
    ".seh_proc neighbour",
    "neighbour:",
    ".seh_endprologue",
    "mov eax, 1",
    "ret",
    ".seh_endproc",
);

// There is no such table in 32-bit images; what the compilers write for their unwinder tells bounds.
#[cfg(all(windows, target_arch = "x86"))]
core::arch::global_asm!(
    ".text",
    ".balign 16, 0xcc",
    ".globl _cramped",
    "_cramped:",
    ".cfi_startproc",
    "xor eax, eax",
    "ret",
    ".cfi_endproc",
    "neighbour:",
    ".cfi_startproc",
    "mov eax, 1",
    "ret",
    ".cfi_endproc",
    ".balign 16, 0xcc",
);

native! {
unsafe extern "C" {
    safe fn cramped(first: usize, second: usize) -> usize;
}
}

native! {
    extern "C" fn replacement(first: usize, second: usize) -> usize {
        first * 1000 + second
    }
}

/// What the attempt to detour a target says.
fn refusal(target: Target) -> Error {
    refusal_in(&turn(), target)
}

/// The same in a turn that was begun before.
fn refusal_in(turn: &Turn, target: Target) -> Error {
    let before = text(target.address(), 16);
    // SAFETY: both have one signature.
    let error = unsafe { Detour::attach_with(&turn.alone, target, replacement) }.unwrap_err();
    assert_eq!(text(target.address(), 16), before);
    assert!(!error.to_string().is_empty());
    error
}

/// What the attempt to detour an address that may be no function says.
fn refusal_at(address: u64) -> Error {
    let turn = turn();
    with_process(|kdetour| {
        let detour = (replacement as Target).address();
        let attach = Attach { target: address, detour, ..Attach::default() };
        // SAFETY: nothing is called.
        let session = unsafe { kdetour.session().attach(attach) };
        Ok(session.commit_local(&turn.alone, &mut |_, _| ()).unwrap_err().error)
    })
    .unwrap()
}

#[test]
fn a_branch_back_into_the_window() {
    let target = branch_back_into_the_window as Target;
    let error = refusal(target);
    let into = target.address() + 2;
    assert!(matches!(error, Error::Refused(Refusal::BranchIntoWindow { into: found, .. }) if found == into));
    assert_eq!(branch_back_into_the_window(5, 0), 5);
}

// On Windows nobody has its symbols.
#[cfg(not(windows))]
#[test]
fn a_symbol_inside_the_window() {
    let target = with_a_second_entry as Target;
    let into = target.address() + 2;
    assert_eq!(refusal(target), Error::Refused(Refusal::BranchIntoWindow { from: into, into }));
}

#[test]
fn a_breakpoint() {
    let target = breakpoint_in_the_window as Target;
    let address = target.address() + 1;
    assert_eq!(refusal(target), Error::Refused(Refusal::Breakpoint { address }));
}

#[test]
fn a_function_that_is_too_short() {
    // Behind it is padding that the assembler made, up to the next symbol: a detour there would be right as well.
    let turn = turn();
    // SAFETY: both have one signature.
    match unsafe { Detour::attach_with(&turn.alone, too_short as Target, replacement) } {
        Ok(mut detour) => {
            assert_eq!((too_short(1, 2), detour.original()(1, 2)), (1002, 0));
            detour.detach_with(&turn.alone).unwrap();
        }
        Err(error) => assert!(matches!(error, Error::Refused(Refusal::TooShort { .. })), "{error}"),
    }
    assert_eq!(too_short(1, 2), 0);
}

#[test]
fn a_function_whose_neighbour_is_too_near() {
    let target = cramped as Target;
    let error = refusal(target);
    let entry = target.address();
    assert!(matches!(error, Error::Refused(Refusal::TooShort { target, len: 3, .. }) if target == entry));
}

#[test]
fn a_call_that_returns_into_the_window() {
    let call = (returns_into_the_window as Target).address();
    assert!(matches!(
        refusal(returns_into_the_window),
        Error::Refused(Refusal::ReturnIntoWindow { call: found, .. }) if found == call
    ));
}

#[test]
fn a_function_of_unknown_bounds_that_ends_at_once() {
    // 31 c0 c3 cc cc ...: five INT3 are no proof of padding.
    let address = code_at(AWAY[0], AWAY[1], &[0x31, 0xc0, 0xc3]);
    let error = refusal_at(address);
    assert!(
        matches!(error, Error::Refused(Refusal::TooShort { target, .. }) if target == address),
        "{error}"
    );
}

#[test]
fn null() {
    assert_eq!(refusal_at(0), Error::Null);
}

#[test]
fn nothing_is_mapped() {
    for address in [0x10, 0x7fff_ffff_f000, 1 << 60, u64::MAX] {
        assert_eq!(refusal_at(address), Error::Unreadable { address });
    }
}

#[test]
fn data() {
    static WRITABLE: AtomicU64 = AtomicU64::new(0x9090_9090_9090_9090);
    static CONSTANT: [u8; 16] = [0x90; 16];
    let on_the_stack = [0x90_u8; 16];
    let on_the_heap = Box::new([0x90_u8; 16]);
    let addresses = [
        std::ptr::from_ref(&WRITABLE).addr(),
        CONSTANT.as_ptr().addr(),
        on_the_stack.as_ptr().addr(),
        on_the_heap.as_ptr().addr(),
    ];
    for address in addresses.map(|address| address as u64) {
        assert_eq!(refusal_at(address), Error::NotCode { address });
    }
}

#[test]
fn inside_a_function() {
    let entry = (good as Target).address();
    for address in [entry + 1, entry + 4] {
        assert_eq!(refusal_at(address), Error::NotFunction { address, entry });
    }
}

#[test]
fn a_hook_of_somebody_else() {
    // Others attach to the same function.
    let turn = turn();
    let target = good as Target;
    let before = text(target.address(), 5);
    // e9 rel32: far out of the image.
    poke(target.address(), &[0xe9, 0, 0, 0, 0x40]);
    let error = refusal_in(&turn, target);
    poke(target.address(), &before);
    let address = target.address();
    assert!(matches!(error, Error::Refused(Refusal::Foreign { address: found, .. }) if found == address));
}

#[test]
fn a_trampoline() {
    let turn = turn();
    // SAFETY: both have one signature.
    let mut detour = unsafe { Detour::attach_with(&turn.alone, also_good as Target, replacement) }.unwrap();
    let trampoline = detour.original();
    // SAFETY: both have one signature.
    let error = unsafe { Detour::attach_with(&turn.alone, trampoline, replacement) }.unwrap_err();
    assert_eq!(error, Error::Forbidden { address: trampoline.address() });
    detour.detach_with(&turn.alone).unwrap();
}

#[test]
fn one_bad_change_of_several() {
    let turn = turn();
    let targets = [good as Target, also_good, branch_back_into_the_window];
    let before = targets.map(|target| text(target.address(), 16));
    with_process(|kdetour| {
        let records = kdetour.len();
        let mut session = kdetour.session();
        for target in targets {
            let (target, detour) = (target.address(), (replacement as Target).address());
            let attach = Attach { target, detour, ..Attach::default() };
            // SAFETY: both have one signature.
            session = unsafe { session.attach(attach) };
        }
        let failure = session.commit_local(&turn.alone, &mut |_, _| panic!("announced")).unwrap_err();
        assert_eq!(failure.index, 2, "{failure}");
        assert!(matches!(failure.error, Error::Refused(Refusal::BranchIntoWindow { .. })));
        assert_eq!(kdetour.len(), records);
        Ok(())
    })
    .unwrap();
    assert_eq!(targets.map(|target| text(target.address(), 16)), before);
    assert_eq!((good(1, 2), also_good(1, 2)), (3, 5));
}

#[cfg(not(windows))]
#[test]
fn indirect_functions_are_not_taken_for_their_resolvers() {
    // What `strlen` resolves to is not what its symbol names.
    let target = (libc::strlen as unsafe extern "C" fn(*const libc::c_char) -> usize).address();
    let function = crate::support::Process::new().unwrap().view().unwrap().function(target).unwrap();
    assert!(function.image.is_some_and(|(start, end)| (start..end).contains(&target)));
}
