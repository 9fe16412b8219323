//! The little of wdm.h that the driver needs. One that is built with the WDK has it of `wdk-sys`.

use core::ffi::c_void;

/// The part of `DRIVER_OBJECT` up to where `DriverUnload` is.
#[repr(C)]
pub struct DriverObject {
    kind: i16,
    size: i16,
    device: *mut c_void,
    flags: u32,
    start: *mut c_void,
    length: u32,
    section: *mut c_void,
    extension: *mut c_void,
    name: UnicodeString,
    hardware: *mut UnicodeString,
    fast_io: *mut c_void,
    init: *mut c_void,
    start_io: *mut c_void,
    /// `DriverUnload`.
    pub unload: Option<unsafe extern "system" fn(*mut DriverObject)>,
}

#[repr(C)]
struct UnicodeString {
    length: u16,
    maximum_length: u16,
    buffer: *const u16,
}

unsafe extern "system" {
    fn MmGetSystemRoutineAddress(name: *const UnicodeString) -> *mut c_void;
    fn KeQueryTimeIncrement() -> u32;
    fn KeDelayExecutionThread(mode: i8, alertable: u8, interval: *const i64) -> i32;
}

/// Waits for 100 milliseconds. `PASSIVE_LEVEL`.
pub(crate) fn sleep() {
    // In units of 100 ns, from now on.
    let interval = -1_000_000_i64;
    // SAFETY: in the kernel's own name (0), not alertable; the driver's own functions call this at `PASSIVE_LEVEL`.
    let _ = unsafe { KeDelayExecutionThread(0, 0, &raw const interval) };
}

/// An exported function of the kernel; null if there is none of that name. `PASSIVE_LEVEL`.
pub(crate) fn find(name: &str) -> *const c_void {
    let mut wide = [0; 64];
    let mut length = 0_u16;
    for (to, from) in wide.iter_mut().zip(name.bytes()) {
        *to = u16::from(from);
        length += 2;
    }
    let string = UnicodeString { length, maximum_length: length, buffer: wide.as_ptr() };
    // SAFETY: the string is one, and the driver's own functions call this at `PASSIVE_LEVEL`.
    unsafe { MmGetSystemRoutineAddress(&raw const string) }
}

/// How many units of 100 ns the clock's interrupt adds.
pub(crate) fn time_increment() -> u32 {
    // SAFETY: it may be called at any level.
    unsafe { KeQueryTimeIncrement() }
}
