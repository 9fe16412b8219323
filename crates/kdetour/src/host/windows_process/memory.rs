//! The process's memory: read by the kernel, so that a bad address is an error and not a fault; text written page by page
//! ([`flip`](super::flip)).

use super::PAGE;
use super::flip::{BATCH, Turn, Write, write_page};
use super::guarded::Guarded;
use super::nt::Nt;
use super::regions::Region;
use crate::Error;
use crate::address::narrow;
use crate::host::process::pe::{self, Part};
use crate::host::process::seen::Seen;
use crate::host::{Span, Text};
use alloc::vec::Vec;
use arrayvec::ArrayVec;

/// The start of the page that holds an address.
pub(super) const fn page_down(address: u64) -> u64 {
    address & !(PAGE - 1)
}

/// Reads memory.
///
/// # Errors
/// [`Error::Unreadable`] with the first address that cannot be read.
pub(super) fn read(nt: &Nt, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
    if bytes.is_empty() || nt.read(address, bytes).is_ok() {
        return Ok(());
    }
    // Not every system says how far it came.
    let mut done = 0;
    while done < bytes.len() {
        let at = address.wrapping_add(done as u64);
        let room = usize::try_from(PAGE - at % PAGE).unwrap_or(1);
        let len = room.min(bytes.len() - done);
        let part = bytes.get_mut(done..done + len).unwrap_or_default();
        nt.read(at, part).map_err(|_| Error::Unreadable { address: at })?;
        done += len;
    }
    Ok(())
}

impl pe::Memory for Nt {
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        // Wine reads zeros where addresses are reserved and nothing is.
        Region::of(self, address).filter(Region::is_there).ok_or(Error::Unreadable { address })?;
        read(self, address, bytes)
    }

    fn parts(&self, first: u64, end: u64) -> Result<Vec<Part>, Error> {
        let (mut at, mut parts) = (first, Vec::new());
        while at < end
            && let Some(region) = Region::of(self, at).filter(Region::is_committed)
        {
            parts.try_reserve(1)?;
            parts.push(Part { addresses: region.start..region.end, readable: region.is_there() });
            at = region.end.max(at.saturating_add(1));
        }
        Ok(parts)
    }
}

/// Text of this process, opened for writing.
#[derive(Debug)]
pub struct ProcessText {
    nt: &'static Nt,
    /// Sorted; of those that begin together the longest is the last.
    spans: Vec<Span>,
    /// What is said when a page becomes executable again.
    flags: u32,
    /// As long as nothing has been written.
    seen: Seen,
}

impl ProcessText {
    pub(super) fn open(
        nt: &'static Nt,
        guarded: &Guarded,
        flags: u32,
        spans: &[Span],
    ) -> Result<Self, Error> {
        let mut sorted = Vec::new();
        sorted.try_reserve_exact(spans.len())?;
        sorted.extend_from_slice(spans);
        sorted.sort_unstable_by_key(|span| (span.address, span.len));
        let mut known: Option<Region> = None;
        for span in sorted.iter().filter(|span| span.len > 0) {
            guarded.check(span.address, span.len)?;
            let last = span.address.checked_add(span.len as u64 - 1);
            let last = last.ok_or(Error::Unreadable { address: span.address })?;
            let mut at = span.address;
            while at <= last {
                let holds = |region: &Region| region.start <= at && at < region.end;
                let region = match known.filter(holds) {
                    Some(region) => region,
                    None => {
                        let found = Region::of(nt, at).filter(Region::is_there);
                        let found = found.ok_or(Error::Unreadable { address: at })?;
                        if found.is_shared(nt, at).unwrap_or_default() {
                            return Err(Error::Forbidden { address: at });
                        }
                        found
                    }
                };
                known = Some(region);
                at = region.end.max(at.saturating_add(1));
            }
        }
        Ok(Self { nt, spans: sorted, flags, seen: Seen::new() })
    }

    /// Whether a span that was opened holds the bytes.
    fn is_open(&self, address: u64, len: usize) -> bool {
        let before = self.spans.partition_point(|span| span.address <= address);
        // Spans overlap hardly ever, and never by much.
        let mut near = self.spans.iter().take(before).rev().take(BATCH);
        near.any(|span| {
            let offset = usize::try_from(address.wrapping_sub(span.address)).unwrap_or(usize::MAX);
            offset.checked_add(len).is_some_and(|end| end <= span.len)
        })
    }

    fn flush(&self, page: u64, writes: &mut ArrayVec<Write, BATCH>) -> Result<(), Error> {
        if writes.is_empty() {
            return Ok(());
        }
        // SAFETY: they lie in this page, in spans that were opened: text, or slots of ours. What is read is borrowed by the caller, who has
        // it elsewhere than in text. The handler was installed when the host was made.
        let outcome = unsafe { write_page(self.nt, page, writes, self.flags) };
        writes.clear();
        outcome.map_err(Error::from)
    }
}

impl Text for ProcessText {
    /// Whole pages are read: the next one who asks is often a neighbour.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.seen.read(address, bytes, |address, bytes| read(self.nt, address, bytes))
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.write_many(&[(address, bytes)]).map_err(|(_, error)| error)
    }

    /// Writes that follow each other in one page are made at one moment, for whoever runs there.
    fn write_many(&mut self, writes: &[(u64, &[u8])]) -> Result<(), (usize, Error)> {
        for (index, &(address, bytes)) in writes.iter().enumerate() {
            if !self.is_open(address, bytes.len()) {
                return Err((index, Error::Unreadable { address }));
            }
        }
        self.seen.forget();
        // One writer from the first page to the last.
        let _turn = Turn::take(self.nt);
        let mut page = 0;
        let mut batch = ArrayVec::<Write, BATCH>::new();
        for (index, &(address, bytes)) in writes.iter().enumerate() {
            let (mut at, mut rest) = (address, bytes);
            while !rest.is_empty() {
                let room = usize::try_from(PAGE - at % PAGE).unwrap_or(1);
                let (part, behind) = rest.split_at(room.min(rest.len()));
                // More than a page has, if the same bytes are written several times.
                let bytes = batch.iter().map(|write| write.len).sum::<usize>() + part.len();
                if page != page_down(at) || batch.is_full() || bytes as u64 > PAGE {
                    self.flush(page, &mut batch).map_err(|error| (index, error))?;
                    page = page_down(at);
                }
                // There is room: it was made above.
                let _ = batch.try_push(Write { to: narrow(at), from: part.as_ptr(), len: part.len() });
                at = at.wrapping_add(part.len() as u64);
                rest = behind;
            }
        }
        self.flush(page, &mut batch).map_err(|error| (writes.len().saturating_sub(1), error))
    }
}
