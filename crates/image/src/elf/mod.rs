//! ELF files: programs, libraries, object files, `vmlinux`.
//!
//! ```text
//!   section headers there      .symtab, .dynsym; .eh_frame; what is code is said by sections
//!   section headers stripped   PT_DYNAMIC -> DT_SYMTAB (counted by DT_GNU_HASH or DT_HASH);
//!                              PT_GNU_EH_FRAME -> .eh_frame; what is code is said by segments
//! ```
//! Both ways are taken as far as they go: what is in a section is not read again by its segment.

mod dynamic;
pub(crate) mod eh_frame;
mod layout;
mod lsda;
mod relocations;
mod symbols;

use crate::error::Error;
use crate::function::Source;
use crate::image::Kind;
use crate::kernel::{self, KernelSymbols};
use crate::left_out::Reason;
use crate::memory::{Ranges, Segment};
use crate::names::Name;
use crate::starts::{Found, Start, What};
use core::ops::Range;
use kdetour_plan::Mode;
use object::elf::{self, FileHeader32, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{LittleEndian, ReadRef};

const LE: LittleEndian = LittleEndian;

/// Sections of a kernel module whose code is freed, or never runs where it is.
const KEPT_BY_NOBODY: [&[u8]; 4] = [b".init.", b".exit.", b".altinstr_replacement", b".altinstr_aux"];

/// More sections than this are not looked at: no linker makes so many.
const MAX_SECTIONS: usize = 1 << 18;

/// A section that is mapped, or holds a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section<'f> {
    pub(crate) name: &'f [u8],
    pub(crate) address: u64,
    pub(crate) size: u64,
    offset: u64,
    kind: u32,
    flags: u64,
    link: usize,
}

impl<'f> Section<'f> {
    pub(crate) fn range(&self) -> Range<u64> {
        self.address..self.address.saturating_add(self.size)
    }

    fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Its bytes; none if it has none in the file or they are cut off.
    fn bytes(&self, file: &'f [u8]) -> Option<&'f [u8]> {
        if self.kind == elf::SHT_NOBITS.0 { None } else { file.read_bytes_at(self.offset, self.size).ok() }
    }

    fn is_linkage_table(&self) -> bool {
        self.name.starts_with(b".plt")
    }
}

/// Reads an ELF file. Relocations that do not depend on where it is loaded are applied to the copy in memory.
pub(crate) fn read(file: &mut [u8], symbols: Option<&KernelSymbols>, boot: bool) -> Result<Found, Error> {
    if file.get(5) != Some(&elf::ELFDATA2LSB.0) {
        return Err(Error::NotLittleEndian);
    }
    match file.get(4) {
        Some(&class) if class == elf::ELFCLASS32.0 => {
            read_class::<FileHeader32<LittleEndian>>(file, symbols, boot)
        }
        Some(&class) if class == elf::ELFCLASS64.0 => {
            read_class::<FileHeader64<LittleEndian>>(file, symbols, boot)
        }
        _ => Err(Error::NotLittleEndian),
    }
}

fn read_class<Elf: FileHeader<Endian = LittleEndian>>(
    file: &mut [u8],
    symbols: Option<&KernelSymbols>,
    boot: bool,
) -> Result<Found, Error> {
    let header = Elf::parse(&*file).map_err(|_| Error::Header("the ELF header is cut off"))?;
    let mode = match header.e_machine(LE) {
        elf::EM_386 => Mode::Bits32,
        elf::EM_X86_64 => Mode::Bits64,
        machine => return Err(Error::Machine(machine.0)),
    };
    if header.e_type(LE) == elf::ET_REL {
        let laid_out = layout::lay_out::<Elf>(file, mode)?;
        return read_mapped::<Elf>(file, mode, Some(laid_out), symbols, boot);
    }
    let mut found = read_mapped::<Elf>(file, mode, None, symbols, boot)?;
    if !found.kernel {
        relocations::apply::<Elf>(file, &mut found);
    }
    Ok(found)
}

/// Reads what is mapped: by the program headers, or as an object file's sections were laid out.
fn read_mapped<Elf: FileHeader<Endian = LittleEndian>>(
    file: &[u8],
    mode: Mode,
    laid_out: Option<layout::LaidOut>,
    symbols: Option<&KernelSymbols>,
    boot: bool,
) -> Result<Found, Error> {
    let header = Elf::parse(file).map_err(|_| Error::Header("the ELF header is cut off"))?;
    let programs = header.program_headers(LE, file).unwrap_or_default();
    let sections = sections(header, file, laid_out.as_ref());
    let mut segments = Vec::new();
    if laid_out.is_some() {
        for section in sections.iter().flatten().filter(|section| section.has(elf::SHF_ALLOC.0)) {
            let filled = if section.kind == elf::SHT_NOBITS.0 { 0 } else { section.size };
            let mut segment = Segment::new(section.address, section.size, section.offset, filled, file.len());
            segment.executable = section.has(elf::SHF_EXECINSTR.0);
            segment.writable = section.has(elf::SHF_WRITE.0);
            segments.push(segment);
        }
    } else {
        for program in programs.iter().filter(|program| program.p_type(LE) == elf::PT_LOAD) {
            let (offset, size) = (program.p_offset(LE).into(), program.p_filesz(LE).into());
            let mut segment = Segment::new(
                program.p_vaddr(LE).into(),
                program.p_memsz(LE).into(),
                offset,
                size,
                file.len(),
            );
            segment.executable = program.p_flags(LE).0 & elf::PF_X.0 != 0;
            segment.writable = program.p_flags(LE).0 & elf::PF_W.0 != 0;
            segments.push(segment);
        }
    }
    let kind = if laid_out.is_some() { Kind::Object } else { Kind::Elf };
    let mut found = Found::new(kind, mode, segments, file.len())?;
    let section_list = sections.as_deref().unwrap_or_default();
    if sections.is_none() && header.e_shoff(LE).into() != 0 {
        found.tally.add(Reason::Table("section headers"), 0);
    }
    let code = section_list.iter().filter(|section| section.has(elf::SHF_EXECINSTR.0));
    // A module's code that is freed, and code that is copied elsewhere.
    found.kernel = laid_out.as_ref().is_some_and(|laid_out| laid_out.module);
    let code = code.filter(|section| {
        !found.kernel || !KEPT_BY_NOBODY.iter().any(|prefix| section.name.starts_with(prefix))
    });
    let (tables, code): (Vec<&Section<'_>>, Vec<&Section<'_>>) =
        code.partition(|section| section.is_linkage_table());
    found.plt = Ranges::new(tables.iter().map(|section| section.range()).collect());
    found.narrow(code.iter().map(|section| section.range()).collect());
    data(
        &mut found,
        section_list,
        programs.iter().filter(|program| program.p_type(LE) == elf::PT_GNU_RELRO).map(
            |program: &Elf::ProgramHeader| {
                let start: u64 = program.p_vaddr(LE).into();
                start..start.saturating_add(program.p_memsz(LE).into())
            },
        ),
    );

    if boot || (laid_out.is_none() && is_kernel(&found, section_list)) {
        found.kind = Kind::Kernel;
        found.kernel = true;
        let table = symbols::table::<Elf>(file, section_list, elf::SHT_SYMTAB.0);
        kernel::read(&mut found, file, section_list, symbols, |visit| {
            table.as_ref().is_some_and(|table| symbols::visit_kernel::<Elf>(table, file, visit))
        })?;
        return Ok(found);
    }
    let dynamic = dynamic::Dynamic::read::<Elf>(file, &found.memory, programs);
    if symbols::read::<Elf>(&mut found, file, section_list, &dynamic, laid_out.as_ref()) {
        found.complete = true;
    }
    if eh_frame::read::<Elf>(&mut found, file, section_list, programs) {
        found.complete = true;
    }
    let got = section_list.iter().find(|section| section.name == b".got.plt").map(|section| section.address);
    found.got = found.got.or(dynamic.pltgot).or(got).filter(|_| mode == Mode::Bits32);
    for address in [header.e_entry(LE).into(), dynamic.init, dynamic.fini] {
        if address != 0 && laid_out.is_none() {
            let entry = Start {
                address,
                size: 0,
                name: Name::NONE,
                what: What::Function,
                source: Source::Entry,
                rank: 9,
            };
            found.push(entry);
        }
    }
    if let Some(laid_out) = &laid_out {
        // What it jumps to in other files has no address.
        found.bounds = None;
        for _ in 0..laid_out.unknown {
            found.tally.add(Reason::Table("relocations of an unknown type"), 0);
        }
        kernel::read_module(&mut found, file, section_list);
    }
    Ok(found)
}

/// Where a kernel is: in the upper half, or, with 32 bits, above the user's 3 GiB and with a kernel's sections.
fn is_kernel(found: &Found, sections: &[Section<'_>]) -> bool {
    let first = found.code.iter().map(|range| range.start).max().unwrap_or(0);
    match found.mode {
        Mode::Bits32 => first >= 0xc000_0000 && sections.iter().any(|section| section.name == b"__ex_table"),
        _ => first >= 0xffff_8000_0000_0000,
    }
}

/// The section headers; none if there are none, or they are damaged.
fn sections<'f, Elf: FileHeader<Endian = LittleEndian>>(
    header: &Elf,
    file: &'f [u8],
    laid_out: Option<&layout::LaidOut>,
) -> Option<Vec<Section<'f>>> {
    let table = header.sections(LE, file).ok()?;
    if table.is_empty() || table.len() > MAX_SECTIONS {
        return None;
    }
    let mut sections = Vec::with_capacity(table.len());
    for (index, section) in table.iter().enumerate() {
        let address = match laid_out {
            Some(laid_out) => laid_out.address(index),
            None => section.sh_addr(LE).into(),
        };
        sections.push(Section {
            name: table.section_name(LE, section).unwrap_or_default(),
            address,
            size: section.sh_size(LE).into(),
            offset: section.sh_offset(LE).into(),
            kind: section.sh_type(LE).0,
            flags: section.sh_flags(LE).0,
            link: section.sh_link(LE) as usize,
        });
    }
    Some(sections)
}

/// Where jump tables may be: read-only data, what is read-only after relocation, and the code itself.
fn data(found: &mut Found, sections: &[Section<'_>], relro: impl Iterator<Item = Range<u64>>) {
    let named = sections.iter().filter(|section| {
        section.has(elf::SHF_ALLOC.0)
            && section.kind == elf::SHT_PROGBITS.0
            && [&b".rodata"[..], b".lrodata", b".data.rel.ro", b".data.rel.local"]
                .iter()
                .any(|prefix| section.name.starts_with(prefix))
    });
    let mut data: Vec<Range<u64>> = named.map(Section::range).collect();
    if data.is_empty() {
        let segments = found.memory.segments().iter();
        let read_only = segments.filter(|segment| !segment.writable && !segment.executable);
        data.extend(read_only.map(|segment| segment.address..segment.filled_end()));
        data.extend(relro);
    }
    data.extend(found.code.iter().cloned());
    found.data = data;
}
