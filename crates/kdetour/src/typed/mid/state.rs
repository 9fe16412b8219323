//! What is saved besides the general registers: everything that the operating system has switched on (XCR0), in an XSAVE area.

use super::arch::Registers;
use super::site::Site;
use crate::host::process::arch;

/// The MXCSR of a thread that has not changed it.
pub(super) const MXCSR: u32 = 0x1f80;
/// SSE in an XSAVE area's XSTATE_BV: without it XRSTOR would take XMM registers that were all zero for zero again.
pub(super) const SSE: u32 = 1 << 1;

/// The bytes of an XSAVE area; none if the processor, or the system, has no XSAVE.
pub(super) fn area() -> Option<usize> {
    const OSXSAVE: u32 = 1 << 27;
    const EXTENDED_STATE: u32 = 0xd;
    let has_it = arch::cpuid(0, 0).eax >= EXTENDED_STATE && arch::cpuid(1, 0).ecx & OSXSAVE != 0;
    // Intel SDM volume 1, section 13.2: the size for what is switched on in XCR0.
    has_it.then(|| arch::cpuid(EXTENDED_STATE, 0).ebx as usize)
}

/// Calls the detour, and finds out where the function goes on.
pub(super) fn dispatch(registers: &mut Registers, site: &Site) {
    (site.function)(registers, site.context);
    registers.set_ip(site.resume(registers.ip()));
}
