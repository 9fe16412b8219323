//! From where on the stack of whoever waits counts.

use crate::Error;
use crate::address::widen;
use core::arch::{asm, naked_asm};
use core::mem::ManuallyDrop;

/// The stack pointer of whoever this is inlined into.
#[inline(always)]
pub fn stack_pointer() -> u64 {
    let sp: usize;
    // SAFETY: reads a register.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack, preserves_flags));
    }
    // SAFETY: reads a register.
    #[cfg(target_arch = "x86")]
    unsafe {
        asm!("mov {}, esp", out(reg) sp, options(nomem, nostack, preserves_flags));
    }
    widen(sp)
}

/// Calls `work` with the address at which the return address is by which it is left: from there on the stack of whoever this is inlined
/// into counts. The frame of `work` does not: it lies where those of earlier calls were, and in its gaps there may be their return
/// addresses, in the very detours that are to be left. So what it answers is handed over by its parts, and without gaps.
#[inline(always)]
pub fn with_return<F>(work: F) -> Result<usize, Error>
where
    F: FnOnce(u64) -> Result<usize, Error>,
{
    let mut task = Task { work: ManuallyDrop::new(work), count: 0, error: None };
    // SAFETY: the function is that of such a task.
    unsafe { call_with_return((&raw mut task).cast(), run::<F>) };
    task.error.map_or(Ok(task.count), Err)
}

/// What is to be called, and what it answers.
struct Task<F> {
    work: ManuallyDrop<F>,
    count: usize,
    error: Option<Error>,
}

/// # Safety
/// There is such a task, whose work has not been called, and nobody else has it.
unsafe extern "C-unwind" fn run<F: FnOnce(u64) -> Result<usize, Error>>(task: *mut (), sp: usize) {
    // SAFETY: the caller says so.
    let task = unsafe { &mut *task.cast::<Task<F>>() };
    // SAFETY: it is taken once.
    let work = unsafe { ManuallyDrop::take(&mut task.work) };
    match work(widen(sp)) {
        Ok(count) => task.count = count,
        Err(error) => task.error = Some(error),
    }
}

/// Calls a function with `context` and the address at which its return address is, which is this one's.
///
/// # Safety
/// The function may be called with the context.
#[unsafe(naked)]
unsafe extern "C-unwind" fn call_with_return(
    context: *mut (),
    function: unsafe extern "C-unwind" fn(*mut (), usize),
) {
    #[cfg(all(target_arch = "x86_64", not(windows)))]
    naked_asm!("mov rax, rsi", "mov rsi, rsp", "jmp rax");
    #[cfg(all(target_arch = "x86_64", windows))]
    // The four words above the return address are this function's own to use, and nobody has written them: a gap.
    naked_asm!(
        "mov rax, rdx",
        "mov rdx, rsp",
        "xor r8d, r8d",
        "mov [rsp + 8], r8",
        "mov [rsp + 16], r8",
        "mov [rsp + 24], r8",
        "mov [rsp + 32], r8",
        "jmp rax"
    );
    // The arguments are ours: in place of the function the address is put there.
    #[cfg(target_arch = "x86")]
    naked_asm!("mov eax, [esp + 8]", "mov [esp + 8], esp", "jmp eax");
}
