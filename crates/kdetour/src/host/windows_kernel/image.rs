//! A loaded image: which of its bytes are there, and what may be patched of it.
//!
//! Drivers are mapped from files that somebody else has linked. Nothing here relies on headers that make sense: what lies outside of what
//! the loader has mapped, or of every section, is not read.

use super::nt::{Module, Nt};
use crate::Error;
use crate::host::image::Image;
use crate::host::{Function, Span};
use alloc::vec::Vec;
use object::LittleEndian as LE;
use object::pe;
use object::read::pe::{ImageNtHeaders, ImageOptionalHeader};

#[cfg(target_pointer_width = "64")]
type NtHeaders = pe::ImageNtHeaders64;
#[cfg(target_pointer_width = "32")]
type NtHeaders = pe::ImageNtHeaders32;

/// The headers of an image are in its first page.
const PAGE: u32 = 4096;
/// The longest list of pointers that is looked through.
const MAX_IMPORTS: usize = 8192;

/// A section, as its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Section {
    begin: u32,
    end: u32,
    name: [u8; 8],
    flags: u32,
}

impl Section {
    const fn has(&self, flag: pe::SectionFlags) -> bool {
        self.flags & flag.0 != 0
    }

    fn begins_with(&self, name: &[u8]) -> bool {
        self.name.starts_with(name)
    }

    /// Whether it goes when the driver has been initialized.
    fn is_discardable(&self) -> bool {
        self.has(pe::IMAGE_SCN_MEM_DISCARDABLE) || self.begins_with(b"INIT")
    }

    /// Whether the memory manager takes its pages away: by their names it knows them ("Making Drivers Pageable", WDK).
    fn is_pageable(&self) -> bool {
        self.begins_with(b"PAGE")
    }
}

/// A loaded image, as a view keeps it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) module: Module,
    sections: Vec<Section>,
    functions: Image,
    /// Whether it lies in session space.
    in_session: bool,
}

impl Loaded {
    /// Looks at an image, one of these.
    ///
    /// # Errors
    /// [`Error::NotImage`] if its headers make no sense, or name tables that are not there; [`Error::OutOfMemory`].
    pub(super) fn read<N: Nt>(nt: &N, module: &Module, modules: &[Module]) -> Result<Self, Error> {
        let damaged = Error::NotImage { address: module.base };
        let mut page = Vec::new();
        page.try_reserve_exact(PAGE as usize)?;
        page.resize((PAGE.min(module.size)) as usize, 0);
        // SAFETY: the loader has mapped so much, and the headers are at its start.
        unsafe { nt.copy(module.base, &mut page) };
        let headers = Headers::parse(&page, module).ok_or(damaged)?;
        let sections = headers.sections?;
        let read = |address: u64, bytes: &mut [u8]| read(nt, module, &sections, address, bytes);
        // Without a table that it should have a function would seem to have no neighbours.
        let mut tables = headers.tables.iter().filter(|table| table.begin != 0 && table.len != 0);
        if !tables.all(|table| is_there(module, &sections, table.begin, table.len)) {
            return Err(damaged);
        }
        let functions = Image::read(&read, module.base)?.ok_or(damaged)?;
        let in_session =
            is_session_name(&module.name) || is_linked_with_session(&read, module, modules, headers.pointers);
        Ok(Self { module: module.clone(), functions, in_session, sections })
    }

    /// Copies bytes of it.
    ///
    /// # Errors
    /// [`Error::Unreadable`] if some of them are not there, or may go at any time.
    pub(super) fn copy<N: Nt>(&self, nt: &N, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        read(nt, &self.module, &self.sections, address, bytes)
    }

    /// Makes sure that all of a span may be patched.
    ///
    /// # Errors
    /// [`Error::NotCode`], [`Error::Discardable`], [`Error::Pageable`] or [`Error::SessionSpace`].
    pub(super) fn check(&self, span: Span) -> Result<(), Error> {
        let address = span.address;
        if self.in_session {
            return Err(Error::SessionSpace { address });
        }
        let begin = address.checked_sub(self.module.base).and_then(|rva| u32::try_from(rva).ok());
        let holds = |section: &&Section| begin.is_some_and(|at| (section.begin..section.end).contains(&at));
        let Some(section) = self.sections.iter().find(holds) else { return Err(Error::NotCode { address }) };
        let behind = self.module.base.saturating_add(section.end.into());
        if !section.has(pe::IMAGE_SCN_MEM_EXECUTE) {
            return Err(Error::NotCode { address });
        }
        if section.is_discardable() {
            return Err(Error::Discardable { address });
        }
        if section.is_pageable() {
            return Err(Error::Pageable { address });
        }
        if address.saturating_add(span.len as u64) > behind {
            return Err(Error::NotCode { address: behind });
        }
        Ok(())
    }

    /// What its tables say about a function.
    ///
    /// # Errors
    /// [`Error::NotFunction`].
    pub(super) fn function<N: Nt>(&self, nt: &N, target: u64) -> Result<Function, Error> {
        let read = |address: u64, bytes: &mut [u8]| self.copy(nt, address, bytes);
        self.functions.function_in(&read, target)
    }
}

/// A table, from the image's base.
#[derive(Clone, Copy, Default)]
struct Table {
    begin: u32,
    len: u32,
}

/// What is taken from the first page.
struct Headers {
    sections: Result<Vec<Section>, Error>,
    /// Exports, and exceptions where functions' bounds come from those.
    tables: [Table; 2],
    /// The pointers to what it imports.
    pointers: Table,
}

impl Headers {
    fn parse(page: &[u8], module: &Module) -> Option<Self> {
        let dos = pe::ImageDosHeader::parse(page).ok()?;
        let mut offset = dos.nt_headers_offset().into();
        let (headers, directories) = NtHeaders::parse(page, &mut offset).ok()?;
        let table = headers.sections(page, offset).ok()?;
        let directory = |index| {
            let found = directories.get(index);
            found.map_or_else(Table::default, |one| Table {
                begin: one.virtual_address.get(LE),
                len: one.size.get(LE),
            })
        };
        let exceptions = match cfg!(target_pointer_width = "64") {
            true => directory(pe::IMAGE_DIRECTORY_ENTRY_EXCEPTION),
            false => Table::default(),
        };
        let tables = [directory(pe::IMAGE_DIRECTORY_ENTRY_EXPORT), exceptions];
        let pointers = directory(pe::IMAGE_DIRECTORY_ENTRY_IAT);
        let first = headers.optional_header().size_of_headers();
        let mut sections = Vec::new();
        let reserved = sections.try_reserve_exact(table.iter().count());
        sections.extend(table.iter().filter(|_| reserved.is_ok()).filter_map(|header| {
            let begin = header.virtual_address.get(LE);
            let size = header.virtual_size.get(LE);
            // Linkers that leave it out mean that of the file.
            let size = if size == 0 { header.size_of_raw_data.get(LE) } else { size };
            let end = begin.saturating_add(size).min(module.size);
            let is_there = begin >= first.min(PAGE) && begin < end;
            is_there.then_some(Section {
                begin,
                end,
                name: header.name,
                flags: header.characteristics.get(LE).0,
            })
        }));
        Some(Self { sections: reserved.map(|()| sections).map_err(Error::from), tables, pointers })
    }
}

/// Copies bytes that are in an image's headers, or wholly in a section that stays.
fn read<N: Nt>(
    nt: &N,
    module: &Module,
    sections: &[Section],
    address: u64,
    bytes: &mut [u8],
) -> Result<(), Error> {
    let rva = address.checked_sub(module.base).and_then(|rva| u32::try_from(rva).ok());
    let len = u32::try_from(bytes.len()).ok();
    match (rva, len) {
        (Some(rva), Some(len)) if is_there(module, sections, rva, len) => {
            // SAFETY: the loader has mapped it, and all of it is in its headers or in sections that stay.
            unsafe { nt.copy(address, bytes) };
            Ok(())
        }
        _ => Err(Error::Unreadable { address }),
    }
}

/// Whether so many bytes from there on are in an image's headers, or in sections that stay.
fn is_there(module: &Module, sections: &[Section], rva: u32, len: u32) -> bool {
    let Some(end) = rva.checked_add(len).filter(|&end| end <= module.size) else { return false };
    let first = sections.iter().map(|section| section.begin).min().unwrap_or(PAGE).min(PAGE);
    // Sections whose bytes lie behind one another are read across their borders: pages are whole.
    let mut at = rva;
    while at < end {
        let holds = |section: &&Section| (section.begin..page_end(section.end)).contains(&at);
        at = match sections.iter().find(holds) {
            Some(section) if !section.is_discardable() => page_end(section.end),
            None if at < first => first,
            _ => return false,
        };
    }
    true
}

const fn page_end(rva: u32) -> u32 {
    match rva.checked_next_multiple_of(PAGE) {
        Some(end) => end,
        None => rva,
    }
}

/// Drivers that NT loads into session space, by their names.
pub(super) fn is_session_name(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 4] = [b"win32k.sys", b"win32kbase.sys", b"win32kfull.sys", b"win32ksgd.sys"];
    NAMES.contains(&name)
}

/// Whether an image is linked with one of those: only what lies in session space itself can be, display drivers for example. The names of
/// what it imports may have been thrown away with its `INIT` section; the pointers stay.
fn is_linked_with_session(
    read: &impl Fn(u64, &mut [u8]) -> Result<(), Error>,
    module: &Module,
    modules: &[Module],
    pointers: Table,
) -> bool {
    const POINTER: usize = size_of::<usize>();
    let is_one =
        |address: u64| modules.iter().any(|other| is_session_name(&other.name) && other.contains(address));
    let begin = module.base.saturating_add(pointers.begin.into());
    let count = (pointers.len as usize / POINTER).min(MAX_IMPORTS);
    (0..count).any(|index| {
        let mut bytes = [0; POINTER];
        let place = begin.saturating_add((index * POINTER) as u64);
        pointers.begin != 0 && read(place, &mut bytes).is_ok() && is_one(usize::from_le_bytes(bytes) as u64)
    })
}
