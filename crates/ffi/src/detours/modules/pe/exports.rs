//! What a module has for others.

use super::super::Export;
use super::image::nth;
use super::{Handle, open};
use crate::detours::windows::{EXE_MARKED_INVALID, Long, NOT_ENOUGH_MEMORY};
use alloc::vec::Vec;

// Where the fields of IMAGE_EXPORT_DIRECTORY are ("PE Format", Microsoft, ".edata").
const BASE: u32 = 16;
const FUNCTIONS: u32 = 20;
const NAMES: u32 = 24;
const ADDRESS_TABLE: u32 = 28;
const NAME_TABLE: u32 = 32;
const ORDINAL_TABLE: u32 = 36;
/// Ordinals have 16 bits.
const MOST: u32 = 0x1_0000;

/// What a module has for others, in the order of its table: one for each number, also where that has no name or leads to another
/// module, which is no place of this one.
pub(in super::super) fn exports(module: u64) -> Result<(Vec<Export>, Option<Handle>), Long> {
    let image = open(module)?;
    let directory = image.exports()?;
    let mut reader = image.reader();
    let mut field = |offset| reader.word(nth(directory.start, offset, 1)?);
    let (base, functions, names) = (field(BASE)?, field(FUNCTIONS)?, field(NAMES)?);
    let (addresses, texts, numbers) = (field(ADDRESS_TABLE)?, field(NAME_TABLE)?, field(ORDINAL_TABLE)?);
    if functions > MOST || names > MOST {
        return Err(EXE_MARKED_INVALID);
    }
    let mut all = Vec::new();
    all.try_reserve_exact(functions as usize).map_err(|_| NOT_ENOUGH_MEMORY)?;
    for index in 0..functions {
        let leads_to = reader.word(nth(addresses, index, 4)?)?;
        // What leads into the directory is the name of another module's.
        let is_own = leads_to != 0 && leads_to.wrapping_sub(directory.start) >= directory.len;
        let code = if is_own { image.place(leads_to)? } else { 0 };
        all.push(Export { ordinal: base.wrapping_add(index), name: 0, code });
    }
    for index in 0..names {
        let number = reader.half(nth(numbers, index, 2)?)?;
        let at = reader.word(nth(texts, index, 4)?)?;
        let name = reader.text(at)?;
        let export = all.get_mut(usize::from(number)).ok_or(EXE_MARKED_INVALID)?;
        // Of several names of one the first is told.
        if export.name == 0 {
            export.name = name;
        }
    }
    Ok((all, None))
}
