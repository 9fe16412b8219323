//! What a module has for others: its dynamic symbols that are defined.

use super::super::windows::{Bool, INVALID_PARAMETER, Long, answer};
use super::image::{Dynamic, ENDIAN, Image, Symbol};
use super::loaded::{Handle, Module};
use super::memory::wide;
use super::symbols::{Strings, Symbols};
use super::{handle_of, pointer_to};
use alloc::vec::Vec;
use core::ffi::{CStr, c_char, c_void};
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
    loader: Option<Handle>,
}

/// One of a module's symbols.
#[derive(Clone, Copy, Debug)]
pub(super) struct Export {
    /// Its number in the table.
    pub(super) ordinal: u32,
    /// Where its name is.
    pub(super) name: u64,
    /// Where its code or its data is; 0 if there is no such place.
    pub(super) code: u64,
}

impl<'a> Exports<'a> {
    pub(super) fn of(image: &'a Image, module: Option<&Module>) -> Result<Self, Long> {
        let dynamic = image.dynamic()?;
        let (strings, symbols) = (Strings::of(image, &dynamic)?, Symbols::of(image, &dynamic)?);
        Ok(Self { image, dynamic, strings, symbols, loader: module.and_then(Module::open) })
    }

    /// All, in the order of the table.
    fn all(&self) -> Result<Vec<Export>, Long> {
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

/// `PF_DETOUR_ENUMERATE_EXPORT_CALLBACK`.
pub type ExportCallback = unsafe extern "C" fn(*mut c_void, u32, *const c_char, *mut c_void) -> Bool;

/// Calls `found` for each export of a module, in the order of its table, until that answers false.
///
/// # Safety
/// `found` may be called so; it gets `context`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn DetourEnumerateExports(
    module: *mut c_void,
    context: *mut c_void,
    found: Option<ExportCallback>,
) -> Bool {
    let Some(found) = found else { return answer(Err(INVALID_PARAMETER)) };
    let looked = handle_of(module).and_then(|(image, module)| {
        let table = Exports::of(&image, module.as_ref())?;
        // It stays loaded while its names are given out.
        Ok((table.all()?, table.loader))
    });
    let (exports, _kept) = match looked {
        Ok(looked) => looked,
        Err(error) => return answer(Err(error)),
    };
    for Export { ordinal, name, code } in exports {
        // SAFETY: the caller's word. The name is a string of the module's.
        if unsafe { found(context, ordinal, pointer_to(name).cast(), pointer_to(code)) } == 0 {
            break;
        }
    }
    answer(Ok(()))
}
