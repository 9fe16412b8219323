//! Whether the calling thread has a shadow stack (Documentation/arch/x86/shstk.rst).

use core::arch::asm;

/// A shadow stack is switched on for a whole program when it starts, by its loader, so every thread has one or none.
pub(super) fn is_on() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const ARCH_SHSTK_STATUS: u64 = 0x5005;
    const ARCH_SHSTK_SHSTK: u64 = 1;
    let mut features = 0_u64;
    let mut result = ARCH_PRCTL;
    // SAFETY: the system call writes the eight bytes that it is given the address of, or nothing; it changes RAX, RCX
    // and R11.
    unsafe {
        asm!(
            "syscall",
            inout("rax") result,
            in("rdi") ARCH_SHSTK_STATUS,
            in("rsi") &raw mut features,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    // A kernel that knows of no shadow stacks refuses.
    result == 0 && features & ARCH_SHSTK_SHSTK != 0
}
