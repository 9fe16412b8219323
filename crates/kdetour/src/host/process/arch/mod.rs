//! What differs from one processor to the other, whatever the system.
//!
//! * how code is decoded ([`MODE`]), what a function may keep below its stack pointer ([`RED_ZONE`]);
//! * the class of PE images that such processes run;
//! * a few instructions: to ask the processor what it has, to go where a cell says.
//!
//! Each processor's file has the same names.

#[cfg(target_arch = "x86")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86")]
pub(crate) use x86::*;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
compile_error!("processes are those of x86-64 and x86-32");

/// Bytes of a pointer, and of a word on a stack.
pub(crate) const WORD: usize = size_of::<usize>();
