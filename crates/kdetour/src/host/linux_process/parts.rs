//! The pieces that compilers move away from functions: `NAME.cold`, known by nothing but their names.

use super::arch::FileHeader;
use crate::address::widen;
use object::elf::STT_FUNC;
use object::read::elf::{ElfFile, SectionHeader, Sym};
use object::{NativeEndian, ReadRef};
use std::collections::HashMap;
use std::vec::Vec;

/// No function's name is longer.
const MAX_NAME: usize = 1 << 13;

/// A piece of a function, by the addresses that the file gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part {
    /// The function's entry.
    pub(super) owner: u64,
    pub(super) address: u64,
    pub(super) size: u64,
}

/// The pieces of all functions of a file that has its symbols yet, sorted. Static functions of one name are not told apart: each has the
/// pieces of all of them.
pub(super) fn parts<'data, R: ReadRef<'data>>(elf: &ElfFile<'data, FileHeader, R>) -> Option<Vec<Part>> {
    let endian = NativeEndian;
    let table = elf.elf_symbol_table();
    // All at once: a read of the file for each name would take long.
    let names =
        elf.elf_section_table().section(table.string_section()).ok()?.data(endian, elf.data()).ok()?;
    let functions = || {
        table.iter().filter(|symbol| symbol.st_type() == STT_FUNC).filter_map(|symbol| {
            let name = names.get(usize::try_from(symbol.st_name(endian)).ok()?..)?;
            let name = name.get(..MAX_NAME).unwrap_or(name);
            let name = name.get(..name.iter().position(|&byte| byte == 0)?)?;
            Some((name, widen(symbol.st_value(endian) as usize), widen(symbol.st_size(endian) as usize)))
        })
    };
    let mut moved: HashMap<&[u8], Vec<(u64, u64)>> = HashMap::new();
    for (name, address, size) in functions() {
        if let Some(owner) = owner(name) {
            moved.entry(owner).or_default().push((address, size));
        }
    }
    let mut parts = Vec::new();
    if !moved.is_empty() {
        for (name, owner, _) in functions() {
            let of_it = moved.get(name).into_iter().flatten();
            parts.extend(of_it.map(|&(address, size)| Part { owner, address, size }));
        }
    }
    // Several names of one function may have the same piece.
    parts.sort_unstable();
    parts.dedup();
    Some(parts)
}

/// The name of the function that a piece belongs to: `foo` for `foo.cold` and `foo.cold.3`.
fn owner(name: &[u8]) -> Option<&[u8]> {
    let digits = name.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let name = match digits {
        0 => name,
        digits => name.get(..name.len() - digits)?.strip_suffix(b".")?,
    };
    name.strip_suffix(b".cold").filter(|owner| !owner.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_names_its_function() {
        assert_eq!(owner(b"foo.cold"), Some(&b"foo"[..]));
        assert_eq!(owner(b"foo.part.0.cold.12"), Some(&b"foo.part.0"[..]));
        for none in [&b"foo"[..], b"foo.1", b"foo.colder", b"foo.cold.", b"foo.cold3", b".cold", b""] {
            assert_eq!(owner(none), None);
        }
    }
}
