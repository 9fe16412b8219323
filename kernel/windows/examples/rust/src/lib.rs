//! hello: a driver that detours a function of its own and an exported function of the kernel, counts their calls, and lets them be as they
//! were. What it does it tells by `DbgPrint`, each line behind `KD: `. `hello.c` does the same in C.
//!
//! It may be a demand-start, a system or a boot driver: its `DriverEntry` needs neither the registry nor the paging file.
#![no_std]

extern crate alloc;

mod log;
mod nt;

use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::transmute;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use kdetour::commit::Preempted;
use kdetour::host::windows_kernel::{By, Ntoskrnl, WindowsKernel};
use kdetour::{AtomicAddress, Attach, Error, Handle, Kdetour, SessionError};
use kdetour_nt::{slots, status};
use log::{tell, told};

/// How long a drain may take before it is told that calls are inside.
const PATIENCE: Duration = Duration::from_secs(1);

type Price = unsafe extern "system" fn(u32) -> u32;
type Increment = unsafe extern "system" fn() -> u32;

/// Three times a number; a function of one's own. Its first instruction has five bytes: no thread can stand inside the jump that replaces it.
#[unsafe(naked)]
unsafe extern "system" fn price(of: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    core::arch::naked_asm!("mov eax, 3", "imul eax, ecx", "ret");
    #[cfg(target_arch = "x86")]
    core::arch::naked_asm!("mov eax, 3", "imul eax, dword ptr [esp + 4]", "ret 4");
}

static CALLS: AtomicU32 = AtomicU32::new(0);
/// Calls that are inside the detours: what a drain waits for.
static INSIDE: AtomicU32 = AtomicU32::new(0);
static PRICE: AtomicAddress = AtomicAddress::new(0);
static INCREMENT: AtomicAddress = AtomicAddress::new(0);

/// Counts a call as long as it is inside.
struct Inside;

impl Inside {
    fn enter() -> Self {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        CALLS.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Twice as much.
unsafe extern "system" fn twice(of: u32) -> u32 {
    let _inside = Inside::enter();
    // SAFETY: the session has put a function of this type there before the first call came.
    let original = unsafe { transmute::<usize, Price>(PRICE.load(Ordering::Acquire) as usize) };
    // SAFETY: as `price` it may be called with any number.
    2 * unsafe { original(of) }
}

unsafe extern "system" fn increment() -> u32 {
    let _inside = Inside::enter();
    // SAFETY: as above.
    let original = unsafe { transmute::<usize, Increment>(INCREMENT.load(Ordering::Acquire) as usize) };
    // SAFETY: the kernel's function may be called at any level.
    unsafe { original() }
}

/// The driver's detours.
struct Detours {
    kdetour: Kdetour<WindowsKernel<Ntoskrnl>>,
    attached: Vec<Handle>,
}

/// Where they are kept between `DriverEntry` and `unload`, which NT never runs at the same time.
struct Kept(UnsafeCell<Option<Detours>>);

// SAFETY: see there.
unsafe impl Sync for Kept {}

static KEPT: Kept = Kept(UnsafeCell::new(None));

fn price_of(of: u32) -> u32 {
    // By a pointer, so that it is not worked out when this is compiled.
    let called: Price = core::hint::black_box(price);
    // SAFETY: it may be called with any number.
    unsafe { called(of) }
}

/// What `price(7)` is now, and then how many calls have come by.
fn tell_price() {
    let now = price_of(7);
    tell(format_args!("price(7) is {now}, {} calls came by", CALLS.load(Ordering::Relaxed)));
}

fn address(of: *const c_void) -> u64 {
    of.addr() as u64
}

impl Detours {
    fn new() -> Result<Self, Error> {
        // SAFETY: this is part of a driver.
        let nt = unsafe { Ntoskrnl::new() }?;
        Ok(Self { kdetour: Kdetour::new(WindowsKernel::new(nt, slots())?), attached: Vec::new() })
    }

    #[inline(never)]
    fn attach(&mut self, one: Attach, by: By, accepted: Option<&Preempted>) -> Result<Handle, SessionError> {
        // SAFETY: each detour here is a function of its target's type, and stays until `unload` has drained it.
        let session = unsafe { self.kdetour.session().attach(one) };
        let handles = session.commit_parked(by, accepted, &mut |_, _| ())?;
        self.attached.extend(&handles);
        handles.first().copied().ok_or(SessionError { index: 0, error: Error::NotAttached })
    }

    /// Detaches, and waits until nobody is inside.
    #[inline(never)]
    fn detach(&mut self, handles: &[Handle], by: By) -> Result<(), SessionError> {
        let session = handles.iter().fold(self.kdetour.session(), |session, &one| session.detach(one));
        session.commit_parked(by, None, &mut |_, _| ())?;
        self.attached.retain(|one| !handles.contains(one));
        self.drain(handles).map_err(|error| SessionError { index: 0, error })
    }

    fn drain(&mut self, handles: &[Handle]) -> Result<(), Error> {
        loop {
            match self.kdetour.drain(handles, PATIENCE) {
                Err(Error::Busy { calls }) => tell(format_args!("{calls} calls are inside")),
                other => return other,
            }
        }
    }

    #[inline(never)]
    fn start(&mut self) -> Result<(), SessionError> {
        let own = Attach {
            target: address(price as *const c_void),
            detour: address(twice as *const c_void),
            cell: Some(&PRICE),
            in_flight: address((&raw const INSIDE).cast()),
            ..Attach::default()
        };
        let attached = told("attach price", self.attach(own, By::Dpc, None))?;
        tell_price();

        // On x64 a kernel that guards itself (PatchGuard) has this refused, by name, and the driver goes on with its own function.
        let function = nt::find("KeQueryTimeIncrement");
        let kernels = Attach {
            target: address(function),
            detour: address(increment as *const c_void),
            cell: Some(&INCREMENT),
            in_flight: address((&raw const INSIDE).cast()),
            ..Attach::default()
        };
        let before = nt::time_increment();
        let _ = told("attach KeQueryTimeIncrement", self.attach(kernels, By::Ipi, None));
        let same = if nt::time_increment() == before { "yes" } else { "no" };
        tell(format_args!("the clock is as it was: {same}"));

        told("detach price", self.detach(&[attached], By::Dpc))?;
        tell_price();
        // SAFETY: as when it was attached first; it was drained since, so its places are told anew.
        let placed = unsafe { self.kdetour.set_places(attached, own.in_flight, own.cell) };
        placed.map_err(|error| SessionError { index: 0, error })?;
        // SAFETY: as above.
        let session = unsafe { self.kdetour.session().reattach(attached, 0) };
        let again = told("attach price again", session.commit_parked(By::Ipi, None, &mut |_, _| ()))?;
        self.attached.extend(again);
        tell_price();
        Ok(())
    }

    fn stop(&mut self) -> Result<(), SessionError> {
        let attached = self.attached.clone();
        self.detach(&attached, By::Ipi)?;
        self.kdetour.empty_caves().map_err(|error| SessionError { index: 0, error })
    }
}

/// What is kept, if there is something.
fn kept() -> Option<&'static mut Detours> {
    // SAFETY: nobody else has it: see `Kept`. Who calls this has done with what he was given before.
    unsafe { (*KEPT.0.get()).as_mut() }
}

// A kernel's stack is small, so what takes much of it is done in functions of its own, which have returned when the next is called.
#[inline(never)]
fn make() -> Result<(), Error> {
    let detours = Detours::new()?;
    // SAFETY: nobody else has it: see `Kept`.
    unsafe { *KEPT.0.get() = Some(detours) };
    Ok(())
}

/// `DRIVER_INITIALIZE`. `PASSIVE_LEVEL`.
///
/// # Safety
/// NT calls it.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn DriverEntry(driver: *mut nt::DriverObject, _path: *const c_void) -> i32 {
    // SAFETY: NT gives the driver's own object, which nobody else has yet.
    unsafe { (*driver).unload = Some(unload) };
    tell_price();
    let started = make().map_err(|error| SessionError { index: 0, error }).and_then(|()| match kept() {
        Some(detours) => detours.start(),
        None => Ok(()),
    });
    match started {
        Ok(()) => 0,
        Err(failure) => {
            stop();
            status(&failure.error)
        }
    }
}

/// `DRIVER_UNLOAD`. `PASSIVE_LEVEL`.
unsafe extern "system" fn unload(_: *mut nt::DriverObject) {
    stop();
    tell_price();
}

/// Nobody may be left in code that is about to go.
#[inline(never)]
fn stop() {
    if let Some(detours) = kept() {
        // A driver cannot refuse to go: what fails, since somebody else has written over a detour, say, is tried again until it does not.
        while told("unload", detours.stop()).is_err() {
            nt::sleep();
        }
    }
    // SAFETY: nobody else has it: see `Kept`.
    unsafe { *KEPT.0.get() = None };
    // SAFETY: what was allocated has been dropped, and nothing of kdetour is called any more.
    unsafe { kdetour_nt::free_all() };
}
