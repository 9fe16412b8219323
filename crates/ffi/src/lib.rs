//! kdetour for C.
//!
//! ```text
//!   include/kdetour.h   what programs and modules in C see
//!   process             its functions, for programs (features `linux-process`, and `windows-process` on Windows)
//!   detours             those of detours.h, for programs that were written for Microsoft Detours (the same features)
//!   arch                what differs by processor in those two
//!   include/kdetour_nt.h  what Windows drivers in C see
//!   windows_kernel      its functions (feature `windows-kernel`)
//!   linux_kernel        the Rust half of kdetour.ko: what its C half calls (kernel/linux/rust.h; feature `linux-kernel`)
//!   code, report        errors as numbers, and their stories
//!   method              methods as numbers
//!   patch               what a plan says is to be written, as plain data
//!   survey, text        what a survey finds, as text; C's buffers
//! ```
//!
//! One feature at a time: they have different hosts.
#![no_std]

#[cfg(any(
    feature = "linux-kernel",
    feature = "linux-process",
    all(windows, feature = "windows-process"),
    all(target_os = "uefi", feature = "windows-kernel")
))]
extern crate alloc;
#[cfg(any(feature = "linux-process", all(windows, feature = "windows-process")))]
extern crate std;

#[cfg(any(feature = "linux-process", all(windows, feature = "windows-process")))]
mod arch;
pub mod code;
#[cfg(feature = "linux-kernel")]
pub mod counts;
#[cfg(any(feature = "linux-process", all(windows, feature = "windows-process")))]
pub mod detours;
#[cfg(feature = "linux-kernel")]
pub mod linux_kernel;
#[cfg(any(feature = "linux-kernel", feature = "linux-process", all(windows, feature = "windows-process")))]
mod method;
#[cfg(any(feature = "linux-kernel", feature = "linux-process", all(windows, feature = "windows-process")))]
pub mod patch;
#[cfg(any(feature = "linux-process", all(windows, feature = "windows-process")))]
pub mod process;
#[cfg(any(
    feature = "linux-kernel",
    feature = "linux-process",
    all(windows, feature = "windows-process"),
    all(target_os = "uefi", feature = "windows-kernel")
))]
pub mod report;
#[cfg(all(feature = "linux-kernel", target_os = "none"))]
mod runtime;
#[cfg(any(feature = "linux-kernel", feature = "linux-process", all(windows, feature = "windows-process")))]
mod survey;
#[cfg(any(
    feature = "linux-kernel",
    feature = "linux-process",
    all(windows, feature = "windows-process"),
    all(target_os = "uefi", feature = "windows-kernel")
))]
mod text;
#[cfg(all(feature = "windows-kernel", target_os = "uefi"))]
pub mod windows_kernel;
