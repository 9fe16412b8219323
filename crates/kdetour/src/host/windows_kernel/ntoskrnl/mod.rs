//! NT itself, as a driver that is linked against `ntoskrnl.exe` and `hal.dll` reaches it.

mod imports;
mod newer;
mod query;

use super::nt::{Alias, BroadcastRoutine, DeferredRoutine, Dpc, Module, Nt, Processor, ThreadRoutine};
use crate::Error;
use crate::host::Span;
use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr;
use imports::{GroupAffinity, ObjectAttributes, ProcessorNumber, Version};
use newer::Newer;

/// `STATUS_NOT_IMPLEMENTED`.
const NOT_IMPLEMENTED: i32 = 0xc000_0002_u32.cast_signed();
/// `KernelMode`.
const KERNEL_MODE: i8 = 0;
/// All groups, where a group is asked for (`ALL_PROCESSOR_GROUPS`).
const ALL_GROUPS: u16 = 0xffff;
/// The lowest priority of a thread that is scheduled like others; 0 is that of the one that clears pages (`LOW_PRIORITY`).
const LAST_PRIORITY: i32 = 1;

/// The running kernel.
#[derive(Clone, Copy, Debug)]
pub struct Ntoskrnl {
    newer: Newer,
    /// Whether mappings can be asked for that cannot be executed from the first moment on (Windows 8 and later).
    knows_no_execute: bool,
}

impl Ntoskrnl {
    /// Looks up what is newer than NT 5.2.
    ///
    /// IRQL: `PASSIVE_LEVEL`.
    ///
    /// # Errors
    /// [`Error::Irql`].
    ///
    /// # Safety
    /// The code is part of a driver that NT has loaded.
    pub unsafe fn new() -> Result<Self, Error> {
        let now = current_irql();
        if now > 0 {
            return Err(Error::Irql { now, most: 0 });
        }
        let size = u32::try_from(size_of::<Version>()).unwrap_or_default();
        let mut version = Version { size, major: 0, minor: 0, build: 0, platform: 0, service_pack: [0; 128] };
        // SAFETY: a structure whose size is told.
        unsafe { imports::RtlGetVersion(&raw mut version) };
        Ok(Self { newer: Newer::find(), knows_no_execute: (version.major, version.minor) >= (6, 2) })
    }
}

/// On x64 the level can be read without a privileged instruction only by raising it.
fn current_irql() -> u8 {
    // SAFETY: any level may be raised to the highest, and lowered again to what it was.
    #[cfg(not(target_arch = "x86"))]
    unsafe {
        let irql = imports::KfRaiseIrql(super::nt::HIGH_LEVEL);
        imports::KeLowerIrql(irql);
        irql
    }
    // SAFETY: tells it, at any level.
    #[cfg(target_arch = "x86")]
    unsafe {
        imports::KeGetCurrentIrql()
    }
}

/// What a thread could run on before it was pinned.
#[derive(Debug)]
pub struct Pin(Option<GroupAffinity>);

/// A routine for a system thread, which ends as NT wants it.
struct Start {
    routine: ThreadRoutine,
    context: *mut c_void,
}

/// # Safety
/// `start` is a `Start` that stays until the thread has ended.
unsafe extern "system" fn run(start: *mut c_void) {
    // SAFETY: by the caller's word.
    unsafe {
        let Start { routine, context } = &*start.cast::<Start>();
        routine(*context);
        imports::PsTerminateSystemThread(0);
    }
}

// SAFETY: each call is NT's own, made at the levels and with the arguments that its documentation in the WDK allows.
unsafe impl Nt for Ntoskrnl {
    type Pin = Pin;

    fn irql(&self) -> u8 {
        current_irql()
    }

    unsafe fn raise(&self, to: u8) -> u8 {
        // SAFETY: by the caller's word.
        unsafe { imports::KfRaiseIrql(to) }
    }

    unsafe fn lower(&self, to: u8) {
        // SAFETY: by the caller's word.
        #[cfg(not(target_arch = "x86"))]
        unsafe {
            imports::KeLowerIrql(to);
        }
        // SAFETY: by the caller's word.
        #[cfg(target_arch = "x86")]
        unsafe {
            imports::KfLowerIrql(to);
        }
    }

    unsafe fn mask(&self) -> usize {
        let flags: usize;
        // SAFETY: reads the flags and turns interrupts off, as the caller wants it.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            core::arch::asm!("pushfq", "pop {}", "cli", out(reg) flags);
        }
        // SAFETY: as above.
        #[cfg(target_arch = "x86")]
        unsafe {
            core::arch::asm!("pushfd", "pop {}", "cli", out(reg) flags);
        }
        flags
    }

    unsafe fn unmask(&self, flags: usize) {
        /// The interrupt flag (Intel SDM volume 1, "EFLAGS Register").
        const INTERRUPTS: usize = 1 << 9;
        if flags & INTERRUPTS != 0 {
            // SAFETY: they were on when the caller turned them off.
            unsafe { core::arch::asm!("sti") };
        }
    }

    fn clock(&self) -> (u64, u64) {
        let mut frequency = 0;
        // SAFETY: tells the time, at any level.
        let now = unsafe { imports::KeQueryPerformanceCounter(&raw mut frequency) };
        (now.cast_unsigned(), frequency.cast_unsigned())
    }

    fn pause(&self) {
        core::hint::spin_loop();
    }

    fn thread(&self) -> usize {
        // SAFETY: names it, at any level.
        unsafe { imports::KeGetCurrentThread().addr() }
    }

    fn processors(&self) -> Result<Vec<Processor>, Error> {
        let mut processors = Vec::new();
        // SAFETY: each of these tells something, at any level.
        let groups = self.newer.groups.map_or(1, |groups| unsafe { (groups.count)() });
        for group in 0..groups {
            let mask = match self.newer.groups {
                // SAFETY: as above.
                Some(groups) => unsafe { (groups.affinity)(group) },
                // SAFETY: as above.
                None => unsafe { imports::KeQueryActiveProcessors() },
            };
            for number in (0_u8..64).filter(|&number| mask.checked_shr(number.into()).unwrap_or(0) & 1 != 0) {
                processors.try_reserve(1)?;
                processors.push(Processor { group, number });
            }
        }
        Ok(processors)
    }

    fn processor_count(&self) -> usize {
        match self.newer.groups {
            // SAFETY: tells something, at any level.
            Some(groups) => unsafe { (groups.processors)(ALL_GROUPS) as usize },
            // SAFETY: tells something, up to `DISPATCH_LEVEL`.
            None => unsafe { imports::KeQueryActiveProcessors().count_ones() as usize },
        }
    }

    fn pin(&self, to: Processor) -> Pin {
        let mask = 1_usize.checked_shl(to.number.into()).unwrap_or(1);
        let Some(groups) = self.newer.groups else {
            // SAFETY: an active processor; taken back by `unpin`.
            unsafe { imports::KeSetSystemAffinityThread(mask) };
            return Pin(None);
        };
        let affinity = GroupAffinity { mask, group: to.group, reserved: [0; 3] };
        let mut before = GroupAffinity::default();
        // SAFETY: an active processor; taken back by `unpin`.
        unsafe { (groups.pin)(&raw const affinity, &raw mut before) };
        Pin(Some(before))
    }

    fn unpin(&self, Pin(before): Pin) {
        match (self.newer.groups, before) {
            // SAFETY: what `pin` was given.
            (Some(groups), Some(before)) => unsafe { (groups.unpin)(&raw const before) },
            // SAFETY: takes back what `pin` did.
            _ => unsafe { imports::KeRevertToUserAffinityThread() },
        }
    }

    unsafe fn broadcast(&self, routine: BroadcastRoutine, context: usize) -> Result<(), Error> {
        let broadcast = self.newer.broadcast.ok_or(Error::Host(NOT_IMPLEMENTED))?;
        // SAFETY: by the caller's word.
        unsafe { broadcast(routine, context) };
        Ok(())
    }

    unsafe fn queue(
        &self,
        dpc: *mut Dpc,
        to: Processor,
        routine: DeferredRoutine,
        context: *mut c_void,
    ) -> bool {
        /// `HighImportance`: in front of others, and at once.
        const HIGH: i32 = 2;
        let number = ProcessorNumber { group: to.group, number: to.number, reserved: 0 };
        // SAFETY: the room is the caller's, not in use, and large enough for a `KDPC`; the processor is active.
        unsafe {
            imports::KeInitializeDpc(dpc, routine, context);
            imports::KeSetImportanceDpc(dpc, HIGH);
            match self.newer.groups {
                Some(groups) => drop((groups.aim)(dpc, &raw const number)),
                None => imports::KeSetTargetProcessorDpc(dpc, to.number.cast_signed()),
            }
            imports::KeInsertQueueDpc(dpc, ptr::null_mut(), ptr::null_mut()) != 0
        }
    }

    unsafe fn unqueue(&self, dpc: *mut Dpc) -> bool {
        // SAFETY: by the caller's word.
        unsafe { imports::KeRemoveQueueDpc(dpc) != 0 }
    }

    fn is_resident(&self, address: u64) -> bool {
        let Ok(address) = usize::try_from(address) else { return false };
        // SAFETY: any address is answered.
        unsafe { imports::MmIsAddressValid(ptr::without_provenance_mut(address)) != 0 }
    }

    unsafe fn map(&self, span: Span) -> Result<Alias, Error> {
        /// `IoReadAccess`: the pages themselves stay read-only, and are not probed for writing.
        const READ: i32 = 0;
        /// `MmCached`, `NormalPagePriority`, `MdlMappingNoExecute`, `PAGE_READWRITE`.
        const CACHED: i32 = 1;
        const NORMAL: u32 = 16;
        const NO_EXECUTE: u32 = 0x4000_0000;
        const READ_WRITE: u32 = 4;
        let address = usize::try_from(span.address).map_err(|_| Error::OutOfMemory)?;
        let len = u32::try_from(span.len).map_err(|_| Error::OutOfMemory)?;
        let address = ptr::with_exposed_provenance_mut::<c_void>(address);
        let priority = if self.knows_no_execute { NORMAL | NO_EXECUTE } else { NORMAL };
        // SAFETY: by the caller's word the pages are there, and nothing about them makes NT raise an exception. What was done is undone
        // in the reverse order.
        unsafe {
            let mdl = imports::IoAllocateMdl(address, len, 0, 0, ptr::null_mut());
            if mdl.is_null() {
                return Err(Error::OutOfMemory);
            }
            imports::MmProbeAndLockPages(mdl, KERNEL_MODE, READ);
            let bytes =
                imports::MmMapLockedPagesSpecifyCache(mdl, KERNEL_MODE, CACHED, ptr::null_mut(), 0, priority);
            if bytes.is_null() {
                imports::MmUnlockPages(mdl);
                imports::IoFreeMdl(mdl);
                return Err(Error::OutOfMemory);
            }
            let alias = Alias { bytes: bytes.cast(), mdl };
            let status = imports::MmProtectMdlSystemAddress(mdl, READ_WRITE);
            if status < 0 {
                self.unmap(alias);
                return Err(Error::Host(status));
            }
            Ok(alias)
        }
    }

    unsafe fn unmap(&self, alias: Alias) {
        // SAFETY: by the caller's word; what `map` did, in the reverse order.
        unsafe {
            imports::MmUnmapLockedPages(alias.bytes.cast(), alias.mdl);
            imports::MmUnlockPages(alias.mdl);
            imports::IoFreeMdl(alias.mdl);
        }
    }

    unsafe fn copy(&self, from: u64, to: &mut [u8]) {
        let Ok(from) = usize::try_from(from) else { return };
        let from = ptr::with_exposed_provenance::<u8>(from);
        // SAFETY: by the caller's word; a page that is not in memory is brought there.
        unsafe { ptr::copy(from, to.as_mut_ptr(), to.len()) };
    }

    fn modules(&self) -> Result<Vec<Module>, Error> {
        query::modules()
    }

    fn is_debugged(&self) -> bool {
        // SAFETY: tells whether one is not present.
        self.newer.debugger.is_some_and(|absent| unsafe { absent() == 0 })
    }

    fn has_code_integrity(&self) -> bool {
        query::has_code_integrity()
    }

    fn has_shadow_stacks(&self) -> bool {
        query::has_shadow_stacks()
    }

    fn sleep(&self, microseconds: u32) {
        // From now on, in units of 100 nanoseconds.
        let interval = -10 * i64::from(microseconds);
        // SAFETY: called where sleeping is allowed.
        unsafe { imports::KeDelayExecutionThread(KERNEL_MODE, 0, &raw const interval) };
    }

    unsafe fn run_thread(&self, routine: ThreadRoutine, context: *mut c_void) -> Result<(), Error> {
        /// `THREAD_ALL_ACCESS`, `OBJ_KERNEL_HANDLE`.
        const ALL: u32 = 0x001f_03ff;
        const KERNEL_HANDLE: u32 = 0x200;
        let mut start = Start { routine, context };
        let mut handle = ptr::null_mut();
        let attributes = ObjectAttributes {
            length: u32::try_from(size_of::<ObjectAttributes>()).unwrap_or_default(),
            root: ptr::null_mut(),
            name: ptr::null(),
            attributes: KERNEL_HANDLE,
            descriptor: ptr::null(),
            quality: ptr::null(),
        };
        // SAFETY: what it is handed stays until the thread has ended, which is waited for.
        unsafe {
            let status = imports::PsCreateSystemThread(
                &raw mut handle,
                ALL,
                &raw const attributes,
                ptr::null_mut(),
                ptr::null_mut(),
                run,
                (&raw mut start).cast(),
            );
            if status < 0 {
                return Err(Error::Host(status));
            }
            imports::ZwWaitForSingleObject(handle, 0, ptr::null());
            imports::ZwClose(handle);
        }
        Ok(())
    }

    fn run_last(&self) -> bool {
        // SAFETY: about the calling thread, which is one of ours.
        unsafe {
            let thread = imports::KeGetCurrentThread();
            imports::KeSetPriorityThread(thread, LAST_PRIORITY);
            imports::KeQueryPriorityThread(thread) <= LAST_PRIORITY
        }
    }
}
