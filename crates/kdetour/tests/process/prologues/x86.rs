//! x86-32: arguments are on the stack, and nothing is relative to the instruction pointer but branches.

use super::{Target, cases, check};
use crate::support::{AWAY, code_at};
use std::sync::atomic::AtomicUsize;

cases! {
    // 55          push ebp
    // 89 e5       mov ebp, esp
    // 83 ec 10    sub esp, 16
    push_mov_sub = |first, second| first.wrapping_add(second), {
        "push ebp"
        "mov ebp, esp"
        "sub esp, 16"
        "mov eax, [ebp + 8]"
        "mov [ebp - 8], eax"
        "mov eax, [ebp - 8]"
        "add eax, [ebp + 12]"
        "leave"
        "ret"
    }

    // 8b ff 55 8b ec: made to be patched.
    hot_patch_pad = |first, second| first.wrapping_sub(second), {
        ".byte 0x8b, 0xff, 0x55, 0x8b, 0xec"
        "mov eax, [ebp + 8]"
        "sub eax, [ebp + 12]"
        "pop ebp"
        "ret"
    }

    // 55 57 56 53 fc: five instructions of one byte.
    one_byte_each = |first, second| first ^ second, {
        "push ebp"
        "push edi"
        "push esi"
        "push ebx"
        "cld"
        "mov eax, [esp + 20]"
        "xor eax, [esp + 24]"
        "pop ebx"
        "pop esi"
        "pop edi"
        "pop ebp"
        "ret"
    }

    // 53 e8 rel32: what position-independent code begins with; the register must be what it was in the function itself.
    get_pc_thunk = |first, _| first, {
        "push ebx"
        "call 3f"
        "2: call 4f"
        "4: pop ecx"
        "sub ecx, 5"
        "mov eax, ebx"
        "sub eax, ecx"
        "add eax, [esp + 8]"
        "pop ebx"
        "ret"
        "3: mov ebx, [esp]"
        "ret"
    }

    // e8 rel32: the callee sees the original return address.
    call_first = |first, _| first + 1, {
        "call 3f"
        "2: call 4f"
        "4: pop ecx"
        "sub ecx, 5"
        "cmp eax, ecx"
        "sete al"
        "movzx eax, al"
        "add eax, [esp + 4]"
        "ret"
        "3: mov eax, [esp]"
        "ret"
    }

    // e8 00 00 00 00 58: reads its own program counter, which must be the original one.
    call_next_pop = |first, _| first, {
        ".byte 0xe8, 0, 0, 0, 0"
        "2: pop eax"
        "call 4f"
        "4: pop ecx"
        "sub ecx, 6"
        "sub eax, ecx"
        "add eax, [esp + 4]"
        "ret"
    }

    // 31 c9 74 xx: a rel8 that cannot reach from the slot.
    short_jcc_out_of_the_window = |_, second| second, {
        "xor ecx, ecx"
        "jz 2f"
        "nop"
        "nop"
        "nop"
        "2: mov eax, [esp + 8]"
        "ret"
    }

    // ff 4c 24 04 75 fa: the entry is the loop's head; the copy must loop in the slot, not through the detour.
    backward_branch_inside_the_window = |_, second| second, {
        "2: dec dword ptr [esp + 4]"
        "jnz 2b"
        "mov eax, [esp + 8]"
        "ret"
    }

    // 8b 4c 24 04 e2 fe: a loop instruction whose target is itself.
    loop_to_itself = |_, second| second, {
        "mov ecx, [esp + 4]"
        "2: loop 2b"
        "lea eax, [ecx]"
        "add eax, [esp + 8]"
        "ret"
    }

    // 8b 4c 24 04 e2 xx: there is no rel32 form of it.
    loop_out_of_the_window = |first, second| if first == 1 { second } else { first - 1 }, {
        "mov ecx, [esp + 4]"
        "loop 2f"
        "mov eax, [esp + 8]"
        "ret"
        "2: mov eax, ecx"
        "ret"
    }

    // 8b 4c 24 08 e3 xx
    jecxz_out_of_the_window = |first, second| if second == 0 { 99 } else { first }, {
        "mov ecx, [esp + 8]"
        "jecxz 2f"
        "mov eax, [esp + 4]"
        "ret"
        "2: mov eax, 99"
        "ret"
    }

    // e9 rel32: an incremental-link thunk; inside one image it is nobody's hook.
    jump_thunk = |first, second| first.wrapping_add(second), {
        ".byte 0xe9"
        ".long push_mov_sub - . - 4"
    }

    // eb 03 0f 1f 00: a jump over padding to the window's end.
    short_jump_over_padding = |first, _| first, {
        "jmp 2f"
        ".byte 0x0f, 0x1f, 0x00"
        "2: mov eax, [esp + 4]"
        "ret"
    }

    // f3 0f 1e fb: stays first, the window is behind it.
    endbr_first = |first, second| first ^ second, {
        "endbr32"
        "push ebp"
        "mov ebp, esp"
        "mov eax, [ebp + 8]"
        "xor eax, [ebp + 12]"
        "pop ebp"
        "ret"
    }

    // 31 c0 c3, then padding inside the symbol's bounds.
    short_with_padding_in_its_bounds = |_, _| 0, {
        "xor eax, eax"
        "ret"
        ".byte 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0"
        ".byte 0x0f, 0x1f, 0x00"
    }

    // 65 a1 00 00 00 00: the thread pointer, by an absolute displacement.
    thread_pointer = |first, _| first, {
        "mov eax, gs:[0]"
        "sub eax, gs:[0]"
        "add eax, [esp + 4]"
        "ret"
    }

    // b8 imm32: one instruction of exactly five bytes.
    one_instruction = |_, second| second.wrapping_add(0x12345), {
        "mov eax, 0x12345"
        "add eax, [esp + 8]"
        "ret"
    }

    // f9 90 90 90 f9 83 ...: flags set in the window are read behind it.
    flags_live_out_of_the_window = |first, _| first.wrapping_sub(1), {
        "stc"
        "nop"
        "nop"
        "nop"
        "stc"
        "sbb dword ptr [esp + 4], 0"
        "mov eax, [esp + 4]"
        "ret"
    }
}

/// What stands at an address, in a program that is not position-independent.
fn absolute(name: &str, code: &[u8], expected: impl Fn(usize, usize) -> usize) {
    let address = code_at(AWAY[0], AWAY[1], code);
    // SAFETY: a function of this type was written there, and is never freed.
    let target = unsafe { std::mem::transmute::<usize, Target>(address as usize) };
    check(name, target, expected);
}

/// The address of a static, as an operand.
fn operand(place: &'static AtomicUsize) -> [u8; 4] {
    std::ptr::from_ref(place).expose_provenance().to_le_bytes()
}

#[test]
fn an_absolute_operand_before_an_immediate() {
    static PLACE: AtomicUsize = AtomicUsize::new(0x1234_5678);
    let [a, b, c, d] = operand(&PLACE);
    #[rustfmt::skip]
    let code = [
        0x81, 0x3d, a, b, c, d, 0x78, 0x56, 0x34, 0x12, // cmp dword ptr [PLACE], 0x12345678
        0x0f, 0x94, 0xc0,                               // sete al
        0x0f, 0xb6, 0xc0,                               // movzx eax, al
        0x03, 0x44, 0x24, 0x04,                         // add eax, [esp + 4]
        0xc3,                                           // ret
    ];
    absolute("cmp", &code, |first, _| first + 1);
}

#[test]
fn a_jump_by_a_pointer() {
    static PLACE: AtomicUsize = AtomicUsize::new(0);
    PLACE.store(push_mov_sub as *const () as usize, super::SeqCst);
    let [a, b, c, d] = operand(&PLACE);
    absolute("jmp", &[0xff, 0x25, a, b, c, d], |first, second| first.wrapping_add(second)); // jmp dword ptr [PLACE]
}

#[test]
fn a_call_by_a_pointer() {
    static PLACE: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn callee(_: usize, first: usize, second: usize) -> usize {
        first.wrapping_mul(second)
    }
    PLACE.store(callee as *const () as usize, super::SeqCst);
    let [a, b, c, d] = operand(&PLACE);
    absolute("call", &[0xff, 0x15, a, b, c, d, 0xc3], |first, second| first.wrapping_mul(second)); // call dword ptr [PLACE]; ret
}
