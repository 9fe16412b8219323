//! x86-64: the calling convention of Microsoft's "x64 calling convention" pages.

use super::super::flip::{
    CLOSE, END, FIRST, JOB, Job, MUTEX, OBJECT, OPEN, Page, RELEASE, TURNS, WAIT, WRITER, Write, YIELD,
};
use super::super::trap;
use super::{GONE, SYNCHRONIZE};
use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use core::hint::black_box;
use kdetour_plan::Mode;
use windows_sys::Win32::System::Diagnostics::Debug::CONTEXT;

pub(in super::super) const MODE: Mode = Mode::Bits64;
/// `CONTEXT_CONTROL | CONTEXT_INTEGER` (winnt.h).
pub(in super::super) const REGISTERS: u32 = 0x10_0003;

/// Where a thread is.
pub(in super::super) const fn ip(context: &CONTEXT) -> u64 {
    context.Rip
}

/// Has a thread go on elsewhere.
pub(in super::super) const fn set_ip(context: &mut CONTEXT, ip: u64) {
    context.Rip = ip;
}

/// A thread's stack pointer.
pub(in super::super) const fn sp(context: &CONTEXT) -> u64 {
    context.Rsp
}

/// What else may hold an address.
pub(in super::super) const fn words(context: &CONTEXT) -> [u64; 15] {
    [
        context.Rax,
        context.Rcx,
        context.Rdx,
        context.Rbx,
        context.Rbp,
        context.Rsi,
        context.Rdi,
        context.R8,
        context.R9,
        context.R10,
        context.R11,
        context.R12,
        context.R13,
        context.R14,
        context.R15,
    ]
}

/// The calling thread's number: `TEB.ClientId.UniqueThread`.
pub(in super::super) fn thread() -> u32 {
    let thread: u32;
    // SAFETY: GS is the base of the thread's environment block, in every thread.
    unsafe { asm!("mov {:e}, gs:[0x48]", out(reg) thread, options(nostack, readonly, preserves_flags)) };
    thread
}

/// Whether a page that is not said to be executable cannot be executed: 64-bit processes always have DEP.
pub(in super::super) const fn can_lose_execution() -> bool {
    true
}

/// Executes a serializing instruction: CPUID (Intel SDM volume 3, "Serializing Instructions").
pub(in super::super) fn serialize() {
    black_box(__cpuid_count(0, 0));
}

super::instructions!(
    // A page of its own, which is never made writable.
    ".section .text$kdetour, \"xr\"",
    ".p2align 12",
    ".globl kdetour_windows_process_begin",
    "kdetour_windows_process_begin:",
    // NTSTATUS write(struct Job *)
    ".globl kdetour_windows_process_write",
    ".seh_proc kdetour_windows_process_write",
    "kdetour_windows_process_write:",
    "push rbx",
    ".seh_pushreg rbx",
    "push rsi",
    ".seh_pushreg rsi",
    "push rdi",
    ".seh_pushreg rdi",
    "push r12",
    ".seh_pushreg r12",
    "sub rsp, 40",
    ".seh_stackalloc 40",
    ".seh_endprologue",
    "mov rbx, rcx",
    "mov rsi, [rbx + {pages}]",
    "mov r12, [rbx + {page_count}]",
    "2:", // each page becomes writable
    "test r12, r12",
    "jz 3f",
    "mov rcx, -1",
    "lea rdx, [rsi + {base}]",
    "lea r8, [rsi + {size}]",
    "mov r9d, [rbx + {writable}]",
    "lea rax, [rbx + {spare}]",
    "mov [rsp + 32], rax",
    "call qword ptr [rbx + {protect}]",
    "test eax, eax",
    "js 6f",
    "add rsi, {page}",
    "dec r12",
    "jmp 2b",
    "3:", // all are
    "mov dword ptr [rbx + {written}], 1",
    "mov r12, rsi",
    "mov rax, [rbx + {writes}]",
    "mov rdx, [rbx + {count}]",
    "4:",
    "test rdx, rdx",
    "jz 5f",
    "mov rdi, [rax + {to}]",
    "mov rsi, [rax + {from}]",
    "mov rcx, [rax + {len}]",
    "rep movsb",
    "add rax, {write}",
    "dec rdx",
    "jmp 4b",
    "5:",
    "xor edi, edi", // what is answered
    "jmp 7f",
    "6:", // one does not: those before it become what they were
    "mov edi, eax",
    "mov r12, rsi",
    "7:", // each page becomes what it was
    "mov rsi, [rbx + {pages}]",
    "8:",
    "cmp rsi, r12",
    "je 9f",
    "mov rcx, -1",
    "lea rdx, [rsi + {base}]",
    "lea r8, [rsi + {size}]",
    "mov r9d, [rsi + {old}]",
    "or r9d, [rbx + {flags}]",
    "lea rax, [rbx + {spare}]",
    "mov [rsp + 32], rax",
    "call qword ptr [rbx + {protect}]",
    "test eax, eax",
    "jns 22f",
    "cmp dword ptr [rbx + {tries}], 0",
    "je 21f",
    "dec dword ptr [rbx + {tries}]",
    "call qword ptr [rip + {yields}]",
    "jmp 8b",
    "21:",
    "mov edi, eax",
    "22:",
    "add rsi, {page}",
    "jmp 8b",
    "9:",
    "mov eax, edi",
    "add rsp, 40",
    "pop r12",
    "pop rdi",
    "pop rsi",
    "pop rbx",
    "ret",
    ".seh_endproc",
    ".p2align 4",
    // void finish(void)
    ".globl kdetour_windows_process_finish",
    ".seh_proc kdetour_windows_process_finish",
    "kdetour_windows_process_finish:",
    "push rbx",
    ".seh_pushreg rbx",
    "push rsi",
    ".seh_pushreg rsi",
    "sub rsp, 72",
    ".seh_stackalloc 72",
    ".seh_endprologue",
    "mov ebx, [rip + {writer}]",
    "test ebx, ebx",
    "jz 9f",
    "mov qword ptr [rsp + 40], 0", // a CLIENT_ID: of whatever process
    "mov [rsp + 48], rbx",
    "lea rcx, [rsp + 32]",
    "mov edx, {synchronize}",
    "lea r8, [rip + {object}]",
    "lea r9, [rsp + 40]",
    "call qword ptr [rip + {open}]",
    "cmp eax, {gone}",
    "je 2f",
    "test eax, eax",
    "js 9f",
    "mov qword ptr [rsp + 56], 0", // for no time
    "mov rcx, [rsp + 32]",
    "xor edx, edx",
    "lea r8, [rsp + 56]",
    "call qword ptr [rip + {wait}]",
    "mov esi, eax",
    "mov rcx, [rsp + 32]",
    "call qword ptr [rip + {close}]",
    "test esi, esi",
    "jnz 9f", // it runs
    "2:",
    "mov ecx, gs:[0x48]",
    "mov eax, ebx",
    "lock cmpxchg [rip + {writer}], ecx",
    "jne 9f", // somebody else finishes it
    "mov rcx, [rip + {mutex}]",
    "test rcx, rcx",
    "jz 3f",
    "xor edx, edx",
    "xor r8d, r8d",
    "call qword ptr [rip + {wait}]",
    "3:",
    "cmp qword ptr [rip + {first}], -1",
    "je 4f",
    "lea rcx, [rip + {job}]",
    "call kdetour_windows_process_write",
    "lock inc qword ptr [rip + {turns}]",
    "mov qword ptr [rip + {first}], -1",
    "4:",
    "mov rcx, [rip + {mutex}]",
    "test rcx, rcx",
    "jz 5f",
    "xor edx, edx",
    "call qword ptr [rip + {release}]",
    "5:",
    "mov dword ptr [rip + {writer}], 0",
    "9:",
    "add rsp, 72",
    "pop rsi",
    "pop rbx",
    "ret",
    ".seh_endproc",
    ".p2align 4",
    // LONG handler(EXCEPTION_POINTERS *)
    ".globl kdetour_windows_process_handler",
    ".seh_proc kdetour_windows_process_handler",
    "kdetour_windows_process_handler:",
    "push rbx",
    ".seh_pushreg rbx",
    "push rsi",
    ".seh_pushreg rsi",
    "push rdi",
    ".seh_pushreg rdi",
    "sub rsp, 32",
    ".seh_stackalloc 32",
    ".seh_endprologue",
    "mov rsi, rcx",
    "xor edi, edi",   // how often it has waited
    "mov rax, [rcx]", // the EXCEPTION_RECORD
    "cmp dword ptr [rax], {access_violation}",
    "jne 6f",
    "cmp qword ptr [rax + 32], 8", // ExceptionInformation[0]: execute
    "jne 6f",
    "mov rbx, [rax + 40]", // ExceptionInformation[1]: the address
    "5:",
    "cmp rbx, [rip + {first}]",
    "jb 6f",
    "cmp rbx, [rip + {end}]",
    "jae 6f",
    "mov eax, gs:[0x48]",
    "cmp eax, [rip + {writer}]",
    "je 6f",
    "inc edi",
    "pause",
    "call qword ptr [rip + {yields}]",
    "test edi, 0xff",
    "jnz 5b",
    "call kdetour_windows_process_finish",
    "jmp 5b",
    "6:",
    "test edi, edi",
    "jnz 7f",
    "mov rcx, rsi",
    "add rsp, 32",
    "pop rdi",
    "pop rsi",
    "pop rbx",
    "jmp {answer}",
    "7:",
    "mov eax, -1", // EXCEPTION_CONTINUE_EXECUTION
    "add rsp, 32",
    "pop rdi",
    "pop rsi",
    "pop rbx",
    "ret",
    ".seh_endproc",
    ".p2align 12",
    ".globl kdetour_windows_process_end",
    "kdetour_windows_process_end:",
    ".text",
);
