//! From an instruction of the function to a function of ours, and back, with every register kept.
//!
//! ```text
//!   target:   jmp stub                   stub, one for each detour:  call thunk
//!             ...
//!   thunk:    push flags and general registers; XSAVE everything else; dispatch(&mut Registers, &Site)
//!             XRSTOR; pop them; ret  ------>  the return address has become where the function goes on
//! ```
//!
//! Below the stack pointer a function keeps nothing, so its stack goes on there. The return predictor is wrong about `ret`, but not
//! about the returns that follow.
//!
//! From the call until the address of where the function goes on is in its place, an address inside the stub is on the
//! stack: whoever looks for threads that are still inside finds it.
//!
//! What is saved is what the operating system has switched on (XCR0), as far as there is such a thing in 32-bit mode. The callee finds
//! what a Rust function relies on: the direction flag clear, an empty x87 stack, the default rounding and masks, a stack aligned to 16
//! bytes.

use super::registers::Registers;
use crate::address::narrow;
use crate::host::process::STUB;
use crate::typed::mid::site::Site;
use crate::typed::mid::state::{MXCSR, SSE, dispatch};
use core::arch::naked_asm;
use core::mem::offset_of;

/// What the stubs call. Behind the return address the stub has the address of its [`Site`].
#[unsafe(naked)]
pub(in crate::typed::mid) unsafe extern "C" fn thunk() {
    naked_asm!(
        "pushfd",
        "pushad",
        "push eax", // in place of the area's address
        "lea eax, [esp + {eip} + 4]",
        "mov [esp + {esp}], eax",
        "mov ebx, esp",
        "mov esi, [ebx + {eip}]",
        "push esi",
        "mov esi, [esi + {site}]",
        "mov eax, [esi + {address}]",
        "mov [ebx + {eip}], eax",
        "cld",
        // The area may be larger than the guard page below the stack: every page is touched.
        "mov eax, [esi + {area}]",
        "2:",
        "cmp eax, 4096",
        "jb 3f",
        "sub esp, 4096",
        "or dword ptr [esp], 0",
        "sub eax, 4096",
        "jmp 2b",
        "3:",
        "sub esp, eax",
        "and esp, -64",
        "mov [ebx + {state}], esp",
        // XRSTOR refuses a header with anything else in it than what XSAVE writes.
        "xor eax, eax",
        "lea edi, [esp + 512]",
        "mov ecx, 16",
        "rep stosd",
        "mov eax, -1",
        "mov edx, -1",
        "xsave [esp]",
        "fninit",
        "push {mxcsr}",
        "ldmxcsr [esp]",
        "sub esp, 4",
        "push esi",
        "push ebx",
        "call {enter}",
        "add esp, 16",
        "or dword ptr [esp + 512], {sse}",
        "mov eax, -1",
        "mov edx, -1",
        "xrstor [esp]",
        "lea esp, [ebx + 4]",
        "popad",
        "popfd",
        "ret",
        eip = const offset_of!(Registers, eip),
        esp = const offset_of!(Registers, esp),
        state = const offset_of!(Registers, state),
        site = const SITE - RETURNS,
        address = const offset_of!(Site, address),
        area = const offset_of!(Site, area),
        mxcsr = const MXCSR,
        sse = const SSE,
        enter = sym enter,
    )
}

/// What the thunk calls, as it does: on every system alike.
extern "C" fn enter(registers: &mut Registers, site: &Site) {
    dispatch(registers, site);
}

/// Where in it the thunk seems to return to.
const RETURNS: usize = 9;
/// Where in it the site's address is.
const SITE: usize = 12;

/// The code of a stub that lies at `at`: everything that is different from one detour to the next.
pub(in crate::typed::mid) fn stub(at: u64, site: u64, thunk: u64) -> [u8; STUB] {
    let [a, b, c, d] = narrow(thunk.wrapping_sub(at).wrapping_sub(RETURNS as u64)).to_le_bytes();
    let [e, f, g, h] = narrow(site).to_le_bytes();
    let mut stub = [0xcc; STUB];
    #[rustfmt::skip]
    let code = [
        0xf3, 0x0f, 0x1e, 0xfb,     // endbr32
        0xe8, a, b, c, d,           // call thunk
        0xcc, 0xcc, 0xcc,           // 9
        e, f, g, h,                 // 12
    ];
    for (byte, code) in stub.iter_mut().zip(code) {
        *byte = code;
    }
    stub
}
