//! The pointers through which an image calls what it imports: its import address table.
//!
//! The loader has filled it before the image's first instruction runs, so there is nothing to be bound here.

use super::images::Pin;
use super::nt::Nt;
use crate::Error;
use crate::address::widen;
use crate::host::process::image::Image;
use crate::host::process::pe;
use core::ptr;
use std::vec::Vec;
use windows_sys::Win32::System::LibraryLoader::GetModuleHandleW;

impl Image<'_> {
    /// Where it begins; and it stays loaded as long as that is asked about.
    fn find(self) -> Result<(u64, Option<Pin>), Error> {
        let base = match self {
            Self::Program => module(None)?,
            Self::Named(name) => module(Some(name))?,
            Self::Holding(address) => Pin::base(address).ok_or(Error::UnknownImage)?,
        };
        let pin = Pin::of(base);
        // Another one may have come there since.
        let is_it = match self {
            Self::Program => true,
            Self::Named(name) => module(Some(name)).is_ok_and(|again| again == base),
            Self::Holding(address) => Pin::base(address) == Some(base),
        };
        if is_it { Ok((base, pin)) } else { Err(Error::UnknownImage) }
    }
}

/// The module of a name, or the program.
fn module(name: Option<&str>) -> Result<u64, Error> {
    let wide: Option<Vec<u16>> = name.map(|name| name.encode_utf16().chain(Some(0)).collect());
    // An empty name would be the program's, and one with a zero inside another one.
    if name.is_some_and(|name| name.is_empty() || name.contains('\0')) {
        return Err(Error::UnknownImage);
    }
    // SAFETY: a string that ends, or none.
    let found = unsafe { GetModuleHandleW(wide.as_ref().map_or(ptr::null(), Vec::as_ptr)) };
    if found.is_null() { Err(Error::UnknownImage) } else { Ok(widen(found.addr())) }
}

/// The pointers through which an image reaches one function.
pub(crate) struct Imports {
    pub(crate) all: Vec<Import>,
}

/// One of them.
pub(crate) struct Import {
    /// Where the pointer is.
    pub(crate) place: u64,
}

impl Imports {
    /// The function that the loader would bind an import to: it has bound them all.
    #[expect(clippy::unused_self, reason = "elsewhere there are some that are bound later")]
    pub(crate) const fn bind(&self, _import: &Import) -> Option<u64> {
        None
    }
}

/// Finds the pointers through which an image reaches a function, of whatever library. Takes the loader's lock.
///
/// # Errors
/// [`Error::UnknownImage`]; [`Error::UnknownSymbol`] if the image has no such import; [`Error::NotImage`] if its tables are damaged.
pub(crate) fn imports(image: Image<'_>, symbol: &str) -> Result<Imports, Error> {
    let (base, _pin) = image.find()?;
    let places = pe::imports(Nt::get()?, base, None, symbol)?;
    Ok(Imports { all: places.into_iter().map(|place| Import { place }).collect() })
}
