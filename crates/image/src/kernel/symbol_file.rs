//! The text of `/proc/kallsyms` or `System.map`: `ADDRESS TYPE NAME [module]`.

use super::{Visited, what_of};
use crate::error::Error;
use crate::names::Name;

/// Kernels are loaded at a multiple of this many bytes (`CONFIG_PHYSICAL_ALIGN` is 2 MiB or more with 64 bits,
/// and 8 KiB or more with 32).
const LOAD_ALIGNMENT: u64 = 0x2000;

/// The kernel's own symbols, without those of modules.
#[derive(Debug)]
pub(crate) struct KernelSymbols<'t> {
    symbols: Vec<(u64, u8, &'t str)>,
}

impl<'t> KernelSymbols<'t> {
    pub(crate) fn parse(text: &'t str) -> Result<Self, Error> {
        let mut symbols = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let mut words = line.split_ascii_whitespace();
            let Some(address) = words.next() else { continue };
            let fields = u64::from_str_radix(address, 16).ok().zip(words.next()).zip(words.next());
            let Some(((address, letter), name)) = fields else {
                return Err(Error::NotSymbols { line: index + 1 });
            };
            let &[letter] = letter.as_bytes() else { return Err(Error::NotSymbols { line: index + 1 }) };
            // Modules, and what the kernel makes while it runs, are in no file.
            if words.next().is_none() {
                symbols.push((address, letter, name));
            }
        }
        if !symbols.is_empty() && symbols.iter().all(|symbol| symbol.0 == 0) {
            return Err(Error::HiddenAddresses);
        }
        Ok(Self { symbols })
    }

    /// How much lower the image is than the kernel that the text is from. `anchor` is where the image's text
    /// begins.
    pub(super) fn shift(&self, anchor: u64) -> Result<u64, Error> {
        let named =
            |wanted: &str| self.symbols.iter().find(|symbol| symbol.2 == wanted).map(|symbol| symbol.0);
        let there = named("_stext").or_else(|| named("_text")).ok_or(Error::NotSymbols { line: 0 })?;
        let shift = there.wrapping_sub(anchor);
        if shift.is_multiple_of(LOAD_ALIGNMENT) { Ok(shift) } else { Err(Error::OtherKernel) }
    }

    pub(super) fn visit(&self, shift: u64, visit: &mut dyn FnMut(Visited<'_>)) {
        let text = self.symbols.iter().filter(|symbol| symbol.2 == "_stext" || symbol.2 == "_text");
        let lowest = text.map(|symbol| symbol.0).min().unwrap_or(0);
        // What is lower is relative to a processor's own memory, and is not moved.
        for &(address, letter, name) in self.symbols.iter().filter(|symbol| symbol.0 >= lowest) {
            visit(Visited {
                address: address.wrapping_sub(shift),
                size: 0,
                what: what_of(letter),
                global: letter.is_ascii_uppercase(),
                name: name.as_bytes(),
                at: Name::NONE,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "0000000000000000 A fixed_percpu_data\n\
        ffffffff9f000000 T _stext\nffffffff9f000040 t do_one\nffffffffc0001000 t hello\t[hello]\n";

    #[test]
    fn a_running_kernels_addresses_are_moved_back() {
        let symbols = KernelSymbols::parse(TEXT).unwrap();
        let shift = symbols.shift(0xffff_ffff_8100_0000).unwrap();
        assert_eq!(shift, 0x1e00_0000);
        let mut seen = Vec::new();
        symbols.visit(shift, &mut |symbol| seen.push((symbol.address, symbol.name.to_vec(), symbol.global)));
        assert_eq!(
            seen,
            [
                (0xffff_ffff_8100_0000, b"_stext".to_vec(), true),
                (0xffff_ffff_8100_0040, b"do_one".to_vec(), false)
            ]
        );
    }

    #[test]
    fn what_is_no_list_is_refused_by_name() {
        assert!(matches!(KernelSymbols::parse("hello\n"), Err(Error::NotSymbols { line: 1 })));
        assert!(matches!(KernelSymbols::parse("12 t\n"), Err(Error::NotSymbols { line: 1 })));
        let hidden = TEXT.replace("ffffffff9f0000", "00000000000000").replace("ffffffffc000", "000000000000");
        assert!(matches!(KernelSymbols::parse(&hidden), Ok(_) | Err(Error::HiddenAddresses)));
        assert!(matches!(KernelSymbols::parse("0 T _stext\n0 t a\n"), Err(Error::HiddenAddresses)));
        let other = KernelSymbols::parse("10 t a\n").unwrap();
        assert!(matches!(other.shift(0), Err(Error::NotSymbols { line: 0 })));
        let odd = KernelSymbols::parse("ffffffff81000010 T _stext\n").unwrap();
        assert!(matches!(odd.shift(0xffff_ffff_8100_0000), Err(Error::OtherKernel)));
    }
}
