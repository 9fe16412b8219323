//! A thread that has met a breakpoint, and comes to kdetour's handler when the detour is gone: somebody else's handler has held it up.

use crate::support::{By, attach, drain, function, put, take, targets, text, with};
use kdetour::{Attach, Method};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use windows_sys::Win32::System::Diagnostics::Debug::{
    AddVectoredExceptionHandler, EXCEPTION_POINTERS, RemoveVectoredExceptionHandler,
};

/// `STATUS_BREAKPOINT`.
const BREAKPOINT: i32 = 0x8000_0003_u32.cast_signed();

static TARGET: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicBool = AtomicBool::new(false);
static MAY_GO: AtomicBool = AtomicBool::new(false);

/// Holds up who has met the breakpoint, and leaves the answer to others.
unsafe extern "system" fn hold(pointers: *mut EXCEPTION_POINTERS) -> i32 {
    // SAFETY: the system's, for as long as the handler runs.
    let record = unsafe { &*(*pointers).ExceptionRecord };
    let at = record.ExceptionAddress.addr() as u64;
    if record.ExceptionCode == BREAKPOINT && at == TARGET.load(Ordering::SeqCst) {
        HELD.store(true, Ordering::SeqCst);
        while !MAY_GO.load(Ordering::SeqCst) {
            thread::yield_now();
        }
    }
    0
}

#[test]
fn who_was_held_up_goes_on_at_the_target() {
    with(|kdetour| {
        let target = targets()[0];
        let before = text(kdetour, target);
        let breakpoint = Attach { method: Method::Breakpoint, ..attach(target, None) };
        let handle = put(kdetour, By::Live, breakpoint).unwrap();
        TARGET.store(target, Ordering::SeqCst);
        // SAFETY: the handler stays, and is taken off below. It is in front of kdetour's now.
        let front = unsafe { AddVectoredExceptionHandler(1, Some(hold)) };
        let late = thread::spawn(move || function(target)(7, 3));
        while !HELD.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        take(kdetour, By::Live, handle).unwrap();
        drain(kdetour, handle).unwrap();
        assert_eq!(text(kdetour, target), before);
        MAY_GO.store(true, Ordering::SeqCst);
        assert_eq!(late.join().unwrap(), 10);
        // SAFETY: it was added above; nobody is in it.
        unsafe { RemoveVectoredExceptionHandler(front) };
    });
}
