//! Functions to be detoured, in assembler: one for each beginning and each place.
//!
//! All of them have the same result. Each keeps what it needs in registers that it has to save, or below its stack
//! pointer, where nobody else may write.

use core::arch::global_asm;
use core::{mem, ptr};

pub(crate) type Target = extern "C" fn(u64, u64) -> u64;

/// What all of them answer.
pub(crate) fn expected(first: u64, second: u64) -> u64 {
    first.wrapping_mul(3).wrapping_add(second) ^ 0x55
}

/// How they begin: the lengths of the first instructions.
pub(crate) const PROLOGUES: [&str; 6] = ["1+3+1", "2+2+2", "4+3", "7", "endbr 1+3+1", "3+3"];

/// Where the window is.
pub(crate) const PLACES: [&str; 9] =
    ["aligned", "line 1", "line 2", "line 3", "line 4", "page 1", "page 2", "page 3", "page 4"];

/// The function with this beginning at this place.
pub(crate) fn target(prologue: usize, place: usize) -> Target {
    // SAFETY: the table is written by the linker before anything runs.
    let address = unsafe { stress_table }[prologue * PLACES.len() + place];
    function(address)
}

/// The function at an address.
pub(crate) fn function(address: u64) -> Target {
    let code = ptr::with_exposed_provenance::<()>(usize::try_from(address).expect("64 bits"));
    // SAFETY: addresses of functions of this type are given: of the table, of an original, or of a copy.
    unsafe { mem::transmute::<*const (), Target>(code) }
}

/// How long a target's code is, at the most.
pub(crate) const LONGEST: usize = 64;

unsafe extern "C" {
    static stress_table: [u64; PROLOGUES.len() * PLACES.len()];
}

global_asm!(
    // 55 | 48 89 e5 | 53
    ".macro stress_0",
    "    push rbp",
    "    mov rbp, rsp",
    "    push rbx",
    "    lea rbx, [rdi + rdi * 2]",
    "    mov [rbp - 24], rbx",
    "    mov rax, rsi",
    "    add rax, [rbp - 24]",
    "    xor rax, 0x55",
    "    pop rbx",
    "    pop rbp",
    "    ret",
    ".endm",
    // 41 54 | 41 55 | 41 56
    ".macro stress_1",
    "    push r12",
    "    push r13",
    "    push r14",
    "    lea r12, [rdi + rdi * 2]",
    "    mov r13, rsi",
    "    lea rax, [r12 + r13]",
    "    xor rax, 0x55",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    ret",
    ".endm",
    // 48 83 ec 18 | 48 8d 04 7f
    ".macro stress_2",
    "    sub rsp, 24",
    "    mov rax, rdi",
    "    mov [rsp + 8], rsi",
    "    lea rax, [rax + rax * 2]",
    "    add rax, [rsp + 8]",
    "    xor rax, 0x55",
    "    add rsp, 24",
    "    ret",
    ".endm",
    // 48 c7 c0 55 00 00 00
    ".macro stress_3",
    "    mov rax, 0x55",
    "    lea rdi, [rdi + rdi * 2]",
    "    add rdi, rsi",
    "    xor rax, rdi",
    "    ret",
    ".endm",
    ".macro stress_4",
    "    endbr64",
    "    stress_0",
    ".endm",
    // 48 89 f8 | 48 01 f6
    ".macro stress_5",
    "    mov rax, rdi",
    "    add rdi, rdi",
    "    add rax, rdi",
    "    add rax, rsi",
    "    xor rax, 0x55",
    "    ret",
    ".endm",
    // A function whose window begins so many bytes before a border of a page's lines, or of the page.
    ".macro stress_placed number, skipped",
    "    .balign 4096, 0xcc",
    "    .skip \\skipped, 0xcc",
    "    .globl stress_target_\\number\\()_\\skipped",
    "    .type stress_target_\\number\\()_\\skipped, @function",
    "stress_target_\\number\\()_\\skipped:",
    "    stress_\\number",
    "    .size stress_target_\\number\\()_\\skipped, . - stress_target_\\number\\()_\\skipped",
    "    .pushsection .data.rel.ro.stress_table, \"aw\", @progbits",
    "    .quad stress_target_\\number\\()_\\skipped",
    "    .popsection",
    ".endm",
    ".pushsection .data.rel.ro.stress_table, \"aw\", @progbits",
    ".balign 8",
    ".globl stress_table",
    ".hidden stress_table",
    "stress_table:",
    ".popsection",
    ".pushsection .text.kdetour_stress, \"ax\", @progbits",
    ".irp number, 0, 1, 2, 3",
    "    .irp skipped, 64, 127, 126, 125, 124, 4095, 4094, 4093, 4092",
    "    stress_placed \\number, \\skipped",
    "    .endr",
    ".endr",
    // The landing pad of four bytes is before the window.
    ".irp skipped, 60, 123, 122, 121, 120, 4091, 4090, 4089, 4088",
    "    stress_placed 4, \\skipped",
    ".endr",
    ".irp skipped, 64, 127, 126, 125, 124, 4095, 4094, 4093, 4092",
    "    stress_placed 5, \\skipped",
    ".endr",
    ".popsection",
);
