//! PE images in a process: the pointers by which they import functions, and their exports. On Windows those of its own loader; in a Linux
//! process those of whatever loader.
//!
//! ```no_run
//! # #[cfg(target_arch = "x86_64")]
//! # fn main() -> Result<(), kdetour::Error> {
//! use kdetour::typed::{PointerDetour, pe};
//! use std::ffi::c_void;
//!
//! type Price = extern "win64" fn(u32) -> u32;
//!
//! extern "win64" fn cheaper(of: u32) -> u32 {
//!     of + 1
//! }
//!
//! # fn load() -> *const c_void { std::ptr::null() }
//! let image: *const c_void = load();
//! // What the image calls.
//! let places = pe::imports::<Price>(image, Some("shop.dll"), "price")?;
//! // SAFETY: it is a function of this type, nobody keeps what was read of the pointer, and the image stays.
//! let import = unsafe { PointerDetour::attach(places[0], cheaper) }?;
//! // What others find in it from now on.
//! // SAFETY: it is the base of an image that stays.
//! let export = unsafe { pe::Export::<Price>::lead(image, "price_of") }?;
//! // SAFETY: it is a function of this type.
//! let detour = unsafe { PointerDetour::attach(export.pointer(), cheaper) }?;
//! # Ok(())
//! # }
//! # #[cfg(not(target_arch = "x86_64"))]
//! # fn main() {}
//! ```
//!
//! An image is known by its base: the address of its first byte, a Windows program's `HMODULE`. Nothing about it is remembered, and
//! nothing keeps it mapped. Images of the other class, such as 32-bit ones in a 64-bit process, are refused.
//!
//! Symbols are names, or ordinals as `#12`. Functions of a Windows ABI have types of their own: `extern "win64" fn`, in a 32-bit
//! process `extern "stdcall" fn` and others.

use super::function::Function;
use super::process::with;
use crate::Error;
use core::ffi::c_void;
use core::marker::PhantomData;
use core::{fmt, ptr};
use std::vec::Vec;

/// The pointers through which the image calls a function that it imports from `library`, or from any: nearly always one. Names of
/// libraries are compared as Windows does, whatever the case, and have their `.dll`.
///
/// What was imported late (delay-loaded), and what a linker left no names of beside the pointers, is not found. An image is copied to be
/// looked at, in time and memory in proportion to its size, of which 2 GiB count at the most.
///
/// # Errors
/// [`Error::Unreadable`] or [`Error::NotImage`] if there is no such image, or its tables are damaged; [`Error::UnknownSymbol`] if it has no
/// such import. Whether there may be a pointer is not looked at: [`attach`](super::PointerDetour::attach) does.
pub fn imports<F: Function>(
    image: *const c_void,
    library: Option<&str>,
    symbol: &str,
) -> Result<Vec<*const F>, Error> {
    let places = imports_of(image.expose_provenance() as u64, library, symbol)?;
    let pointer = |place| usize::try_from(place).map(ptr::with_exposed_provenance::<F>);
    Ok(places.into_iter().filter_map(|place| pointer(place).ok()).collect())
}

/// As [`imports`], by addresses.
///
/// # Errors
/// As for [`imports`].
pub fn imports_of(image: u64, library: Option<&str>, symbol: &str) -> Result<Vec<u64>, Error> {
    with(|process| process.kdetour.host().pe_imports(image, library, symbol))
}

/// An export that leads to a pointer, and by it to its function: who looks the function up from now on calls it through that pointer, for
/// ever. So a [`PointerDetour`](super::PointerDetour) of it, or a set's, catches the calls of all who looked it up since, and can go
/// although they keep what they found.
///
/// Dropping it has the export lead to its function again. If that is not possible (somebody else wrote it) it goes on leading to the
/// pointer: call [`restore`](Export::restore) to know.
#[must_use = "dropping it has the export lead to its function again"]
pub struct Export<F: Function> {
    pointer: u64,
    is_led: bool,
    of: PhantomData<F>,
}

impl<F: Function> Export<F> {
    /// Has an export lead to a pointer of ours, and that to the function. Calls do what they did.
    ///
    /// What costs memory is the first time for each export, at each base of its image: 16 bytes of code and a pointer, which stay; they
    /// are mapped for 256 exports at a time. The image is copied to be looked at.
    ///
    /// # Errors
    /// Nothing has been written then. [`Error::Unreadable`] or [`Error::NotImage`] if there is no such image, or its tables are damaged;
    /// [`Error::UnknownSymbol`] if it has no such export; [`Error::Forwarded`] if that is another image's; [`Error::NotCode`] if it is data;
    /// [`Error::NotData`] if the table is in an executable page, as old linkers have it; [`Error::Misaligned`] or [`Error::Forbidden`] about
    /// the table's place; [`Error::NoSlot`] if there is no memory above the image within 2 GiB; [`Error::PointerChanged`] if somebody
    /// writes the entry meanwhile.
    ///
    /// # Safety
    /// * A PE image is at `image`, and stays there until the export has been restored, and no detour of the pointer is attached any more.
    /// * The export is a function, which stays as long as anybody calls it.
    /// * Nobody compares what he looks up with the function's address.
    pub unsafe fn lead(image: *const c_void, symbol: &str) -> Result<Self, Error> {
        let image = image.expose_provenance() as u64;
        // SAFETY: the caller's promise.
        let pointer = unsafe { lead(image, symbol) }?;
        Ok(Self { pointer, is_led: true, of: PhantomData })
    }

    /// Where the pointer is.
    pub fn pointer(&self) -> *const F {
        ptr::with_exposed_provenance(usize::try_from(self.pointer).unwrap_or_default())
    }

    /// Has the export lead to its function again. Detours of the pointer stay attached, and are called by those who looked the function
    /// up meanwhile.
    ///
    /// # Errors
    /// [`Error::PointerChanged`] if somebody else has written the entry since: he may have kept what he found, so it is left as it is.
    /// [`Error::NotData`] or [`Error::Forbidden`] if its page has become one where nothing is written. [`Error::NotAttached`] if it was
    /// restored already. An image that is not mapped any more needs nothing.
    pub fn restore(&mut self) -> Result<(), Error> {
        if !self.is_led {
            return Err(Error::NotAttached);
        }
        restore(self.pointer)?;
        self.is_led = false;
        Ok(())
    }
}

impl<F: Function> Drop for Export<F> {
    fn drop(&mut self) {
        if self.is_led {
            // What somebody else wrote stays.
            let _ = restore(self.pointer);
        }
    }
}

impl<F: Function> fmt::Debug for Export<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("pointer", &format_args!("{:#x}", self.pointer))
            .field("is_led", &self.is_led)
            .finish_non_exhaustive()
    }
}

/// As [`Export::lead`], by addresses: where the pointer is.
///
/// # Errors
/// As for [`Export::lead`].
///
/// # Safety
/// As for [`Export::lead`].
pub unsafe fn lead(image: u64, symbol: &str) -> Result<u64, Error> {
    with(|process| process.kdetour.host().lead_export(image, symbol))
}

/// As [`Export::restore`], by the address of the pointer. As often as [`lead`] gave it.
///
/// # Errors
/// As for [`Export::restore`].
pub fn restore(pointer: u64) -> Result<(), Error> {
    with(|process| process.kdetour.host().restore_export(pointer))
}
