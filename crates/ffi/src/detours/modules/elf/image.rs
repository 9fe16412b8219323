//! An ELF image in memory: a module, by its handle, which is the address of its header.
//!
//! Everything that its tables say is looked at before it is used: an offset that leads out of the image, a count that is too large or
//! a table that is not mapped is an error.

use crate::arch::elf::MACHINE;
use crate::detours::modules::memory::{self, PAGE, Snapshot, add, is_readable, subtract, unless, wide};
use crate::detours::windows::{
    BAD_EXE_FORMAT, EXE_MARKED_INVALID, INVALID_EXE_SIGNATURE, Long, NOT_ENOUGH_MEMORY,
};
use alloc::vec::Vec;
use object::LittleEndian;
use object::elf::{DT_NULL, DynamicTag, ELFMAG, ET_DYN, ET_EXEC, PF_X, PN_XNUM, PT_DYNAMIC, PT_LOAD};
use object::read::elf::{Dyn as _, FileHeader, ProgramHeader as _};

pub(super) use crate::arch::elf::Elf;

pub(super) type Symbol = <Elf as FileHeader>::Sym;
type ProgramHeader = <Elf as FileHeader>::ProgramHeader;
type Entry = <Elf as FileHeader>::Dyn;

pub(super) const ENDIAN: LittleEndian = LittleEndian;

/// What is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) start: u64,
    /// One past its last byte.
    pub(super) end: u64,
    pub(super) executable: bool,
}

impl Segment {
    pub(super) const fn holds(&self, address: u64) -> bool {
        self.start <= address && address < self.end
    }
}

/// An image whose headers are right.
#[derive(Debug)]
pub(in super::super) struct Image {
    base: u64,
    /// What is added to the addresses of the file.
    bias: u64,
    /// As the file has it; 0 if it has none.
    entry: u64,
    /// In the order of their addresses.
    segments: Vec<Segment>,
    dynamic: Option<(u64, u64)>,
}

impl Image {
    /// Looks at what is at `base`.
    pub(super) fn open(base: u64) -> Result<Self, Long> {
        let mut magic = [0; ELFMAG.len()];
        // No loader puts one anywhere but at the start of a page.
        if !base.is_multiple_of(PAGE) {
            return Err(BAD_EXE_FORMAT);
        }
        memory::read(base, &mut magic).map_err(unless(BAD_EXE_FORMAT))?;
        if magic != ELFMAG {
            return Err(BAD_EXE_FORMAT);
        }
        let copy = Snapshot::all(base, size_of::<Elf>() as u64).map_err(unless(BAD_EXE_FORMAT))?;
        let header = Elf::parse(copy.bytes()).map_err(|_| INVALID_EXE_SIGNATURE)?;
        let endian = header.endian().map_err(|_| INVALID_EXE_SIGNATURE)?;
        let runs_here = header.e_machine(endian) == MACHINE && header.e_version(endian) == 1;
        if !runs_here || !matches!(header.e_type(endian), ET_EXEC | ET_DYN) {
            return Err(INVALID_EXE_SIGNATURE);
        }
        Self::read(base, header)
    }

    fn read(base: u64, header: &Elf) -> Result<Self, Long> {
        const SIZE: usize = size_of::<ProgramHeader>();
        let (count, size) = (header.e_phnum(ENDIAN), header.e_phentsize(ENDIAN));
        if count == 0 || count == PN_XNUM || usize::from(size) != SIZE {
            return Err(EXE_MARKED_INVALID);
        }
        let (offset, len) = (wide(header.e_phoff(ENDIAN)), u64::from(count) * SIZE as u64);
        let copy = Snapshot::all(base.wrapping_add(offset), len).map_err(unless(EXE_MARKED_INVALID))?;
        let headers: &[ProgramHeader] = copy.table();
        let loaded = |header: &&ProgramHeader| header.p_type(ENDIAN) == PT_LOAD;
        // The first segment has the headers in it, or they would not be here.
        let first = headers.iter().find(loaded).ok_or(EXE_MARKED_INVALID)?;
        let end = offset.checked_add(len).ok_or(EXE_MARKED_INVALID)?;
        if wide(first.p_offset(ENDIAN)) != 0 || wide(first.p_filesz(ENDIAN)) < end {
            return Err(EXE_MARKED_INVALID);
        }
        let bias = subtract(base, wide(first.p_vaddr(ENDIAN)));
        if header.e_type(ENDIAN) == ET_EXEC && bias != 0 {
            return Err(EXE_MARKED_INVALID);
        }
        let mut image =
            Self { base, bias, entry: wide(header.e_entry(ENDIAN)), segments: Vec::new(), dynamic: None };
        for header in headers.iter().filter(loaded) {
            image.add(header)?;
        }
        if let Some(header) = headers.iter().find(|header| header.p_type(ENDIAN) == PT_DYNAMIC) {
            let address = add(bias, wide(header.p_vaddr(ENDIAN)));
            image.dynamic = Some((address, wide(header.p_memsz(ENDIAN))));
        }
        Ok(image)
    }

    /// Adds a segment, which begins behind the last one, and of which both ends are mapped.
    fn add(&mut self, header: &ProgramHeader) -> Result<(), Long> {
        let (start, size) = (add(self.bias, wide(header.p_vaddr(ENDIAN))), wide(header.p_memsz(ENDIAN)));
        if size == 0 {
            return Ok(());
        }
        let end = start.checked_add(size).ok_or(EXE_MARKED_INVALID)?;
        let lowest = self.segments.last().map_or(self.base, |last| last.end);
        if start < lowest || ![start, end - 1].into_iter().all(is_readable) {
            return Err(EXE_MARKED_INVALID);
        }
        let executable = header.p_flags(ENDIAN).0 & PF_X.0 != 0;
        self.segments.try_reserve(1).map_err(|_| NOT_ENOUGH_MEMORY)?;
        self.segments.push(Segment { start, end, executable });
        Ok(())
    }

    /// The address of its header, which is its handle.
    pub(super) const fn base(&self) -> u64 {
        self.base
    }

    /// Where an address of the file is.
    pub(super) const fn moved(&self, address: u64) -> u64 {
        add(self.bias, address)
    }

    /// Where the file says that it is entered; none if it does not.
    pub(in super::super) fn entry(&self) -> Result<Option<u64>, Long> {
        let entry = self.moved(self.entry);
        match self.segment(entry) {
            _ if self.entry == 0 => Ok(None),
            Some(segment) if segment.executable => Ok(Some(entry)),
            _ => Err(EXE_MARKED_INVALID),
        }
    }

    /// How many bytes of addresses it takes, in whole pages.
    pub(in super::super) fn size(&self) -> u64 {
        let end = self.segments.last().map_or(self.base, |last| last.end);
        (end - self.base).next_multiple_of(PAGE)
    }

    /// The segment that an address is in.
    pub(super) fn segment(&self, address: u64) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.holds(address))
    }

    /// Where a pointer of the dynamic table leads. glibc puts addresses of memory into it; other loaders leave those of the file,
    /// and so does the kernel in its own image.
    fn resolve(&self, pointer: u64) -> Result<(u64, &Segment), Long> {
        let places = [pointer, self.moved(pointer)].into_iter();
        let mut inside = places.filter_map(|place| self.segment(place).map(|segment| (place, segment)));
        inside.next().ok_or(EXE_MARKED_INVALID)
    }

    /// Where a pointer of the dynamic table leads.
    pub(super) fn place(&self, pointer: u64) -> Result<u64, Long> {
        self.resolve(pointer).map(|(place, _)| place)
    }

    /// A table of a known length, and where it is.
    pub(super) fn table(&self, pointer: u64, len: u64) -> Result<(u64, Snapshot), Long> {
        let (address, segment) = self.resolve(pointer)?;
        if len > segment.end - address {
            return Err(EXE_MARKED_INVALID);
        }
        Ok((address, Snapshot::all(address, len).map_err(unless(EXE_MARKED_INVALID))?))
    }

    /// From a table's beginning on to the end of its segment: how long it is nobody says.
    pub(super) fn rest(&self, pointer: u64) -> Result<Snapshot, Long> {
        let (address, segment) = self.resolve(pointer)?;
        Snapshot::readable(address, segment.end - address).map_err(unless(EXE_MARKED_INVALID))
    }

    /// The table that tells the others.
    pub(super) fn dynamic(&self) -> Result<Dynamic, Long> {
        let (address, len) = self.dynamic.ok_or(EXE_MARKED_INVALID)?;
        let segment = self.segment(address).ok_or(EXE_MARKED_INVALID)?;
        if len > segment.end - address {
            return Err(EXE_MARKED_INVALID);
        }
        let copy = Snapshot::all(address, len).map_err(unless(EXE_MARKED_INVALID))?;
        let entries =
            copy.table::<Entry>().iter().map(|entry| (entry.d_tag(ENDIAN), wide(entry.d_val(ENDIAN))));
        Ok(Dynamic(entries.take_while(|&(tag, _)| tag != DT_NULL).collect()))
    }
}

/// What the dynamic table says.
#[derive(Debug)]
pub(super) struct Dynamic(Vec<(DynamicTag, u64)>);

impl Dynamic {
    pub(super) fn get(&self, tag: DynamicTag) -> Option<u64> {
        self.all(tag).next()
    }

    /// What has to be there.
    pub(super) fn need(&self, tag: DynamicTag) -> Result<u64, Long> {
        self.get(tag).ok_or(EXE_MARKED_INVALID)
    }

    pub(super) fn all(&self, tag: DynamicTag) -> impl Iterator<Item = u64> {
        self.0.iter().filter(move |(found, _)| *found == tag).map(|&(_, value)| value)
    }
}
