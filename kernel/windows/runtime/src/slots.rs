//! Memory for trampolines: a section of the driver's own, readable and executable.
//!
//! So slots lie where the driver's other code does, are resident as that is, and go when it goes; no page is made executable at run time,
//! and none is both writable and executable.

use kdetour::host::Span;

/// How many bytes there are: some hundred detours.
const SIZE: usize = 4 << 10;

// Filled with INT3: whoever comes where no slot is, is stopped at once. A page of its own at either end, since what is mapped for writing is
// mapped by pages.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".section .kdslot,\"xr\"",
    ".balign 4096",
    ".globl kdetour_slots",
    "kdetour_slots:",
    ".fill {size}, 1, 0xcc",
    ".text",
    size = const SIZE,
);

// Names have an underscore in front there.
#[cfg(target_arch = "x86")]
core::arch::global_asm!(
    ".section .kdslot,\"xr\"",
    ".balign 4096",
    ".globl _kdetour_slots",
    "_kdetour_slots:",
    ".fill {size}, 1, 0xcc",
    ".text",
    size = const SIZE,
);

unsafe extern "C" {
    static kdetour_slots: [u8; SIZE];
}

/// The driver's slots, for [`WindowsKernel::new`](kdetour::host::windows_kernel::WindowsKernel::new).
pub fn slots() -> Span {
    Span { address: (&raw const kdetour_slots).addr() as u64, len: SIZE }
}
