//! Text is written through a second mapping of its pages, which is writable and not executable. The pages themselves stay as they are.

use super::nt::{Alias, Nt};
use crate::Error;
use crate::host::{Span, Text};
use alloc::vec::Vec;
use core::ops::Range;

const PAGE: u64 = 4096;
/// Bytes of what one store writes.
const WORD: usize = size_of::<usize>();

/// Neighbouring pages that are mapped a second time.
#[derive(Debug)]
struct Pages {
    /// Where they are.
    range: Range<u64>,
    alias: Alias,
}

/// Text opened for writing. It is opened and closed at `PASSIVE_LEVEL`, and read and written at any IRQL.
#[derive(Debug)]
pub struct DriverText<N: Nt> {
    nt: N,
    /// In the order of their addresses.
    pages: Vec<Pages>,
}

impl<N: Nt> DriverText<N> {
    /// Maps the pages of these spans. All that can be wrong with them has been found out.
    ///
    /// # Safety
    /// Each span is in nonpageable sections of loaded images, and so are the pages that it is in.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Unreadable`] if a page is not there nevertheless, or [`Error::Host`].
    pub(super) unsafe fn open(nt: &N, spans: &[Span]) -> Result<Self, Error> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        ranges.try_reserve_exact(spans.len())?;
        ranges.extend(spans.iter().filter(|span| span.len > 0).map(|span| {
            let end = span.address.saturating_add(span.len as u64 - 1) & !(PAGE - 1);
            span.address & !(PAGE - 1)..end.saturating_add(PAGE)
        }));
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|later, earlier| {
            let joined = later.start <= earlier.end;
            if joined {
                earlier.end = earlier.end.max(later.end);
            }
            joined
        });
        let mut text = Self { nt: nt.clone(), pages: Vec::new() };
        text.pages.try_reserve_exact(ranges.len())?;
        for range in ranges {
            let mut pages = (range.start..range.end).step_by(4096);
            if let Some(address) = pages.find(|&page| !nt.is_resident(page)) {
                return Err(Error::Unreadable { address });
            }
            let len = usize::try_from(range.end - range.start).map_err(|_| Error::OutOfMemory)?;
            // SAFETY: by the caller's word.
            let alias = unsafe { nt.map(Span { address: range.start, len }) }?;
            text.pages.push(Pages { range, alias });
        }
        Ok(text)
    }

    /// Where bytes are in a second mapping.
    fn alias(&self, address: u64, len: usize) -> Result<*mut u8, Error> {
        let unreadable = Error::Unreadable { address };
        let at = self.pages.partition_point(|pages| pages.range.start <= address).checked_sub(1);
        let pages = at.and_then(|at| self.pages.get(at)).ok_or(unreadable)?;
        let end = address.checked_add(len as u64).filter(|&end| end <= pages.range.end).ok_or(unreadable)?;
        let offset = usize::try_from(end - len as u64 - pages.range.start).map_err(|_| unreadable)?;
        Ok(pages.alias.bytes.wrapping_add(offset))
    }
}

impl<N: Nt> Text for DriverText<N> {
    /// What lies in one aligned word is written by one store. That is no promise to who fetches it meanwhile, but to a non-maskable
    /// interrupt on this processor it comes whole.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let to = self.alias(address, bytes.len())?;
        let inside = to.addr() % WORD;
        if bytes.len() > 1 && inside + bytes.len() <= WORD {
            let word = to.wrapping_sub(inside).cast::<usize>();
            // SAFETY: the word is aligned, and in a page of the mapping; nobody else writes there.
            let mut whole = unsafe { word.read_volatile() }.to_ne_bytes();
            for (to, &byte) in whole.iter_mut().skip(inside).zip(bytes) {
                *to = byte;
            }
            // SAFETY: as above.
            unsafe { word.write_volatile(usize::from_ne_bytes(whole)) };
            return Ok(());
        }
        for (index, &byte) in bytes.iter().enumerate() {
            // SAFETY: so many bytes are in the mapping. Who fetches them meanwhile is what the commit protocol is about.
            unsafe { to.wrapping_add(index).write_volatile(byte) };
        }
        Ok(())
    }

    /// Only what was opened: nothing else is sure to be there at any IRQL.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let from = self.alias(address, bytes.len())?;
        for (index, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: so many bytes are in the mapping.
            *byte = unsafe { from.wrapping_add(index).read_volatile() };
        }
        Ok(())
    }
}

impl<N: Nt> Drop for DriverText<N> {
    fn drop(&mut self) {
        for Pages { alias, .. } in self.pages.drain(..) {
            // SAFETY: made by `map`, used by nobody else.
            unsafe { self.nt.unmap(alias) };
        }
    }
}
