//! x86-64.

use super::{Target, cases, check};
use crate::support::code_at;

cases! {
    // 55             push rbp
    // 48 89 e5       mov rbp, rsp
    // 48 83 ec 10    sub rsp, 16
    push_mov_sub = |first, second| first.wrapping_add(second), {
        "push rbp"
        "mov rbp, rsp"
        "sub rsp, 16"
        "mov [rbp - 8], rdi"
        "mov rax, [rbp - 8]"
        "add rax, rsi"
        "leave"
        "ret"
    }

    // 81 3d disp32 imm32: the displacement is not the last field, and counts from behind the immediate.
    rip_relative_before_an_immediate = |first, _| first + 1, {
        "cmp dword ptr [rip + 2f], 0x12345678"
        "sete al"
        "movzx eax, al"
        "add rax, rdi"
        "ret"
        "2: .long 0x12345678"
    }

    // 48 8d 05 disp32: the address itself is the result.
    rip_relative_address = |first, _| first, {
        "lea rax, [rip + 2f]"
        "2: lea rcx, [rip + 2b]"
        "sub rax, rcx"
        "add rax, rdi"
        "ret"
    }

    // f3 0f 7e 05 disp32: mandatory prefix before the opcode.
    rip_relative_sse = |first, _| first + 0x55, {
        "movq xmm0, qword ptr [rip + 2f]"
        "movq rax, xmm0"
        "add rax, rdi"
        "ret"
        "2: .quad 0x55"
    }

    // 48 85 ff 74 xx: a rel8 that cannot reach from the slot.
    short_jcc_out_of_the_window = |first, second| if first == 7 { 77 } else { second }, {
        "cmp edi, 7"
        "je 2f"
        "mov rax, rsi"
        "ret"
        "2: mov eax, 77"
        "ret"
    }

    // 48 ff cf 75 fb: the entry is the loop's head; the copy must loop in the slot, not through the detour.
    backward_branch_inside_the_window = |_, second| second, {
        "2: dec rdi"
        "jnz 2b"
        "lea rax, [rdi + rsi]"
        "ret"
    }

    // e8 rel32: the callee sees the original return address.
    call_first = |first, _| first + 1, {
        "call 3f"
        "2: lea rcx, [rip + 2b]"
        "cmp rax, rcx"
        "sete al"
        "movzx eax, al"
        "add rax, rdi"
        "ret"
        "3: mov rax, [rsp]"
        "ret"
    }

    // 53 e8 rel32: the call returns behind the window.
    call_behind_a_push = |first, _| first + 1, {
        "push rbx"
        "call 3f"
        "2: lea rcx, [rip + 2b]"
        "cmp rax, rcx"
        "sete al"
        "movzx eax, al"
        "add rax, rdi"
        "pop rbx"
        "ret"
        "3: mov rax, [rsp]"
        "ret"
    }

    // ff 15 disp32: an indirect call, whose pointer is RIP-relative as well.
    indirect_call = |first, second| first.wrapping_add(second), {
        "call qword ptr [rip + 2f]"
        "ret"
        ".pushsection .data"
        ".balign 8"
        "2: .quad push_mov_sub"
        ".popsection"
    }

    // ff 25 disp32: what a PLT entry looks like.
    indirect_jump = |first, second| first.wrapping_add(second), {
        "jmp qword ptr [rip + 2f]"
        ".pushsection .data"
        ".balign 8"
        "2: .quad push_mov_sub"
        ".popsection"
    }

    // e8 00 00 00 00 58: reads its own program counter, which must be the original one.
    call_next_pop = |first, _| first, {
        ".byte 0xe8, 0, 0, 0, 0"
        "2: pop rax"
        "lea rcx, [rip + 2b]"
        "sub rax, rcx"
        "add rax, rdi"
        "ret"
    }

    // 89 f9 e2 fe: a loop instruction whose target is itself.
    loop_to_itself = |_, second| second, {
        "mov ecx, edi"
        "2: loop 2b"
        "lea rax, [rcx + rsi]"
        "ret"
    }

    // 89 f9 85 ff e0 xx: there is no rel32 form of it.
    loopne_out_of_the_window = |first, second| if first == 1 { second } else { first - 1 }, {
        "mov ecx, edi"
        "test edi, edi"
        "loopne 2f"
        "mov rax, rsi"
        "ret"
        "2: mov eax, ecx"
        "ret"
    }

    // 48 89 f1 e3 xx
    jrcxz_out_of_the_window = |first, second| if second == 0 { 99 } else { first }, {
        "mov rcx, rsi"
        "jrcxz 2f"
        "mov rax, rdi"
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
        "2: mov rax, rdi"
        "ret"
    }

    // f3 0f 1e fa: stays first, the window is behind it.
    endbr_first = |first, second| first ^ second, {
        "endbr64"
        "push rbp"
        "mov rbp, rsp"
        "mov rax, rdi"
        "xor rax, rsi"
        "pop rbp"
        "ret"
    }

    // 31 c0 c3, then padding inside the symbol's bounds.
    short_with_padding_in_its_bounds = |_, _| 0, {
        "xor eax, eax"
        "ret"
        ".byte 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0"
        ".byte 0x0f, 0x1f, 0x00"
    }

    // 64 48 8b 04 25 00 00 00 00: the thread pointer, by an absolute displacement.
    thread_pointer = |first, _| first, {
        "mov rax, fs:[0]"
        "sub rax, fs:[0]"
        "add rax, rdi"
        "ret"
    }

    // b8 imm32: one instruction of exactly five bytes.
    one_instruction = |_, second| second.wrapping_add(0x12345), {
        "mov eax, 0x12345"
        "add rax, rsi"
        "ret"
    }

    // f9 19 c0 ...: flags set in the window are read behind it.
    flags_live_out_of_the_window = |first, _| first.wrapping_sub(1), {
        "stc"
        "nop"
        "nop"
        "nop"
        "stc"
        "sbb rdi, 0"
        "mov rax, rdi"
        "ret"
    }
}

/// Below 2 GiB a return address is pushed by one instruction, elsewhere by two.
#[test]
fn the_program_counter_below_two_gigabytes() {
    #[rustfmt::skip]
    let code = [
        0x55,                               // push rbp
        0xe8, 0, 0, 0, 0,                   // call $+5
        0x58,                               // pop rax
        0x48, 0x8d, 0x0d, 0xf8, 0xff, 0xff, 0xff, // lea rcx, [rip - 8]: the pop
        0x48, 0x29, 0xc8,                   // sub rax, rcx
        0x48, 0x01, 0xf8,                   // add rax, rdi
        0x5d,                               // pop rbp
        0xc3,                               // ret
    ];
    let address = code_at(0x1000_0000, 0x6000_0000, &code);
    // SAFETY: this very function was written there, and is never freed.
    let target = unsafe { std::mem::transmute::<usize, Target>(address as usize) };
    check("low", target, |first, _| first);
}
