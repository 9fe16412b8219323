//! NT's functions, as a driver is linked against them: all of them documented, and there since NT 5.2.
//!
//! Structures are those of wdm.h and ntifs.h.

use super::super::nt::{DeferredRoutine, Dpc, ThreadRoutine};
use core::ffi::c_void;

/// `NTSTATUS`: negative for what failed.
pub(super) type Status = i32;

/// `UNICODE_STRING`.
#[repr(C)]
pub(super) struct UnicodeString {
    pub(super) length: u16,
    pub(super) maximum: u16,
    pub(super) buffer: *const u16,
}

/// `OBJECT_ATTRIBUTES`.
#[repr(C)]
pub(super) struct ObjectAttributes {
    pub(super) length: u32,
    pub(super) root: *mut c_void,
    pub(super) name: *const UnicodeString,
    pub(super) attributes: u32,
    pub(super) descriptor: *const c_void,
    pub(super) quality: *const c_void,
}

/// `RTL_OSVERSIONINFOW`.
#[repr(C)]
pub(super) struct Version {
    pub(super) size: u32,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) build: u32,
    pub(super) platform: u32,
    pub(super) service_pack: [u16; 128],
}

/// `GROUP_AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GroupAffinity {
    pub(super) mask: usize,
    pub(super) group: u16,
    pub(super) reserved: [u16; 3],
}

/// `PROCESSOR_NUMBER`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ProcessorNumber {
    pub(super) group: u16,
    pub(super) number: u8,
    pub(super) reserved: u8,
}

#[rustfmt::skip]
unsafe extern "system" {
    pub(super) fn IoAllocateMdl(address: *mut c_void, len: u32, secondary: u8, charge: u8, irp: *mut c_void) -> *mut c_void;
    pub(super) fn IoFreeMdl(mdl: *mut c_void);
    pub(super) fn MmProbeAndLockPages(mdl: *mut c_void, mode: i8, operation: i32);
    pub(super) fn MmUnlockPages(mdl: *mut c_void);
    pub(super) fn MmMapLockedPagesSpecifyCache(mdl: *mut c_void, mode: i8, cache: i32, at: *mut c_void, bug_check: u32, priority: u32) -> *mut c_void;
    pub(super) fn MmUnmapLockedPages(address: *mut c_void, mdl: *mut c_void);
    pub(super) fn MmProtectMdlSystemAddress(mdl: *mut c_void, protection: u32) -> Status;
    pub(super) fn MmIsAddressValid(address: *mut c_void) -> u8;
    pub(super) fn MmGetSystemRoutineAddress(name: *const UnicodeString) -> *mut c_void;
    pub(super) fn KeInitializeDpc(dpc: *mut Dpc, routine: DeferredRoutine, context: *mut c_void);
    pub(super) fn KeSetImportanceDpc(dpc: *mut Dpc, importance: i32);
    pub(super) fn KeSetTargetProcessorDpc(dpc: *mut Dpc, number: i8);
    pub(super) fn KeInsertQueueDpc(dpc: *mut Dpc, one: *mut c_void, other: *mut c_void) -> u8;
    pub(super) fn KeRemoveQueueDpc(dpc: *mut Dpc) -> u8;
    pub(super) fn KeQueryActiveProcessors() -> usize;
    pub(super) fn KeSetSystemAffinityThread(affinity: usize);
    pub(super) fn KeRevertToUserAffinityThread();
    pub(super) fn KeDelayExecutionThread(mode: i8, alertable: u8, interval: *const i64) -> Status;
    pub(super) fn KeGetCurrentThread() -> *mut c_void;
    pub(super) fn KeSetPriorityThread(thread: *mut c_void, priority: i32) -> i32;
    pub(super) fn KeQueryPriorityThread(thread: *mut c_void) -> i32;
    pub(super) fn KeQueryPerformanceCounter(frequency: *mut i64) -> i64;
    pub(super) fn PsCreateSystemThread(handle: *mut *mut c_void, access: u32, attributes: *const ObjectAttributes, process: *mut c_void, client: *mut c_void, routine: ThreadRoutine, context: *mut c_void) -> Status;
    pub(super) fn PsTerminateSystemThread(status: Status) -> Status;
    pub(super) fn ZwWaitForSingleObject(handle: *mut c_void, alertable: u8, timeout: *const i64) -> Status;
    pub(super) fn ZwClose(handle: *mut c_void) -> Status;
    pub(super) fn ZwQuerySystemInformation(class: u32, to: *mut c_void, len: u32, needed: *mut u32) -> Status;
    pub(super) fn RtlGetVersion(version: *mut Version) -> Status;
}

// The level is a register of the processor on x64, which only these functions touch here; on x86 the HAL keeps it.
#[cfg(not(target_arch = "x86"))]
unsafe extern "system" {
    pub(super) fn KfRaiseIrql(to: u8) -> u8;
    pub(super) fn KeLowerIrql(to: u8);
}

#[cfg(target_arch = "x86")]
unsafe extern "fastcall" {
    pub(super) fn KfRaiseIrql(to: u8) -> u8;
    pub(super) fn KfLowerIrql(to: u8);
}

#[cfg(target_arch = "x86")]
unsafe extern "system" {
    pub(super) fn KeGetCurrentIrql() -> u8;
}
