//! A thread that provably stands on an interior boundary while the window is written.

use crate::support::{By, attach, busy_address, drain, function, put, take, text, with};
use kdetour::Error;
use kdetour::plan::Shape;
use std::mem;
use std::os::windows::io::AsRawHandle;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::System::Diagnostics::Debug::{CONTEXT, GetThreadContext, SetThreadContext};
use windows_sys::Win32::System::Threading::{ResumeThread, SuspendThread};

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    // Waits as long as the number at RCX is 0.
    ".globl kdetour_windows_test_wait",
    "kdetour_windows_test_wait:",
    "2:",
    "pause",
    "cmp dword ptr [rcx], 0",
    "je 2b",
    "mov eax, 0",
    "ret",
);
#[cfg(target_arch = "x86")]
core::arch::global_asm!(
    ".globl _kdetour_windows_test_wait",
    "_kdetour_windows_test_wait:",
    "mov ecx, [esp + 4]",
    "2:",
    "pause",
    "cmp dword ptr [ecx], 0",
    "je 2b",
    "mov eax, 0",
    "ret",
);

unsafe extern "C" {
    fn kdetour_windows_test_wait(flag: *const u32, other: usize) -> usize;
}

#[repr(C, align(16))]
struct Aligned(CONTEXT);

/// `CONTEXT_CONTROL | CONTEXT_INTEGER`.
const REGISTERS: u32 = if cfg!(target_arch = "x86_64") { 0x10_0003 } else { 0x1_0003 };

/// A thread that is suspended.
struct Parked {
    thread: JoinHandle<usize>,
}

fn context(thread: HANDLE) -> Aligned {
    // SAFETY: numbers.
    let mut context: Aligned = unsafe { mem::zeroed() };
    context.0.ContextFlags = REGISTERS;
    // SAFETY: a handle of a thread of ours, and an aligned structure.
    assert_ne!(unsafe { GetThreadContext(thread, &raw mut context.0) }, 0);
    context
}

impl Parked {
    /// In the function `busy(7, 3)`, behind its `push` at the entry.
    fn behind_the_push() -> Self {
        static FLAG: AtomicU32 = AtomicU32::new(0);
        let begun: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(0)));
        let thread = thread::spawn(move || {
            begun.store(1, Ordering::SeqCst);
            // SAFETY: it reads the flag, which stays 0: the thread leaves by another function.
            unsafe { kdetour_windows_test_wait(FLAG.as_ptr(), 3) }
        });
        let handle: HANDLE = thread.as_raw_handle().cast();
        let wait = (kdetour_windows_test_wait as *const ()).addr();
        loop {
            if begun.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
                continue;
            }
            // SAFETY: a thread of ours.
            assert_ne!(unsafe { SuspendThread(handle) }, u32::MAX);
            let mut found = context(handle);
            // In its loop, behind the first instruction in front of it.
            if (wait..wait + 16).contains(&ip(&found.0)) && ip(&found.0) > wait {
                enter(&mut found.0);
                // SAFETY: it goes on inside `busy`, as if it had been called instead.
                assert_ne!(unsafe { SetThreadContext(handle, &raw const found.0) }, 0);
                return Self { thread };
            }
            // SAFETY: as above.
            unsafe { ResumeThread(handle) };
            thread::yield_now();
        }
    }

    fn ip(&self) -> u64 {
        ip(&context(self.thread.as_raw_handle().cast()).0) as u64
    }

    /// What the function answers to it.
    fn go_on(self) -> usize {
        // SAFETY: a thread of ours, which was suspended once.
        assert_eq!(unsafe { ResumeThread(self.thread.as_raw_handle().cast()) }, 1);
        self.thread.join().unwrap()
    }
}

#[cfg(target_arch = "x86_64")]
fn ip(context: &CONTEXT) -> usize {
    usize::try_from(context.Rip).unwrap()
}

#[cfg(target_arch = "x86")]
fn ip(context: &CONTEXT) -> usize {
    usize::try_from(context.Eip).unwrap()
}

/// As if the function had been called with 7 and 3, and had executed its `push`.
#[cfg(target_arch = "x86_64")]
fn enter(context: &mut CONTEXT) {
    context.Rsp -= 8;
    let top = std::ptr::with_exposed_provenance_mut::<u64>(usize::try_from(context.Rsp).unwrap());
    // SAFETY: below the stack pointer of a thread that is suspended.
    unsafe { top.write(context.Rbp) };
    (context.Rcx, context.Rdx) = (7, 3);
    context.Rip = busy_address() + 1;
}

#[cfg(target_arch = "x86")]
fn enter(context: &mut CONTEXT) {
    let top = |at: u32| std::ptr::with_exposed_provenance_mut::<u32>(usize::try_from(at).unwrap());
    // SAFETY: below the stack pointer of a thread that is suspended, and its arguments.
    unsafe {
        top(context.Esp - 4).write(context.Ebp);
        top(context.Esp + 4).write(7);
        top(context.Esp + 8).write(3);
    }
    context.Esp -= 4;
    context.Eip = u32::try_from(busy_address() + 1).unwrap();
}

/// The patch comes while the thread stands there, and it goes on as if nothing had happened.
fn survives(by: By, shape: Shape, is_moved: bool) {
    with(|kdetour| {
        let target = busy_address();
        let before = text(kdetour, target);
        let parked = Parked::behind_the_push();
        let handle = put(kdetour, by, attach(target, Some(shape))).unwrap();
        assert_eq!(kdetour.record(handle).unwrap().patch.unwrap().shape(), shape);
        assert_eq!(parked.ip() != target + 1, is_moved);
        assert_eq!(function(target)(7, 3), 1010);
        assert_eq!(parked.go_on(), 10);
        take(kdetour, by, handle).unwrap();
        drain(kdetour, handle).unwrap();
        assert_eq!(text(kdetour, target), before);
    });
}

#[test]
fn bytes_that_are_kept_are_run_through() {
    survives(By::Live, Shape::Jump5Kept, false);
    survives(By::Exchange, Shape::Jump5Kept, false);
}

#[test]
fn bytes_that_trap_lead_to_the_copy() {
    survives(By::Live, Shape::Jump5Trapped, false);
    survives(By::Exchange, Shape::Jump5Trapped, false);
}

#[test]
fn a_rendezvous_moves_it() {
    survives(By::Rendezvous, Shape::Jump5, true);
}

#[test]
fn a_live_jump_waits_for_it_and_gives_up() {
    with(|kdetour| {
        let target = busy_address();
        let before = text(kdetour, target);
        let parked = Parked::behind_the_push();
        let failed = put(kdetour, By::Live, attach(target, Some(Shape::Jump5))).unwrap_err();
        assert_eq!(failed.error, Error::ThreadInWindow { address: target + 1 });
        assert_eq!(text(kdetour, target), before);
        assert_eq!(parked.ip(), target + 1);
        assert_eq!(parked.go_on(), 10);
        assert_eq!(function(target)(7, 3), 10);
        let left: Vec<_> = kdetour.records().map(|record| record.handle).collect();
        for handle in left {
            drain(kdetour, handle).unwrap();
        }
    });
}

/// Who sleeps inside a trampoline is waited for.
#[test]
fn a_drain_waits_for_one_in_the_slot() {
    with(|kdetour| {
        let target = busy_address();
        let parked = Parked::behind_the_push();
        let handle = put(kdetour, By::Rendezvous, attach(target, Some(Shape::Jump5))).unwrap();
        take(kdetour, By::Rendezvous, handle).unwrap();
        let soon = std::time::Instant::now() + std::time::Duration::from_millis(50);
        assert_eq!(kdetour.drain(&[handle], soon), Err(Error::Busy { calls: 1 }));
        assert_eq!(parked.go_on(), 10);
        drain(kdetour, handle).unwrap();
    });
}
