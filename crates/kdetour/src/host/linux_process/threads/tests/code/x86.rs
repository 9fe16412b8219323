//! Functions whose instructions the tests know.

use core::arch::global_asm;

/// `clock_nanosleep`: what libc sleeps in, if it is not for long.
pub(super) const NANOSLEEP: i64 = 267;

global_asm!(
    ".pushsection .text.kdetour_threads_tests, \"ax\", @progbits",
    // Whatever the linker puts before this is not to look like the end of a call.
    ".skip 16, 0xcc",
    // Spins until the byte that its argument points to is not 0, and says so in the next one.
    ".globl kdetour_test_spin",
    ".hidden kdetour_test_spin",
    "kdetour_test_spin:",
    "mov ecx, [esp + 4]",
    "1: mov byte ptr [ecx + 1], 1",
    "pause",
    "cmp byte ptr [ecx], 0",
    "je 1b",
    "ret",
    ".globl kdetour_test_spin_end",
    ".hidden kdetour_test_spin_end",
    "kdetour_test_spin_end:",
    "int3",
    // Calls its first argument with the second one.
    ".globl kdetour_test_call",
    ".hidden kdetour_test_call",
    "kdetour_test_call:",
    "sub esp, 8",
    "push dword ptr [esp + 16]",
    "call dword ptr [esp + 16]",
    ".globl kdetour_test_return",
    ".hidden kdetour_test_return",
    "kdetour_test_return:",
    "add esp, 12",
    "ret",
    ".globl kdetour_test_call_end",
    ".hidden kdetour_test_call_end",
    "kdetour_test_call_end:",
    "int3",
    // Holds its own address in a register, but spins elsewhere.
    ".globl kdetour_test_hold",
    ".hidden kdetour_test_hold",
    "kdetour_test_hold:",
    "mov ecx, [esp + 4]",
    "call 2f",
    "2: pop edx",
    ".set kdetour_test_distance, kdetour_test_spin - 2b",
    "lea edx, [edx + kdetour_test_distance]",
    "1: mov byte ptr [ecx + 1], 1",
    "pause",
    "cmp byte ptr [ecx], 0",
    "je 1b",
    "ret",
    // Stands at one instruction for ever; leads to 0. Where it can be moved to, there is a 1.
    ".globl kdetour_test_stand",
    ".hidden kdetour_test_stand",
    "kdetour_test_stand:",
    "mov ecx, [esp + 4]",
    "mov byte ptr [ecx + 1], 1",
    ".globl kdetour_test_standing",
    ".hidden kdetour_test_standing",
    "kdetour_test_standing:",
    "jmp kdetour_test_standing",
    ".globl kdetour_test_moved",
    ".hidden kdetour_test_moved",
    "kdetour_test_moved:",
    "mov eax, 1",
    "ret",
    ".popsection",
);
