//! Exceptions of 32-bit code: handlers are in a list on the stack, and whoever raises one may be in a slot.

use crate::support::{By, drain, put, take, with};
use kdetour::plan::{Shape, Shapes};
use kdetour::{AtomicAddress, Attach};
use std::arch::global_asm;
use std::ffi::c_void;
use std::mem::transmute;
use std::sync::atomic::{AtomicUsize, Ordering};
use windows_sys::Win32::System::Diagnostics::Debug::{CONTEXT, EXCEPTION_RECORD};

global_asm!(
    // Reads the number at its argument, in ECX (`fastcall`), by its first instruction, which is five bytes long with the next one.
    ".p2align 4, 0xcc",
    ".globl _kdetour_windows_test_read",
    "_kdetour_windows_test_read:",
    "mov eax, [ecx]",
    "add eax, 1",
    "ret",
    // Calls a function with an argument in ECX while a handler is registered; answers 0x51 if that was called.
    ".p2align 4, 0xcc",
    ".globl _kdetour_windows_test_handled",
    "_kdetour_windows_test_handled:",
    "push ebp",
    "mov ebp, esp",
    "push ebx",
    "push esi",
    "push edi",
    "lea eax, [{handler}]",
    "push eax",
    "push dword ptr fs:[0]",
    "mov fs:[0], esp",
    "mov ecx, [ebp + 12]",
    "call dword ptr [ebp + 8]",
    ".globl _kdetour_windows_test_behind",
    "_kdetour_windows_test_behind:",
    "pop dword ptr fs:[0]",
    "add esp, 4",
    "pop edi",
    "pop esi",
    "pop ebx",
    "pop ebp",
    "ret",
    handler = sym handler,
);

unsafe extern "C" {
    static kdetour_windows_test_behind: u8;
    fn kdetour_windows_test_read();
    fn kdetour_windows_test_handled(function: usize, argument: *const u32) -> usize;
}

static RAISED_AT: AtomicUsize = AtomicUsize::new(0);

/// An exception handler as the system calls it: the thread goes on behind the call that was made under it, its stack as it was there.
unsafe extern "C" fn handler(
    record: *mut EXCEPTION_RECORD,
    frame: *mut c_void,
    context: *mut CONTEXT,
    _: *mut c_void,
) -> i32 {
    const CONTINUE_EXECUTION: i32 = 0;
    const CONTINUE_SEARCH: i32 = 1;
    const ACCESS_VIOLATION: i32 = 0xc000_0005_u32.cast_signed();
    // SAFETY: the system's.
    let (record, context) = unsafe { (&*record, &mut *context) };
    if record.ExceptionCode != ACCESS_VIOLATION {
        return CONTINUE_SEARCH;
    }
    RAISED_AT.store(context.Eip as usize, Ordering::SeqCst);
    context.Eip = (&raw const kdetour_windows_test_behind).addr() as u32;
    context.Esp = frame.addr() as u32;
    context.Eax = 0x51;
    CONTINUE_EXECUTION
}

static ORIGINAL: AtomicAddress = AtomicAddress::new(0);

extern "fastcall" fn passes(number: *const u32) -> usize {
    let original = usize::try_from(ORIGINAL.load(Ordering::Acquire)).unwrap();
    // SAFETY: the trampoline of the function above, which is of this type.
    let original = unsafe { transmute::<usize, extern "fastcall" fn(*const u32) -> usize>(original) };
    original(number)
}

#[test]
fn a_fault_in_a_slot_comes_to_the_callers_handler() {
    with(|kdetour| {
        let target = (kdetour_windows_test_read as *const ()).addr();
        let call = |number: *const u32| {
            RAISED_AT.store(0, Ordering::SeqCst);
            // SAFETY: the function above, with a number or nothing.
            unsafe { kdetour_windows_test_handled(target, number) }
        };
        assert_eq!((call(&41), RAISED_AT.load(Ordering::SeqCst)), (42, 0));
        assert_eq!((call(std::ptr::null()), RAISED_AT.load(Ordering::SeqCst)), (0x51, target));
        for by in [By::Local, By::Live, By::Rendezvous] {
            let attach = Attach {
                target: target as u64,
                detour: (passes as *const ()).addr() as u64,
                cell: Some(&ORIGINAL),
                shapes: Some(Shapes::only(Shape::Jump5)),
                ..Attach::default()
            };
            let handle = put(kdetour, by, attach).unwrap();
            let slot = kdetour.record(handle).unwrap().slot;
            assert_eq!(call(&41), 42);
            assert_eq!(call(std::ptr::null()), 0x51);
            let raised = RAISED_AT.load(Ordering::SeqCst) as u64;
            assert!(
                (slot.address..slot.address + slot.len as u64).contains(&raised),
                "{raised:#x} {slot:x?}"
            );
            take(kdetour, by, handle).unwrap();
            drain(kdetour, handle).unwrap();
        }
    });
}
