//! What a suspended thread's registers are called, and the assembler of `parked`, which the processor's two modes do not share.

use windows_sys::Win32::System::Diagnostics::Debug::CONTEXT;

/// `CONTEXT_CONTROL | CONTEXT_INTEGER`.
pub(super) const WHICH: u32 = if cfg!(target_arch = "x86_64") { 0x10_0003 } else { 0x1_0003 };

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".p2align 4",
    ".globl stress_parked",
    "stress_parked:",
    "2:",
    "pause",
    "jmp 2b",
    // RCX and RDX are the target's, R8 is its address.
    ".p2align 4",
    ".globl stress_stepping",
    ".seh_proc stress_stepping",
    "stress_stepping:",
    "sub rsp, 40",
    ".seh_stackalloc 40",
    ".seh_endprologue",
    "pushfq",
    "or dword ptr [rsp], 0x100",
    "popfq",
    "call r8",
    "add rsp, 40",
    "ret",
    ".seh_endproc",
);

#[cfg(target_arch = "x86")]
core::arch::global_asm!(
    ".p2align 4",
    ".globl _stress_parked",
    "_stress_parked:",
    "2:",
    "pause",
    "jmp 2b",
    ".p2align 4",
    ".globl _stress_stepping",
    "_stress_stepping:",
    "push ebp",
    "mov ebp, esp",
    "push [ebp + 20]",
    "push [ebp + 16]",
    "push [ebp + 12]",
    "push [ebp + 8]",
    "pushfd",
    "or dword ptr [esp], 0x100",
    "popfd",
    "call [ebp + 24]",
    "leave",
    "ret",
);

#[cfg(target_arch = "x86_64")]
pub(super) fn ip(context: &CONTEXT) -> u64 {
    context.Rip
}

#[cfg(target_arch = "x86_64")]
pub(super) fn sp(context: &CONTEXT) -> u64 {
    context.Rsp
}

#[cfg(target_arch = "x86_64")]
pub(super) fn set_ip(context: &mut CONTEXT, to: usize) {
    context.Rip = to as u64;
}

#[cfg(target_arch = "x86")]
pub(super) fn ip(context: &CONTEXT) -> u64 {
    context.Eip.into()
}

#[cfg(target_arch = "x86")]
pub(super) fn sp(context: &CONTEXT) -> u64 {
    context.Esp.into()
}

#[cfg(target_arch = "x86")]
pub(super) fn set_ip(context: &mut CONTEXT, to: usize) {
    context.Eip = to as u32;
}
