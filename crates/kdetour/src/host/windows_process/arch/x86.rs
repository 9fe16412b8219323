//! x86-32.

use super::super::flip::{
    CLOSE, END, FIRST, JOB, Job, MUTEX, OBJECT, OPEN, Page, RELEASE, TURNS, WAIT, WRITER, Write, YIELD,
};
use super::super::trap;
use super::{GONE, SYNCHRONIZE};
use crate::address::narrow;
use core::arch::asm;
use core::arch::x86::__cpuid_count;
use core::hint::black_box;
use kdetour_plan::Mode;
use windows_sys::Win32::System::Diagnostics::Debug::CONTEXT;
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetProcessDEPPolicy, IsProcessorFeaturePresent, PF_NX_ENABLED,
};

pub(in super::super) const MODE: Mode = Mode::Bits32;
/// `CONTEXT_CONTROL | CONTEXT_INTEGER` (winnt.h).
pub(in super::super) const REGISTERS: u32 = 0x1_0003;

/// Where a thread is.
pub(in super::super) fn ip(context: &CONTEXT) -> u64 {
    context.Eip.into()
}

/// Has a thread go on elsewhere.
pub(in super::super) const fn set_ip(context: &mut CONTEXT, ip: u64) {
    context.Eip = narrow(ip) as u32;
}

/// A thread's stack pointer.
pub(in super::super) fn sp(context: &CONTEXT) -> u64 {
    context.Esp.into()
}

/// What else may hold an address.
pub(in super::super) fn words(context: &CONTEXT) -> [u64; 7] {
    [context.Eax, context.Ecx, context.Edx, context.Ebx, context.Ebp, context.Esi, context.Edi].map(u64::from)
}

/// The calling thread's number: `TEB.ClientId.UniqueThread`.
pub(in super::super) fn thread() -> u32 {
    let thread: u32;
    // SAFETY: FS is the base of the thread's environment block, in every thread.
    unsafe { asm!("mov {:e}, fs:[0x24]", out(reg) thread, options(nostack, readonly, preserves_flags)) };
    thread
}

/// Whether a page that is not said to be executable cannot be executed: what the processor, the system and the process have decided.
pub(in super::super) fn can_lose_execution() -> bool {
    /// `PROCESS_DEP_ENABLE` (winbase.h).
    const ENABLED: u32 = 1;
    let (mut flags, mut for_ever) = (0, 0);
    // SAFETY: this process, and two numbers to be filled.
    unsafe {
        IsProcessorFeaturePresent(PF_NX_ENABLED) != 0
            && GetProcessDEPPolicy(GetCurrentProcess(), &raw mut flags, &raw mut for_ever) != 0
            && flags & ENABLED != 0
    }
}

/// Executes a serializing instruction: CPUID (Intel SDM volume 3, "Serializing Instructions").
pub(in super::super) fn serialize() {
    black_box(__cpuid_count(0, 0));
}

super::instructions!(
    // A page of its own, which is never made writable.
    ".section .text$kdetour, \"xr\"",
    ".p2align 12",
    ".globl _kdetour_windows_process_begin",
    "_kdetour_windows_process_begin:",
    // NTSTATUS __cdecl write(struct Job *)
    ".globl _kdetour_windows_process_write",
    "_kdetour_windows_process_write:",
    "push ebx",
    "push esi",
    "push edi",
    "push ebp",
    "mov ebx, [esp + 20]",
    "mov esi, [ebx + {pages}]",
    "mov ebp, [ebx + {page_count}]",
    "2:", // each page becomes writable
    "test ebp, ebp",
    "jz 3f",
    "lea eax, [ebx + {spare}]",
    "push eax",
    "push dword ptr [ebx + {writable}]",
    "lea eax, [esi + {size}]",
    "push eax",
    "lea eax, [esi + {base}]",
    "push eax",
    "push -1",
    "call dword ptr [ebx + {protect}]",
    "test eax, eax",
    "js 6f",
    "add esi, {page}",
    "dec ebp",
    "jmp 2b",
    "3:", // all are
    "mov dword ptr [ebx + {written}], 1",
    "mov ebp, esi",
    "mov eax, [ebx + {writes}]",
    "mov edx, [ebx + {count}]",
    "4:",
    "test edx, edx",
    "jz 5f",
    "mov edi, [eax + {to}]",
    "mov esi, [eax + {from}]",
    "mov ecx, [eax + {len}]",
    "rep movsb",
    "add eax, {write}",
    "dec edx",
    "jmp 4b",
    "5:",
    "xor edi, edi", // what is answered
    "jmp 7f",
    "6:", // one does not: those before it become what they were
    "mov edi, eax",
    "mov ebp, esi",
    "7:", // each page becomes what it was
    "mov esi, [ebx + {pages}]",
    "8:",
    "cmp esi, ebp",
    "je 9f",
    "lea eax, [ebx + {spare}]",
    "push eax",
    "mov eax, [esi + {old}]",
    "or eax, [ebx + {flags}]",
    "push eax",
    "lea eax, [esi + {size}]",
    "push eax",
    "lea eax, [esi + {base}]",
    "push eax",
    "push -1",
    "call dword ptr [ebx + {protect}]",
    "test eax, eax",
    "jns 22f",
    "cmp dword ptr [ebx + {tries}], 0",
    "je 21f",
    "dec dword ptr [ebx + {tries}]",
    "call dword ptr [{yields}]",
    "jmp 8b",
    "21:",
    "mov edi, eax",
    "22:",
    "add esi, {page}",
    "jmp 8b",
    "9:",
    "mov eax, edi",
    "pop ebp",
    "pop edi",
    "pop esi",
    "pop ebx",
    "ret",
    ".p2align 4",
    // void __cdecl finish(void)
    ".globl _kdetour_windows_process_finish",
    "_kdetour_windows_process_finish:",
    "push ebx",
    "push esi",
    "sub esp, 20",
    "mov ebx, dword ptr [{writer}]",
    "test ebx, ebx",
    "jz 9f",
    "mov dword ptr [esp + 4], 0", // a CLIENT_ID: of whatever process
    "mov [esp + 8], ebx",
    "mov ecx, esp",
    "lea eax, [esp + 4]",
    "push eax",
    "lea eax, [{object}]",
    "push eax",
    "push {synchronize}",
    "push ecx",
    "call dword ptr [{open}]",
    "cmp eax, {gone}",
    "je 2f",
    "test eax, eax",
    "js 9f",
    "mov dword ptr [esp + 12], 0", // for no time
    "mov dword ptr [esp + 16], 0",
    "lea eax, [esp + 12]",
    "mov ecx, [esp]",
    "push eax",
    "push 0",
    "push ecx",
    "call dword ptr [{wait}]",
    "mov esi, eax",
    "push dword ptr [esp]",
    "call dword ptr [{close}]",
    "test esi, esi",
    "jnz 9f", // it runs
    "2:",
    "mov ecx, fs:[0x24]",
    "mov eax, ebx",
    "lock cmpxchg dword ptr [{writer}], ecx",
    "jne 9f", // somebody else finishes it
    "mov eax, dword ptr [{mutex}]",
    "test eax, eax",
    "jz 3f",
    "push 0",
    "push 0",
    "push eax",
    "call dword ptr [{wait}]",
    "3:",
    "cmp dword ptr [{first}], -1",
    "je 4f",
    "lea eax, [{job}]",
    "push eax",
    "call _kdetour_windows_process_write",
    "add esp, 4",
    "lock inc dword ptr [{turns}]",
    "mov dword ptr [{first}], -1",
    "4:",
    "mov eax, dword ptr [{mutex}]",
    "test eax, eax",
    "jz 5f",
    "push 0",
    "push eax",
    "call dword ptr [{release}]",
    "5:",
    "mov dword ptr [{writer}], 0",
    "9:",
    "add esp, 20",
    "pop esi",
    "pop ebx",
    "ret",
    ".p2align 4",
    // LONG __stdcall handler(EXCEPTION_POINTERS *)
    ".globl _kdetour_windows_process_handler",
    "_kdetour_windows_process_handler:",
    "push ebx",
    "push edi",
    "xor edi, edi", // how often it has waited
    "mov eax, [esp + 12]",
    "mov eax, [eax]", // the EXCEPTION_RECORD
    "cmp dword ptr [eax], {access_violation}",
    "jne 6f",
    "cmp dword ptr [eax + 20], 8", // ExceptionInformation[0]: execute
    "jne 6f",
    "mov ebx, [eax + 24]", // ExceptionInformation[1]: the address
    "5:",
    "cmp ebx, dword ptr [{first}]",
    "jb 6f",
    "cmp ebx, dword ptr [{end}]",
    "jae 6f",
    "mov eax, fs:[0x24]",
    "cmp eax, dword ptr [{writer}]",
    "je 6f",
    "inc edi",
    "pause",
    "call dword ptr [{yields}]",
    "test edi, 0xff",
    "jnz 5b",
    "call _kdetour_windows_process_finish",
    "jmp 5b",
    "6:",
    "test edi, edi",
    "pop edi", // changes no flag
    "pop ebx",
    "jnz 7f",
    "jmp {answer}",
    "7:",
    "mov eax, -1", // EXCEPTION_CONTINUE_EXECUTION
    "ret 4",
    ".p2align 12",
    ".globl _kdetour_windows_process_end",
    "_kdetour_windows_process_end:",
    ".text",
);
