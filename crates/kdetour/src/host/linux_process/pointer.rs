//! Pointers in data, and offsets that stand for pointers: where they may lie, and how one is exchanged.
//!
//! ```text
//!   the page is writable      compare and exchange
//!   it is not (RELRO)         mprotect: readable and writable; compare and exchange; mprotect: as it was
//!   it is executable          refused: no page is ever writable and executable
//! ```
//!
//! `/proc/self/mem` would leave the protection alone, but what it writes is no single store, and it compares nothing.

use super::maps::Mapping;
use super::memory::Memory;
use super::{PAGE, lock, query, refused};
use crate::Error;
use crate::pointers::{SIZE, value};
use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use rustix::io::Errno;
use rustix::mm::{MprotectFlags, mprotect};
use std::sync::Mutex;

/// Whether there is a place for a pointer, or an offset, of `size` bytes that may be exchanged.
///
/// # Errors
/// [`Error::Misaligned`], [`Error::Unreadable`], [`Error::NotData`]; [`Error::Forbidden`] for a shared mapping, in which the pointer would
/// change for other processes.
pub(super) fn check(mapping: Option<&Mapping>, place: u64, size: usize) -> Result<(), Error> {
    if !place.is_multiple_of(size as u64) {
        return Err(Error::Misaligned { address: place });
    }
    let mapping = mapping.filter(|mapping| mapping.readable).ok_or(Error::Unreadable { address: place })?;
    if mapping.executable {
        return Err(Error::NotData { address: place });
    }
    if mapping.shared { Err(Error::Forbidden { address: place }) } else { Ok(()) }
}

/// Where a pointer leads.
pub(super) fn read(memory: &Memory, place: u64) -> Result<u64, Error> {
    let mut bytes = [0; SIZE];
    memory.read(place, &mut bytes)?;
    Ok(value(bytes))
}

/// Replaces the pointer at `place` if it is `expected`; gives what was found.
pub(super) fn swap(place: u64, expected: u64, new: u64) -> Result<u64, Error> {
    let narrow = |value: u64| usize::try_from(value).map_err(|_| Error::NotCode { address: value });
    swap_by(place, narrow(expected)?, narrow(new)?, |place, expected, new| {
        // SAFETY: by the word of `swap_by`.
        let pointer = unsafe { AtomicUsize::from_ptr(place) };
        pointer.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst)
    })
    .map(|found| found as u64)
}

/// Replaces the offset at `place` if it is `expected`; gives what was found.
pub(super) fn swap_offset(place: u64, expected: u32, new: u32) -> Result<u32, Error> {
    swap_by(place, expected, new, |place, expected, new| {
        // SAFETY: by the word of `swap_by`.
        let offset = unsafe { AtomicU32::from_ptr(place) };
        offset.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst)
    })
}

/// Has `exchange` replace what is at `place`, where it is readable and writable meanwhile; gives what was found. The place is aligned for
/// a `T`, and by the word of whoever attaches it stays mapped; others read it as a whole, whatever they are written in: no processor
/// tears what is aligned.
fn swap_by<T: Copy + PartialEq>(
    place: u64,
    expected: T,
    new: T,
    exchange: impl Fn(*mut T, T, T) -> Result<T, T>,
) -> Result<T, Error> {
    // Another one in the same page would find it writable, and leave it so.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _only = lock(&ONE_AT_A_TIME);
    let span = (place, place.saturating_add(size_of::<T>() as u64));
    let (mappings, _) = query::within(core::iter::once(span))?;
    let mapping = mappings.of(place);
    check(mapping, place, size_of::<T>())?;
    let address = usize::try_from(place).map_err(|_| Error::Unreadable { address: place })?;
    let exchange = |expected: T, new: T| {
        exchange(ptr::with_exposed_provenance_mut(address), expected, new).unwrap_or_else(|found| found)
    };
    if mapping.is_some_and(|mapping| mapping.writable) {
        return Ok(exchange(expected, new));
    }
    protect(place, MprotectFlags::READ | MprotectFlags::WRITE)?;
    let found = exchange(expected, new);
    let restored = protect(place, MprotectFlags::READ);
    if restored.is_err() && found == expected {
        // Then it is writable still.
        exchange(new, expected);
    }
    restored.map(|()| found)
}

/// Sets the protection of the page of a pointer, in which there is no code.
fn protect(place: u64, protection: MprotectFlags) -> Result<(), Error> {
    let page = usize::try_from(place & !(PAGE - 1)).map_err(|_| Error::Unreadable { address: place })?;
    let page = ptr::with_exposed_provenance_mut::<c_void>(page);
    // SAFETY: the page is mapped, private and not executable, as was looked up just now; it can be read before, meanwhile
    // and afterwards, and nobody relies on faults by writing there.
    unsafe { mprotect(page, PAGE as usize, protection) }.map_err(|error| match error {
        // A sealed mapping; or a security module forbids it.
        Errno::PERM | Errno::ACCESS => Error::Forbidden { address: place },
        other => refused(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::narrow;
    use crate::host::linux_process::fork::tests::in_child;
    use crate::host::linux_process::maps::Mappings;
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

    /// A page with these pointers at its start, protected so.
    fn page(pointers: &[usize], protection: MprotectFlags, flags: MapFlags) -> u64 {
        let all = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place.
        let page = unsafe { mmap_anonymous(ptr::null_mut(), PAGE as usize, all, flags) }.unwrap();
        for (index, &pointer) in pointers.iter().enumerate() {
            // SAFETY: the page was mapped for this test, and has room for them.
            unsafe { page.cast::<usize>().add(index).write(pointer) };
        }
        // SAFETY: as above.
        unsafe { mprotect(page, PAGE as usize, protection) }.unwrap();
        page.expose_provenance() as u64
    }

    fn mapping(address: u64) -> Mapping {
        Mappings::read().unwrap().of(address).unwrap().clone()
    }

    fn pointer(place: u64) -> u64 {
        read(&Memory::open().unwrap(), place).unwrap()
    }

    #[test]
    fn a_pointer_is_exchanged_if_it_is_what_is_expected() {
        for protection in [MprotectFlags::READ, MprotectFlags::READ | MprotectFlags::WRITE] {
            let place = page(&[0, 5, 6], protection, MapFlags::PRIVATE) + SIZE as u64;
            let before = mapping(place);
            assert_eq!(swap(place, 5, 7), Ok(5));
            assert_eq!(pointer(place), 7);
            assert_eq!(swap(place, 5, 8), Ok(7), "and is left as it is");
            assert_eq!((pointer(place), pointer(place + SIZE as u64)), (7, 6));
            assert_eq!(mapping(place), before);
        }
    }

    #[test]
    fn an_offset_is_exchanged_and_its_neighbours_are_not() {
        for protection in [MprotectFlags::READ, MprotectFlags::READ | MprotectFlags::WRITE] {
            let page = page(&[usize::MAX; 3], protection, MapFlags::PRIVATE);
            let (place, before) = (page + 4, mapping(page));
            assert_eq!(swap_offset(place, u32::MAX, 7), Ok(u32::MAX));
            assert_eq!(swap_offset(place, u32::MAX, 8), Ok(7), "and is left as it is");
            assert_eq!(swap_offset(place + 2, 7, 8), Err(Error::Misaligned { address: place + 2 }));
            let mut bytes = [0; 12];
            Memory::open().unwrap().read(page, &mut bytes).unwrap();
            assert_eq!(bytes, [255, 255, 255, 255, 7, 0, 0, 0, 255, 255, 255, 255]);
            assert_eq!(mapping(page), before);
        }
    }

    #[test]
    fn places_that_are_none() {
        let read = MprotectFlags::READ;
        let data = page(&[5], read, MapFlags::PRIVATE);
        assert_eq!(swap(data + 1, 5, 7), Err(Error::Misaligned { address: data + 1 }));
        assert_eq!(swap(16, 5, 7), Err(Error::Unreadable { address: 16 }));
        let hidden = page(&[5], MprotectFlags::empty(), MapFlags::PRIVATE);
        assert_eq!(swap(hidden, 5, 7), Err(Error::Unreadable { address: hidden }));
        let code = page(&[5], read | MprotectFlags::EXEC, MapFlags::PRIVATE);
        assert_eq!(swap(code, 5, 7), Err(Error::NotData { address: code }));
        let shared = page(&[5], read, MapFlags::SHARED);
        assert_eq!(swap(shared, 5, 7), Err(Error::Forbidden { address: shared }));
        assert_eq!([code, shared, data].map(pointer), [5, 5, 5]);
    }

    #[test]
    fn what_the_kernel_refuses_is_told() {
        const SEAL: libc::c_long = 462;
        let place = page(&[5], MprotectFlags::READ, MapFlags::PRIVATE);
        assert!(in_child(|| {
            // SAFETY: mseal(2) changes nothing but what may be done with the page from now on.
            let sealed = unsafe { libc::syscall(SEAL, narrow(place), PAGE as usize, 0_usize) } == 0;
            // Kernels before 6.10 have none.
            !sealed || swap(place, 5, 7) == Err(Error::Forbidden { address: place }) && pointer(place) == 5
        }));
    }
}
