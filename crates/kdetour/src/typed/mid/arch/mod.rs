//! What differs from one processor to the other: which registers there are, and how all of them are kept.

#[cfg(target_arch = "x86")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86")]
pub use x86::Registers;
#[cfg(target_arch = "x86")]
pub(super) use x86::{stub, thunk};
#[cfg(target_arch = "x86_64")]
pub use x86_64::Registers;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::{stub, thunk};
