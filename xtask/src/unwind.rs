//! What a module's unwind table (ORC) tells of its functions: objtool makes it, where Kbuild runs objtool.
//!
//! Without, the kernel's stack traces end at such a function, and live patching waits in vain.

use anyhow::{Context as _, Result};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};
use std::collections::BTreeMap;

/// Bytes of a `struct orc_entry` (`arch/x86/include/asm/orc_types.h`), and of its place in the list of addresses.
const ENTRY: usize = 6;
const PLACE: u64 = 4;
/// The byte of an entry whose low half names the register that the stack pointer is found by; 0 is none.
const REGISTER: usize = 4;

/// Those of `functions` of a module at whose entry the kernel could not unwind; the module has to define each.
pub(crate) fn untold<'f>(module: &[u8], functions: &'f [String]) -> Result<Vec<&'f str>> {
    let file = object::File::parse(module).context("the module is no ELF object")?;
    // For each section: from this address on, it can be unwound or not.
    let mut told: BTreeMap<_, BTreeMap<u64, bool>> = BTreeMap::new();
    if let (Some(places), Some(entries)) =
        (file.section_by_name(".orc_unwind_ip"), file.section_by_name(".orc_unwind"))
    {
        let entries = entries.data()?;
        for (offset, relocation) in places.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else {
                continue;
            };
            let symbol = file.symbol_by_index(index)?;
            let section = symbol.section_index().context("an unwind entry is about no section")?;
            let address = symbol.address().wrapping_add_signed(relocation.addend());
            let entry = usize::try_from(offset / PLACE)? * ENTRY;
            let register = entries.get(entry + REGISTER).context("the unwind table is cut short")? & 0xf;
            // Where one object's table ends another's may begin: its entry is the one that holds.
            *told.entry(section.0).or_default().entry(address).or_default() |= register != 0;
        }
    }
    let mut untold = Vec::new();
    for name in functions {
        let symbol = file
            .symbols()
            .find(|symbol| symbol.is_definition() && symbol.name() == Ok(name.as_str()))
            .with_context(|| format!("the module does not define {name}"))?;
        let table = symbol.section_index().and_then(|section| told.get(&section.0));
        let entry = table.and_then(|table| table.range(..=symbol.address()).next_back());
        if entry.is_none_or(|(_, known)| !known) {
            untold.push(name.as_str());
        }
    }
    Ok(untold)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::write::{Object, Relocation, StandardSection, Symbol, SymbolSection};
    use object::{Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolKind, elf};

    /// Three functions of 16 bytes; `entries` are addresses in the text, and whether they can be unwound from there on.
    fn module(entries: &[(i64, bool)]) -> Vec<u8> {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let text = object.section_id(StandardSection::Text);
        object.append_section_data(text, &[0xc3; 48], 16); // ret
        for (name, value) in [("first", 0), ("second", 16), ("third", 32)] {
            object.add_symbol(Symbol {
                name: name.into(),
                value,
                size: 16,
                kind: SymbolKind::Text,
                scope: object::SymbolScope::Linkage,
                weak: false,
                section: SymbolSection::Section(text),
                flags: object::SymbolFlags::None,
            });
        }
        let symbol = object.section_symbol(text);
        let places = object.add_section(Vec::new(), b".orc_unwind_ip".to_vec(), SectionKind::ReadOnlyData);
        let table = object.add_section(Vec::new(), b".orc_unwind".to_vec(), SectionKind::ReadOnlyData);
        for &(addend, known) in entries {
            let offset = object.append_section_data(places, &[0; 4], 4);
            let flags = RelocationFlags::Elf { r_type: elf::R_X86_64_PC32 };
            object.add_relocation(places, Relocation { offset, symbol, addend, flags }).unwrap();
            // sp_offset 8; bp_offset 0; sp_reg 5 (the stack pointer) or 0 (none), and the type
            object.append_section_data(table, &[8, 0, 0, 0, if known { 5 } else { 0 }, 1], 2);
        }
        object.write().unwrap()
    }

    fn names() -> Vec<String> {
        ["first", "second", "third"].map(str::to_owned).to_vec()
    }

    #[test]
    fn the_last_entry_in_front_of_a_function_is_the_one_that_counts() {
        let all = names();
        assert_eq!(untold(&module(&[(0, true), (48, false)]), &all).unwrap(), Vec::<&str>::new());
        assert_eq!(untold(&module(&[(0, true), (16, false)]), &all).unwrap(), ["second", "third"]);
        assert_eq!(untold(&module(&[(20, true)]), &all).unwrap(), ["first", "second"]);
        assert_eq!(untold(&module(&[]), &all).unwrap(), ["first", "second", "third"]);
        // One table ends where the next begins, in whichever order.
        assert_eq!(untold(&module(&[(0, true), (16, true), (16, false)]), &all).unwrap(), Vec::<&str>::new());
        assert_eq!(untold(&module(&[(0, true), (16, false), (16, true)]), &all).unwrap(), Vec::<&str>::new());
    }

    #[test]
    fn a_function_that_is_not_there_is_an_error() {
        assert!(untold(&module(&[(0, true)]), &["fourth".to_owned()]).is_err());
    }
}
