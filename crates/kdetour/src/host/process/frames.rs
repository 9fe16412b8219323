//! The bounds of functions as registered unwind information has them: where an image's own tables are gone, or never were.
//!
//! That is DWARF's, which GNU's compilers and Rust's write for every function, and libgcc's unwinder finds. LLVM's unwinder, which musl is used with,
//! has functions of the same names that take single entries: so only there is it asked where it is known to be libgcc.

#[cfg(target_env = "gnu")]
use core::ffi::c_void;
use core::ops::Range;

#[cfg(target_env = "gnu")]
unsafe extern "C" {
    pub(crate) fn _Unwind_Find_FDE(address: *const c_void, bases: *mut [*const c_void; 3]) -> *const c_void;
}

/// How far a function reaches at the most.
#[cfg(target_env = "gnu")]
const FAR: u64 = 16 << 20;

/// The bounds of the function at an address, as its image's unwind information has them: what a stripped file still tells.
/// None if it has none.
#[cfg(target_env = "gnu")]
pub(crate) fn bounds(address: u64) -> Option<Range<u64>> {
    let entry = |at: u64| {
        let mut bases = [core::ptr::null(); 3];
        // SAFETY: there is room for what is written, and the address is only compared.
        let found = unsafe {
            _Unwind_Find_FDE(core::ptr::without_provenance(usize::try_from(at).ok()?), &raw mut bases)
        };
        let [.., function] = bases;
        (!found.is_null()).then_some((found, function.addr() as u64))
    };
    let (found, start) = entry(address)?;
    let is_same = |at: u64| entry(at).is_some_and(|(other, _)| other == found);
    // One entry serves all of a function: its end is where another one begins.
    let mut within = address;
    let mut step = 16;
    while step < FAR && is_same(within.checked_add(step)?) {
        within += step;
        step *= 2;
    }
    let mut beyond = within.checked_add(step)?;
    while beyond - within > 1 {
        let middle = within.midpoint(beyond);
        if is_same(middle) { within = middle } else { beyond = middle }
    }
    Some(start.min(address)..beyond)
}

#[cfg(not(target_env = "gnu"))]
pub(crate) const fn bounds(_: u64) -> Option<Range<u64>> {
    None
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn a_function_has_bounds_without_symbols() {
        let here = (a_function_has_bounds_without_symbols as fn() as *const ()).addr() as u64;
        let Range { start, end } = bounds(here).unwrap();
        assert_eq!(start, here);
        assert!((32..4096).contains(&(end - here)), "{}", end - here);
        assert!(bounds(end).is_none_or(|other| other.start >= end));
        assert_eq!(bounds(16), None);
    }
}
