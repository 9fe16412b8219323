//! Object files, kernel modules among them: sections get addresses here, and relocations are applied to the copy in
//! memory, so that the code reads as if it were loaded.
//!
//! ```text
//!   base        code      data ...   | 16 bytes for each symbol of another file | 8 for each address in a table
//! ```
//! What is in other files gets addresses behind the end, each its own: nothing is there, but a call of it is a call
//! of another function.

use super::LE;
use crate::bytes::{u16_at, u32_at, word_at};
use crate::error::Error;
use kdetour_plan::Mode;
use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, SectionHeader};

/// Where the sections of an object file were put.
#[derive(Debug, Default)]
pub(super) struct LaidOut {
    addresses: Vec<u64>,
    /// Whether it is a kernel module.
    pub(super) module: bool,
    /// How many relocations were not understood.
    pub(super) unknown: usize,
}

impl LaidOut {
    /// Where a section is; 0 if it is not loaded.
    pub(super) fn address(&self, section: usize) -> u64 {
        self.addresses.get(section).copied().unwrap_or(0)
    }
}

/// Where kernel modules are.
const MODULES: u64 = 0xffff_ffff_c000_0000;
const BASE: u64 = 0x40_0000;
/// An object file is not larger, so that everything is in reach of everything.
const MAX_SIZE: u64 = 1 << 30;

#[derive(Clone, Copy)]
struct Section {
    kind: u32,
    offset: usize,
    size: usize,
    link: usize,
    info: usize,
}

pub(super) fn lay_out<Elf: FileHeader<Endian = LittleEndian>>(
    file: &mut [u8],
    mode: Mode,
) -> Result<LaidOut, Error> {
    let header = Elf::parse(&*file).map_err(|_| Error::Header("the ELF header is cut off"))?;
    let table = header.sections(LE, &*file).map_err(|_| Error::Header("the section headers are cut off"))?;
    if table.len() > super::MAX_SECTIONS {
        return Err(Error::Header("too many sections"));
    }
    let named = |wanted: &[u8]| table.iter().any(|section| table.section_name(LE, section) == Ok(wanted));
    let mut laid_out = LaidOut { addresses: vec![0; table.len()], ..LaidOut::default() };
    laid_out.module = named(b".modinfo") || named(b".gnu.linkonce.this_module");
    let base = if laid_out.module && mode == Mode::Bits64 { MODULES } else { BASE };
    let mut next = base;
    for code in [true, false] {
        for (section, address) in table.iter().zip(&mut laid_out.addresses) {
            let flags = section.sh_flags(LE).0;
            if flags & elf::SHF_ALLOC.0 == 0 || (flags & elf::SHF_EXECINSTR.0 != 0) != code {
                continue;
            }
            let alignment: u64 = section.sh_addralign(LE).into();
            let alignment = if alignment.is_power_of_two() { alignment.min(4096) } else { 1 };
            // A gap keeps what is in two sections apart.
            *address = next.next_multiple_of(alignment.max(16));
            let size: u64 = section.sh_size(LE).into();
            next = address.saturating_add(size.min(MAX_SIZE)).saturating_add(1);
            if next - base > MAX_SIZE {
                return Err(Error::Header("the sections of the object file are too large"));
            }
        }
    }
    let sections: Vec<Section> = table
        .iter()
        .map(|section| Section {
            kind: section.sh_type(LE).0,
            offset: usize::try_from(section.sh_offset(LE).into()).unwrap_or(usize::MAX),
            size: usize::try_from(section.sh_size(LE).into()).unwrap_or(usize::MAX),
            link: section.sh_link(LE) as usize,
            info: section.sh_info(LE) as usize,
        })
        .collect();
    let linker =
        Linker { sections: &sections, beyond: next.next_multiple_of(4096), wide: header.is_class_64() };
    for section in &sections {
        let with_addends = match section.kind {
            kind if kind == elf::SHT_RELA.0 => true,
            kind if kind == elf::SHT_REL.0 => false,
            _ => continue,
        };
        linker.relocate(file, section, with_addends, mode, &mut laid_out);
    }
    Ok(laid_out)
}

struct Linker<'s> {
    sections: &'s [Section],
    /// Where what is in other files begins.
    beyond: u64,
    wide: bool,
}

/// What a relocation writes.
enum Write {
    /// The address, in so many bytes.
    Absolute(usize),
    /// The address relative to the place, in so many bytes.
    Relative(usize),
    /// The address of a word that holds the address, relative to the place.
    ByTable,
}

impl Linker<'_> {
    fn relocate(
        &self,
        file: &mut [u8],
        table: &Section,
        with_addends: bool,
        mode: Mode,
        laid_out: &mut LaidOut,
    ) {
        let (Some(target), to) = (self.sections.get(table.info), laid_out.address(table.info)) else {
            return;
        };
        if to == 0 || target.kind == elf::SHT_NOBITS.0 {
            return;
        }
        let word = if self.wide { 8 } else { 4 };
        let entry = if with_addends { 3 * word } else { 2 * word };
        let end = table.offset.saturating_add(table.size).min(file.len());
        for at in (table.offset..end).step_by(entry) {
            let Some((offset, info)) = word_at(file, at, word).zip(word_at(file, at + word, word)) else {
                break;
            };
            let (symbol, kind) =
                if self.wide { (info >> 32, info & 0xffff_ffff) } else { (info >> 8, info & 0xff) };
            let kind = elf::RelocationType(kind as u32);
            let Some(write) = what_to_write(kind, mode) else {
                laid_out.unknown += usize::from(kind.0 != 0);
                continue;
            };
            let width = match write {
                Write::Absolute(width) | Write::Relative(width) => width,
                Write::ByTable => 4,
            };
            let Ok(offset) = usize::try_from(offset) else { continue };
            let inside = offset.checked_add(width).is_some_and(|end| end <= target.size);
            let Some(place) = target.offset.checked_add(offset).filter(|_| inside) else { continue };
            let addend = match with_addends {
                true => word_at(file, at + 2 * word, word),
                false => u32_at(file, place).map(|addend| i64::from(addend.cast_signed()).cast_unsigned()),
            };
            let Some(addend) = addend else { continue };
            let Some(symbol) = self.symbol(file, table.link, symbol, laid_out) else { continue };
            let here = to.wrapping_add(offset as u64);
            let value = match write {
                Write::Absolute(_) => symbol.0.wrapping_add(addend),
                Write::Relative(_) => symbol.0.wrapping_add(addend).wrapping_sub(here),
                Write::ByTable => symbol.1.wrapping_add(addend).wrapping_sub(here),
            };
            let bytes = value.to_le_bytes();
            let to = file.get_mut(place..).and_then(|to| to.get_mut(..width));
            if let Some((to, from)) = to.zip(bytes.get(..width)) {
                to.copy_from_slice(from);
            }
        }
    }

    /// A symbol's address, and that of the word that would hold it.
    fn symbol(&self, file: &[u8], table: usize, index: u64, laid_out: &LaidOut) -> Option<(u64, u64)> {
        let table = self.sections.get(table)?;
        let size = if self.wide { 24 } else { 16 };
        let index = usize::try_from(index).ok()?;
        let at = index.checked_mul(size).filter(|at| at.saturating_add(size) <= table.size)?;
        let at = table.offset.checked_add(at)?;
        let (value, section) = if self.wide {
            (word_at(file, at + 8, 8)?, u16_at(file, at + 6)?)
        } else {
            (word_at(file, at + 4, 4)?, u16_at(file, at + 14)?)
        };
        let count = (table.size / size) as u64;
        let word = self.beyond.wrapping_add(16 * count).wrapping_add(8 * index as u64);
        let address = match laid_out.address(section.into()) {
            _ if section == elf::SHN_ABS.0 => value,
            // In another file, or in a section that is not loaded.
            0 => self.beyond.wrapping_add(16 * index as u64),
            section => section.wrapping_add(value),
        };
        Some((address, word))
    }
}

fn what_to_write(kind: elf::RelocationType, mode: Mode) -> Option<Write> {
    Some(match (mode, kind) {
        (Mode::Bits64, elf::R_X86_64_64) => Write::Absolute(8),
        (Mode::Bits64, elf::R_X86_64_32 | elf::R_X86_64_32S) => Write::Absolute(4),
        (Mode::Bits64, elf::R_X86_64_PC32 | elf::R_X86_64_PLT32) => Write::Relative(4),
        (Mode::Bits64, elf::R_X86_64_PC64) => Write::Relative(8),
        (Mode::Bits64, elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX) => {
            Write::ByTable
        }
        (Mode::Bits32, elf::R_386_32) => Write::Absolute(4),
        (Mode::Bits32, elf::R_386_PC32 | elf::R_386_PLT32) => Write::Relative(4),
        _ => return None,
    })
}
