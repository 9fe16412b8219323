//! x86-32.

use libc::ucontext_t;
use std::arch::global_asm;

/// The registers that a callee preserves, by their DWARF numbers, and what they have in `unwind_step`.
pub(super) const KNOWN: [(i32, usize); 4] = [(3, 0x1003), (5, 0x1005), (6, 0x1006), (7, 0x1007)];

pub(super) fn instruction_pointer(context: &ucontext_t) -> u64 {
    context.uc_mcontext.gregs[libc::REG_EIP as usize].cast_unsigned().into()
}

#[rustfmt::skip]
pub(super) const FAR: &[u8] = &[
    0x53,                           // push ebx
    0x31, 0xdb,                     // xor ebx, ebx
    0x55,                           // push ebp
    0x89, 0xe5,                     // mov ebp, esp
    0x8b, 0x45, 0x0c,               // mov eax, [ebp + 12]
    0x03, 0x45, 0x10,               // add eax, [ebp + 16]
    0x5d,                           // pop ebp
    0x5b,                           // pop ebx
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
    "push ebp",
    ".cfi_def_cfa_offset 8",
    ".cfi_offset ebp, -8",
    "mov ebp, esp",
    ".cfi_def_cfa_register ebp",
    "push ebx",
    ".cfi_offset ebx, -12",
    "mov ebx, [ebp + 8]",
    "mov eax, ebx",
    "add eax, [ebp + 12]",
    "pop ebx",
    "leave",
    ".cfi_def_cfa esp, 4",
    "done unwind_frame",
    // Everything is saved.
    "function unwind_pushes",
    "push edi",
    ".cfi_def_cfa_offset 8",
    ".cfi_offset edi, -8",
    "xor edi, edi",
    "push esi",
    ".cfi_def_cfa_offset 12",
    ".cfi_offset esi, -12",
    "xor esi, esi",
    "mov eax, [esp + 12]",
    "add eax, [esp + 16]",
    "pop esi",
    ".cfi_def_cfa_offset 8",
    "pop edi",
    ".cfi_def_cfa_offset 4",
    "done unwind_pushes",
    // A register that is written without ado, once it was saved; a branch among the first instructions.
    "function unwind_branch",
    "push ebx",
    ".cfi_def_cfa_offset 8",
    ".cfi_offset ebx, -8",
    "xor ebx, ebx",
    "jz 2f",
    "ud2",
    "2: sub esp, 256",
    ".cfi_def_cfa_offset 264",
    "mov eax, [esp + 264]",
    "add eax, [esp + 268]",
    "add esp, 256",
    ".cfi_def_cfa_offset 8",
    "pop ebx",
    ".cfi_def_cfa_offset 4",
    "done unwind_branch",
    // A call among the first instructions.
    "function unwind_call",
    "push ebx",
    ".cfi_def_cfa_offset 8",
    ".cfi_offset ebx, -8",
    "xor ebx, ebx",
    "call unwind_callee",
    "pop ebx",
    ".cfi_def_cfa_offset 4",
    "done unwind_call",
    // Passes the arguments of its caller on.
    "function unwind_callee",
    "sub esp, 12",
    ".cfi_adjust_cfa_offset 12",
    "push dword ptr [esp + 28]",
    ".cfi_adjust_cfa_offset 4",
    "push dword ptr [esp + 28]",
    ".cfi_adjust_cfa_offset 4",
    "call {callee}",
    "add esp, 20",
    ".cfi_adjust_cfa_offset -20",
    "done unwind_callee",
    // A call is the first instruction.
    "function unwind_call_first",
    "call unwind_adding_callee",
    "nop",
    "done unwind_call_first",
    // Adds the arguments of its caller.
    "function unwind_adding_callee",
    "mov eax, [esp + 8]",
    "add eax, [esp + 12]",
    "done unwind_adding_callee",
    // Calls the first argument with the second and the third, with the flags that the fourth one points to set; its stack pointer is
    // put behind them. Every register that a callee preserves has a value that is known.
    "function unwind_step",
    "push ebx",
    ".cfi_adjust_cfa_offset 4",
    ".cfi_offset ebx, -8",
    "push ebp",
    ".cfi_adjust_cfa_offset 4",
    ".cfi_offset ebp, -12",
    "push esi",
    ".cfi_adjust_cfa_offset 4",
    ".cfi_offset esi, -16",
    "push edi",
    ".cfi_adjust_cfa_offset 4",
    ".cfi_offset edi, -20",
    "sub esp, 12",
    ".cfi_adjust_cfa_offset 12",
    "mov ecx, [esp + 36]",
    "mov [esp], ecx",
    "mov ecx, [esp + 40]",
    "mov [esp + 4], ecx",
    "mov eax, [esp + 32]",
    "mov ecx, [esp + 44]",
    "mov [ecx + 4], esp",
    "mov ebx, 0x1003",
    "mov ebp, 0x1005",
    "mov esi, 0x1006",
    "mov edi, 0x1007",
    "pushfd",
    ".cfi_adjust_cfa_offset 4",
    "mov ecx, [ecx]",
    "or dword ptr [esp], ecx",
    "popfd",
    ".cfi_adjust_cfa_offset -4",
    "call eax",
    ".globl unwind_stepped",
    "unwind_stepped:",
    "pushfd",
    ".cfi_adjust_cfa_offset 4",
    "and dword ptr [esp], -0x101",
    "popfd",
    ".cfi_adjust_cfa_offset -4",
    "add esp, 12",
    ".cfi_adjust_cfa_offset -12",
    "pop edi",
    ".cfi_adjust_cfa_offset -4",
    "pop esi",
    ".cfi_adjust_cfa_offset -4",
    "pop ebp",
    ".cfi_adjust_cfa_offset -4",
    "pop ebx",
    ".cfi_adjust_cfa_offset -4",
    "done unwind_step",
    ".popsection",
    callee = sym super::callee,
);
