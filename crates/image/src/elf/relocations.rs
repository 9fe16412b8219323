//! Relocations that name an address of the image: what they point at may be jumped to.
//!
//! A position-independent image keeps a table of labels (GNU C's `&&label`, an interpreter's dispatch) in data
//! that is relocated. The addresses are only in the relocations; they are written into the copy in memory, at the
//! addresses that the file gives, so that such a table can be read like any other.

use super::LE;
use super::dynamic::{Dynamic, word};
use crate::bytes::word_at;
use crate::left_out::Reason;
use crate::memory::Ranges;
use crate::starts::Found;
use kdetour_plan::Mode;
use object::LittleEndian;
use object::elf;
use object::read::elf::FileHeader;

/// The relocation that adds where the image is loaded: `R_X86_64_RELATIVE`, `R_386_RELATIVE`.
const RELATIVE: u64 = 8;

pub(super) fn apply<Elf: FileHeader<Endian = LittleEndian>>(file: &mut [u8], found: &mut Found) {
    let Ok(header) = Elf::parse(&*file) else { return };
    let size = if header.is_class_64() { 8 } else { 4 };
    let programs = header.program_headers(LE, &*file).unwrap_or_default();
    let dynamic = Dynamic::read::<Elf>(file, &found.memory, programs);
    let mut tables = vec![(dynamic.rela, 3 * size), (dynamic.rel, 2 * size)];
    // An x86-64 file has the former, an x86-32 file the latter.
    tables.retain(|((address, len), _)| *address != 0 && *len != 0);
    let data = Ranges::new(found.data.clone());
    for ((address, len), entry) in tables {
        let Some(range) = found.memory.file_range(address) else {
            found.tally.add(Reason::Table("relocations"), address);
            continue;
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(range.len());
        for at in (range.start..range.start.saturating_add(len)).step_by(entry) {
            let Some((place, info)) = word_at(file, at, size).zip(word_at(file, at + size, size)) else {
                break;
            };
            let kind = if size == 8 && found.mode == Mode::Bits64 { info & 0xffff_ffff } else { info & 0xff };
            if kind != RELATIVE {
                continue;
            }
            let addend = if entry == 3 * size {
                word_at(file, at + 2 * size, size)
            } else {
                word(file, &found.memory, place, size)
            };
            let Some(addend) = addend else { continue };
            found.push_target(addend);
            if entry == 3 * size {
                write(file, found, &data, place, addend, size);
            }
        }
    }
    packed(file, found, dynamic.relr, size);
}

/// `DT_RELR`: an address, or the bits of which of the words behind the last address are relocated too. The words
/// hold what is to be relocated.
fn packed(file: &[u8], found: &mut Found, (address, len): (u64, u64), size: usize) {
    let Some(range) = found.memory.file_range(address).filter(|_| len != 0 && address != 0) else { return };
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(range.len());
    let step = size as u64;
    let mut next = 0u64;
    for at in (range.start..range.start.saturating_add(len)).step_by(size) {
        let Some(entry) = word_at(file, at, size) else { break };
        if entry & 1 == 0 {
            found_at(file, found, entry, size);
            next = entry.wrapping_add(step);
            continue;
        }
        let count = size as u64 * 8 - 1;
        for bit in 0..count {
            if entry >> (bit + 1) & 1 != 0 {
                found_at(file, found, next.wrapping_add(bit * step), size);
            }
        }
        next = next.wrapping_add(count * step);
    }
}

fn found_at(file: &[u8], found: &mut Found, place: u64, size: usize) {
    if let Some(target) = word(file, &found.memory, place, size) {
        found.push_target(target);
    }
}

/// Writes a relocated word, if it lies where jump tables are looked for. Code is never changed.
fn write(file: &mut [u8], found: &Found, data: &Ranges, place: u64, value: u64, size: usize) {
    let is_data =
        found.memory.segment(place).is_some_and(|segment| !segment.executable) && data.contains(place);
    if !is_data {
        return;
    }
    let Some(range) = found.memory.file_range(place) else { return };
    let bytes = value.to_le_bytes();
    if let Some((to, from)) = file.get_mut(range).and_then(|to| to.get_mut(..size)).zip(bytes.get(..size)) {
        to.copy_from_slice(from);
    }
}

const _: () =
    assert!(elf::R_X86_64_RELATIVE.0 as u64 == RELATIVE && elf::R_386_RELATIVE.0 as u64 == RELATIVE);
