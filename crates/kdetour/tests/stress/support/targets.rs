//! Functions to be detoured, in assembler: one for each beginning and each place.
//!
//! All of them have the same result. Each keeps what it needs in registers that it has to save, or on its stack,
//! where nobody else may write.

#[cfg(target_arch = "x86")]
mod x86;
#[cfg(all(target_arch = "x86_64", not(windows)))]
mod x86_64;
#[cfg(all(target_arch = "x86_64", windows))]
mod x86_64_windows;

use core::{mem, ptr};
#[cfg(target_arch = "x86")]
pub(crate) use x86::PROLOGUES;
#[cfg(all(target_arch = "x86_64", not(windows)))]
pub(crate) use x86_64::PROLOGUES;
#[cfg(all(target_arch = "x86_64", windows))]
pub(crate) use x86_64_windows::PROLOGUES;

pub(crate) type Target = extern "C" fn(u64, u64) -> u64;

/// What all of them answer.
pub(crate) fn expected(first: u64, second: u64) -> u64 {
    first.wrapping_mul(3).wrapping_add(second) ^ 0x55
}

/// Where the window is.
pub(crate) const PLACES: [&str; 9] =
    ["aligned", "line 1", "line 2", "line 3", "line 4", "page 1", "page 2", "page 3", "page 4"];

/// The function with this beginning at this place.
pub(crate) fn target(prologue: usize, place: usize) -> Target {
    // SAFETY: the table is written by the linker before anything runs.
    let address = unsafe { stress_table }[prologue * PLACES.len() + place];
    function(address as u64)
}

/// The function at an address.
pub(crate) fn function(address: u64) -> Target {
    let code = ptr::with_exposed_provenance::<()>(usize::try_from(address).expect("an address"));
    // SAFETY: addresses of functions of this type are given: of the table, of an original, or of a copy.
    unsafe { mem::transmute::<*const (), Target>(code) }
}

/// How long a target's code is, at the most.
pub(crate) const LONGEST: usize = 64;

unsafe extern "C" {
    static stress_table: [usize; PROLOGUES.len() * PLACES.len()];
}
