//! x86-32: arguments and answers have 64 bits here, too, by halves.

use core::arch::global_asm;

/// How they begin: the lengths of the first instructions.
pub(crate) const PROLOGUES: [&str; 6] = ["1+2+1", "2+2+2", "4+3", "7", "endbr 1+2+1", "3+3"];

global_asm!(
    // 64 bits by halves: what all of them answer, of the arguments that are so far above a register.
    ".macro stress_answer base, at",
    "    mov eax, [\\base + \\at]",
    "    mov edx, [\\base + \\at + 4]",
    "    add eax, eax",
    "    adc edx, edx",
    "    add eax, [\\base + \\at]",
    "    adc edx, [\\base + \\at + 4]",
    "    add eax, [\\base + \\at + 8]",
    "    adc edx, [\\base + \\at + 12]",
    "    xor eax, 0x55",
    ".endm",
    // 55 | 89 e5 | 53 | 8b
    ".macro stress_0",
    "    push ebp",
    "    mov ebp, esp",
    "    push ebx",
    "    mov ebx, [ebp + 8]",
    "    stress_answer ebp, 8",
    "    pop ebx",
    "    pop ebp",
    "    ret",
    ".endm",
    // 31 c9 | 89 e1 | 89 ca
    ".macro stress_1",
    "    xor ecx, ecx",
    "    mov ecx, esp",
    "    mov edx, ecx",
    "    stress_answer ecx, 4",
    "    ret",
    ".endm",
    // 8b 44 24 04 | 83 ec 18
    ".macro stress_2",
    "    mov eax, [esp + 4]",
    "    sub esp, 24",
    "    stress_answer esp, 28",
    "    add esp, 24",
    "    ret",
    ".endm",
    // 8d 8c 24 00 10 00 00
    ".macro stress_3",
    "    lea ecx, [esp + 0x1000]",
    "    stress_answer ecx, 4 - 0x1000",
    "    ret",
    ".endm",
    ".macro stress_4",
    "    endbr32",
    "    stress_0",
    ".endm",
    // 83 ec 08 | 83 c4 08
    ".macro stress_5",
    "    sub esp, 8",
    "    add esp, 8",
    "    stress_answer esp, 4",
    "    ret",
    ".endm",
    // A function whose window begins so many bytes before a border of a page's lines, or of the page.
    ".macro stress_placed number, skipped",
    "    .balign 4096, 0xcc",
    "    .skip \\skipped, 0xcc",
    "    .globl stress_target_\\number\\()_\\skipped",
    #[cfg(not(windows))]
    "    .type stress_target_\\number\\()_\\skipped, @function",
    "stress_target_\\number\\()_\\skipped:",
    "    stress_\\number",
    #[cfg(not(windows))]
    "    .size stress_target_\\number\\()_\\skipped, . - stress_target_\\number\\()_\\skipped",
    "    stress_list",
    "    .long stress_target_\\number\\()_\\skipped",
    "    stress_code",
    ".endm",
    // The sections of their addresses, and of themselves.
    ".macro stress_list",
    #[cfg(not(windows))]
    "    .section .data.rel.ro.stress_table, \"aw\", @progbits",
    #[cfg(windows)]
    "    .section .rdata$kdetour_stress_table, \"dr\"",
    ".endm",
    ".macro stress_code",
    #[cfg(not(windows))]
    "    .section .text.kdetour_stress, \"ax\", @progbits",
    #[cfg(windows)]
    "    .section .text$kdetour_stress, \"xr\"",
    ".endm",
    "stress_list",
    ".balign 8",
    // Names of C have an underscore before them on Windows.
    #[cfg(windows)]
    ".globl _stress_table",
    #[cfg(windows)]
    "_stress_table:",
    #[cfg(not(windows))]
    ".globl stress_table",
    #[cfg(not(windows))]
    ".hidden stress_table",
    #[cfg(not(windows))]
    "stress_table:",
    "stress_code",
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
    ".text",
);
