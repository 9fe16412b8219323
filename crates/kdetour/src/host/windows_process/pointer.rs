//! Pointers in data, and offsets that stand for pointers: where they may lie, and how one is exchanged.
//!
//! ```text
//!   the page is writable           compare and exchange
//!   it is not (.rdata, .idata)     readable and writable; compare and exchange; as it was
//!   it is executable               refused: no page is ever writable and executable
//! ```

use super::PAGE;
use super::nt::Nt;
use super::regions::Region;
use super::{lock, memory};
use crate::Error;
use crate::pointers::{SIZE, value};
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::Mutex;

/// `PAGE_READWRITE` (winnt.h).
const READ_WRITE: u32 = 0x04;

/// Whether there is a place for a pointer, or an offset, of `size` bytes that may be exchanged.
///
/// # Errors
/// [`Error::Misaligned`], [`Error::Unreadable`], [`Error::NotData`]; [`Error::Forbidden`] for a section that is mapped, or one that an
/// image shares, in which the pointer would change for other processes.
pub(super) fn check(nt: &Nt, place: u64, size: usize) -> Result<Region, Error> {
    if !place.is_multiple_of(size as u64) {
        return Err(Error::Misaligned { address: place });
    }
    let region = Region::of(nt, place).filter(Region::is_there);
    let region = region.ok_or(Error::Unreadable { address: place })?;
    if region.is_code() {
        return Err(Error::NotData { address: place });
    }
    // Of an image without headers nobody knows.
    let is_shared = region.is_shared(nt, place).unwrap_or(true);
    if is_shared { Err(Error::Forbidden { address: place }) } else { Ok(region) }
}

/// Where a pointer leads.
pub(super) fn read(nt: &Nt, place: u64) -> Result<u64, Error> {
    let mut bytes = [0; SIZE];
    memory::read(nt, place, &mut bytes)?;
    Ok(value(bytes))
}

/// Replaces the pointer at `place` if it is `expected`; gives what was found.
pub(super) fn swap(nt: &Nt, place: u64, expected: u64, new: u64) -> Result<u64, Error> {
    let narrow = |value: u64| usize::try_from(value).map_err(|_| Error::NotCode { address: value });
    swap_by(nt, place, narrow(expected)?, narrow(new)?, |place, expected, new| {
        // SAFETY: by the word of `swap_by`.
        let pointer = unsafe { AtomicUsize::from_ptr(place) };
        pointer.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst)
    })
    .map(|found| found as u64)
}

/// Replaces the offset at `place` if it is `expected`; gives what was found.
pub(super) fn swap_offset(nt: &Nt, place: u64, expected: u32, new: u32) -> Result<u32, Error> {
    swap_by(nt, place, expected, new, |place, expected, new| {
        // SAFETY: by the word of `swap_by`.
        let offset = unsafe { AtomicU32::from_ptr(place) };
        offset.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst)
    })
}

/// Has `exchange` replace what is at `place`, where it is readable and writable meanwhile; gives what was found. The place is aligned for
/// a `T`, and by the word of whoever attaches it stays mapped; others read it as a whole, whatever they are written in: no processor
/// tears what is aligned.
fn swap_by<T: Copy + PartialEq>(
    nt: &Nt,
    place: u64,
    expected: T,
    new: T,
    exchange: impl Fn(*mut T, T, T) -> Result<T, T>,
) -> Result<T, Error> {
    // Another one in the same page would find it writable, and leave it so.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _only = lock(&ONE_AT_A_TIME);
    let region = check(nt, place, size_of::<T>())?;
    let address = usize::try_from(place).map_err(|_| Error::Unreadable { address: place })?;
    let exchange = |expected: T, new: T| {
        exchange(ptr::with_exposed_provenance_mut(address), expected, new).unwrap_or_else(|found| found)
    };
    if region.is_writable() {
        return Ok(exchange(expected, new));
    }
    let page = memory::page_down(place);
    // SAFETY: the page is memory and not executable, as was looked up just now; it can be read before, meanwhile and afterwards, and nobody
    // relies on faults by writing there.
    let before = unsafe { nt.protect(page, PAGE, READ_WRITE) }.map_err(Error::Host)?;
    let found = exchange(expected, new);
    // SAFETY: as above; it becomes what it was.
    let restored = unsafe { nt.protect(page, PAGE, before) };
    if restored.is_err() && found == expected {
        // Then it is writable still.
        exchange(new, expected);
    }
    restored.map(|_| found).map_err(Error::Host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::windows_process::WindowsProcess;
    use crate::host::windows_process::nt::Nt;
    use crate::host::{Host, Span, View};
    use windows_sys::Win32::System::Memory::{
        MEM_COMMIT, MEM_RESERVE, PAGE_EXECUTE_READ, PAGE_NOACCESS, PAGE_READONLY, PAGE_READWRITE,
        VirtualAlloc, VirtualProtect,
    };

    fn nt() -> &'static Nt {
        Nt::get().unwrap()
    }

    /// A page with these pointers at its start, protected so.
    fn page(pointers: &[usize], protection: u32) -> u64 {
        // SAFETY: the system chooses the place.
        let page =
            unsafe { VirtualAlloc(ptr::null(), PAGE as usize, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE) };
        assert!(!page.is_null());
        for (index, &pointer) in pointers.iter().enumerate() {
            // SAFETY: the page was made for this test, and has room for them.
            unsafe { page.cast::<usize>().add(index).write(pointer) };
        }
        let mut old = 0;
        // SAFETY: as above.
        assert_ne!(unsafe { VirtualProtect(page, PAGE as usize, protection, &raw mut old) }, 0);
        page.expose_provenance() as u64
    }

    fn region(address: u64) -> Region {
        Region::of(nt(), address).unwrap()
    }

    fn pointer(place: u64) -> u64 {
        read(nt(), place).unwrap()
    }

    #[test]
    fn a_pointer_is_exchanged_if_it_is_what_is_expected() {
        for protection in [PAGE_READONLY, PAGE_READWRITE] {
            let place = page(&[0, 5, 6], protection) + SIZE as u64;
            let before = region(place);
            assert_eq!(swap(nt(), place, 5, 7), Ok(5));
            assert_eq!(pointer(place), 7);
            assert_eq!(swap(nt(), place, 5, 8), Ok(7), "and is left as it is");
            assert_eq!((pointer(place), pointer(place + SIZE as u64)), (7, 6));
            assert_eq!(region(place), before);
        }
    }

    #[test]
    fn an_offset_is_exchanged_and_its_neighbours_are_not() {
        for protection in [PAGE_READONLY, PAGE_READWRITE] {
            let page = page(&[usize::MAX; 3], protection);
            let (place, before) = (page + 4, region(page));
            assert_eq!(swap_offset(nt(), place, u32::MAX, 7), Ok(u32::MAX));
            assert_eq!(swap_offset(nt(), place, u32::MAX, 8), Ok(7), "and is left as it is");
            assert_eq!(swap_offset(nt(), place + 2, 7, 8), Err(Error::Misaligned { address: place + 2 }));
            let mut bytes = [0; 12];
            memory::read(nt(), page, &mut bytes).unwrap();
            assert_eq!(bytes, [255, 255, 255, 255, 7, 0, 0, 0, 255, 255, 255, 255]);
            assert_eq!(region(page), before);
        }
    }

    #[test]
    fn places_that_are_none() {
        let data = page(&[5], PAGE_READONLY);
        assert_eq!(swap(nt(), data + 1, 5, 7), Err(Error::Misaligned { address: data + 1 }));
        assert_eq!(swap(nt(), 16, 5, 7), Err(Error::Unreadable { address: 16 }));
        let hidden = page(&[5], PAGE_NOACCESS);
        assert_eq!(swap(nt(), hidden, 5, 7), Err(Error::Unreadable { address: hidden }));
        let code = page(&[5], PAGE_EXECUTE_READ);
        assert_eq!(swap(nt(), code, 5, 7), Err(Error::NotData { address: code }));
        assert_eq!([code, data].map(pointer), [5, 5]);
    }

    // What every process that has this image loaded sees: `IMAGE_SCN_MEM_SHARED`.
    macro_rules! shared {
        ($prefix:literal, $pointer:literal) => {
            core::arch::global_asm!(
                ".section .kdshd, \"dws\"",
                ".p2align 4",
                concat!(".globl ", $prefix, "kdetour_pointer_shared"),
                concat!($prefix, "kdetour_pointer_shared:"),
                concat!($pointer, " 5"),
                ".section .kdshx, \"xs\"",
                ".p2align 4",
                concat!(".globl ", $prefix, "kdetour_pointer_shared_code"),
                concat!($prefix, "kdetour_pointer_shared_code:"),
                "mov eax, 5",
                "ret",
                ".text",
            );
        };
    }
    #[cfg(target_arch = "x86_64")]
    shared!("", ".quad");
    #[cfg(target_arch = "x86")]
    shared!("_", ".long");

    unsafe extern "C" {
        static kdetour_pointer_shared: usize;
        static kdetour_pointer_shared_code: u8;
    }

    #[test]
    fn what_images_share_is_left_alone() {
        let (data, code) = (&raw const kdetour_pointer_shared, &raw const kdetour_pointer_shared_code);
        let (data, code) = (data.expose_provenance() as u64, code.addr() as u64);
        assert_eq!((region(data).is_image(), region(code).is_code()), (true, true));
        assert_eq!(swap(nt(), data, 5, 7), Err(Error::Forbidden { address: data }));
        assert_eq!(swap_offset(nt(), data, 5, 7), Err(Error::Forbidden { address: data }));
        assert_eq!(pointer(data), 5);
        // Its neighbours in the image are not.
        static OWN: AtomicUsize = AtomicUsize::new(5);
        assert_eq!(swap(nt(), OWN.as_ptr().addr() as u64, 5, 7), Ok(5));
        let host = WindowsProcess::new().unwrap();
        let function = host.view().and_then(|view| view.function(code)).map(drop);
        assert_eq!(function, Err(Error::Forbidden { address: code }));
        let text = host.open_text(&[Span { address: code, len: 1 }]).map(drop);
        assert_eq!(text, Err(Error::Forbidden { address: code }));
    }
}
