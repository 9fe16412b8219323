//! What the system's unwinder finds from inside a slot, and panics that pass through a detour.

use crate::support::{By, attach, busy_address, drain, function, put, take, with};
use kdetour::plan::Shape;
use kdetour::{AtomicAddress, Attach};
use std::mem::{self, transmute};
use std::panic::catch_unwind;
use std::ptr;
use std::sync::atomic::Ordering;
use windows_sys::Win32::System::Diagnostics::Debug::{
    CONTEXT, RtlLookupFunctionEntry, RtlVirtualUnwind, UNW_FLAG_NHANDLER,
};

#[repr(C, align(16))]
struct Aligned(CONTEXT);

/// One step of the unwinder: instruction pointer, stack pointer and RBP of the caller.
fn step(ip: u64, sp: u64, rbp: u64) -> Option<(u64, u64, u64)> {
    // SAFETY: numbers.
    let mut context: Aligned = unsafe { mem::zeroed() };
    (context.0.Rip, context.0.Rsp, context.0.Rbp) = (ip, sp, rbp);
    let (mut base, mut data, mut frame) = (0, ptr::null_mut(), 0);
    // SAFETY: it looks an address up; the stack that the context names is there.
    unsafe {
        let entry = RtlLookupFunctionEntry(ip, &raw mut base, ptr::null_mut());
        if entry.is_null() {
            return None;
        }
        RtlVirtualUnwind(
            UNW_FLAG_NHANDLER,
            base,
            ip,
            entry,
            &raw mut context.0,
            &raw mut data,
            &raw mut frame,
            ptr::null_mut(),
        );
    }
    Some((context.0.Rip, context.0.Rsp, context.0.Rbp))
}

#[test]
fn the_caller_is_found_from_each_copy() {
    with(|kdetour| {
        let handle = put(kdetour, By::Rendezvous, attach(busy_address(), Some(Shape::Jump5))).unwrap();
        let patch = kdetour.record(handle).unwrap().patch.unwrap();
        let copies: Vec<u64> = patch.boundaries().map(|one| one.address).collect();
        // push rbp / mov rbp, rsp / push rbx
        assert_eq!(copies.len(), 3);
        // What the pushes leave: RBP, the return address, the caller's stack.
        let stack = [0x1111_u64, 0x2222, 0x3333];
        let at = |index: usize| (&raw const stack[index]).addr() as u64;
        assert_eq!(step(copies[0], at(1), 0x1111), Some((0x2222, at(2), 0x1111)));
        assert_eq!(step(copies[1], at(0), 0x1111), Some((0x2222, at(2), 0x1111)));
        assert_eq!(step(copies[2], at(0), at(0)), Some((0x2222, at(2), 0x1111)));
        take(kdetour, By::Rendezvous, handle).unwrap();
        drain(kdetour, handle).unwrap();
        assert_eq!(step(copies[1], at(0), 0x1111), None);
    });
}

core::arch::global_asm!(
    // 56 | 48 89 ce | 57: RSI has another value once it is saved.
    ".p2align 4, 0xcc",
    ".globl kdetour_windows_test_saves",
    ".seh_proc kdetour_windows_test_saves",
    "kdetour_windows_test_saves:",
    "push rsi",
    ".seh_pushreg rsi",
    "mov rsi, rcx",
    "push rdi",
    ".seh_pushreg rdi",
    ".seh_endprologue",
    "mov rdi, rdx",
    "lea rax, [rsi + rdi]",
    "pop rdi",
    "pop rsi",
    "ret",
    ".seh_endproc",
);

unsafe extern "C" {
    fn kdetour_windows_test_saves(one: usize, other: usize) -> usize;
}

/// RSI and RDI are the caller's, too.
#[test]
fn the_callers_rsi_is_found() {
    let target = (kdetour_windows_test_saves as *const ()).addr() as u64;
    with(|kdetour| {
        let handle = put(kdetour, By::Rendezvous, attach(target, Some(Shape::Jump5))).unwrap();
        assert_eq!(function(target)(7, 3), 1010);
        let patch = kdetour.record(handle).unwrap().patch.unwrap();
        let copies: Vec<u64> = patch.boundaries().map(|one| one.address).collect();
        assert_eq!(copies.len(), 3);
        // What the first push leaves.
        let stack = [0x1111_u64, 0x2222, 0x3333];
        let find = |at: u64| {
            // SAFETY: numbers.
            let mut context: Aligned = unsafe { mem::zeroed() };
            (context.0.Rip, context.0.Rsp) = (at, stack.as_ptr().addr() as u64);
            (context.0.Rsi, context.0.Rdi) = (0x9999, 0x8888);
            let (mut base, mut data, mut frame) = (0, ptr::null_mut(), 0);
            // SAFETY: it looks an address up; the stack that the context names is there.
            unsafe {
                let entry = RtlLookupFunctionEntry(at, &raw mut base, ptr::null_mut());
                assert!(!entry.is_null());
                let (to, data, frame) = (&raw mut context.0, &raw mut data, &raw mut frame);
                RtlVirtualUnwind(UNW_FLAG_NHANDLER, base, at, entry, to, data, frame, ptr::null_mut());
            }
            (context.0.Rip, context.0.Rsi, context.0.Rdi)
        };
        // Pushed, and still what it was; then in memory alone.
        assert_eq!(find(copies[1]), (0x2222, 0x9999, 0x8888));
        assert_eq!(find(copies[2]), (0x2222, 0x1111, 0x8888));
        take(kdetour, By::Rendezvous, handle).unwrap();
        drain(kdetour, handle).unwrap();
    });
}

static ORIGINAL: AtomicAddress = AtomicAddress::new(0);

#[inline(never)]
extern "C-unwind" fn panics(number: usize) -> usize {
    assert!(number != 7, "seven");
    number + 1
}

extern "C-unwind" fn passes(number: usize) -> usize {
    // SAFETY: the trampoline of the function above.
    let original =
        unsafe { transmute::<u64, extern "C-unwind" fn(usize) -> usize>(ORIGINAL.load(Ordering::Acquire)) };
    100 + original(number)
}

#[test]
fn a_panic_passes_through_detour_and_target() {
    with(|kdetour| {
        let target = (panics as *const ()).addr() as u64;
        let called = |number| {
            // SAFETY: the function above, by its address.
            let panics = unsafe { transmute::<u64, extern "C-unwind" fn(usize) -> usize>(target) };
            catch_unwind(|| panics(number))
        };
        for by in [By::Local, By::Live, By::Rendezvous] {
            let attach = Attach {
                target,
                detour: (passes as *const ()).addr() as u64,
                cell: Some(&ORIGINAL),
                ..Attach::default()
            };
            let handle = put(kdetour, by, attach).unwrap();
            assert_eq!(called(1).unwrap(), 102);
            assert!(called(7).is_err());
            take(kdetour, by, handle).unwrap();
            assert_eq!(called(1).unwrap(), 2);
            drain(kdetour, handle).unwrap();
        }
        assert_eq!(function(busy_address())(1, 2), 3);
    });
}
