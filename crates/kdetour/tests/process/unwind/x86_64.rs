//! x86-64.

use libc::ucontext_t;
use std::arch::global_asm;

/// The registers that a callee preserves, by their DWARF numbers, and what they have in `unwind_step`.
pub(super) const KNOWN: [(i32, usize); 6] =
    [(3, 0x1003), (6, 0x1006), (12, 0x100c), (13, 0x100d), (14, 0x100e), (15, 0x100f)];

pub(super) fn instruction_pointer(context: &ucontext_t) -> u64 {
    context.uc_mcontext.gregs[libc::REG_RIP as usize].cast_unsigned()
}

/// Called with a stack that is not aligned.
extern "C-unwind" fn aligning_callee(first: usize, second: usize) -> usize {
    first + second
}

#[rustfmt::skip]
pub(super) const FAR: &[u8] = &[
    0x53,                           // push rbx
    0x31, 0xdb,                     // xor ebx, ebx
    0x55,                           // push rbp
    0x48, 0x89, 0xe5,               // mov rbp, rsp
    0x48, 0x8d, 0x04, 0x37,         // lea rax, [rdi + rsi]
    0x5d,                           // pop rbp
    0x5b,                           // pop rbx
    0xc3,                           // ret
];

// Functions of two arguments with their unwind information: the sum of the arguments, or what `callee` returns.
global_asm!(
    ".pushsection .text.kdetour_tests, \"ax\", @progbits",
    ".macro function name",
    ".balign 16",
    ".globl \\name",
    ".type \\name, @function",
    "\\name:",
    ".cfi_startproc",
    ".endm",
    ".macro done name",
    "ret",
    ".cfi_endproc",
    ".size \\name, . - \\name",
    ".endm",
    // A frame pointer, and a register that is saved and written.
    "function unwind_frame",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "push rbx",
    ".cfi_offset rbx, -24",
    "mov rbx, rdi",
    "lea rax, [rbx + rsi]",
    "pop rbx",
    "leave",
    ".cfi_def_cfa rsp, 8",
    "done unwind_frame",
    // Everything is saved; the first instructions are two bytes long.
    "function unwind_pushes",
    "push r15",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset r15, -16",
    "xor r15d, r15d",
    "push r12",
    ".cfi_def_cfa_offset 24",
    ".cfi_offset r12, -24",
    "xor r12d, r12d",
    "lea rax, [rdi + rsi]",
    "pop r12",
    ".cfi_def_cfa_offset 16",
    "pop r15",
    ".cfi_def_cfa_offset 8",
    "done unwind_pushes",
    // A register that is written without ado, once it was saved; a branch among the first instructions.
    "function unwind_branch",
    "push rbx",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbx, -16",
    "xor ebx, ebx",
    "jz 2f",
    "ud2",
    "2: sub rsp, 256",
    ".cfi_def_cfa_offset 272",
    "lea rax, [rdi + rsi]",
    "add rsp, 256",
    ".cfi_def_cfa_offset 16",
    "pop rbx",
    ".cfi_def_cfa_offset 8",
    "done unwind_branch",
    // A call among the first instructions.
    "function unwind_call",
    "push rbx",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbx, -16",
    "mov ebx, esi",
    "call {callee}",
    "pop rbx",
    ".cfi_def_cfa_offset 8",
    "done unwind_call",
    // A call is the first instruction.
    "function unwind_call_first",
    "call {aligning_callee}",
    "nop",
    "done unwind_call_first",
    // Calls the first argument with the second and the third, with the flags that the fourth one points to set; its stack pointer is
    // put behind them. Every register that a callee
    // preserves has a value that is known.
    "function unwind_step",
    "push rbx",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset rbx, -16",
    "push rbp",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset rbp, -24",
    "push r12",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset r12, -32",
    "push r13",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset r13, -40",
    "push r14",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset r14, -48",
    "push r15",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset r15, -56",
    "sub rsp, 8",
    ".cfi_adjust_cfa_offset 8",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov [rcx + 8], rsp",
    "mov ebx, 0x1003",
    "mov ebp, 0x1006",
    "mov r12d, 0x100c",
    "mov r13d, 0x100d",
    "mov r14d, 0x100e",
    "mov r15d, 0x100f",
    "pushfq",
    ".cfi_adjust_cfa_offset 8",
    "mov rcx, [rcx]",
    "or qword ptr [rsp], rcx",
    "popfq",
    ".cfi_adjust_cfa_offset -8",
    "call rax",
    ".globl unwind_stepped",
    "unwind_stepped:",
    "pushfq",
    ".cfi_adjust_cfa_offset 8",
    "and qword ptr [rsp], -0x101",
    "popfq",
    ".cfi_adjust_cfa_offset -8",
    "add rsp, 8",
    ".cfi_adjust_cfa_offset -8",
    "pop r15",
    ".cfi_adjust_cfa_offset -8",
    "pop r14",
    ".cfi_adjust_cfa_offset -8",
    "pop r13",
    ".cfi_adjust_cfa_offset -8",
    "pop r12",
    ".cfi_adjust_cfa_offset -8",
    "pop rbp",
    ".cfi_adjust_cfa_offset -8",
    "pop rbx",
    ".cfi_adjust_cfa_offset -8",
    "done unwind_step",
    ".popsection",
    callee = sym super::callee,
    aligning_callee = sym aligning_callee,
);
