//! From an instruction of the function to a function of ours, and back, with every register kept.
//!
//! ```text
//!   target:   jmp stub                   stub, one for each detour:  lea rsp, [rsp - 128]     over the red zone
//!             ...                                                    call [rip + thunk]
//!   thunk:    push flags and general registers; XSAVE everything else; dispatch(&mut Registers, &Site)
//!             XRSTOR; pop them; ret 128  ------>  the return address has become where the function goes on
//! ```
//!
//! `ret 128` takes the address from below the red zone and gives the function its stack pointer back, without a
//! register. The return predictor is wrong about it, but not about the returns that follow.
//!
//! From the call until the address of where the function goes on is in its place, an address inside the stub is on the
//! stack: whoever looks for threads that are still inside finds it.
//!
//! What is saved is what the operating system has switched on (XCR0), all of it: vector registers of any width, x87,
//! protection keys, tiles. The callee finds what a Rust function relies on: the direction flag clear, an empty x87
//! stack, the default rounding and masks.

use super::registers::Registers;
use crate::host::process::{STUB, arch::RED_ZONE};
use crate::typed::mid::site::Site;
use crate::typed::mid::state::{MXCSR, SSE, dispatch};
use core::arch::naked_asm;
use core::mem::offset_of;

/// What the stubs call. Above the return address, behind which the stub has the address of its [`Site`], is the red zone.
#[unsafe(naked)]
pub(in crate::typed::mid) unsafe extern "C" fn thunk() {
    naked_asm!(
        "pushfq",
        "push r15",
        "push r14",
        "push r13",
        "push r12",
        "push r11",
        "push r10",
        "push r9",
        "push r8",
        "push rdi",
        "push rsi",
        "push rbp",
        "push rax", // in place of rsp
        "push rbx",
        "push rdx",
        "push rcx",
        "push rax",
        "push rax", // in place of the area's address
        "lea rax, [rsp + {rip} + 8 + {red_zone}]",
        "mov [rsp + {rsp}], rax",
        "mov rbx, rsp",
        "mov r12, [rbx + {rip}]",
        "push r12",
        "mov r12, [r12 + {site}]",
        "mov rax, [r12 + {address}]",
        "mov [rbx + {rip}], rax",
        "cld",
        // The area may be larger than the guard page below the stack: every page is touched.
        "mov rax, [r12 + {area}]",
        "2:",
        "cmp rax, 4096",
        "jb 3f",
        "sub rsp, 4096",
        "or qword ptr [rsp], 0",
        "sub rax, 4096",
        "jmp 2b",
        "3:",
        "sub rsp, rax",
        "and rsp, -64",
        "mov [rbx + {state}], rsp",
        // XRSTOR refuses a header with anything else in it than what XSAVE writes.
        "xor eax, eax",
        "mov [rsp + 512], rax",
        "mov [rsp + 520], rax",
        "mov [rsp + 528], rax",
        "mov [rsp + 536], rax",
        "mov [rsp + 544], rax",
        "mov [rsp + 552], rax",
        "mov [rsp + 560], rax",
        "mov [rsp + 568], rax",
        "mov eax, -1",
        "mov edx, -1",
        "xsave64 [rsp]",
        "fninit",
        "push {mxcsr}",
        "ldmxcsr [rsp]",
        "add rsp, 8",
        "mov rdi, rbx",
        "mov rsi, r12",
        "call {enter}",
        "or qword ptr [rsp + 512], {sse}",
        "mov eax, -1",
        "mov edx, -1",
        "xrstor64 [rsp]",
        "lea rsp, [rbx + 8]",
        "pop rax",
        "pop rcx",
        "pop rdx",
        "pop rbx",
        "lea rsp, [rsp + 8]",
        "pop rbp",
        "pop rsi",
        "pop rdi",
        "pop r8",
        "pop r9",
        "pop r10",
        "pop r11",
        "pop r12",
        "pop r13",
        "pop r14",
        "pop r15",
        "popfq",
        "ret {red_zone}",
        rip = const offset_of!(Registers, rip),
        rsp = const offset_of!(Registers, rsp),
        state = const offset_of!(Registers, state),
        site = const SITE - RETURNS,
        address = const offset_of!(Site, address),
        area = const offset_of!(Site, area),
        red_zone = const RED_ZONE,
        mxcsr = const MXCSR,
        sse = const SSE,
        enter = sym enter,
    )
}

/// What the thunk calls, as it does: on every system alike.
extern "sysv64" fn enter(registers: &mut Registers, site: &Site) {
    dispatch(registers, site);
}

/// Where in it the thunk seems to return to.
const RETURNS: usize = 15;
/// Where in it the site's address is, and then the thunk's.
const SITE: usize = 16;

/// The code of a stub, wherever it lies: everything that is different from one detour to the next.
pub(in crate::typed::mid) fn stub(_at: u64, site: u64, thunk: u64) -> [u8; STUB] {
    #[rustfmt::skip]
    let mut stub = [
        0xf3, 0x0f, 0x1e, 0xfa,             // endbr64
        0x48, 0x8d, 0x64, 0x24, 0x80,       // lea rsp, [rsp - 128]
        0xff, 0x15, 0x09, 0, 0, 0,          // call qword ptr [rip + 9]
        0xcc,                               // 15
        0, 0, 0, 0, 0, 0, 0, 0,             // 16
        0, 0, 0, 0, 0, 0, 0, 0,             // 24
    ];
    let values = site.to_le_bytes().into_iter().chain(thunk.to_le_bytes());
    for (byte, value) in stub.iter_mut().skip(SITE).zip(values) {
        *byte = value;
    }
    stub
}
