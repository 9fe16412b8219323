//! What the tables of a PE image in memory say about its functions.
//!
//! | table | says |
//! |---|---|
//! | exports, and the entry point | where functions begin |
//! | `.pdata` (64-bit) | where functions that are not leaves begin and end; pieces that the compiler moved away |
//!
//! The source is Microsoft's "PE Format" and "x64 exception handling". An entry of `.pdata` whose unwind information is chained
//! (`UNW_FLAG_CHAININFO`) is about another piece of the function that the chain ends at.
//!
//! Tables are read as they lie in memory, by the host: an image whose headers are damaged, or that is going, has no functions, and
//! nothing faults.

use crate::Error;
use crate::host::{Function, Span};
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use kdetour_plan::{MAX_INSTRUCTION, MAX_WINDOW};
use object::LittleEndian as LE;
use object::pe;
use object::read::pe::{ExportTable, ImageNtHeaders, ImageOptionalHeader};

#[cfg(target_pointer_width = "64")]
type NtHeaders = pe::ImageNtHeaders64;
#[cfg(target_pointer_width = "32")]
type NtHeaders = pe::ImageNtHeaders32;

/// No padding between functions is longer: they are aligned to less.
const MAX_GAP: usize = 64;

/// What the linker puts in front of a function that is made to be patched (`/functionpadmin`): room for a jump.
const PAD: u64 = 5;

/// The headers of an image are in its first page.
pub(crate) const HEADERS: usize = 4096;
/// Tables that are longer are not read: of a damaged image, or one of which the whole is not worth it.
const MAX_TABLE: u32 = 256 << 20;
/// Symbols so near behind the entry may lie inside the window.
const NEAR: u32 = (MAX_INSTRUCTION + MAX_WINDOW) as u32;

/// How a host reads memory: a bad address is an error.
pub(crate) type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> Result<(), Error>;

/// Longer headers are damaged ones: there are no more than 96 sections.
#[cfg(all(windows, feature = "windows-process"))]
const MAX_HEADERS: usize = 64 << 10;
/// What a section's memory is rounded up to.
#[cfg(all(windows, feature = "windows-process"))]
const PAGE: u32 = 4096;

/// Whether an address of the image that begins at `base` is in a section whose bytes are those of all processes that have it loaded
/// (`IMAGE_SCN_MEM_SHARED`); none if its headers do not tell.
#[cfg(all(windows, feature = "windows-process"))]
pub(super) fn is_shared(memory: Read<'_>, base: u64, address: u64) -> Option<bool> {
    let rva = u32::try_from(address.wrapping_sub(base)).ok()?;
    let mut len = HEADERS;
    loop {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).ok()?;
        bytes.resize(len, 0);
        memory(base, &mut bytes).ok()?;
        let data = bytes.as_slice();
        let mut offset = pe::ImageDosHeader::parse(data).ok()?.nt_headers_offset().into();
        let (headers, _) = NtHeaders::parse(data, &mut offset).ok()?;
        // They may be longer than a page.
        let all = usize::try_from(headers.optional_header().size_of_headers()).ok()?;
        if all > len {
            len = Some(all).filter(|&all| all <= MAX_HEADERS)?;
            continue;
        }
        let sections = headers.sections(data, offset).ok()?;
        let section = sections.iter().find(|section| {
            let begin = section.virtual_address.get(LE);
            let size = section.virtual_size.get(LE).max(section.size_of_raw_data.get(LE));
            let end = begin.saturating_add(size.checked_next_multiple_of(PAGE).unwrap_or(u32::MAX));
            begin <= rva && rva < end
        });
        return Some(
            section.is_some_and(|one| one.characteristics.get(LE).contains(pe::IMAGE_SCN_MEM_SHARED)),
        );
    }
}

/// What an image's headers say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Headers {
    base: u64,
    size: u32,
    entry: u32,
    exports: (u32, u32),
    exceptions: (u32, u32),
}

impl Headers {
    /// Of the image that begins at `base`; none if there are none that make sense.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn read(memory: Read<'_>, base: u64) -> Result<Option<Self>, Error> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(HEADERS)?;
        bytes.resize(HEADERS, 0);
        match memory(base, &mut bytes) {
            Ok(()) => Ok(Self::parse(&bytes, base)),
            Err(Error::OutOfMemory) => Err(Error::OutOfMemory),
            Err(_) => Ok(None),
        }
    }

    fn parse(data: &[u8], base: u64) -> Option<Self> {
        let dos = pe::ImageDosHeader::parse(data).ok()?;
        let mut offset = dos.nt_headers_offset().into();
        let (headers, directories) = NtHeaders::parse(data, &mut offset).ok()?;
        let optional = headers.optional_header();
        let directory = |index| {
            directories
                .get(index)
                .map_or((0, 0), |directory| (directory.virtual_address.get(LE), directory.size.get(LE)))
        };
        Some(Self {
            base,
            size: optional.size_of_image(),
            entry: optional.address_of_entry_point(),
            exports: directory(pe::IMAGE_DIRECTORY_ENTRY_EXPORT),
            exceptions: directory(pe::IMAGE_DIRECTORY_ENTRY_EXCEPTION),
        })
    }

    /// One past the image's last byte.
    pub(crate) fn end(&self) -> u64 {
        self.base.saturating_add(self.size.into())
    }

    /// The bytes of a table; empty if there is none that can be read.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]: an image without its tables would seem to have no functions.
    fn table(&self, memory: Read<'_>, rva: u32, len: u32) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let fits = rva != 0 && len <= MAX_TABLE && rva.checked_add(len).is_some_and(|end| end <= self.size);
        if fits {
            let wanted = usize::try_from(len).unwrap_or_default();
            bytes.try_reserve_exact(wanted)?;
            bytes.resize(wanted, 0);
            match memory(self.base.wrapping_add(rva.into()), &mut bytes) {
                Ok(()) => {}
                Err(Error::OutOfMemory) => return Err(Error::OutOfMemory),
                Err(_) => bytes.clear(),
            }
        }
        Ok(bytes)
    }
}

/// Where code of one function is, relative to the image's base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    begin: u32,
    end: u32,
    /// Where the function begins that it belongs to; its own begin if it is one.
    owner: u32,
}

/// An image, and its functions.
#[derive(Debug)]
pub(crate) struct Image {
    headers: Headers,
    /// Sorted.
    starts: Vec<u32>,
    /// In the order of their addresses.
    pieces: Vec<Piece>,
}

impl Image {
    /// The image that begins at `base`; none if it has no headers that make sense.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn read(memory: Read<'_>, base: u64) -> Result<Option<Self>, Error> {
        let Some(headers) = Headers::read(memory, base)? else { return Ok(None) };
        let (rva, len) = headers.exports;
        let mut starts = exported(&headers.table(memory, rva, len)?, rva)?;
        starts.try_reserve(1)?;
        starts.extend(Some(headers.entry).filter(|&entry| entry != 0));
        starts.sort_unstable();
        starts.dedup();
        let (rva, len) = headers.exceptions;
        let pieces = match cfg!(target_pointer_width = "64") {
            true => pieces(&headers.table(memory, rva, len)?, |rva, len| headers.table(memory, rva, len))?,
            false => Vec::new(),
        };
        Ok(Some(Self { headers, starts, pieces }))
    }

    /// Whether it is the image that begins there.
    #[cfg(all(windows, feature = "windows-process"))]
    pub(crate) const fn begins_at(&self, base: u64) -> bool {
        self.headers.base == base
    }

    /// Whether the image says that a function begins there.
    #[cfg(all(windows, feature = "windows-process"))]
    pub(super) fn names(&self, target: u64) -> bool {
        let rva = u32::try_from(target.wrapping_sub(self.headers.base));
        rva.is_ok_and(|rva| self.starts.binary_search(&rva).is_ok())
    }

    /// The bounds of the function at `target`.
    ///
    /// # Errors
    /// [`Error::NotFunction`] if it is inside a function, and no export says that one begins there.
    pub(crate) fn function(&self, target: u64) -> Result<Function, Error> {
        let base = self.headers.base;
        let Ok(rva) = u32::try_from(target.wrapping_sub(base)) else { return Ok(Function::default()) };
        let is_named = self.starts.binary_search(&rva).is_ok();
        let at = self.pieces.partition_point(|piece| piece.begin <= rva);
        let piece = at.checked_sub(1).and_then(|at| self.pieces.get(at)).filter(|piece| rva < piece.end);
        let mut function = Function { image: Some((base, self.headers.end())), ..Function::default() };
        if let Some(piece) = piece {
            let owner = piece.owner;
            if owner != rva && !is_named {
                return Err(Error::NotFunction { address: target, entry: base.wrapping_add(owner.into()) });
            }
            // A piece that follows on the function makes it longer, another one is elsewhere.
            let mut end = piece.end;
            let followers = self.pieces.get(at..).unwrap_or_default();
            let owned = |other: &&Piece| other.owner == owner && other.begin != piece.begin;
            for next in followers {
                if (next.begin, next.owner) != (end, owner) {
                    break;
                }
                end = next.end;
            }
            for part in self.pieces.iter().filter(owned).filter(|part| part.begin >= end || part.end <= rva) {
                let len = usize::try_from(part.end - part.begin).unwrap_or(usize::MAX);
                function.parts.try_reserve(1)?;
                function.parts.push(Span { address: base.wrapping_add(part.begin.into()), len });
            }
            if piece.begin < rva {
                // It is entered in the middle, too, and what is in front may branch back.
                let len = usize::try_from(rva - piece.begin).unwrap_or(usize::MAX);
                function.parts.try_reserve(1)?;
                function.parts.push(Span { address: base.wrapping_add(piece.begin.into()), len });
            }
            function.length = usize::try_from(end - rva).ok();
            function.next_symbol = self.next(end).map(|next| base.wrapping_add(next.into()));
        }
        function.branch_targets = self.labels_behind(rva);
        function.gap = self.gap(rva);
        Ok(function)
    }

    /// How many bytes in front of a function are behind the end of the piece in front of it. There may be leaves, which have no entry: whoever
    /// asks looks whether all of it is padding.
    fn gap(&self, rva: u32) -> usize {
        let before = self.pieces.partition_point(|piece| piece.begin < rva).checked_sub(1);
        let end = before.and_then(|at| self.pieces.get(at)).map(|piece| piece.end).filter(|&end| end <= rva);
        let Some(end) = end else { return 0 };
        let has_label = self.starts.partition_point(|&start| start < end)
            != self.starts.partition_point(|&start| start < rva);
        let gap = usize::try_from(rva - end).unwrap_or(usize::MAX);
        if has_label || gap > MAX_GAP { 0 } else { gap }
    }

    /// As [`function`](Self::function), with what the bytes in front of a function of 32-bit code tell: there no table says where the
    /// one in front of it ends.
    ///
    /// # Errors
    /// As [`function`](Self::function).
    pub(crate) fn function_in(&self, memory: Read<'_>, target: u64) -> Result<Function, Error> {
        let mut function = self.function(target)?;
        if cfg!(target_pointer_width = "32") {
            function.dead = is_made_for_patching(memory, target);
            if function.dead || is_patched_so(memory, target) {
                function.gap = PAD as usize;
            }
        }
        Ok(function)
    }

    /// Where the function at `target` ends at the latest: a leaf, which has no entry, in front of whatever is known to begin next. None if that is not
    /// known either.
    #[cfg(any(test, all(windows, feature = "windows-process")))]
    pub(crate) fn end(&self, target: u64) -> Option<u64> {
        let base = self.headers.base;
        match self.function(target) {
            Ok(Function { length: Some(length), .. }) => Some(target.saturating_add(length as u64)),
            _ => {
                let rva = u32::try_from(target.wrapping_sub(base)).ok()?;
                self.next(rva.saturating_add(1)).map(|next| base.wrapping_add(next.into()))
            }
        }
    }

    /// Where the next function begins, as far as is known.
    fn next(&self, rva: u32) -> Option<u32> {
        let start = self.starts.get(self.starts.partition_point(|&start| start < rva)).copied();
        let piece = self.pieces.get(self.pieces.partition_point(|piece| piece.begin < rva));
        [start, piece.map(|piece| piece.begin)].into_iter().flatten().min()
    }

    /// What begins near behind an address.
    fn labels_behind(&self, rva: u32) -> ArrayVec<u64, 8> {
        let mut labels = ArrayVec::new();
        let mut from = rva.saturating_add(1);
        while let Some(label) = self.next(from).filter(|&label| label < rva.saturating_add(NEAR)) {
            // The first one that lies in the window is enough to refuse.
            let _ = labels.try_push(self.headers.base.wrapping_add(label.into()));
            from = label.saturating_add(1);
        }
        labels
    }
}

/// Whether a function of 32-bit code is made to be patched, as compilers are told by `/hotpatch` and `ms_hook_prologue`: it begins with the one
/// two-byte no-op that they use for nothing else, `mov edi, edi`, and nothing but padding is in the five bytes in front of it.
fn is_made_for_patching(memory: Read<'_>, target: u64) -> bool {
    let mut bytes = [0; PAD as usize + 2];
    let begin = target.checked_sub(PAD).map(|begin| memory(begin, &mut bytes));
    let Some((Ok(()), [pad @ .., first, second])) = begin.map(|read| (read, bytes)) else { return false };
    // 8B FF  mov edi, edi
    [first, second] == [0x8b, 0xff] && (pad == [0xcc; PAD as usize] || pad == [0x90; PAD as usize])
}

/// Whether somebody has: what is in front is a long jump, and the function begins with a short one to it. A survey looks where it leads.
fn is_patched_so(memory: Read<'_>, target: u64) -> bool {
    let mut bytes = [0; PAD as usize + 2];
    let begin = target.checked_sub(PAD).map(|begin| memory(begin, &mut bytes));
    // E9 ........  jmp rel32; EB F9  jmp short to it
    matches!((begin, bytes), (Some(Ok(())), [0xe9, _, _, _, _, 0xeb, 0xf9]))
}

/// The functions of an export table that lie in the image itself. A table that is damaged has none.
fn exported(table: &[u8], rva: u32) -> Result<Vec<u32>, Error> {
    let mut starts = Vec::new();
    let Ok(exports) = ExportTable::parse(table, rva) else { return Ok(starts) };
    let addresses = exports.addresses();
    starts.try_reserve_exact(addresses.len())?;
    let own = addresses.iter().map(|address| address.get(LE));
    starts.extend(own.filter(|&address| address != 0 && !exports.is_forward(address)));
    Ok(starts)
}

/// Bytes of an entry of `.pdata`.
const ENTRY: usize = 12;
/// The longest unwind information in front of what it is chained to: its header, and 255 codes.
const LONGEST: u32 = 4 + 256 * 2;
/// `UNW_FLAG_CHAININFO`.
const CHAINED: u8 = 4;
/// Longer chains are damaged ones.
const MAX_CHAIN: usize = 32;

#[derive(Clone, Copy)]
struct Entry {
    begin: u32,
    end: u32,
    unwind: u32,
}

fn entry(bytes: &[u8], at: usize) -> Option<Entry> {
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?));
    let entry = Entry { begin: word(at)?, end: word(at + 4)?, unwind: word(at + 8)? };
    (entry.begin < entry.end).then_some(entry)
}

/// The entry that unwind information is chained to.
fn chained_to(info: &[u8]) -> Option<Entry> {
    let (flags, codes) = (*info.first()? >> 3, usize::from(*info.get(2)?));
    if flags & CHAINED == 0 {
        return None;
    }
    // Behind the codes, of which there is an even number.
    entry(info, 4 + codes.next_multiple_of(2) * 2)
}

/// Takes all entries of `.pdata`. `read` reads other bytes of the image.
fn pieces(table: &[u8], read: impl Fn(u32, u32) -> Result<Vec<u8>, Error>) -> Result<Vec<Piece>, Error> {
    let entries = || (0..table.len() / ENTRY).filter_map(|index| entry(table, index * ENTRY));
    let mut pieces = Vec::new();
    pieces.try_reserve_exact(table.len() / ENTRY)?;
    // All unwind information at once.
    let places = || entries().map(|entry| entry.unwind & !1);
    let first = places().min().unwrap_or_default();
    let last = places().max().unwrap_or_default();
    let mut unwind = read(first, (last - first).saturating_add(LONGEST + ENTRY as u32))?;
    if unwind.is_empty() {
        // It may be the last of the image.
        unwind = read(first, (last - first).saturating_add(4 + ENTRY as u32))?;
    }
    // Or one of them leads astray: then each is read by itself, and only that one's is not known.
    let alone = |place: u32| {
        let info = read(place, LONGEST + ENTRY as u32)?;
        if info.is_empty() { read(place, 4 + ENTRY as u32) } else { Ok(info) }
    };
    let chained = |this: Entry| -> Result<Option<Entry>, Error> {
        // An odd address says directly which entry this one shares its information with.
        if this.unwind & 1 != 0 {
            return Ok(entry(&read(this.unwind & !1, ENTRY as u32)?, 0));
        }
        if unwind.is_empty() {
            return Ok(chained_to(&alone(this.unwind)?));
        }
        let at = this.unwind.checked_sub(first).and_then(|at| usize::try_from(at).ok());
        Ok(at.and_then(|at| unwind.get(at..)).and_then(chained_to))
    };
    for this in entries() {
        let mut owner = this;
        for _ in 0..MAX_CHAIN {
            match chained(owner)? {
                Some(next) => owner = next,
                None => break,
            }
        }
        pieces.push(Piece { begin: this.begin, end: this.end, owner: owner.begin });
    }
    pieces.sort_unstable_by_key(|piece| piece.begin);
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn a_function_that_is_made_to_be_patched_says_so_by_its_first_instruction() {
        let is = |bytes: &[u8]| {
            let read = |address: u64, to: &mut [u8]| {
                let from = usize::try_from(address.wrapping_sub(0x1000)).unwrap_or(usize::MAX);
                let found = bytes.get(from..).and_then(|bytes| bytes.get(..to.len()));
                found.map(|found| to.copy_from_slice(found)).ok_or(Error::Unreadable { address })
            };
            is_made_for_patching(&read, 0x1005)
        };
        // int3 or nop, five of one kind; mov edi, edi
        assert!(is(&[0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0x8b, 0xff, 0x55]));
        assert!(is(&[0x90, 0x90, 0x90, 0x90, 0x90, 0x8b, 0xff, 0x55]));
        // ret; nop of another kind; the function in front goes on to the last byte
        assert!(!is(&[0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0x8b, 0xff, 0x55]));
        assert!(!is(&[0x90, 0xcc, 0xcc, 0xcc, 0xcc, 0x8b, 0xff, 0x55]));
        assert!(!is(&[0xcc, 0xcc, 0xcc, 0xcc, 0xc3, 0x8b, 0xff, 0x55]));
        // mov edi, esi; push ebp: any function may begin so behind padding
        assert!(!is(&[0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0x8b, 0xfe, 0x55]));
        assert!(!is(&[0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0x55, 0x8b, 0xec]));
        // It is the last byte that can be read.
        assert!(!is(&[0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0x8b]));
    }

    #[test]
    fn one_that_was_patched_so_is_looked_at_in_front() {
        let is = |bytes: [u8; 7]| {
            is_patched_so(
                &|address, to: &mut [u8]| {
                    assert_eq!(address, 0x1000);
                    to.copy_from_slice(&bytes);
                    Ok(())
                },
                0x1005,
            )
        };
        assert!(is([0xe9, 1, 2, 3, 4, 0xeb, 0xf9]));
        assert!(!is([0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0x8b, 0xff]));
        assert!(!is([0xe9, 1, 2, 3, 4, 0xeb, 0xf8]), "it leads elsewhere");
        assert!(!is_patched_so(&|address, _: &mut [u8]| Err(Error::Unreadable { address }), 0x1005));
    }

    fn table(entries: &[[u32; 3]]) -> Vec<u8> {
        entries.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn pieces_belong_to_the_function_that_their_chain_ends_at() {
        let pdata = table(&[[0x1000, 0x1040, 0x5000], [0x1040, 0x1050, 0x5010], [0x2000, 0x2010, 0x5020]]);
        // No codes; three codes, chained to the first; no codes, chained to the second.
        let mut unwind = vec![0; 0x400];
        unwind[0] = 1;
        unwind[0x10..0x14].copy_from_slice(&[1 | CHAINED << 3, 0, 3, 0]);
        unwind[0x1c..0x28].copy_from_slice(&pdata[..ENTRY]);
        unwind[0x20 + 8..0x20 + 12].copy_from_slice(&[1 | CHAINED << 3, 0, 0, 0]);
        let piece = |begin, end, owner| Piece { begin, end, owner };
        let pdata = table(&[[0x1000, 0x1040, 0x5000], [0x1040, 0x1050, 0x5010], [0x2000, 0x2010, 0x5028]]);
        unwind[0x2c..0x38].copy_from_slice(&pdata[ENTRY..2 * ENTRY]);
        let read = |rva: u32, len: u32| {
            let from = (rva - 0x5000) as usize;
            Ok(unwind.get(from..from + len as usize).map_or(Vec::new(), <[u8]>::to_vec))
        };
        let found = pieces(&pdata, read).unwrap();
        let expected =
            [piece(0x1000, 0x1040, 0x1000), piece(0x1040, 0x1050, 0x1000), piece(0x2000, 0x2010, 0x1000)];
        assert_eq!(found, expected);
        let headers =
            Headers { base: 0x40_0000, size: 0x8000, entry: 0, exports: (0, 0), exceptions: (0, 0) };
        // The last one's information cannot be read: nothing else is lost.
        let astray = table(&[[0x1000, 0x1040, 0x5000], [0x1040, 0x1050, 0x5010], [0x3000, 0x3010, 0x9000]]);
        let expected =
            [piece(0x1000, 0x1040, 0x1000), piece(0x1040, 0x1050, 0x1000), piece(0x3000, 0x3010, 0x3000)];
        let read = |rva: u32, len: u32| {
            let bytes = unwind.get((rva - 0x5000) as usize..).and_then(|bytes| bytes.get(..len as usize));
            Ok(bytes.map_or(Vec::new(), <[u8]>::to_vec))
        };
        assert_eq!(pieces(&astray, read).unwrap(), expected);
        let image = Image { headers, starts: vec![0x1000, 0x1008, 0x1060], pieces: found };
        let function = image.function(0x40_1000).unwrap();
        assert_eq!((function.length, function.next_symbol), (Some(0x50), Some(0x40_1060)));
        assert_eq!(function.parts, [Span { address: 0x40_2000, len: 0x10 }]);
        assert_eq!(function.branch_targets[..], [0x40_1008]);
        // A second entry that is exported; one that is not; a piece; a leaf.
        let second = image.function(0x40_1008).unwrap();
        assert_eq!((second.length, second.parts.len()), (Some(0x48), 2));
        let inside = |address| Err(Error::NotFunction { address, entry: 0x40_1000 });
        assert_eq!(image.function(0x40_1004).map(|_| ()), inside(0x40_1004));
        assert_eq!(image.function(0x40_2000).map(|_| ()), inside(0x40_2000));
        assert_eq!(image.function(0x40_1060).unwrap().length, None);
        let ends = [0x40_1000, 0x40_1060, 0x40_2010].map(|address| image.end(address));
        assert_eq!(ends, [Some(0x40_1050), Some(0x40_2000), None]);
    }
}
