//! Registers for floating-point numbers are what they were, whatever a thread comes by: a breakpoint, or a page that is being written.

use crate::support::{By, attach, busy_address, drain, put, take, text, with};
use kdetour::host::{Host, Span, Text};
use kdetour::{Attach, Method};
use std::arch::{global_asm, is_x86_feature_detected};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// What FXSAVE stores (Intel SDM volume 2, "FXSAVE"), and the upper halves of YMM0 and YMM1.
#[repr(C, align(64))]
#[derive(Clone)]
struct Registers {
    saved: [u8; 512],
    upper: [u128; 2],
    has_upper: usize,
}

/// XMM registers.
const COUNT: usize = if cfg!(target_arch = "x86_64") { 16 } else { 8 };

// The detour: it changes none of them. And a call with these registers, which gives back those that are found behind it; it keeps those that a
// function has to.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl kdetour_windows_test_constant",
    "kdetour_windows_test_constant:",
    "mov eax, 77",
    "ret",
    // RCX: the target, RDX: the registers.
    ".globl kdetour_windows_test_call",
    ".seh_proc kdetour_windows_test_call",
    "kdetour_windows_test_call:",
    "push rbx",
    ".seh_pushreg rbx",
    "sub rsp, 0x230",
    ".seh_stackalloc 0x230",
    ".seh_endprologue",
    "mov rbx, rdx",
    "fxsave64 [rsp + 0x20]",
    "cmp qword ptr [rbx + 544], 0",
    "je 2f",
    "vinsertf128 ymm0, ymm0, [rbx + 512], 1",
    "vinsertf128 ymm1, ymm1, [rbx + 528], 1",
    "2:",
    "fxrstor64 [rbx]",
    "call rcx",
    "fxsave64 [rbx]",
    "cmp qword ptr [rbx + 544], 0",
    "je 3f",
    "vextractf128 [rbx + 512], ymm0, 1",
    "vextractf128 [rbx + 528], ymm1, 1",
    "vzeroupper",
    "3:",
    "fxrstor64 [rsp + 0x20]",
    "add rsp, 0x230",
    "pop rbx",
    "ret",
    ".seh_endproc",
);
#[cfg(target_arch = "x86")]
global_asm!(
    ".globl _kdetour_windows_test_constant",
    "_kdetour_windows_test_constant:",
    ".cfi_startproc",
    "mov eax, 77",
    "ret",
    ".cfi_endproc",
    ".globl _kdetour_windows_test_call",
    "_kdetour_windows_test_call:",
    "push ebp",
    "mov ebp, esp",
    "push ebx",
    "sub esp, 0x220",
    "and esp, -16",
    "mov ebx, [ebp + 12]",
    "fxsave [esp + 16]",
    "cmp dword ptr [ebx + 544], 0",
    "je 2f",
    "vinsertf128 ymm0, ymm0, [ebx + 512], 1",
    "vinsertf128 ymm1, ymm1, [ebx + 528], 1",
    "2:",
    "fxrstor [ebx]",
    "call dword ptr [ebp + 8]",
    "fxsave [ebx]",
    "cmp dword ptr [ebx + 544], 0",
    "je 3f",
    "vextractf128 [ebx + 512], ymm0, 1",
    "vextractf128 [ebx + 528], ymm1, 1",
    "vzeroupper",
    "3:",
    "fxrstor [esp + 16]",
    "mov ebx, [ebp - 4]",
    "mov esp, ebp",
    "pop ebp",
    "ret",
);

unsafe extern "C" {
    fn kdetour_windows_test_constant(one: usize, other: usize) -> usize;
    fn kdetour_windows_test_call(target: usize, registers: *mut Registers) -> usize;
}

impl Registers {
    /// Some that no compiler's code would have: three numbers on the stack of the x87 FPU, other rounding, other exceptions masked.
    fn new() -> Self {
        let mut saved = [0; 512];
        // FCW: rounds up, 53 bits, none unmasked; FSW: TOP is 5; the abridged tags: registers 5 to 7 are in use.
        saved[0..2].copy_from_slice(&0x0a7f_u16.to_le_bytes());
        saved[2..4].copy_from_slice(&(5_u16 << 11).to_le_bytes());
        saved[4] = 0b1110_0000;
        // MXCSR: rounds down, flushes to zero, all masked.
        saved[24..28].copy_from_slice(&(0x1f80_u32 | 1 << 13 | 1 << 15).to_le_bytes());
        for number in 0..3 {
            let at = 32 + 16 * number;
            // 1.something times a power of two.
            saved[at..at + 8].copy_from_slice(&(0x8000_0000_0000_1234_u64 + number as u64).to_le_bytes());
            saved[at + 8..at + 10].copy_from_slice(&(0x3fff_u16 + number as u16).to_le_bytes());
        }
        for (byte, value) in saved[160..160 + 16 * COUNT].iter_mut().zip((1..=255).cycle()) {
            *byte = value;
        }
        let has_upper = usize::from(is_x86_feature_detected!("avx"));
        Self { saved, upper: [u128::MAX / 3, u128::MAX / 5], has_upper }
    }

    /// Calls a function with these: what it answers, and the registers behind the call.
    fn call(&self, target: u64) -> (usize, Self) {
        let mut registers = self.clone();
        // SAFETY: a function without arguments that changes no such register, or whose two arguments it may read from wherever they would be.
        let answer =
            unsafe { kdetour_windows_test_call(usize::try_from(target).unwrap(), &raw mut registers) };
        (answer, registers)
    }

    /// All but where the last instruction of the x87 FPU was, of which there is none.
    fn assert_same(&self, other: &Self) {
        assert_eq!(self.saved[..5], other.saved[..5], "x87 state");
        assert_eq!(self.saved[24..28], other.saved[24..28], "MXCSR");
        assert_eq!(self.saved[32..80], other.saved[32..80], "x87 registers");
        assert_eq!(self.saved[160..160 + 16 * COUNT], other.saved[160..160 + 16 * COUNT], "XMM registers");
        if self.has_upper != 0 {
            assert_eq!(self.upper, other.upper, "upper halves of YMM registers");
        }
    }
}

#[test]
fn a_breakpoint_changes_none() {
    with(|kdetour| {
        let registers = Registers::new();
        let (target, detour) = (busy_address(), (kdetour_windows_test_constant as *const ()).addr() as u64);
        let (answer, plain) = registers.call(detour);
        assert_eq!(answer, 77);
        registers.assert_same(&plain);
        let attach = Attach { detour, method: Method::Breakpoint, ..attach(target, None) };
        let handle = put(kdetour, By::Live, attach).unwrap();
        assert_eq!(text(kdetour, target)[0], 0xcc);
        for _ in 0..100 {
            let (answer, behind) = registers.call(target);
            assert_eq!(answer, 77);
            registers.assert_same(&behind);
        }
        take(kdetour, By::Live, handle).unwrap();
        drain(kdetour, handle).unwrap();
    });
}

#[test]
fn who_waits_for_a_page_keeps_his() {
    with(|kdetour| {
        let registers = Registers::new();
        let target = (kdetour_windows_test_constant as *const ()).addr() as u64;
        let byte = text(kdetour, target);
        let mut open = kdetour.host().open_text(&[Span { address: target, len: 1 }]).unwrap();
        let (done, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let (answer, behind) = registers.call(target);
                        assert_eq!(answer, 77);
                        registers.assert_same(&behind);
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let mut writes = 0;
            while writes < 20_000 || calls.load(Ordering::Relaxed) < 1000 {
                open.write(target, &byte[..1]).unwrap();
                writes += 1;
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}
