//! Exports of PE images that lead to a pointer of ours, and by it to their function.
//!
//! An entry of an export table is no pointer: it is 32 bits wide, and whoever reads it keeps what he has worked out from it, in the
//! pointers of other images and in variables. So it is not what detours exchange.
//!
//! ```text
//!   before    entry ----> function
//!   led       entry ----> landing: jmp [pointer] ----> function          the pointer is as any other: Method::Pointer
//!   restored  entry ----> function;  who has the landing's address goes on through the pointer, for ever
//! ```
//!
//! Landings lie above the image, within the 2 GiB that an entry reaches whether it is read with a sign or without one. They are never
//! given back: who has looked the function up keeps the address. Their page is made readable and executable before the first entry
//! leads there, and is not written any more; the pointers are in the page behind it, which is writable.

use super::arch::{LANDING, MODE, WORD, landing};
use super::slots::lock;
use super::{PAGE, Process, pe};
use crate::Error;
use crate::address::AtomicAddress;
use crate::host::{Host as _, View as _};
use core::ptr;
use core::sync::atomic::Ordering;
use kdetour_plan::Reach;
use std::vec::Vec;

/// How many landings a page has.
const LANDINGS: usize = PAGE as usize / LANDING;
/// How far from the image's base they are at the most.
const FAR: u64 = (1 << 31) - 1;

/// All that there have been.
#[derive(Debug)]
pub(in crate::host) struct Exports {
    led: Vec<Led>,
    pages: Vec<Page>,
}

/// An export that leads to a pointer, or has led there.
#[derive(Debug)]
struct Led {
    image: u64,
    /// Where the entry is.
    place: u64,
    /// Where it led before, from the image.
    function: u32,
    /// Where the landing is, from there.
    landing: u32,
    /// Where the pointer is.
    cell: u64,
    /// How many want it to lead there.
    users: usize,
}

/// Landings, and behind them their pointers.
#[derive(Debug)]
struct Page {
    address: u64,
    used: usize,
}

impl Page {
    fn landing(&self, index: usize) -> u64 {
        self.address.wrapping_add((index * LANDING) as u64)
    }

    fn cell(&self, index: usize) -> u64 {
        self.address.wrapping_add(PAGE).wrapping_add((index * WORD) as u64)
    }
}

impl Exports {
    pub(in crate::host) const fn new() -> Self {
        Self { led: Vec::new(), pages: Vec::new() }
    }
}

impl Process {
    /// As [`pe::imports`].
    pub(crate) fn pe_imports(
        &self,
        image: u64,
        library: Option<&str>,
        symbol: &str,
    ) -> Result<Vec<u64>, Error> {
        pe::imports(self.memory()?, image, library, symbol)
    }

    /// Has an export lead to a pointer, once more, and that to the function; where the pointer is.
    ///
    /// # Errors
    /// [`Error::UnknownSymbol`], [`Error::NotImage`], [`Error::Forwarded`], [`Error::Unreadable`]; [`Error::NotCode`] about where it leads;
    /// [`Error::Misaligned`], [`Error::NotData`] or [`Error::Forbidden`] about its entry; [`Error::NoSlot`]; [`Error::PointerChanged`] if
    /// somebody writes it meanwhile.
    pub(crate) fn lead_export(&self, image: u64, symbol: &str) -> Result<u64, Error> {
        let mut exports = lock(&self.exports);
        let entry = pe::export(self.memory()?, image, symbol)?;
        let place = image.wrapping_add(entry.place.into());
        let is_it = |led: &&mut Led| (led.image, led.place) == (image, place);
        let mut known = exports.led.iter_mut().filter(is_it);
        // One that somebody else has written since is another one.
        if let Some(led) = known.find(|led| [led.function, led.landing].contains(&entry.leads_to)) {
            if entry.leads_to == led.function {
                self.exchange(led, led.function, led.landing)?;
            }
            led.users += 1;
            return Ok(led.cell);
        }
        let function = image.wrapping_add(entry.leads_to.into());
        self.view()?.detour(function)?;
        exports.led.try_reserve(1)?;
        let page = self.page(&mut exports.pages, image)?;
        let (at, cell) = (page.landing(page.used), page.cell(page.used));
        let landing = u32::try_from(at.wrapping_sub(image)).map_err(|_| none(image))?;
        let led = Led { image, place, function: entry.leads_to, landing, cell, users: 1 };
        put(cell, function);
        self.exchange(&led, led.function, led.landing)?;
        page.used += 1;
        exports.led.push(led);
        Ok(cell)
    }

    /// Has the export whose pointer is there lead to its function again, if nobody else wants it to lead to the pointer.
    ///
    /// # Errors
    /// [`Error::NotAttached`] if there is none, or it was restored; [`Error::PointerChanged`] if somebody else has written it: he may have
    /// kept what he found, so it counts as leading there still; [`Error::NotData`] or [`Error::Forbidden`] about its place. An image that is not there any more needs nothing.
    pub(crate) fn restore_export(&self, cell: u64) -> Result<(), Error> {
        let mut exports = lock(&self.exports);
        let led = exports.led.iter_mut().find(|led| led.cell == cell && led.users > 0);
        let led = led.ok_or(Error::NotAttached)?;
        if led.users == 1 {
            match self.exchange(led, led.landing, led.function) {
                Ok(()) | Err(Error::Unreadable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        led.users -= 1;
        Ok(())
    }

    /// A page with room for one more landing, which the image's entries reach.
    fn page<'a>(&self, pages: &'a mut Vec<Page>, image: u64) -> Result<&'a mut Page, Error> {
        let last = image.saturating_add(FAR).min(MODE.last_address());
        let reach = Reach { first: image, last: last.saturating_sub(2 * PAGE) };
        let has_room = |page: &Page| page.used < LANDINGS && reach.contains(page.address);
        let index = match pages.iter().position(has_room) {
            Some(index) => index,
            None => {
                pages.try_reserve(1)?;
                let span = self.map_near(2 * PAGE as usize, reach).map_err(|error| match error {
                    Error::NoSlot { .. } => none(image),
                    other => other,
                })?;
                let page = Page { address: span.address, used: 0 };
                self.fill(&page).inspect_err(|_| Self::unmap_near(span))?;
                pages.push(page);
                pages.len() - 1
            }
        };
        pages.get_mut(index).ok_or(Error::OutOfMemory)
    }

    /// Writes all landings of a page that was mapped for them, and makes it executable.
    fn fill(&self, page: &Page) -> Result<(), Error> {
        let start = usize::try_from(page.address).map_err(|_| Error::OutOfMemory)?;
        let start = ptr::with_exposed_provenance_mut::<[u8; LANDING]>(start);
        for index in 0..LANDINGS {
            let code = landing(page.landing(index), page.cell(index));
            // SAFETY: the page was mapped writable for this, nobody else knows its address, and so many fit into it.
            unsafe { start.add(index).write(code) };
        }
        // SAFETY: as above.
        unsafe { self.make_executable(page.address) }
    }

    /// Has an entry lead elsewhere, if it leads where it should. One that leads there already needs nothing.
    fn exchange(&self, led: &Led, expected: u32, new: u32) -> Result<(), Error> {
        let found = self.swap_offset(led.place, expected, new)?;
        if found == expected || found == new {
            return Ok(());
        }
        let address = |offset: u32| led.image.wrapping_add(offset.into());
        Err(Error::PointerChanged { address: led.place, expected: address(expected), found: address(found) })
    }
}

const fn none(image: u64) -> Error {
    Error::NoSlot { target: image, needed: LANDING }
}

/// Where a pointer leads whose landing nobody knows yet.
fn put(cell: u64, function: u64) {
    let cell = ptr::with_exposed_provenance_mut::<usize>(usize::try_from(cell).unwrap_or_default());
    // SAFETY: it is in the second page that was mapped with the landings, which is writable, aligned, and never unmapped.
    let cell = unsafe { AtomicAddress::from_ptr(cell) };
    cell.store(function, Ordering::Release);
}
