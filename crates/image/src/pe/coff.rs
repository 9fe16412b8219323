//! COFF symbols, which MinGW leaves in images that were not stripped.

use super::Reader;
use crate::bytes::{array, u16_at, u32_at, until_zero};
use crate::function::Source;
use crate::left_out::Reason;
use crate::starts::{Start, What};
use object::LittleEndian as LE;
use object::pe::ImageFileHeader;

const SYMBOL: usize = 18;
const EXTERNAL: u8 = 2;
const STATIC: u8 = 3;
/// A derived type: a function that returns something.
const FUNCTION: u16 = 0x20;

/// Takes the functions among the symbols; says whether there are symbols of functions.
pub(super) fn read(reader: &mut Reader<'_>, header: &ImageFileHeader) -> bool {
    let (start, count) = (header.pointer_to_symbol_table.get(LE), header.number_of_symbols.get(LE));
    if start == 0 || count == 0 {
        return false;
    }
    let rest = reader.file.get(start as usize..).unwrap_or_default();
    let len = (count as usize).saturating_mul(SYMBOL);
    let (symbols, strings) = rest.split_at(len.min(rest.len()));
    if symbols.len() < len {
        reader.found.tally.add(Reason::Table("COFF symbols"), 0);
    }
    let sections = sections(reader);
    let mut any = false;
    let mut index = 0;
    while let Some(symbol) = symbols.get(index * SYMBOL..(index + 1) * SYMBOL) {
        let auxiliary = usize::from(symbol.last().copied().unwrap_or(0));
        index += 1 + auxiliary;
        let (Some(value), Some(section), Some(kind)) =
            (u32_at(symbol, 8), u16_at(symbol, 12), u16_at(symbol, 14))
        else {
            break;
        };
        let class = symbol.get(16).copied().unwrap_or(0);
        let Some(address) = usize::from(section).checked_sub(1).and_then(|section| sections.get(section))
        else {
            continue;
        };
        if !matches!(class, EXTERNAL | STATIC) {
            continue;
        }
        let what = match (kind & 0x30 == FUNCTION, class) {
            (true, _) => What::Function,
            // Assembly; but a section's own symbol is static, and so are labels of data in code.
            (false, EXTERNAL) => What::Assembly,
            (false, _) => continue,
        };
        let name = match u32_at(symbol, 0) {
            Some(0) => {
                let offset = u32_at(symbol, 4).unwrap_or(0) as usize;
                let from = strings.get(offset..).unwrap_or_default();
                until_zero(from.get(..4096).unwrap_or(from))
            }
            _ => until_zero(symbol.get(..8).unwrap_or_default()),
        };
        if is_for_the_linker(name) {
            continue;
        }
        any |= what == What::Function;
        // The C name, as the export table has it: with 32 bits there is an underscore in front.
        let name = if reader.word == 4 { name.strip_prefix(b"_").unwrap_or(name) } else { name };
        let limit = reader.file.len();
        let kept = reader.found.names.add(name, limit);
        let start = Start {
            address: address.wrapping_add(value.into()),
            size: 0,
            name: kept,
            what,
            source: Source::Symbol,
            rank: if class == EXTERNAL { 1 } else { 2 },
        };
        reader.found.push_symbol(start, name);
    }
    any
}

/// Lists of constructors in code, and MinGW's marks on operands that refer to other images (`__fu3__name`).
fn is_for_the_linker(name: &[u8]) -> bool {
    let name = name.strip_prefix(b"_").unwrap_or(name);
    let name = name.strip_prefix(b"_").unwrap_or(name);
    let name = name.strip_prefix(b"_").unwrap_or(name);
    name == b"CTOR_LIST__"
        || name == b"DTOR_LIST__"
        || name.strip_prefix(b"fu").is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit))
}

/// Where each section begins, in the order that symbols count them.
fn sections(reader: &Reader<'_>) -> Vec<u64> {
    let mut sections = Vec::new();
    let Some(at) = u32_at(reader.file, 0x3c).map(|at| at as usize) else { return sections };
    let (Some(count), Some(optional)) = (u16_at(reader.file, at + 6), u16_at(reader.file, at + 20)) else {
        return sections;
    };
    for index in 0..usize::from(count) {
        let header = at + 24 + usize::from(optional) + index * 40;
        let Some(rva) = array(reader.file, header + 12).map(u32::from_le_bytes) else { break };
        sections.push(reader.base.wrapping_add(rva.into()));
    }
    sections
}
