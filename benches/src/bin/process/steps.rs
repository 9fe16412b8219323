//! How many instructions a call takes: a child process executes it one instruction at a time.

use crate::functions::Function;
use anyhow::{Result, ensure};
use std::arch::global_asm;
use std::ptr;

global_asm!(
    ".pushsection .text.process_counted,\"ax\",@progbits",
    ".globl process_counted, process_counted_begin, process_counted_end",
    "process_counted:",
    "push rbx",
    "mov rax, rdi",
    "mov edi, 5",
    "process_counted_begin:",
    "call rax",
    "process_counted_end:",
    "pop rbx",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn process_counted(function: Function) -> u64;
    static process_counted_begin: u8;
    static process_counted_end: u8;
}

/// From the call to the return, both counted.
pub(crate) fn of_call(function: Function) -> Result<u64> {
    let [begin, end] =
        [&raw const process_counted_begin, &raw const process_counted_end].map(|at| at.addr() as u64);
    // SAFETY: the child does nothing but calls, and no memory is taken from the parent: no lock of another thread is
    // needed, since there is none.
    unsafe {
        let child = libc::fork();
        ensure!(child >= 0, "no child: {}", std::io::Error::last_os_error());
        if child == 0 {
            if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) != 0 {
                libc::_exit(1);
            }
            libc::raise(libc::SIGSTOP);
            process_counted(function);
            libc::_exit(0);
        }
        let mut status = 0;
        libc::waitpid(child, &raw mut status, 0);
        let (mut count, mut counting) = (0, false);
        for _ in 0..1_000_000 {
            if !libc::WIFSTOPPED(status) {
                break;
            }
            let mut registers: libc::user_regs_struct = std::mem::zeroed();
            if libc::ptrace(libc::PTRACE_GETREGS, child, 0, &raw mut registers) != 0 {
                break;
            }
            counting |= registers.rip == begin;
            if registers.rip == end {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, ptr::null_mut(), 0);
                return Ok(count);
            }
            count += u64::from(counting);
            libc::ptrace(libc::PTRACE_SINGLESTEP, child, 0, 0);
            libc::waitpid(child, &raw mut status, 0);
        }
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, ptr::null_mut(), 0);
    }
    anyhow::bail!("the call was not seen to return")
}
