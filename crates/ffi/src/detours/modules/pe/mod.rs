//! PE images, and what Windows says of them.
//!
//! ```text
//!   image    a PE image in memory: its headers, its directories; a reader of its bytes
//!   exports  what it has for others
//!   imports  what it wants of others: the slots of its tables, and what the loader has put there
//! ```
//!
//! What is loaded is asked of the memory manager, and what is in it is read by the kernel: the loader's lock is needed for nothing but
//! [`find`], which may load a module.

mod exports;
mod image;
mod imports;

use crate::detours::host::last_error;
use crate::detours::windows::{Long, set_last_error};
use core::ffi::{CStr, c_void};
use core::mem::MaybeUninit;
use core::ptr;
use image::Image;
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress, LoadLibraryA};
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_IMAGE, MEMORY_BASIC_INFORMATION, PAGE_GUARD, PAGE_NOACCESS, VirtualQuery,
};

pub(super) use exports::exports;
pub(in crate::detours) use imports::function_through;
pub(crate) use imports::imported_from;
pub(super) use imports::imports;

/// In such steps addresses are handed out.
const BLOCK: u64 = 0x1_0000;

/// What keeps a module loaded. Here nothing does: its tables are read in one go, and names belong to whoever gave the module.
#[derive(Debug)]
pub(super) enum Handle {}

/// The image of a handle, 0 being the program's.
pub(super) fn open(module: u64) -> Result<Image, Long> {
    Image::open(match module {
        // SAFETY: it asks for an address, and needs no lock.
        0 => unsafe { GetModuleHandleW(ptr::null()) }.expose_provenance() as u64,
        base => base,
    })
}

/// Pages that follow each other and have the same properties.
struct Region {
    start: u64,
    end: u64,
    /// Where what they were allocated with begins.
    allocation: u64,
    /// Whether they are part of an image, and can be read.
    is_image: bool,
}

impl Region {
    fn of(address: u64) -> Option<Self> {
        let mut found = MaybeUninit::<MEMORY_BASIC_INFORMATION>::uninit();
        let place = ptr::without_provenance::<c_void>(usize::try_from(address).ok()?);
        // SAFETY: it is filled if the answer is its size; the address is only asked about.
        let len = unsafe { VirtualQuery(place, found.as_mut_ptr(), size_of::<MEMORY_BASIC_INFORMATION>()) };
        if len != size_of::<MEMORY_BASIC_INFORMATION>() {
            return None;
        }
        // SAFETY: it has been filled.
        let found = unsafe { found.assume_init() };
        let is_image = found.Type == MEM_IMAGE && found.State == MEM_COMMIT;
        Some(Self {
            start: found.BaseAddress.addr() as u64,
            end: (found.BaseAddress.addr() as u64).saturating_add(found.RegionSize as u64),
            allocation: found.AllocationBase.addr() as u64,
            is_image: is_image && found.Protect & (PAGE_NOACCESS | PAGE_GUARD) == 0,
        })
    }
}

/// The module that an address is in.
pub(super) fn containing(address: u64) -> Option<u64> {
    let region = Region::of(address).filter(|region| region.is_image)?;
    let image = Image::open(region.allocation).ok()?;
    (address < image.base().saturating_add(image.size())).then(|| image.base())
}

/// Whether an address is in the program itself, which is never unloaded.
pub(crate) fn is_of_the_program(address: u64) -> bool {
    // SAFETY: it asks for an address, and needs no lock.
    let program = unsafe { GetModuleHandleW(ptr::null()) }.addr() as u64;
    Region::of(address).is_some_and(|region| region.is_image && region.allocation == program)
}

/// The first module behind an address.
pub(super) fn next(last: u64) -> Option<u64> {
    let before = last_error();
    let next = behind(last);
    // That there is none is no error, whatever the search has left.
    set_last_error(before);
    next
}

fn behind(last: u64) -> Option<u64> {
    let mut at = (last & !(BLOCK - 1)).checked_add(BLOCK)?;
    loop {
        let region = Region::of(at)?;
        let begins = region.is_image && region.start == region.allocation;
        if begins && Image::open(region.start).is_ok() {
            return Some(region.start);
        }
        at = region.end.max(at.checked_add(1)?);
    }
}

/// What a module, which is loaded if it is not, has for others under a name.
pub(super) fn find(module: &CStr, function: &CStr) -> Result<u64, Long> {
    let before = last_error();
    // SAFETY: a string. The module's constructors run: that is what loading is. It stays.
    let module = unsafe { LoadLibraryA(module.as_ptr().cast()) };
    if module.is_null() {
        return Err(last_error());
    }
    // SAFETY: the module is loaded, the name is a string.
    let found = unsafe { GetProcAddress(module, function.as_ptr().cast()) };
    let place = found.map(|found| (found as *const ()).expose_provenance() as u64).ok_or_else(last_error)?;
    set_last_error(before);
    Ok(place)
}
