//! An end for what cannot happen.

use core::panic::PanicInfo;

/// Nothing in kdetour panics. If something did all the same, the machine stops here, at an illegal instruction, as it does at any fault of a
/// driver.
#[panic_handler]
fn stop(_: &PanicInfo<'_>) -> ! {
    // SAFETY: traps, and does not return.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}
