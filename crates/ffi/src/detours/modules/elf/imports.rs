//! What a module wants of others: the slots that the loader fills, and who fills them.
//!
//! An ELF file says which names it wants and which files it needs, but not which name is of which file: that the loader finds. So
//! the function of a slot is what the loader has put there, and where it has not done so yet (it may wait until the first call) what
//! it would put there; and its file is the one that has that function.

use super::super::{File, Import, Imports};
use super::exports::Exports;
use super::find::{path, soname};
use super::image::{Dynamic, ENDIAN, Elf, Image, Symbol};
use super::loaded::{self, Handle, Kind, Module, find_anywhere};
use super::symbols::{Strings, Symbols};
use crate::arch::Jump;
use crate::arch::elf::{GLOB_DAT, IRELATIVE, JUMP_SLOT};
use crate::detours::modules::memory::{pointer, unless, wide};
use crate::detours::windows::{EXE_MARKED_INVALID, Long};
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;
use object::elf::{
    DT_JMPREL, DT_NEEDED, DT_PLTGOT, DT_PLTREL, DT_PLTRELSZ, DT_REL, DT_RELA, DT_RELASZ, DT_RELSZ,
    RelocationType, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE,
};
use object::read::elf::{FileHeader, Rel as _, Rela as WithAddend, Sym as _};
use std::collections::HashSet;
use std::sync::OnceLock;

/// A slot for what is called.
const JUMP: RelocationType = JUMP_SLOT;
/// A slot for what is called or read.
const ANY: RelocationType = GLOB_DAT;
/// A slot for the one of its own functions that the image has chosen.
const CHOSEN: RelocationType = IRELATIVE;

/// All imports of an image.
pub(super) fn imports(image: &Image, own: Option<&Module>) -> Result<Imports, Long> {
    let dynamic = image.dynamic()?;
    let slots = slots(image, &dynamic)?;
    let modules = loaded::modules();
    let looked = Looked::new(image, &dynamic, own, &modules)?;
    let mut found = Imports::default();
    for name in dynamic.all(DT_NEEDED) {
        let (name, text) = looked.strings.get(name)?;
        let module = looked.needed(text).map_or(0, |module| module.base);
        found.files.push(File { module, name });
    }
    for slot in slots.iter().filter(|slot| slot.kind != CHOSEN) {
        let Some(Bound { name, function, module }) = looked.bound(slot)? else { continue };
        // What nobody has is the image's own.
        let module = module.map_or(image.base(), |module| module.base);
        let file = match found.files.iter().position(|file| file.module == module) {
            Some(file) => file,
            None => {
                let of = modules.iter().find(|known| known.base == module);
                found.files.push(File { module, name: of.map_or_else(program_name, name_of) });
                found.files.len() - 1
            }
        };
        found.functions.push(Import { file, ordinal: 0, name, slot: slot.address, function });
    }
    let in_use = |module: &&Module| found.files.iter().any(|file| file.module == module.base);
    found.kept = modules.iter().filter(in_use).filter_map(Module::open).chain(looked.loader).collect();
    Ok(found)
}

/// The function whose slot code of a module jumps through; its own ones too. None if the slot is not the loader's.
pub(in crate::detours) fn function_through(code: u64, jump: &Jump) -> Option<u64> {
    let modules = loaded::modules();
    let own = modules.iter().find(|module| module.segment(code).is_some())?;
    let image = Image::open(own.base).ok()?;
    let dynamic = image.dynamic().ok()?;
    let table = || image.place(dynamic.get(DT_PLTGOT)?).ok();
    let slot = jump.slot(table)?;
    let slot = slots(&image, &dynamic).ok()?.into_iter().find(|known| known.address == slot)?;
    let function = match slot.kind {
        CHOSEN => pointer(slot.address).ok()?,
        _ => Looked::new(&image, &dynamic, Some(own), &modules).ok()?.asked(&slot).ok()?.2,
    };
    (function != 0).then_some(function)
}

/// A place that the loader fills.
#[derive(Clone, Copy, Debug)]
struct Slot {
    address: u64,
    symbol: usize,
    kind: RelocationType,
}

/// The slots that are filled with addresses of functions, in the order of the image's tables.
fn slots(image: &Image, dynamic: &Dynamic) -> Result<Vec<Slot>, Long> {
    type Rela = <Elf as FileHeader>::Rela;
    type Rel = <Elf as FileHeader>::Rel;
    let mut slots = Vec::new();
    // A table may hold the other one.
    let mut seen = HashSet::new();
    let mut add = |offset: u64, symbol: u32, kind: RelocationType| -> Result<(), Long> {
        let is_named = symbol != 0 && (kind == JUMP || kind == ANY);
        if !is_named && kind != CHOSEN {
            return Ok(());
        }
        let address = image.moved(offset);
        let last = address.wrapping_add(size_of::<usize>() as u64 - 1);
        let segment = image.segment(address).filter(|segment| segment.holds(last));
        segment.ok_or(EXE_MARKED_INVALID)?;
        if seen.insert(address) {
            slots.push(Slot { address, symbol: symbol as usize, kind });
        }
        Ok(())
    };
    let with_addends = dynamic.get(DT_PLTREL) == Some(DT_RELA.0.cast_unsigned());
    let tables =
        [(DT_RELA, DT_RELASZ, true), (DT_REL, DT_RELSZ, false), (DT_JMPREL, DT_PLTRELSZ, with_addends)];
    for (table, size, with_addends) in tables {
        let Some(at) = dynamic.get(table) else { continue };
        let len = dynamic.need(size)?;
        if len == 0 {
            continue;
        }
        let (_, copy) = image.table(at, len)?;
        if with_addends {
            for entry in copy.table::<Rela>() {
                // By the trait: the entries of 32 bits have methods of the same names.
                let (symbol, kind) =
                    (WithAddend::r_sym(entry, ENDIAN, false), WithAddend::r_type(entry, ENDIAN, false));
                add(wide(entry.r_offset(ENDIAN)), symbol, kind)?;
            }
        } else {
            for entry in copy.table::<Rel>() {
                add(wide(entry.r_offset(ENDIAN)), entry.r_sym(ENDIAN), entry.r_type(ENDIAN))?;
            }
        }
    }
    Ok(slots)
}

/// What a slot is for.
struct Bound<'a> {
    /// Where the function's name is.
    name: u64,
    /// Its address; 0 if nobody has it.
    function: u64,
    /// Whose it is.
    module: Option<&'a Module>,
}

/// What is needed to tell whose a slot's function is.
struct Looked<'a> {
    image: &'a Image,
    strings: Strings,
    symbols: Symbols,
    loader: Option<Handle>,
    modules: &'a [Module],
    /// Stubs of the program that stand for functions of others.
    stubs: Vec<u64>,
}

impl<'a> Looked<'a> {
    fn new(
        image: &'a Image,
        dynamic: &Dynamic,
        own: Option<&Module>,
        modules: &'a [Module],
    ) -> Result<Self, Long> {
        let (strings, symbols) = (Strings::of(image, dynamic)?, Symbols::of(image, dynamic)?);
        let loader = own.and_then(Module::open);
        Ok(Self { image, strings, symbols, loader, stubs: stubs(modules), modules })
    }

    /// The symbol of a slot, its name and where that is, and its address; 0 if nobody has it.
    fn asked(&self, slot: &Slot) -> Result<(&Symbol, (u64, &CStr), u64), Long> {
        let symbol = self.symbols.get(slot.symbol)?;
        let (at, name) = self.strings.get(symbol.st_name(ENDIAN).into())?;
        let (_, version) = self.symbols.version(slot.symbol, &self.strings)?;
        let value = pointer(slot.address).map_err(unless(EXE_MARKED_INVALID))?;
        let is_bound = slot.kind == ANY || self.place(symbol) == value;
        let function = if value == 0 || self.is_own(value) && !symbol.is_undefined(ENDIAN) && is_bound {
            value
        } else if !self.is_own(value) {
            self.behind_stub(value, name, version)
        } else {
            // The way to the loader, which finds the function when it is called first.
            self.look_up(name, version).map_or(0, |found| self.behind_stub(found, name, version))
        };
        Ok((symbol, (at, name), function))
    }

    fn is_own(&self, address: u64) -> bool {
        self.image.segment(address).is_some()
    }

    /// The function of a slot. None if it is no function, or one of the image itself.
    fn bound(&self, slot: &Slot) -> Result<Option<Bound<'a>>, Long> {
        let (symbol, (at, name), function) = self.asked(slot)?;
        if self.is_own(function) {
            return Ok(None);
        }
        let module = self.modules.iter().find(|module| module.segment(function).is_some());
        let is_code =
            module.and_then(|module| module.segment(function)).is_none_or(|segment| segment.executable);
        let is_function = match symbol.st_type() {
            STT_FUNC | STT_GNU_IFUNC => true,
            STT_NOTYPE => is_code,
            _ => slot.kind == JUMP,
        };
        // A function of the kernel's, or of somebody who has changed the slot, is still found by its name in a library.
        let module = match module {
            Some(module) if module.kind != Kind::Kernel => Some(module),
            other if function != 0 => self.defines(name).or(other),
            other => other,
        };
        Ok(is_function.then_some(Bound { name: at, function, module }))
    }

    fn place(&self, symbol: &Symbol) -> u64 {
        self.image.moved(wide(symbol.st_value(ENDIAN)))
    }

    /// As the loader would.
    fn look_up(&self, name: &CStr, version: Option<&CStr>) -> Option<u64> {
        let anywhere = find_anywhere(name, version);
        anywhere.or_else(|| self.loader.as_ref()?.find(name, version))
    }

    /// A program that is not position-independent has stubs, whose addresses are those of the functions everywhere. What one stands for
    /// is found in the libraries.
    fn behind_stub(&self, function: u64, name: &CStr, version: Option<&CStr>) -> u64 {
        if !self.stubs.contains(&function) {
            return function;
        }
        let libraries = self.modules.iter().filter(|module| module.kind == Kind::Library);
        let mut found = libraries.filter_map(|module| {
            let found = module.open()?.find(name, version)?;
            module.segment(found).map(|_| found)
        });
        found.next().unwrap_or(function)
    }

    /// The first library that has something under a name.
    fn defines(&self, name: &CStr) -> Option<&'a Module> {
        self.modules.iter().find(|module| {
            let image = || Image::open(module.base).ok();
            let has = |image: Image| Exports::of(&image, None).is_ok_and(|exports| exports.has(name));
            module.kind == Kind::Library && image().is_some_and(has)
        })
    }

    /// The module that the loader has for a name of a file that is needed.
    fn needed(&self, name: &CStr) -> Option<&'a Module> {
        let name = name.to_bytes();
        let by = |is_it: &dyn Fn(&Module) -> bool| self.modules.iter().find(|module| is_it(module));
        by(&|module: &Module| module.path.to_bytes() == name || module.file_name() == name)
            .or_else(|| by(&|module: &Module| soname(module).is_some_and(|(_, soname)| soname == name)))
    }
}

/// The stubs of a program that is not position-independent: they have a place, but are defined by others.
fn stubs(modules: &[Module]) -> Vec<u64> {
    let stubs = || {
        let program = modules.iter().find(|module| module.kind == Kind::Program && module.bias == 0)?;
        let image = Image::open(program.base).ok()?;
        let dynamic = image.dynamic().ok()?;
        Symbols::of(&image, &dynamic).ok()?.stubs(&image, &dynamic).ok()
    };
    stubs().unwrap_or_default()
}

/// Where the name of a module is: the one that it has for those that need it, or else its file's.
fn name_of(module: &Module) -> u64 {
    if let Some((at, _)) = soname(module) {
        return at;
    }
    match module.path.is_empty() {
        true => program_name(),
        false => module.path_at + (module.path.as_bytes().len() - module.file_name().len()) as u64,
    }
}

/// Where the name of the program's file is.
fn program_name() -> u64 {
    static NAME: OnceLock<CString> = OnceLock::new();
    let name = NAME.get_or_init(|| {
        let path = loaded::program().map(|program| path(&program)).unwrap_or_default();
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        CString::new(name).unwrap_or_default()
    });
    name.as_ptr().expose_provenance() as u64
}
