//! PE images in this process: those of Windows' own loader, or that somebody else has mapped, as Wine's does in a Linux process.
//!
//! An image is what lies at the address that it is said to be at. It is copied and looked at there, so that nothing can change meanwhile.

use super::arch::{PE_MACHINE, PeHeaders};
use crate::Error;
use crate::host::pe::{Entry, Symbol, Tables};
use core::ops::Range;
use std::vec::Vec;

/// The memory of a process.
pub(crate) trait Memory {
    /// Reads it.
    ///
    /// # Errors
    /// [`Error::Unreadable`].
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error>;

    /// What is mapped between two addresses, in their order.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Host`].
    fn parts(&self, first: u64, end: u64) -> Result<Vec<Part>, Error>;
}

/// Memory that is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) addresses: Range<u64>,
    pub(crate) readable: bool,
}

/// The headers of an image are in so many bytes.
const HEADERS: usize = 4096;

/// Where the pointers are through which the image at `base` calls a function.
pub(crate) fn imports(
    memory: &impl Memory,
    base: u64,
    library: Option<&str>,
    symbol: &str,
) -> Result<Vec<u64>, Error> {
    if !is_name(symbol) || library.is_some_and(|library| !is_name(library)) {
        return Err(Error::UnknownSymbol);
    }
    let library = library.map(str::as_bytes);
    let places = read(memory, base, |tables| tables.imports(library, Symbol::new(symbol)).ok())?;
    if places.is_empty() {
        return Err(Error::UnknownSymbol);
    }
    let mut all = Vec::new();
    all.try_reserve_exact(places.len())?;
    all.extend(places.into_iter().map(|place| base.wrapping_add(place.into())));
    Ok(all)
}

/// The entry of a function that the image at `base` exports.
pub(crate) fn export(memory: &impl Memory, base: u64, symbol: &str) -> Result<Entry, Error> {
    if !is_name(symbol) {
        return Err(Error::UnknownSymbol);
    }
    let entry = read(memory, base, |tables| tables.export(Symbol::new(symbol)).ok())?;
    let entry = entry.ok_or(Error::UnknownSymbol)?;
    if entry.is_forwarded {
        return Err(Error::Forwarded { address: base.wrapping_add(entry.leads_to.into()) });
    }
    Ok(entry)
}

/// Whether the pointer at `place` is one that the image at `base` binds itself, bound or not; if that is an image.
#[cfg(windows)]
pub(crate) fn is_late(memory: &impl Memory, base: u64, place: u64) -> Result<bool, Error> {
    let mut headers = [0; HEADERS];
    memory.read(base, &mut headers)?;
    if !Tables::<PeHeaders>::parse(&headers, PE_MACHINE).is_ok_and(|tables| tables.has_late()) {
        return Ok(false);
    }
    let Ok(place) = u32::try_from(place.wrapping_sub(base)) else { return Ok(false) };
    read(memory, base, |tables| tables.is_late(place).ok())
}

/// Whether there could be such a name: an empty one would be found wherever there is a zero.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}

fn read<T>(
    memory: &impl Memory,
    base: u64,
    work: impl FnOnce(&Tables<'_, PeHeaders>) -> Option<T>,
) -> Result<T, Error> {
    let image = copy(memory, base)?;
    let tables = Tables::parse(&image, PE_MACHINE).ok();
    tables.and_then(|tables| work(&tables)).ok_or(Error::NotImage { address: base })
}

/// An image, with zeros in place of what cannot be read; up to the first page that is not mapped, whatever it says.
fn copy(memory: &impl Memory, base: u64) -> Result<Vec<u8>, Error> {
    /// No image is longer.
    const LONGEST: u32 = 1 << 31;
    let none = Error::NotImage { address: base };
    let mut headers = [0; HEADERS];
    memory.read(base, &mut headers)?;
    let size = Tables::<PeHeaders>::parse(&headers, PE_MACHINE).map_err(|_| none)?.size;
    let end = base.checked_add(size.min(LONGEST).into()).ok_or(none)?;
    let position =
        |address: u64| usize::try_from(address.saturating_sub(base)).map_err(|_| Error::OutOfMemory);
    let mut image = Vec::new();
    let mut at = base;
    for part in memory.parts(base, end)? {
        if part.addresses.start > at {
            break;
        }
        let start = at;
        at = part.addresses.end.min(end);
        // Zeros, if anything follows that can be read.
        if !part.readable {
            continue;
        }
        let to = position(at)?;
        image.try_reserve_exact(to.saturating_sub(image.len()))?;
        image.resize(to, 0);
        if let Some(part) = image.get_mut(position(start)?..) {
            // What cannot be read all the same, as behind the end of a file, stays zero.
            let _ = memory.read(start, part);
        }
    }
    Ok(image)
}
