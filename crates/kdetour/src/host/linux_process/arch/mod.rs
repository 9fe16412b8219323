//! What differs from one processor to the other: in the kernel's interface, in the ABI, in ELF files.
//!
//! * how high addresses are ([`top`]);
//! * system calls: their numbers, how the kernel is entered ([`call`]), where a signal handler returns to ([`restorer`]);
//! * what the kernel hands to a signal handler: [`Info`], [`Context`]; and what it leaves on the stack for that: [`frame`];
//! * which system calls put another mask in place of a thread's own ([`masking`]), or lend its memory to a child;
//! * where glibc's control block of a thread has what it is known by;
//! * ELF: the class, the relocations of pointers to functions, program headers, symbols;
//! * the numbers of registers in unwind information;
//! * a few instructions: to serialize, to read the time.
//!
//! Each processor's file has the same names. What is the same on every system is in `host/process/arch`, the registers of detours inside
//! functions are in `typed/mid/arch`.

#[cfg(target_arch = "x86")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86")]
pub(crate) use x86::*;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

pub(crate) use crate::host::process::arch::*;

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
compile_error!("the feature `linux-process` is for processes on x86-64 and x86-32");

// Both classes of ELF have the same fields, of which some are as wide as an address (System V ABI, "Object Files").
pub(crate) const ELF_HEADER: usize = 40 + 3 * WORD;
pub(crate) const ELF_SECTION: usize = 16 + 6 * WORD;
pub(crate) const ELF_SYMBOL: usize = 8 + 2 * WORD;

/// A signal handler's frame on a stack: how the thread was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Its stack pointer.
    pub(crate) sp: u64,
    /// The alternate stack that it had then: first and one-past-last address; both 0 if that is not told.
    pub(crate) alternate: (u64, u64),
}

/// How a system call puts another mask in place of a thread's own, as long as the thread sleeps in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Masking {
    /// It takes signals that are blocked: those of the set that its first argument points to.
    Waits,
    /// Always.
    Always,
    /// If this argument, counted from 0, is no null pointer.
    Argument(usize),
    /// If this argument points to a pointer that is not null.
    Pointed(usize),
}
