//! Detours inside functions: every register before and after, loops, leaving by another way, refusals.

mod company;
#[cfg(target_arch = "x86_64")]
#[path = "everything/x86_64.rs"]
mod everything;
#[cfg(target_arch = "x86")]
#[path = "everything/x86.rs"]
mod everything;
mod refused;
mod registers;

use crate::support::{assert_no_page_is_writable_and_executable, functions, text, turn};
use kdetour::Error;
use kdetour::typed::{Function, MidDetour, Registers, with_process};
use std::arch::global_asm;

type Target = extern "C" fn(usize, usize) -> usize;

/// The registers of both processors by what the functions here have in them.
#[cfg(target_arch = "x86_64")]
mod names {
    use kdetour::typed::Registers;

    pub(super) type Word = u64;
    pub(super) const FIRST: &str = "rdi";
    /// How far behind its start a function has its arguments in registers.
    pub(super) const ARGUMENTS: u64 = 0;

    pub(super) fn ip(registers: &mut Registers) -> &mut Word {
        &mut registers.rip
    }

    pub(super) fn result(registers: &mut Registers) -> &mut Word {
        &mut registers.rax
    }

    pub(super) fn first(registers: &mut Registers) -> &mut Word {
        &mut registers.rdi
    }

    pub(super) fn second(registers: &mut Registers) -> &mut Word {
        &mut registers.rsi
    }

    pub(super) fn flags(registers: &mut Registers) -> &mut Word {
        &mut registers.rflags
    }

    pub(super) fn stack_pointer(registers: &Registers) -> Word {
        registers.rsp()
    }

    /// The first argument, at the entry.
    pub(super) fn first_at_entry(registers: &mut Registers) -> &mut Word {
        first(registers)
    }
}

#[cfg(target_arch = "x86")]
mod names {
    use kdetour::typed::Registers;

    pub(super) type Word = u32;
    pub(super) const FIRST: &str = "edx";
    /// How far behind its start a function has its arguments in registers.
    pub(super) const ARGUMENTS: u64 = 8;

    pub(super) fn ip(registers: &mut Registers) -> &mut Word {
        &mut registers.eip
    }

    pub(super) fn result(registers: &mut Registers) -> &mut Word {
        &mut registers.eax
    }

    pub(super) fn first(registers: &mut Registers) -> &mut Word {
        &mut registers.edx
    }

    pub(super) fn second(registers: &mut Registers) -> &mut Word {
        &mut registers.ecx
    }

    pub(super) fn flags(registers: &mut Registers) -> &mut Word {
        &mut registers.eflags
    }

    pub(super) fn stack_pointer(registers: &Registers) -> Word {
        registers.esp()
    }

    /// The first argument, at the entry: it is above the return address.
    pub(super) fn first_at_entry(registers: &mut Registers) -> &mut Word {
        let place = std::ptr::with_exposed_provenance_mut::<Word>(registers.esp() as usize + 4);
        // SAFETY: the function's own argument, as long as it has these registers.
        unsafe { &mut *place }
    }
}

use names::{FIRST, Word, first, first_at_entry, flags, ip, result, second, stack_pointer};

// On x86-32 a function first has its arguments loaded, into EDX and ECX; behind that its instructions are as long as those for x86-64.
functions! {
    // 48 8d 04 37 | 48 83 c0 05 | 48 89 c1 | 48 89 c8 | c3
    add_five {
        "lea rax, [rdi + rsi]"
        "add rax, 5"
        "mov rcx, rax"
        "mov rax, rcx"
        "ret"
    } {
        "mov edx, [esp + 4]"
        "mov ecx, [esp + 8]"
        ".byte 0x8d, 0x44, 0x0a, 0x00"
        ".byte 0x8d, 0x44, 0x20, 0x05"
        ".byte 0x8d, 0x48, 0x00"
        ".byte 0x8d, 0x41, 0x00"
        "ret"
    }

    // f3 48 0f 2a..: 0: cvtsi2sd, 5: addsd (4), 9: cvttsd2si (5), 14: ret
    twice_as_float {
        "cvtsi2sd xmm0, rdi"
        "addsd xmm0, xmm0"
        "cvttsd2si rax, xmm0"
        "ret"
    } {
        "mov edx, [esp + 4]"
        "mov ecx, [esp + 8]"
        "cvtsi2sd xmm0, edx"
        "nop"
        "addsd xmm0, xmm0"
        "cvttsd2si eax, xmm0"
        "nop"
        "ret"
    }

    // 48 89 f8 | 0f 1f 44 00 00 | f2 48 0f 2c c0 | c3
    first_vector {
        "mov rax, rdi"
        "nop dword ptr [rax + rax]"
        "cvttsd2si rax, xmm0"
        "ret"
    } {
        "mov edx, [esp + 4]"
        "mov ecx, [esp + 8]"
        ".byte 0x8d, 0x42, 0x00"
        "nop dword ptr [eax + eax]"
        "cvttsd2si eax, xmm0"
        "ret"
    }

    // 48 39 f7 | 90 | 48 8d 40 00 | 48 19 c0 | c3
    below {
        "cmp rdi, rsi"
        "nop"
        "lea rax, [rax + 0]"
        "sbb rax, rax"
        "ret"
    } {
        "mov edx, [esp + 4]"
        "mov ecx, [esp + 8]"
        "cmp edx, ecx"
        "nop"
        "nop"
        ".byte 0x8d, 0x40, 0x00"
        "nop"
        "sbb eax, eax"
        "ret"
    }

    // 31 c0 | ff c0 ff cf 75 fa | c3: the whole loop is displaced.
    short_loop {
        "xor eax, eax"
        "2: inc eax"
        "dec edi"
        "jnz 2b"
        "ret"
    } {
        "mov edx, [esp + 4]"
        "mov ecx, [esp + 8]"
        "xor eax, eax"
        "2: .byte 0xff, 0xc0"
        ".byte 0xff, 0xca"
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
    } {
        "mov edx, [esp + 4]"
        "mov ecx, [esp + 8]"
        "xor eax, eax"
        "2: .byte 0x8d, 0x44, 0x20, 0x01"
        "lea eax, [eax + ecx]"
        ".byte 0xff, 0xca"
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
    } {
        "mov edx, [esp + 4]"
        "mov ecx, [esp + 8]"
        "xor eax, eax"
        "nop"
        "nop"
        "2: lea eax, [eax + ecx]"
        ".byte 0xff, 0xca"
        "jnz 2b"
        "ret"
    }

    // 4 * rdi, by itself; the callback calls it again.
    four_times {
        "lea rax, [rdi + rdi]"
        "lea rcx, [rax + rax]"
        "mov rax, rcx"
        "ret"
    } {
        "mov edx, [esp + 4]"
        "mov ecx, [esp + 8]"
        ".byte 0x8d, 0x44, 0x12, 0x00"
        ".byte 0x8d, 0x4c, 0x00, 0x00"
        ".byte 0x8d, 0x41, 0x00"
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
    } {
        "mov edx, [esp + 4]"
        "mov ecx, [esp + 8]"
        ".byte 0x8d, 0x42, 0x00"
        "call 2f"
        ".byte 0x8d, 0x48, 0x00"
        "lea eax, [ecx + 1]"
        "ret"
        "2: mov eax, [esp]"
        "call 4f"
        "4: pop ecx"
        ".set calls_inside_distance, 4b - calls_inside - 8"
        "sub eax, ecx"
        "lea eax, [eax + calls_inside_distance]"
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
    } {
        "mov edx, [esp + 4]"
        "mov ecx, [esp + 8]"
        "mov eax, ecx"
        "push ebx"
        "call 9f"
        "9: pop ebx"
        "add ebx, offset _GLOBAL_OFFSET_TABLE_ + 1" // from behind the POP
        "mov ecx, [ebx + edx * 4 + .Lcases_table@GOTOFF]"
        "add ecx, ebx"
        "pop ebx"
        "notrack jmp ecx"
        ".Lcases_4: add eax, 8"
        ".Lcases_5: add eax, 1"
        ".Lcases_6: add eax, 2"
        "add eax, 4"
        "ret"
        ".pushsection .rodata"
        ".balign 4"
        ".Lcases_table: .long .Lcases_4@GOTOFF"
        ".long .Lcases_5@GOTOFF"
        ".long .Lcases_6@GOTOFF"
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
    } {
        "mov edx, [esp + 4]"
        "mov ecx, [esp + 8]"
        "call 3f"
        "3: pop eax"
        ".set computed_distance, 4f - 3b"
        "lea eax, [eax + edx + computed_distance]"
        "jmp eax"
        "4: mov eax, ecx"
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
    } {
        "mov edx, [esp + 4]"
        "mov ecx, [esp + 8]"
        "test edx, edx"
        "nop"
        ".byte 0x0f, 0x84"
        ".long 8f - . - 4"
        ".byte 0x8d, 0x41, 0x00"
        ".Lwith_a_cold_part: .byte 0x8d, 0x40, 0x01"
        ".byte 0x8d, 0x40, 0x01"
        "ret"
        ".pushsection .text.kdetour_cold, \"ax\", @progbits"
        ".balign 16"
        "8: mov eax, 100"
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
    } {
        "mov edx, [esp + 4]"
        "mov ecx, [esp + 8]"
        ".byte 0x8d, 0x42, 0x00"
        "endbr32"
        "add eax, ecx"
        "add eax, 1"
        "nop"
        "ret"
    }
}

#[cfg(target_arch = "x86_64")]
functions! {
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
    safe fn padded(first: usize, second: usize) -> usize;
}

/// The address of an instruction, so far behind the arguments.
fn address(target: Target, offset: u64) -> u64 {
    target.address() + names::ARGUMENTS + offset
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
