//! What a module has for others: its dynamic symbols that are defined.

use super::Export;
use super::image::{Dynamic, ENDIAN, Image, Symbol};
use super::loaded::{Handle, Module};
use super::symbols::{Strings, Symbols};
use crate::detours::modules::memory::wide;
use crate::detours::windows::Long;
use alloc::vec::Vec;
use core::ffi::CStr;
use object::elf::{STT_GNU_IFUNC, STT_TLS};
use object::read::elf::Sym as _;

/// The table of a module.
#[derive(Debug)]
pub(super) struct Exports<'a> {
    image: &'a Image,
    dynamic: Dynamic,
    strings: Strings,
    symbols: Symbols,
    /// The loader's own idea of the module, which keeps it loaded. None if it has none.
    pub(super) loader: Option<Handle>,
}

impl<'a> Exports<'a> {
    pub(super) fn of(image: &'a Image, module: Option<&Module>) -> Result<Self, Long> {
        let dynamic = image.dynamic()?;
        let (strings, symbols) = (Strings::of(image, &dynamic)?, Symbols::of(image, &dynamic)?);
        Ok(Self { image, dynamic, strings, symbols, loader: module.and_then(Module::open) })
    }

    /// All, in the order of the table.
    pub(super) fn all(&self) -> Result<Vec<Export>, Long> {
        let mut all = Vec::new();
        for (index, symbol) in self.symbols.defined(self.image, &self.dynamic)? {
            let (at, name) = self.strings.get(symbol.st_name(ENDIAN).into())?;
            let code = self.place(index, symbol, name)?;
            let ordinal = u32::try_from(index).unwrap_or(u32::MAX);
            all.push(Export { ordinal, name: at, code });
        }
        Ok(all)
    }

    /// Where what has this name is, in the version that is the name's own. None if there is nothing.
    pub(super) fn find(&self, wanted: &CStr) -> Result<Option<u64>, Long> {
        for (index, symbol) in self.symbols.defined(self.image, &self.dynamic)? {
            let (_, name) = self.strings.get(symbol.st_name(ENDIAN).into())?;
            if name == wanted && !self.symbols.version(index, &self.strings)?.0 {
                return Ok(Some(self.place(index, symbol, name)?).filter(|&place| place != 0));
            }
        }
        Ok(None)
    }

    /// Whether there is something of this name, in whatever version.
    pub(super) fn has(&self, wanted: &CStr) -> bool {
        let name = |symbol: &Symbol| self.strings.get(symbol.st_name(ENDIAN).into()).map(|(_, name)| name);
        let mut defined = self.symbols.defined(self.image, &self.dynamic).into_iter().flatten();
        defined.any(|(_, symbol)| name(symbol) == Ok(wanted))
    }

    /// Where a symbol is; 0 if each thread has its own, or if it lies outside the image.
    fn place(&self, index: usize, symbol: &Symbol, name: &CStr) -> Result<u64, Long> {
        let value = wide(symbol.st_value(ENDIAN));
        Ok(match symbol.st_type() {
            STT_TLS => 0,
            // The symbol is a function that chooses one: which one, the loader knows. Where it does not know the image,
            // nobody has called that function.
            STT_GNU_IFUNC => {
                let (_, version) = self.symbols.version(index, &self.strings)?;
                self.loader.as_ref().and_then(|loader| loader.find(name, version)).unwrap_or(0)
            }
            _ if symbol.is_absolute(ENDIAN) => value,
            _ => {
                let place = self.image.moved(value);
                // The end of something may lie where its segment ends.
                let is_inside = |place| self.image.segment(place).is_some();
                if is_inside(place) || is_inside(place.wrapping_sub(1)) { place } else { 0 }
            }
        })
    }
}
