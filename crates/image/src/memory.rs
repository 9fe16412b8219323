//! Which addresses the file maps, and where in the file their bytes are.

use crate::left_out::{Reason, Tally};
use core::ops::Range;

/// A range of addresses that an image maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first address.
    pub address: u64,
    /// The number of bytes in memory. The file may hold fewer; the rest is zero.
    pub size: u64,
    /// Whether it may be executed.
    pub executable: bool,
    /// Whether it may be written.
    pub writable: bool,
    offset: usize,
    filled: usize,
}

impl Segment {
    /// A segment whose first `filled` bytes are at `offset` in the file. What the file does not have is not there.
    pub(crate) fn new(address: u64, size: u64, offset: u64, filled: u64, file: usize) -> Self {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(file);
        // An image does not wrap around the end of the address space.
        let size = size.min(u64::MAX - address);
        let filled = usize::try_from(filled.min(size)).unwrap_or(usize::MAX).min(file - offset);
        Self { address, size, executable: false, writable: false, offset, filled }
    }

    /// One past its last address.
    pub const fn end(&self) -> u64 {
        self.address.saturating_add(self.size)
    }

    pub(crate) const fn filled_end(&self) -> u64 {
        self.address.saturating_add(self.filled as u64)
    }
}

/// All segments, sorted by address; no two share an address.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    segments: Vec<Segment>,
}

impl Memory {
    pub(crate) fn new(mut segments: Vec<Segment>, tally: &mut Tally) -> Self {
        segments.retain(|segment| segment.size > 0);
        segments.sort_by_key(|segment| segment.address);
        let mut end = 0;
        segments.retain(|segment| {
            let apart = segment.address >= end;
            if apart {
                end = segment.end();
            } else {
                tally.add(Reason::Overlaid, segment.address);
            }
            apart
        });
        Self { segments }
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    pub(crate) fn segment(&self, address: u64) -> Option<&Segment> {
        let behind = self.segments.partition_point(|segment| segment.address <= address);
        let segment = self.segments.get(behind.checked_sub(1)?)?;
        (address < segment.end()).then_some(segment)
    }

    /// Where in the file the byte at an address is, and how many follow it in its segment.
    pub(crate) fn file_range(&self, address: u64) -> Option<Range<usize>> {
        let segment = self.segment(address)?;
        let skip = usize::try_from(address - segment.address).ok()?;
        let left = segment.filled.checked_sub(skip)?;
        let start = segment.offset.checked_add(skip)?;
        (left > 0).then(|| start..start + left)
    }

    /// The file's bytes from an address to the end of its segment; none if nothing is mapped there.
    pub(crate) fn bytes<'f>(&self, file: &'f [u8], address: u64) -> &'f [u8] {
        self.file_range(address).and_then(|range| file.get(range)).unwrap_or_default()
    }

    /// The bytes from one address to below another, as far as they are in one segment.
    pub(crate) fn between<'f>(&self, file: &'f [u8], start: u64, end: u64) -> &'f [u8] {
        let bytes = self.bytes(file, start);
        let len = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
        bytes.get(..len).unwrap_or(bytes)
    }

    /// The first and the one-past-last address.
    pub(crate) fn bounds(&self) -> Option<(u64, u64)> {
        Some((self.segments.first()?.address, self.segments.last()?.end()))
    }
}

/// Ranges of addresses, sorted and apart.
#[derive(Debug, Default)]
pub(crate) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    pub(crate) fn new(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.retain(|range| range.start < range.end);
        ranges.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    /// Bytes of all ranges.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).fold(0, u64::saturating_add)
    }

    /// The range that holds an address.
    pub(crate) fn around(&self, address: u64) -> Option<&Range<u64>> {
        let behind = self.0.partition_point(|range| range.start <= address);
        self.0.get(behind.checked_sub(1)?).filter(|range| address < range.end)
    }

    pub(crate) fn contains(&self, address: u64) -> bool {
        self.around(address).is_some()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }
}
