//! What a Windows driver in Rust needs around kdetour.
//!
//! * [`irql`]: the level;
//! * [`slots`]: memory for trampolines, in the driver's own text;
//! * [`status`]: errors as `NTSTATUS`;
//! * with the feature `runtime`: a global allocator over nonpaged pool, and a panic handler.
//!
//! Nothing here is for programs: on other targets than `x86_64-unknown-uefi` and `i686-unknown-uefi`, for which drivers are compiled, only
//! [`status`] is there.
#![no_std]

#[cfg(all(feature = "runtime", target_os = "uefi", target_arch = "x86"))]
mod compare;
#[cfg(target_os = "uefi")]
mod irql;
#[cfg(all(feature = "runtime", target_os = "uefi"))]
mod memory;
#[cfg(all(feature = "runtime", target_os = "uefi"))]
mod panic;
#[cfg(target_os = "uefi")]
mod slots;
mod status;

#[cfg(target_os = "uefi")]
pub use irql::{PASSIVE_LEVEL, irql};
#[cfg(all(feature = "runtime", target_os = "uefi"))]
pub use memory::free_all;
#[cfg(target_os = "uefi")]
pub use slots::slots;
pub use status::{status, status_of};
