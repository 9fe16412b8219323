//! Functions that came later than NT 5.2, or that some systems lack: looked up when the host is made, and done without where there are none.

use super::imports::{GroupAffinity, MmGetSystemRoutineAddress, ProcessorNumber, Status, UnicodeString};
use crate::host::windows_kernel::nt::{BroadcastRoutine, Dpc};
use core::ffi::c_void;

/// The longest name of a function that is looked up.
const MAX_NAME: usize = 40;

pub(super) type IpiGenericCall = unsafe extern "system" fn(BroadcastRoutine, usize) -> usize;
pub(super) type RefreshDebuggerNotPresent = unsafe extern "system" fn() -> u8;

/// Functions of processor groups: Windows 7 and later have all of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    pub(super) count: unsafe extern "system" fn() -> u16,
    pub(super) processors: unsafe extern "system" fn(u16) -> u32,
    pub(super) affinity: unsafe extern "system" fn(u16) -> usize,
    pub(super) pin: unsafe extern "system" fn(*const GroupAffinity, *mut GroupAffinity),
    pub(super) unpin: unsafe extern "system" fn(*const GroupAffinity),
    pub(super) aim: unsafe extern "system" fn(*mut Dpc, *const ProcessorNumber) -> Status,
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newer {
    pub(super) broadcast: Option<IpiGenericCall>,
    pub(super) debugger: Option<RefreshDebuggerNotPresent>,
    pub(super) groups: Option<Groups>,
}

impl Newer {
    /// Looks all of them up. `PASSIVE_LEVEL`.
    pub(super) fn find() -> Self {
        // SAFETY: each name is that of the function whose type it is read as (wdm.h).
        unsafe {
            Self {
                broadcast: find("KeIpiGenericCall"),
                debugger: find("KdRefreshDebuggerNotPresent"),
                groups: Groups::find(),
            }
        }
    }
}

impl Groups {
    /// # Safety
    /// `PASSIVE_LEVEL`.
    unsafe fn find() -> Option<Self> {
        // SAFETY: each name is that of the function whose type it is read as (wdm.h).
        unsafe {
            Some(Self {
                count: find("KeQueryActiveGroupCount")?,
                processors: find("KeQueryActiveProcessorCountEx")?,
                affinity: find("KeQueryGroupAffinity")?,
                pin: find("KeSetSystemGroupAffinityThread")?,
                unpin: find("KeRevertToUserGroupAffinityThread")?,
                aim: find("KeSetTargetProcessorDpcEx")?,
            })
        }
    }
}

/// The function of this name that the kernel or the HAL exports, if there is one.
///
/// # Safety
/// `F` is a pointer to a function, of that function's type. `PASSIVE_LEVEL`.
unsafe fn find<F: Copy>(name: &str) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    let mut text = [0; MAX_NAME];
    for (to, byte) in text.iter_mut().zip(name.bytes()) {
        *to = u16::from(byte);
    }
    let length = u16::try_from(2 * name.len().min(MAX_NAME)).unwrap_or_default();
    let name = UnicodeString { length, maximum: length, buffer: text.as_ptr() };
    // SAFETY: a string of so many bytes, which stays until the call returns.
    let found = unsafe { MmGetSystemRoutineAddress(&raw const name) };
    // SAFETY: it is as large as a pointer, and a pointer to a function of that type, by the caller's word.
    (!found.is_null()).then(|| unsafe { core::mem::transmute_copy::<*mut c_void, F>(&found) })
}
