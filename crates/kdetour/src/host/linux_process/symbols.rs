//! The symbol tables of mapped files.

use super::PAGE;
use super::arch::{ARCHITECTURE, FileHeader};
use super::file::File;
use super::maps::Mapping;
use super::parts::{Part, parts};
use alloc::sync::Arc;
use object::elf::{PF_X, SHF_EXECINSTR, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE, STT_OBJECT};
use object::read::elf::ElfFile;
use object::{
    Object, ObjectSection, ObjectSegment, ObjectSymbol, ReadCache, SectionFlags, SectionIndex, SegmentFlags,
    SymbolFlags,
};
use rustix::fs::{Stat, major, minor, stat};
use rustix::io::retry_on_intr;
use std::collections::{HashMap, HashSet};
use std::vec::Vec;

/// What was read so far.
#[derive(Debug, Default)]
pub(super) struct Files {
    known: HashMap<Identity, Option<Arc<Symbols>>>,
}

/// A file, as long as nobody writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity {
    device: (u32, u32),
    inode: u64,
    size: i64,
    /// Seconds, and nanoseconds: these are as wide as the kernel has them.
    modified: (i64, u128),
}

impl Identity {
    fn of(stat: &Stat) -> Self {
        Self {
            device: (major(stat.st_dev), minor(stat.st_dev)),
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, u128::from(stat.st_mtime_nsec)),
        }
    }
}

impl Files {
    /// The symbols of the file that is mapped; none if it is not to be had under its path any more, or has none.
    pub(super) fn of(&mut self, mapping: &Mapping) -> Option<Arc<Symbols>> {
        // A file that was read before is not opened again. But it is looked at: it may have been written since.
        let stat = retry_on_intr(|| stat(mapping.path.as_slice())).ok()?;
        if let Some(known) = self.known.get(&Identity::of(&stat))
            && is_of(mapping, &Identity::of(&stat))
        {
            return known.clone();
        }
        let (file, stat) = File::open(&mapping.path)?;
        let identity = Identity::of(&stat);
        if !is_of(mapping, &identity) {
            return None;
        }
        let read = || Symbols::read(file).map(Arc::new);
        self.known.entry(identity).or_insert_with(read).clone()
    }
}

/// The file that is mapped; none if it is not to be had under its path any more.
pub(super) fn file_of(mapping: &Mapping) -> Option<File> {
    let (file, stat) = File::open(&mapping.path)?;
    is_of(mapping, &Identity::of(&stat)).then_some(file)
}

/// Whether it is that file that is mapped.
fn is_of(mapping: &Mapping, identity: &Identity) -> bool {
    (identity.device, identity.inode) == (mapping.device, mapping.inode)
}

/// The code symbols of an ELF file, by the addresses that the file gives them.
#[derive(Debug)]
pub(super) struct Symbols {
    /// Those with code.
    segments: Vec<Segment>,
    /// Sorted by address; one for each address.
    functions: Vec<FunctionSymbol>,
    /// Every address in code that any symbol names, sorted.
    labels: Vec<u64>,
    /// The global offset table: what `_GLOBAL_OFFSET_TABLE_` is.
    got: Option<u64>,
    /// Stubs of the procedure linkage table: many share one entry of the unwind information.
    stubs: Vec<core::ops::Range<u64>>,
    /// What was moved away of functions, sorted.
    parts: Vec<Part>,
    complete: bool,
}

#[derive(Debug)]
struct Segment {
    offset: u64,
    size: u64,
    address: u64,
}

#[derive(Clone, Copy, Debug)]
struct FunctionSymbol {
    address: u64,
    /// 0 if it is not known.
    size: u64,
    /// Where the longest of this function and those below it ends.
    reaches: u64,
}

impl Symbols {
    fn read(file: File) -> Option<Self> {
        let cache = ReadCache::new(file);
        let elf = ElfFile::<FileHeader, _>::parse(&cache).ok()?;
        if elf.architecture() != ARCHITECTURE {
            return None;
        }
        let segments = elf.segments().filter(is_executable).map(|segment| {
            let (offset, size) = segment.file_range();
            Segment { offset, size, address: segment.address() }
        });
        let mut symbols = Self {
            segments: segments.collect(),
            functions: Vec::new(),
            labels: Vec::new(),
            got: [".got.plt", ".got"]
                .into_iter()
                .find_map(|name| elf.section_by_name(name).map(|section| section.address())),
            stubs: elf.sections().filter_map(|section| stubs(&section)).collect(),
            parts: parts(&elf).unwrap_or_default(),
            complete: elf.symbol_table().is_some(),
        };
        let code = elf.sections().filter(is_code).map(|section| section.index());
        let code: HashSet<SectionIndex> = code.collect();
        for symbol in elf.symbols().chain(elf.dynamic_symbols()) {
            symbols.add(&symbol, &code);
        }
        symbols.sort();
        Some(symbols)
    }

    fn add<'data>(&mut self, symbol: &impl ObjectSymbol<'data>, code: &HashSet<SectionIndex>) {
        let SymbolFlags::Elf { st_info, .. } = symbol.flags() else { return };
        if !symbol.section_index().is_some_and(|index| code.contains(&index)) {
            return;
        }
        let (address, size) = (symbol.address(), symbol.size());
        match st_info.st_type() {
            STT_FUNC => {
                self.functions.push(FunctionSymbol { address, size, reaches: address.saturating_add(size) });
                self.labels.push(address);
            }
            // The symbol of an IFUNC names its resolver, and data is no function; but something begins there.
            STT_GNU_IFUNC | STT_OBJECT | STT_NOTYPE => self.labels.push(address),
            _ => {}
        }
    }

    fn sort(&mut self) {
        self.labels.sort_unstable();
        self.labels.dedup();
        // Of several names for one address the longest says where the function ends.
        self.functions.sort_unstable_by_key(|function| (function.address, core::cmp::Reverse(function.size)));
        self.functions.dedup_by_key(|function| function.address);
        let mut reaches = 0;
        for function in &mut self.functions {
            reaches = function.reaches.max(reaches);
            function.reaches = reaches;
        }
    }

    /// Whether every function has a symbol: the file was not stripped.
    pub(super) const fn are_complete(&self) -> bool {
        self.complete
    }

    /// What is to be added to an address of the file to have it in memory.
    pub(super) fn bias(&self, mapping: &Mapping) -> Option<u64> {
        // Segments are mapped from the page on in which they begin.
        let first_page = |segment: &&Segment| segment.offset & !(PAGE - 1);
        let holds = |segment: &&Segment| {
            first_page(segment) <= mapping.offset
                && mapping.offset < segment.offset.saturating_add(segment.size)
        };
        // The end of one segment and the beginning of the next may share a page: the one that begins there counts.
        let segment = self.segments.iter().filter(holds).max_by_key(|segment| segment.offset)?;
        let local = segment.address.wrapping_sub(segment.offset).wrapping_add(mapping.offset);
        Some(mapping.start.wrapping_sub(local))
    }

    /// Where the global offset table is.
    pub(super) const fn got(&self) -> Option<u64> {
        self.got
    }

    /// Whether an address is in the procedure linkage table.
    pub(super) fn is_stub(&self, address: u64) -> bool {
        self.stubs.iter().any(|stubs| stubs.contains(&address))
    }

    /// The size of the function that begins at an address; 0 if it is not known.
    pub(super) fn function_at(&self, address: u64) -> Option<u64> {
        let index = self.functions.binary_search_by_key(&address, |function| function.address).ok()?;
        self.functions.get(index).map(|function| function.size)
    }

    /// The entry of the function that an address is inside of, and not the entry of.
    pub(super) fn function_around(&self, address: u64) -> Option<u64> {
        let below = self.functions.partition_point(|function| function.address < address);
        let below = self.functions.get(..below)?.iter().rev();
        let mut may_hold = below.take_while(|function| function.reaches > address);
        may_hold.find(|function| address - function.address < function.size).map(|function| function.address)
    }

    /// What was moved away of the function that begins at an address: where it is, and its size.
    pub(super) fn parts(&self, address: u64) -> impl Iterator<Item = (u64, u64)> {
        let start = self.parts.partition_point(|part| part.owner < address);
        let of_it = self.parts.iter().skip(start).take_while(move |part| part.owner == address);
        of_it.map(|part| (part.address, part.size))
    }

    /// The first symbol at or behind an address.
    pub(super) fn next(&self, address: u64) -> Option<u64> {
        self.labels(address, u64::MAX).next()
    }

    /// The symbols from one address to below another.
    pub(super) fn labels(&self, first: u64, end: u64) -> impl Iterator<Item = u64> {
        let start = self.labels.partition_point(|&label| label < first);
        self.labels.iter().skip(start).copied().take_while(move |&label| label < end)
    }
}

fn is_executable<'data>(segment: &impl ObjectSegment<'data>) -> bool {
    matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. } if p_flags.contains(PF_X))
}

fn is_code<'data>(section: &impl ObjectSection<'data>) -> bool {
    matches!(section.flags(), SectionFlags::Elf { sh_flags, .. } if sh_flags.contains(SHF_EXECINSTR))
}

/// The addresses of a section of the procedure linkage table: `.plt`, `.plt.sec`, `.plt.got`.
fn stubs<'data>(section: &impl ObjectSection<'data>) -> Option<core::ops::Range<u64>> {
    let name = section.name_bytes().ok()?;
    name.starts_with(b".plt").then(|| section.address()..section.address().saturating_add(section.size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols(functions: &[(u64, u64)], labels: &[u64]) -> Symbols {
        let function = |&(address, size)| FunctionSymbol { address, size, reaches: address + size };
        let labels = labels.iter().copied().chain(functions.iter().map(|function| function.0));
        let mut symbols = Symbols {
            segments: Vec::new(),
            functions: functions.iter().map(function).collect(),
            labels: labels.collect(),
            got: None,
            stubs: Vec::new(),
            parts: Vec::new(),
            complete: true,
        };
        symbols.sort();
        symbols
    }

    #[test]
    fn entries_and_insides_are_told_apart() {
        // A long function, one nested in it, an alias, one without a size, and one behind it.
        let symbols = symbols(&[(0x100, 0x100), (0x120, 4), (0x100, 3), (0x300, 0), (0x310, 8)], &[0x304]);
        assert_eq!(symbols.function_at(0x100), Some(0x100));
        assert_eq!(symbols.function_at(0x300), Some(0));
        assert_eq!(symbols.function_at(0x101), None);
        assert_eq!(symbols.function_around(0x101), Some(0x100));
        assert_eq!(symbols.function_around(0x121), Some(0x120));
        assert_eq!(symbols.function_around(0x130), Some(0x100));
        assert_eq!(symbols.function_around(0x200), None);
        assert_eq!(symbols.function_around(0x301), None);
        assert_eq!(symbols.function_around(0x50), None);
        assert_eq!(symbols.next(0x301), Some(0x304));
        assert_eq!(symbols.next(0x318), None);
        assert_eq!(symbols.labels(0x101, 0x301).collect::<Vec<_>>(), [0x120, 0x300]);
    }

    #[test]
    fn a_bias_comes_from_the_segment_that_was_mapped() {
        let mut symbols = symbols(&[], &[]);
        symbols.segments = std::vec![
            Segment { offset: 0, size: 0x1234, address: 0 },
            Segment { offset: 0x1240, size: 0x800, address: 0x2240 },
        ];
        let mapping = |start, offset| Mapping {
            start,
            end: start + 0x1000,
            readable: true,
            writable: false,
            executable: true,
            shared: false,
            offset,
            device: (0, 0),
            inode: 1,
            path: Vec::new(),
        };
        assert_eq!(symbols.bias(&mapping(0x7000, 0)), Some(0x7000));
        assert_eq!(symbols.bias(&mapping(0x9000, 0x1000)), Some(0x7000));
        assert_eq!(symbols.bias(&mapping(0x9000, 0x5000)), None);
    }
}
