//! Memory near code: where trampolines may not be, and regions for code that a program writes itself.
//!
//! Such a region is writable, and not executable, until a commit wants an address in it as a detour: then it becomes executable, and not
//! writable. It is never both.

use super::host::{self, For};
use super::state::with;
#[cfg(not(windows))]
use super::windows::{BUSY, Bool, INVALID_ADDRESS, Long, answer};
use super::windows::{INVALID_PARAMETER, number, set_last_error};
use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr;
#[cfg(not(windows))]
use core::time::Duration;
#[cfg(not(windows))]
use kdetour::Handle;
use kdetour::plan::Reach;
#[cfg(not(windows))]
use kdetour::typed::set;
use kdetour::typed::with_process;

/// Bytes of a region.
const SIZE: usize = 0x1_0000;
/// How far a region is from the code that jumps there.
const JUMP: u64 = 0x7ff8_0000;
/// How long calls that are inside a region are waited for before it is said to be busy.
#[cfg(not(windows))]
const PATIENCE: Duration = Duration::from_millis(100);
/// `MEM_RELEASE`.
#[cfg(not(windows))]
const RELEASE: u32 = 0x8000;

/// Where trampolines may not be: both ends are inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    lower: u64,
    upper: u64,
}

impl Default for Bounds {
    /// Where Windows has its libraries.
    fn default() -> Self {
        Self { lower: 0x7000_0000, upper: 0x8000_0000 }
    }
}

impl Bounds {
    pub(super) const fn hold(&self, address: u64) -> bool {
        self.lower <= address && address <= self.upper
    }

    /// Slots that are taken from now on lie outside.
    pub(super) fn apply(self) {
        // What cannot be said now would not be attached either.
        let _ = with_process(|kdetour| {
            kdetour.host().keep_slots_out_of(self.lower, self.upper);
            Ok(())
        });
    }
}

/// Memory that a program writes code into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    address: u64,
    /// Whether a commit has made it executable.
    sealed: bool,
}

impl Region {
    const fn holds(&self, address: u64) -> bool {
        address.wrapping_sub(self.address) < SIZE as u64
    }

    fn protect(&self, how: For) -> bool {
        let address = ptr::with_exposed_provenance_mut(usize::try_from(self.address).unwrap_or(0));
        // SAFETY: the region was mapped for the program. It becomes writable again if a commit has failed that had made it executable: before that
        // nobody ran there.
        unsafe { host::protect(address, SIZE, how) }
    }
}

/// Makes the regions executable that hold one of the detours; those that were not yet.
pub(super) fn seal(detours: &[u64]) -> Vec<u64> {
    let holds = |region: &&Region| detours.iter().any(|&detour| region.holds(detour));
    let regions: Vec<Region> = with(|state| state.regions.iter().filter(holds).copied().collect());
    // Not with the state locked: what changes protections may be detoured itself.
    let executable = |region: &Region| region.protect(For::Executing) && !region.sealed;
    let sealed: Vec<u64> = regions.into_iter().filter(executable).map(|region| region.address).collect();
    mark(&sealed, true);
    sealed
}

/// Makes these writable again: nothing was attached.
pub(super) fn unseal(sealed: &[u64]) {
    let regions = sealed.iter().map(|&address| Region { address, sealed: true });
    let writable = |region: &Region| region.protect(For::Writing);
    let open: Vec<u64> = regions.filter(writable).map(|region| region.address).collect();
    mark(&open, false);
}

fn mark(addresses: &[u64], sealed: bool) {
    with(|state| {
        let these = state.regions.iter_mut().filter(|region| addresses.contains(&region.address));
        these.for_each(|region| region.sealed = sealed);
    });
}

fn replace(bound: fn(&mut Bounds) -> &mut u64, value: *mut c_void) -> *mut c_void {
    let value = value.addr() as u64;
    let before = with(|state| core::mem::replace(bound(&mut state.bounds), value));
    ptr::without_provenance_mut(usize::try_from(before).unwrap_or(0))
}

/// The lowest address where no trampoline may be; what it was before.
#[unsafe(no_mangle)]
pub extern "system" fn DetourSetSystemRegionLowerBound(lower: *mut c_void) -> *mut c_void {
    replace(|bounds| &mut bounds.lower, lower)
}

/// The highest one; what it was before.
#[unsafe(no_mangle)]
pub extern "system" fn DetourSetSystemRegionUpperBound(upper: *mut c_void) -> *mut c_void {
    replace(|bounds| &mut bounds.upper, upper)
}

/// 64 KiB of memory that a jump at `target` reaches, for code of the program's own; null if there are none.
///
/// # Safety
/// `size` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn DetourAllocateRegionWithinJumpBounds(
    target: *const c_void,
    size: *mut u32,
) -> *mut c_void {
    super::state::at_fork();
    // SAFETY: the caller's word.
    let size = unsafe { size.as_mut() }.map(|size| {
        *size = 0;
        size
    });
    let (Some(size), false) = (size, target.is_null()) else {
        set_last_error(INVALID_PARAMETER);
        return ptr::null_mut();
    };
    let target = target.expose_provenance() as u64;
    let reach = Reach { first: target.saturating_sub(JUMP), last: target.saturating_add(JUMP - SIZE as u64) };
    with(|state| state.bounds).apply();
    match with_process(|kdetour| kdetour.host().map_near(SIZE, reach)) {
        Ok(span) => {
            with(|state| state.regions.push(Region { address: span.address, sealed: false }));
            *size = SIZE as u32;
            ptr::with_exposed_provenance_mut(usize::try_from(span.address).unwrap_or(0))
        }
        Err(error) => {
            set_last_error(number(&error));
            ptr::null_mut()
        }
    }
}

/// `VirtualFree`, for such regions: not while something in one is attached, or called. Windows has its own.
#[cfg(not(windows))]
#[unsafe(no_mangle)]
pub extern "C" fn kdetour_virtual_free(address: *mut c_void, size: usize, kind: u32) -> Bool {
    if size != 0 || kind != RELEASE {
        return answer(Err(INVALID_PARAMETER));
    }
    let address = address.expose_provenance() as u64;
    let taken: Result<(Region, Vec<Handle>), Long> = with(|state| {
        let position = state.regions.iter().position(|region| region.address == address);
        let position = position.ok_or(INVALID_ADDRESS)?;
        let region = state.regions.get(position).copied().ok_or(INVALID_ADDRESS)?;
        let last = state.last_of(|detour| region.holds(detour)).ok_or(BUSY)?;
        // Nobody else frees it meanwhile.
        state.regions.swap_remove(position);
        Ok((region, last))
    });
    let (region, last) = match taken {
        Ok(taken) => taken,
        Err(error) => return answer(Err(error)),
    };
    let drained = if last.is_empty() { Ok(()) } else { set::drain(&last, PATIENCE) };
    let freed = drained.map_err(|error| number(&error)).and_then(|()| unmap(&region));
    if freed.is_err() {
        with(|state| state.regions.push(region));
    }
    answer(freed)
}

#[cfg(not(windows))]
fn unmap(region: &Region) -> Result<(), Long> {
    let address = ptr::with_exposed_provenance_mut(usize::try_from(region.address).unwrap_or(0));
    // SAFETY: it was mapped for the program, which gives it back; no detour in it is attached, and no call is inside one.
    match unsafe { host::unmap(address, SIZE) } {
        true => Ok(()),
        false => Err(INVALID_ADDRESS),
    }
}
