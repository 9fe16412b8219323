//! Whose turn it is: one thread at a time works with the driver's detours.
//!
//! A thread that waits for its turn sleeps between looks: so neither is anything of NT's own laid out here, nor is a lock held that a
//! patched function could take. The thread whose turn it is cannot be suspended, and is told if it comes again: from inside a detour of a
//! function that kdetour itself calls.

use super::Running;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};
use kdetour::Error;
use kdetour::Kdetour;
use kdetour::host::windows_kernel::{Ntoskrnl, WindowsKernel};
use kdetour_nt::slots;

/// How long a thread sleeps between two looks: from now on, in units of 100 ns.
static LOOK: i64 = -10_000;

// As wdm.h declares them; up to `APC_LEVEL`, the last at any IRQL up to `DISPATCH_LEVEL`.
unsafe extern "system" {
    fn KeEnterCriticalRegion();
    fn KeLeaveCriticalRegion();
    fn KeGetCurrentThread() -> usize;
    fn KeDelayExecutionThread(mode: i8, alertable: u8, interval: *const i64) -> i32;
}

/// The detours of this driver, once there are any.
struct Shared {
    /// The thread whose turn it is, 0 for none.
    owner: AtomicUsize,
    running: UnsafeCell<Option<Running>>,
}

// SAFETY: `running` is reached through a `Turn` alone, of which there is one at a time.
unsafe impl Sync for Shared {}

static SHARED: Shared = Shared { owner: AtomicUsize::new(0), running: UnsafeCell::new(None) };

/// It is this thread's turn, until this is dropped.
pub(super) struct Turn(());

impl Turn {
    /// Waits for it. `PASSIVE_LEVEL`.
    pub(super) fn take() -> Result<Self, Error> {
        // SAFETY: callable at `PASSIVE_LEVEL`.
        let me = unsafe { KeGetCurrentThread() };
        loop {
            // SAFETY: as above; it is left in `drop`, or below.
            unsafe { KeEnterCriticalRegion() };
            match SHARED.owner.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(Self(())),
                Err(owner) => {
                    // SAFETY: it was entered above.
                    unsafe { KeLeaveCriticalRegion() };
                    if owner == me {
                        return Err(Error::Inside);
                    }
                    sleep();
                }
            }
        }
    }

    /// The detours; from the first call on there are some.
    #[expect(clippy::mut_from_ref, reason = "each call has one turn, and asks for them once")]
    pub(super) fn running(&self) -> Result<&mut Running, Error> {
        // SAFETY: there is one turn at a time, and nobody who has it asks twice while he uses what he was given.
        let running = unsafe { &mut *SHARED.running.get() };
        match running {
            Some(running) => Ok(running),
            None => begin(running),
        }
    }

    /// The same, if there are any.
    #[expect(clippy::mut_from_ref, reason = "as above")]
    pub(super) fn running_already(&self) -> Option<&mut Running> {
        // SAFETY: as above.
        unsafe { &mut *SHARED.running.get() }.as_mut()
    }

    /// There are none any more.
    pub(super) fn end(self) {
        // SAFETY: as above. Where they are: taken out, they would have room on the stack.
        unsafe { *SHARED.running.get() = None };
    }
}

/// The first call. It is over, with what it has on the stack, before anything is planned.
#[cold]
#[inline(never)]
fn begin(running: &mut Option<Running>) -> Result<&mut Running, Error> {
    // SAFETY: this is part of a driver.
    let nt = unsafe { Ntoskrnl::new() }?;
    Ok(running.insert(Kdetour::new(WindowsKernel::new(nt, slots())?)))
}

impl Drop for Turn {
    fn drop(&mut self) {
        SHARED.owner.store(0, Ordering::Release);
        // SAFETY: `take` has entered it, in this thread.
        unsafe { KeLeaveCriticalRegion() };
    }
}

/// Sleeps for a millisecond. `PASSIVE_LEVEL`.
pub(super) fn sleep() {
    // SAFETY: called where sleeping is allowed; 0 is `KernelMode`.
    unsafe { KeDelayExecutionThread(0, 0, &raw const LOOK) };
}
