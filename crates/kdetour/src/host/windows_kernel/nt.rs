//! What the host asks of NT: the calls, and at which IRQL each may be made.
//!
//! | call | IRQL at the most |
//! |---|---|
//! | [`irql`](Nt::irql), [`raise`](Nt::raise), [`lower`](Nt::lower), [`mask`](Nt::mask), [`unmask`](Nt::unmask), [`clock`](Nt::clock), [`pause`](Nt::pause), [`thread`](Nt::thread) | any |
//! | [`broadcast`](Nt::broadcast) | below `IPI_LEVEL` |
//! | [`processor_count`](Nt::processor_count), [`queue`](Nt::queue), [`unqueue`](Nt::unqueue), [`is_resident`](Nt::is_resident) | `DISPATCH_LEVEL` |
//! | [`map`](Nt::map), [`unmap`](Nt::unmap) | `APC_LEVEL` |
//! | everything else | `PASSIVE_LEVEL` |
//!
//! While processors are parked only those of the first line are called.

use crate::Error;
use crate::host::Span;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::ffi::c_void;
use core::time::Duration;

/// Where threads run.
pub const PASSIVE_LEVEL: u8 = 0;
/// Where asynchronous procedure calls run; the last at which memory is paged in.
pub const APC_LEVEL: u8 = 1;
/// Where deferred procedure calls run: no thread is scheduled on this processor.
pub const DISPATCH_LEVEL: u8 = 2;
/// Where processors interrupt each other (wdm.h).
pub const IPI_LEVEL: u8 = if cfg!(target_pointer_width = "64") { 14 } else { 29 };
/// No interrupt is taken, but those that cannot be masked (wdm.h).
pub const HIGH_LEVEL: u8 = if cfg!(target_pointer_width = "64") { 15 } else { 31 };

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Its group: 0 where there are none.
    pub group: u16,
    /// Its number in the group.
    pub number: u8,
}

/// The longest name of a module that is kept, in bytes: longer ones are cut off.
pub const MAX_NAME: usize = 32;

/// A loaded image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Where it begins.
    pub base: u64,
    /// How many bytes the loader has mapped.
    pub size: u32,
    /// Its file's name without folders, in lower case.
    pub name: ArrayVec<u8, MAX_NAME>,
}

impl Module {
    /// An image whose file has this path.
    pub fn new(base: u64, size: u32, path: &[u8]) -> Self {
        let name = path.rsplit(|&byte| matches!(byte, b'\\' | b'/')).next().unwrap_or(path);
        Self { base, size, name: name.iter().take(MAX_NAME).map(u8::to_ascii_lowercase).collect() }
    }

    /// One past its last byte.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.size.into())
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: u64) -> bool {
        (self.base..self.end()).contains(&address)
    }
}

/// How often a clock of this frequency ticks in a time. In 64 bits: a driver has no division of more.
pub(super) fn ticks(frequency: u64, time: Duration) -> u64 {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    frequency.checked_mul(micros).map_or(u64::MAX, |ticks| ticks / 1_000_000)
}

/// Pages mapped a second time, writable and not executable, until they are [unmapped](Nt::unmap).
#[derive(Debug)]
pub struct Alias {
    /// The first byte of what was mapped.
    pub bytes: *mut u8,
    /// What NT knows the mapping by.
    pub mdl: *mut c_void,
}

/// Room for a `KDPC`: 64 bytes, or 32 where pointers have four (wdm.h).
#[repr(C, align(16))]
#[derive(Debug)]
pub struct Dpc(pub [u64; 8]);

impl Dpc {
    /// Not in use.
    pub const fn new() -> Self {
        Self([0; 8])
    }
}

impl Default for Dpc {
    fn default() -> Self {
        Self::new()
    }
}

/// A deferred procedure: `KDEFERRED_ROUTINE`.
pub type DeferredRoutine = unsafe extern "system" fn(*mut Dpc, *mut c_void, *mut c_void, *mut c_void);
/// What every processor runs: `KIPI_BROADCAST_WORKER`.
pub type BroadcastRoutine = unsafe extern "system" fn(usize) -> usize;
/// A system thread: `KSTART_ROUTINE`.
pub type ThreadRoutine = unsafe extern "system" fn(*mut c_void);

/// What the host asks of NT.
///
/// # Safety
/// Each call does what it says. Whoever implements it is trusted as NT is.
pub unsafe trait Nt: Clone + Sync {
    /// What a thread's affinity was.
    type Pin;

    /// The present level. Any IRQL.
    fn irql(&self) -> u8;

    /// Raises the level to `to`, and gives what it was. Any IRQL up to `to`.
    ///
    /// # Safety
    /// It is [lowered](Nt::lower) again to what it was, on the same processor, before the caller returns to where that is expected.
    unsafe fn raise(&self, to: u8) -> u8;

    /// Lowers the level to what [`raise`](Nt::raise) gave. Any IRQL from `to` on.
    ///
    /// # Safety
    /// `to` is what the last `raise` on this processor gave that was not lowered again.
    unsafe fn lower(&self, to: u8);

    /// Turns interrupts off on this processor, and gives what they were. Any IRQL.
    ///
    /// # Safety
    /// They are [turned on](Nt::unmask) again soon.
    unsafe fn mask(&self) -> usize;

    /// Lets interrupts be as they were. Any IRQL.
    ///
    /// # Safety
    /// `flags` is what the last [`mask`](Nt::mask) on this processor gave.
    unsafe fn unmask(&self, flags: usize);

    /// A clock that goes on while interrupts are off, and how often it ticks in a second. Any IRQL.
    fn clock(&self) -> (u64, u64);

    /// Lets whoever shares the processor's core go on, in a loop that waits. Any IRQL.
    fn pause(&self);

    /// Names the thread whose code this processor runs, or has interrupted. Any IRQL.
    fn thread(&self) -> usize;

    /// All active processors of all groups. `PASSIVE_LEVEL`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn processors(&self) -> Result<Vec<Processor>, Error>;

    /// How many there are. Up to `DISPATCH_LEVEL`.
    fn processor_count(&self) -> usize;

    /// Lets the calling thread run on one processor only, on which it is when this returns. `PASSIVE_LEVEL`.
    fn pin(&self, to: Processor) -> Self::Pin;

    /// Lets the calling thread run where it could before. `PASSIVE_LEVEL`.
    fn unpin(&self, before: Self::Pin);

    /// Runs a routine on all processors at the same time, at `IPI_LEVEL`; returns when it has returned on each. Below `IPI_LEVEL`.
    ///
    /// # Errors
    /// [`Error::Host`] if there is no such call; the routine was not run then.
    ///
    /// # Safety
    /// The routine may be run with this context, at that level, several times at once.
    unsafe fn broadcast(&self, routine: BroadcastRoutine, context: usize) -> Result<(), Error>;

    /// Has a processor run a routine as soon as it can, at `DISPATCH_LEVEL`, before other such routines. Up to `DISPATCH_LEVEL`.
    ///
    /// # Safety
    /// The room is not in use, and stays where it is until the routine has begun or was taken back; the routine may be run with this
    /// context.
    unsafe fn queue(
        &self,
        dpc: *mut Dpc,
        to: Processor,
        routine: DeferredRoutine,
        context: *mut c_void,
    ) -> bool;

    /// Takes back what was queued and has not begun; whether it was there. Up to `DISPATCH_LEVEL`.
    ///
    /// # Safety
    /// The room was given to [`queue`](Nt::queue).
    unsafe fn unqueue(&self, dpc: *mut Dpc) -> bool;

    /// Whether there is something at an address, and in memory. Up to `DISPATCH_LEVEL`.
    fn is_resident(&self, address: u64) -> bool;

    /// Locks the pages of a span and maps them once more, writable and not executable. Up to `APC_LEVEL`.
    ///
    /// # Safety
    /// The whole span is in nonpageable sections of a loaded image: what could make NT raise an exception was excluded.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Host`].
    unsafe fn map(&self, span: Span) -> Result<Alias, Error>;

    /// Gives a mapping back. Up to `APC_LEVEL`.
    ///
    /// # Safety
    /// It is what [`map`](Nt::map) gave, and nobody uses it any more.
    unsafe fn unmap(&self, alias: Alias);

    /// Copies bytes from loaded images, which are paged in where they are not in memory. `PASSIVE_LEVEL`.
    ///
    /// # Safety
    /// The whole of it is in sections of a loaded image that are not discardable, or in its headers.
    unsafe fn copy(&self, from: u64, to: &mut [u8]);

    /// The loaded images, the kernel's first. `PASSIVE_LEVEL`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Host`].
    fn modules(&self) -> Result<Vec<Module>, Error>;

    /// Whether a kernel debugger is attached. `PASSIVE_LEVEL`.
    fn is_debugged(&self) -> bool;

    /// Whether the hypervisor enforces the integrity of kernel code. `PASSIVE_LEVEL`.
    fn has_code_integrity(&self) -> bool;

    /// Whether threads have shadow stacks in the kernel. `PASSIVE_LEVEL`.
    fn has_shadow_stacks(&self) -> bool;

    /// Whether the kernel guards its code against changes at all: that of x64 does. Any IRQL.
    fn guards_itself(&self) -> bool {
        cfg!(target_pointer_width = "64")
    }

    /// Lets the thread sleep. `PASSIVE_LEVEL`.
    fn sleep(&self, microseconds: u32);

    /// Runs a routine in a system thread of its own, and returns when that has ended. `PASSIVE_LEVEL`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Host`]; it was not run then.
    ///
    /// # Safety
    /// The routine may be run with this context in another thread.
    unsafe fn run_thread(&self, routine: ThreadRoutine, context: *mut c_void) -> Result<(), Error>;

    /// Gives the calling thread the lowest priority but that of the thread that clears pages, and tells whether it has run with it: NT
    /// lends a higher one to who has waited for long. `PASSIVE_LEVEL`, in a thread that [`run_thread`](Nt::run_thread) made.
    fn run_last(&self) -> bool;
}
