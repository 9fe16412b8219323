//! `.symtab` and `.dynsym`.

use super::dynamic::Dynamic;
use super::layout::LaidOut;
use super::{LE, Section};
use crate::function::Source;
use crate::kernel::Visited;
use crate::left_out::Reason;
use crate::names::{Name, Names};
use crate::starts::{Found, Start, What};
use kdetour_plan::Mode;
use object::LittleEndian;
use object::elf;
use object::pod::slice_from_bytes;
use object::read::elf::{FileHeader, Sym};

/// A symbol table, and where in the file its strings are.
pub(super) struct Table<'f, Elf: FileHeader<Endian = LittleEndian>> {
    symbols: &'f [Elf::Sym],
    strings: usize,
    strings_end: usize,
}

impl<Elf: FileHeader<Endian = LittleEndian>> Table<'_, Elf> {
    fn name(&self, symbol: &Elf::Sym) -> Name {
        let at = self.strings.saturating_add(symbol.st_name(LE) as usize);
        if symbol.st_name(LE) == 0 || at >= self.strings_end { Name::NONE } else { Name::in_file(at) }
    }
}

/// As many symbols as the bytes hold.
fn whole<Elf: FileHeader<Endian = LittleEndian>>(bytes: &[u8]) -> &[Elf::Sym] {
    slice_from_bytes::<Elf::Sym>(bytes, bytes.len() / size_of::<Elf::Sym>())
        .map_or(&[], |(symbols, _)| symbols)
}

/// The table of a kind, by the section headers.
pub(super) fn table<'f, Elf: FileHeader<Endian = LittleEndian>>(
    file: &'f [u8],
    sections: &[Section<'f>],
    kind: u32,
) -> Option<Table<'f, Elf>> {
    let section = sections.iter().find(|section| section.kind == kind)?;
    // What is cut off is missing at the end.
    let start = usize::try_from(section.offset).ok()?;
    let rest = file.get(start..)?;
    let bytes = rest.get(..usize::try_from(section.size).ok()?).unwrap_or(rest);
    let strings = sections.get(section.link)?;
    let strings_start = usize::try_from(strings.offset).ok()?;
    let strings_end = usize::try_from(strings.offset.saturating_add(strings.size)).ok()?;
    let symbols = whole::<Elf>(bytes);
    (symbols.len() > 1).then(|| Table {
        symbols,
        strings: strings_start,
        strings_end: strings_end.min(file.len()),
    })
}

/// The loader's table.
fn dynamic_table<'f, Elf: FileHeader<Endian = LittleEndian>>(
    found: &Found,
    file: &'f [u8],
    dynamic: &Dynamic,
    word: usize,
) -> Option<Table<'f, Elf>> {
    let bytes = found.memory.bytes(file, dynamic.symbols);
    let symbols = whole::<Elf>(bytes);
    let count = dynamic.symbol_count(file, &found.memory, word)?;
    let strings = found.memory.file_range(dynamic.strings)?;
    let size = usize::try_from(dynamic.strings_size).ok()?;
    Some(Table {
        symbols: symbols.get(..count).unwrap_or(symbols),
        strings: strings.start,
        strings_end: strings.end.min(strings.start.saturating_add(size)),
    })
}

/// Takes the symbols of both tables. Says whether all functions have one: whether there is a `.symtab`.
pub(super) fn read<Elf: FileHeader<Endian = LittleEndian>>(
    found: &mut Found,
    file: &[u8],
    sections: &[Section<'_>],
    dynamic: &Dynamic,
    laid_out: Option<&LaidOut>,
) -> bool {
    let word = if size_of::<Elf::Sym>() == size_of::<elf::Sym64<LittleEndian>>() { 8 } else { 4 };
    let full = table::<Elf>(file, sections, elf::SHT_SYMTAB.0);
    if let Some(table) = &full {
        read_table(found, file, table, laid_out);
    }
    let loaded = match table::<Elf>(file, sections, elf::SHT_DYNSYM.0) {
        Some(table) => Some(table),
        None => dynamic_table::<Elf>(found, file, dynamic, word),
    };
    match loaded {
        Some(table) => read_table(found, file, &table, None),
        None if dynamic.symbols != 0 => found.tally.add(Reason::Table("dynamic symbols"), dynamic.symbols),
        None => {}
    }
    full.is_some()
}

fn read_table<Elf: FileHeader<Endian = LittleEndian>>(
    found: &mut Found,
    file: &[u8],
    table: &Table<'_, Elf>,
    laid_out: Option<&LaidOut>,
) {
    for symbol in table.symbols {
        let index = symbol.st_shndx(LE);
        if index == elf::SHN_UNDEF {
            continue;
        }
        let mut address: u64 = symbol.st_value(LE).into();
        if let Some(laid_out) = laid_out {
            match laid_out.address(usize::from(index.0)) {
                0 => continue,
                section => address = address.wrapping_add(section),
            }
        }
        let binding = symbol.st_info().0 >> 4;
        let global =
            binding == elf::STB_GLOBAL.0 || binding == elf::STB_WEAK.0 || binding == elf::STB_GNU_UNIQUE.0;
        let size = u32::try_from(symbol.st_size(LE).into()).unwrap_or(u32::MAX);
        let what = match elf::SymbolType(symbol.st_info().0 & 0xf) {
            elf::STT_FUNC | elf::STT_GNU_IFUNC => What::Function,
            elf::STT_NOTYPE if index == elf::SHN_ABS => continue,
            elf::STT_NOTYPE if global || size > 0 => What::Assembly,
            elf::STT_NOTYPE => What::Label,
            elf::STT_OBJECT => What::Other,
            _ => continue,
        };
        if elf::SymbolType(symbol.st_info().0 & 0xf) == elf::STT_GNU_IFUNC {
            found.tally.add(Reason::Resolver, address);
        }
        let name = table.name(symbol);
        let text = Names::File.get(file, name);
        if found.mode == Mode::Bits32 && text == b"_GLOBAL_OFFSET_TABLE_" {
            found.got = Some(address);
        }
        let rank = match binding {
            binding if binding == elf::STB_GLOBAL.0 => 0,
            binding if binding == elf::STB_WEAK.0 => 1,
            _ => 2,
        };
        found.push_symbol(Start { address, size, name, what, source: Source::Symbol, rank }, text);
    }
}

/// Shows the symbols of a kernel: address, size, what begins there, name.
pub(super) fn visit_kernel<Elf: FileHeader<Endian = LittleEndian>>(
    table: &Table<'_, Elf>,
    file: &[u8],
    visit: &mut dyn FnMut(Visited<'_>),
) -> bool {
    for symbol in table.symbols {
        if symbol.st_shndx(LE) == elf::SHN_UNDEF {
            continue;
        }
        let what = match elf::SymbolType(symbol.st_info().0 & 0xf) {
            elf::STT_FUNC | elf::STT_GNU_IFUNC => What::Function,
            elf::STT_NOTYPE
                if symbol.st_info().0 >> 4 != elf::STB_LOCAL.0 || symbol.st_size(LE).into() > 0 =>
            {
                What::Assembly
            }
            elf::STT_NOTYPE => What::Label,
            elf::STT_OBJECT => What::Other,
            _ => continue,
        };
        let name = table.name(symbol);
        visit(Visited {
            address: symbol.st_value(LE).into(),
            size: u32::try_from(symbol.st_size(LE).into()).unwrap_or(u32::MAX),
            what,
            global: symbol.st_info().0 >> 4 != elf::STB_LOCAL.0,
            name: Names::File.get(file, name),
            at: name,
        });
    }
    table.symbols.iter().any(|symbol| symbol.st_info().0 & 0xf == elf::STT_FUNC.0)
}
