//! How many instructions a call takes: the trap flag is set in front of it, and a vectored handler counts until it returns.

use crate::functions::Function;
use anyhow::{Result, ensure};
use std::arch::global_asm;
use std::sync::atomic::{AtomicU64, Ordering};
use windows_sys::Win32::Foundation::EXCEPTION_SINGLE_STEP;
use windows_sys::Win32::System::Diagnostics::Debug::{
    AddVectoredExceptionHandler, EXCEPTION_CONTINUE_EXECUTION, EXCEPTION_CONTINUE_SEARCH, EXCEPTION_POINTERS,
    RemoveVectoredExceptionHandler,
};

/// EFLAGS.TF: a trap behind each instruction.
const TRAP: u32 = 1 << 8;

global_asm!(
    ".text",
    ".p2align 4, 0xcc",
    ".globl process_counted",
    ".globl process_counted_end",
    ".seh_proc process_counted",
    "process_counted:",
    "push rbx",
    ".seh_pushreg rbx",
    "sub rsp, 32",
    ".seh_stackalloc 32",
    ".seh_endprologue",
    "mov rax, rcx",
    "mov ecx, 5",
    "pushfq",
    "or qword ptr [rsp], 0x100",
    // The first trap comes behind the instruction behind this one: behind the call.
    "popfq",
    "call rax",
    "process_counted_end:",
    "add rsp, 32",
    "pop rbx",
    "ret",
    ".seh_endproc",
);

unsafe extern "C" {
    fn process_counted(function: Function) -> u64;
    static process_counted_end: u8;
}

static COUNT: AtomicU64 = AtomicU64::new(0);

/// From the call to the return, both counted.
pub(crate) fn of_call(function: Function) -> Result<u64> {
    COUNT.store(0, Ordering::Relaxed);
    // SAFETY: the handler is a function of that type; nobody else is stepped through.
    let given = unsafe {
        let handler = AddVectoredExceptionHandler(1, Some(counts));
        ensure!(!handler.is_null(), "no handler: {}", std::io::Error::last_os_error());
        let given = process_counted(function);
        RemoveVectoredExceptionHandler(handler);
        given
    };
    let count = COUNT.load(Ordering::Relaxed);
    ensure!(given == 6 && count > 1, "the call gave {given}, in {count} steps");
    Ok(count)
}

/// Counts a step, and lets the next one be taken, unless the call has returned.
unsafe extern "system" fn counts(what: *mut EXCEPTION_POINTERS) -> i32 {
    // SAFETY: the system calls it with pointers that are good for this call.
    let (record, context) = unsafe { (&*(*what).ExceptionRecord, &mut *(*what).ContextRecord) };
    if record.ExceptionCode != EXCEPTION_SINGLE_STEP {
        return EXCEPTION_CONTINUE_SEARCH;
    }
    COUNT.fetch_add(1, Ordering::Relaxed);
    let end = (&raw const process_counted_end).addr() as u64;
    context.EFlags = if context.Rip == end { context.EFlags & !TRAP } else { context.EFlags | TRAP };
    EXCEPTION_CONTINUE_EXECUTION
}
