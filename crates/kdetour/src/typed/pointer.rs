//! Pointers to functions that are exchanged: those of tables, and those through which an image calls what it imports.
//!
//! ```
//! use kdetour::typed::PointerDetour;
//! use std::mem::transmute;
//! use std::sync::atomic::{AtomicPtr, Ordering};
//!
//! type Priced = extern "C" fn(u64) -> u64;
//!
//! extern "C" fn price(of: u64) -> u64 {
//!     of * 3
//! }
//!
//! extern "C" fn cheaper(of: u64) -> u64 {
//!     of + 1
//! }
//!
//! /// Through this one the price is asked.
//! static PRICE: AtomicPtr<()> = AtomicPtr::new(price as *mut ());
//!
//! let call = |of| {
//!     // SAFETY: functions of this type are put there.
//!     let price = unsafe { transmute::<*mut (), Priced>(PRICE.load(Ordering::Acquire)) };
//!     price(of)
//! };
//! // SAFETY: the pointer leads to functions of this type, is never freed, and nobody has a copy of it.
//! let mut detour = unsafe { PointerDetour::attach(PRICE.as_ptr().cast::<Priced>(), cheaper) }?;
//! assert_eq!((call(5), detour.original()(5)), (6, 15));
//! // Whoever calls the function itself is not concerned.
//! assert_eq!(price(5), 15);
//! detour.detach()?;
//! assert_eq!(call(5), 15);
//! # Ok::<(), kdetour::Error>(())
//! ```
//!
//! A pointer is changed by one compare-and-exchange, so no protocol is asked for. If its page is read-only, it is writable
//! for that moment, and has its own protection again behind it. What calls the function in another way, or has read the
//! pointer before and kept it, is not caught: then the function itself is the target, see [`Detour`](super::Detour).
//!
//! # Memory
//! As for every detour: nothing is freed before [`reclaim`](super::reclaim) has found nobody inside. A thread that has read the
//! pointer and is about to call what it read counts as being inside; a copy of it in memory that is no stack is not seen.

pub use crate::host::process::image::Image;

use super::cell::Cell;
use super::function::Function;
use super::process::{self, By, with};
use crate::host::process as own;
use crate::host::{Host as _, View as _};
use crate::{Error, Handle, Method, Protocol};
use core::sync::atomic::Ordering;
use core::{fmt, ptr};
use std::vec::Vec;

/// A pointer that leads to a detour. Dropping it detaches.
///
/// If that is not possible (somebody else wrote the pointer) the detour stays attached for ever: call
/// [`detach`](PointerDetour::detach) to know.
#[must_use = "dropping it detaches"]
pub struct PointerDetour<F: Function> {
    place: u64,
    detour: F,
    cell: Cell,
    handle: Handle,
    attached: bool,
    leaked: bool,
}

impl<F: Function> PointerDetour<F> {
    /// Lets the pointer at `place` lead to `detour`, whatever other threads do. Its original is the function that it leads to; of several
    /// detours of one pointer the last one is called first, and its original is the one that was there before.
    ///
    /// # Errors
    /// Nothing has been written then. [`Error::Misaligned`], [`Error::Unreadable`], [`Error::NotData`] or [`Error::Forbidden`] about the place;
    /// [`Error::NullPointer`] or [`Error::NotCode`] about where it leads; [`Error::Unbound`] if the loader has not bound it yet: ask
    /// [`imports`] for it; [`Error::AlreadyDetoured`] if it leads to `detour`; [`Error::PointerChanged`] if somebody writes it meanwhile, or
    /// has written it since an older detour came.
    ///
    /// # Safety
    /// * Whoever calls through the pointer calls a function of this type, and `detour` may be called in its place.
    /// * The pointer stays where it is until [`reclaim`](super::reclaim) has freed the detour. Those in shared objects do: they are kept
    ///   loaded. Nobody relies on it being read-only, as a compiler does that has worked out what a constant is.
    /// * What was read of it is called soon or not at all: it is not kept in memory, but for a stack, until the detour has been freed.
    /// * What [`original`](Self::original) gave is not called after the detour has been freed.
    /// * This is not called from a signal handler.
    pub unsafe fn attach(place: *const F, detour: F) -> Result<Self, Error> {
        let place = place.expose_provenance() as u64;
        let by = By::Protocol(Protocol::Exchange);
        // SAFETY: the caller's promise.
        let attached =
            unsafe { process::attach(by, Method::Pointer, place, detour.address(), None, &mut None) };
        let (handle, cell) = attached?;
        Ok(Self { place, detour, cell, handle, attached: true, leaked: false })
    }

    /// The original function. Ask for it at each call: it becomes another one when an older detour of the pointer goes.
    pub fn original(&self) -> F {
        // SAFETY: the cell holds the address of what the pointer led to, or of an older detour of it; whoever calls it is seen inside by a
        // drain.
        unsafe { F::from_address(self.cell.load(Ordering::Acquire)) }
    }

    /// Whether the pointer leads to this detour, or to a younger one of which this is an original.
    pub const fn is_attached(&self) -> bool {
        self.attached
    }

    /// Lets the pointer lead where it did before, whatever other threads do.
    ///
    /// # Errors
    /// [`Error::PointerChanged`] if somebody else has written it since: he may have kept this detour as his original, so it stays
    /// attached. [`Error::NotAttached`]. Where it is unmapped, or leads again where it did at first, there is nothing left to be
    /// done, and it is detached.
    pub fn detach(&mut self) -> Result<(), Error> {
        if !self.attached {
            return Err(Error::NotAttached);
        }
        process::detach(By::Protocol(Protocol::Exchange), self.handle)?;
        self.attached = false;
        Ok(())
    }

    /// Attaches it again, in front of whatever else has come to the pointer meanwhile.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach); [`Error::AlreadyDetoured`] if it is attached.
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn reattach(&mut self) -> Result<(), Error> {
        if self.attached {
            return Err(Error::AlreadyDetoured { target: self.place });
        }
        let by = By::Protocol(Protocol::Exchange);
        // SAFETY: the caller's promise; the cell is this detour's own.
        self.handle = unsafe {
            process::attach_again(
                by,
                Method::Pointer,
                self.handle,
                self.place,
                self.detour.address(),
                self.cell,
            )
        }?;
        self.attached = true;
        Ok(())
    }

    /// Leaves the pointer as it is for ever, and gives the original.
    pub fn leak(mut self) -> F {
        self.leaked = self.attached;
        self.original()
    }
}

impl<F: Function> Drop for PointerDetour<F> {
    fn drop(&mut self) {
        // What cannot be detached stays attached, and goes on reading its cell.
        if !self.leaked && (!self.attached || self.detach().is_ok()) {
            process::abandon(self.handle, self.cell);
        }
    }
}

impl<F: Function> fmt::Debug for PointerDetour<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PointerDetour")
            .field("place", &format_args!("{:#x}", self.place))
            .field("detour", &format_args!("{:#x}", self.detour.address()))
            .field("attached", &self.attached)
            .finish_non_exhaustive()
    }
}

/// The pointers through which an image calls a function that it imports: nearly always one. One that the loader has not
/// bound yet is bound, as its first call would have done.
///
/// Calls of other images have pointers of their own; calls inside the library that has the function mostly none.
///
/// ```
/// use kdetour::typed::PointerDetour;
/// use kdetour::typed::pointer::{Image, imports};
/// use std::ffi::{c_char, c_void};
///
/// # #[cfg(not(windows))]
/// # fn main() -> Result<(), kdetour::Error> {
/// type Getenv = extern "C" fn(*const c_char) -> *const c_char;
///
/// extern "C" fn none(_name: *const c_char) -> *const c_char {
///     std::ptr::null()
/// }
///
/// assert!(std::env::var_os("PATH").is_some());
/// let places = imports::<Getenv>(Image::Program, "getenv")?;
/// // SAFETY: getenv is a function of this type; nobody keeps what was read of its pointers.
/// let detours = places.iter().map(|&place| unsafe { PointerDetour::attach(place, none) });
/// let detours = detours.collect::<Result<Vec<_>, _>>()?;
/// assert!(std::env::var_os("PATH").is_none());
/// drop(detours);
/// assert!(std::env::var_os("PATH").is_some());
/// # Ok(())
/// # }
/// # #[cfg(windows)]
/// # fn main() -> Result<(), kdetour::Error> {
/// #     type Get = extern "system" fn(*const u16, *mut u16, u32) -> u32;
/// #     extern "system" fn none(_: *const u16, _: *mut u16, _: u32) -> u32 {
/// #         0
/// #     }
/// #     let path = || std::env::var_os("PATH").filter(|path| !path.is_empty());
/// #     assert!(path().is_some());
/// #     let places = imports::<Get>(Image::Program, "GetEnvironmentVariableW")?;
/// #     // SAFETY: it is a function of this type; nobody keeps what was read of its pointers.
/// #     let detours = places.iter().map(|&place| unsafe { PointerDetour::attach(place, none) });
/// #     let detours = detours.collect::<Result<Vec<_>, _>>()?;
/// #     assert!(path().is_none());
/// #     drop(detours);
/// #     assert!(path().is_some());
/// #     Ok(())
/// # }
/// ```
///
/// On Windows the loader has bound all pointers before the image runs. What is imported late (delay-loaded) is bound by the image itself, which
/// writes such a pointer at the first call: these are not found, and by their addresses they are refused ([`Error::Unbound`]) until then.
///
/// # Errors
/// [`Error::UnknownImage`] if no such image is loaded, or its file is not to be had; [`Error::UnknownSymbol`] if its relocations
/// name no such import, as where the function was linked into it; [`Error::Unbound`] if the loader could not bind it either.
pub fn imports<F: Function>(image: Image<'_>, symbol: &str) -> Result<Vec<*const F>, Error> {
    let places = imports_of(image, symbol)?;
    let pointer = |place| usize::try_from(place).map(ptr::with_exposed_provenance::<F>);
    Ok(places.into_iter().filter_map(|place| pointer(place).ok()).collect())
}

/// As [`imports`], by addresses.
///
/// # Errors
/// As for [`imports`].
pub fn imports_of(image: Image<'_>, symbol: &str) -> Result<Vec<u64>, Error> {
    // The loader's lock is never waited for with the turn taken.
    let imports = own::imports(image, symbol)?;
    let mut places = Vec::new();
    places.try_reserve_exact(imports.all.len())?;
    for import in &imports.all {
        let place = import.place;
        if let Some(stub) = with(|process| process.kdetour.host().view()?.stub(place))? {
            let function = imports.bind(import).ok_or(Error::Unbound { address: place })?;
            with(|process| {
                let host = process.kdetour.host();
                host.view()?.detour(function)?;
                // Should the loader have been faster, it is bound as well.
                host.swap(place, stub, function)
            })?;
        }
        places.push(place);
    }
    Ok(places)
}
