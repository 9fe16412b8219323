//! `PT_DYNAMIC`: the tables that the loader uses, which stripping of section headers leaves.

use super::LE;
use crate::bytes::{u32_at, word_at};
use crate::memory::Memory;
use object::LittleEndian;
use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

/// Addresses and sizes from the dynamic section; 0 if they are missing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Dynamic {
    pub(super) symbols: u64,
    pub(super) strings: u64,
    pub(super) strings_size: u64,
    hash: u64,
    gnu_hash: u64,
    pub(super) rela: (u64, u64),
    pub(super) rel: (u64, u64),
    pub(super) relr: (u64, u64),
    pub(super) pltgot: Option<u64>,
    pub(super) init: u64,
    pub(super) fini: u64,
}

impl Dynamic {
    pub(super) fn read<Elf: FileHeader<Endian = LittleEndian>>(
        file: &[u8],
        memory: &Memory,
        programs: &[Elf::ProgramHeader],
    ) -> Self {
        let mut dynamic = Self::default();
        let Some(program) = programs.iter().find(|program| program.p_type(LE) == elf::PT_DYNAMIC) else {
            return dynamic;
        };
        let Ok(Some(entries)) = program.dynamic(LE, file) else { return dynamic };
        for entry in entries {
            let (tag, value): (i64, u64) = (entry.d_tag(LE).0, entry.d_val(LE).into());
            match elf::DynamicTag(tag) {
                elf::DT_NULL => break,
                elf::DT_SYMTAB => dynamic.symbols = value,
                elf::DT_STRTAB => dynamic.strings = value,
                elf::DT_STRSZ => dynamic.strings_size = value,
                elf::DT_HASH => dynamic.hash = value,
                elf::DT_GNU_HASH => dynamic.gnu_hash = value,
                elf::DT_RELA => dynamic.rela.0 = value,
                elf::DT_RELASZ => dynamic.rela.1 = value,
                elf::DT_REL => dynamic.rel.0 = value,
                elf::DT_RELSZ => dynamic.rel.1 = value,
                elf::DT_RELR => dynamic.relr.0 = value,
                elf::DT_RELRSZ => dynamic.relr.1 = value,
                elf::DT_PLTGOT => dynamic.pltgot = Some(value),
                elf::DT_INIT => dynamic.init = value,
                elf::DT_FINI => dynamic.fini = value,
                _ => {}
            }
        }
        // A loader that has relocated a dump of memory leaves addresses; what the file does not map is missing.
        dynamic.pltgot = dynamic.pltgot.filter(|&got| memory.segment(got).is_some());
        dynamic
    }

    /// How many symbols there are. Nothing says so but the hash tables.
    pub(super) fn symbol_count(&self, file: &[u8], memory: &Memory, word: usize) -> Option<usize> {
        if self.hash != 0
            && let Some(count) = u32_at(memory.bytes(file, self.hash), 4)
        {
            return usize::try_from(count).ok();
        }
        if self.gnu_hash == 0 {
            return None;
        }
        gnu_hash_count(memory.bytes(file, self.gnu_hash), word)
    }
}

/// The highest symbol that a chain holds, and one more. A chain ends with a value whose lowest bit is set.
fn gnu_hash_count(table: &[u8], word: usize) -> Option<usize> {
    let number = |at: usize| u32_at(table, at).and_then(|value| usize::try_from(value).ok());
    let (buckets, first, bloom) = (number(0)?, number(4)?, number(8)?);
    let buckets_at = bloom.checked_mul(word)?.checked_add(16)?;
    let chains_at = buckets.checked_mul(4)?.checked_add(buckets_at)?;
    let mut last = 0;
    for bucket in 0..buckets {
        last = last.max(number(buckets_at + bucket * 4)?);
    }
    if last < first {
        // No symbol is hashed: those in front of the first are imports.
        return Some(first);
    }
    loop {
        let chain = u32_at(table, (last - first).checked_mul(4)?.checked_add(chains_at)?)?;
        last += 1;
        if chain & 1 != 0 {
            return Some(last);
        }
    }
}

/// A word of the address size at an address.
pub(super) fn word(file: &[u8], memory: &Memory, address: u64, size: usize) -> Option<u64> {
    word_at(memory.bytes(file, address), 0, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gnu_hash_table_is_counted_to_the_end_of_its_last_chain() {
        // 1 bucket, symbols from 2 on, 1 bloom word, shift 6; the bucket begins at symbol 2; chains 10, 20, 31.
        let words = [1, 2, 1, 6, 0, 0, 2, 10, 20, 31];
        let table: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        assert_eq!(gnu_hash_count(&table, 8), Some(5));
        assert_eq!(gnu_hash_count(&table[..36], 8), None);
    }
}
