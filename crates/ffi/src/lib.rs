//! kdetour for C.
//!
//! With the feature `linux-kernel` this is the Rust half of `kdetour.ko`: `linux_kernel` holds the functions
//! that its C half calls (`kernel/linux/rust.h`). What clients of the module see is `include/kdetour.h`.
#![no_std]

#[cfg(feature = "linux-kernel")]
extern crate alloc;

pub mod code;
#[cfg(feature = "linux-kernel")]
pub mod counts;
#[cfg(feature = "linux-kernel")]
pub mod linux_kernel;
#[cfg(all(feature = "linux-kernel", target_os = "none"))]
mod runtime;
