//! The pointers through which an image calls what it imports: its global offset table, by the relocations in its file.
//!
//! ```text
//!   JUMP_SLOT    of a call through the procedure linkage table: bound at the start (-z now), or when it is called
//!                first; until then it leads to a stub, through which the loader writes it
//!   GLOB_DAT     of a call without such a table (-fno-plt), and of a function whose address is taken
//! ```

use super::arch::{FileHeader, MODE, R_GLOB_DAT, R_JUMP_SLOT};
use super::file::File;
use super::images::{self, Loaded};
use super::maps::Mapping;
use super::{query, symbols};
use crate::Error;
use crate::host::process::image::Image;
use object::read::elf::ElfFile;
use object::{
    LittleEndian, Object, ObjectSymbol, ObjectSymbolTable, ReadCache, RelocationFlags, RelocationTarget,
    SymbolIndex,
};
use std::ffi::CString;
use std::vec::Vec;

impl Image<'_> {
    fn find(self) -> Result<Loaded, Error> {
        let is_it = |(position, one): &(usize, Loaded)| match self {
            Image::Program => *position == 0,
            Image::Named(name) => {
                let whole = one.name.as_bytes();
                let file = whole.rsplit(|&byte| byte == b'/').next().unwrap_or(whole);
                *position > 0 && !name.is_empty() && [whole, file].contains(&name.as_bytes())
            }
            Image::Holding(address) => one.parts.iter().any(|part| part.contains(&address)),
        };
        let found = images::loaded().into_iter().enumerate().find(is_it);
        found.map(|(_, image)| image).ok_or(Error::UnknownImage)
    }
}

/// The pointers through which an image reaches one function.
pub(crate) struct Imports {
    image: Loaded,
    symbol: CString,
    pub(crate) all: Vec<Import>,
}

/// One of them.
pub(crate) struct Import {
    /// Where the pointer is.
    pub(crate) place: u64,
    version: Option<CString>,
}

impl Imports {
    /// The function that the loader would bind an import to. Takes the loader's lock, and an IFUNC is asked.
    pub(crate) fn bind(&self, import: &Import) -> Option<u64> {
        self.image.bind(&self.symbol, import.version.as_deref())
    }
}

/// Finds the pointers through which an image reaches a function. Takes the loader's lock.
///
/// # Errors
/// [`Error::UnknownImage`]; [`Error::UnknownSymbol`] if the image has no such import.
pub(crate) fn imports(image: Image<'_>, symbol: &str) -> Result<Imports, Error> {
    let image = image.find()?;
    let symbol = CString::new(symbol).map_err(|_| Error::UnknownSymbol)?;
    let start = image.parts.first().map_or(image.base, |part| part.start);
    let (mappings, _) = query::within(core::iter::once((start, start.saturating_add(1))))?;
    let file = mappings.of(start).and_then(symbols::file_of).ok_or(Error::UnknownImage)?;
    let all = read(file, |elf| {
        let entries = entries(elf).filter(|entry| entry.name(elf) == Some(symbol.as_bytes()));
        let import = |entry: Entry| {
            let place = MODE.wrap(image.base.wrapping_add(entry.address));
            Import { place, version: entry.version(elf) }
        };
        entries.map(import).collect::<Vec<_>>()
    });
    match all {
        None => Err(Error::UnknownImage),
        Some(all) if all.is_empty() => Err(Error::UnknownSymbol),
        Some(all) => Ok(Imports { image, symbol, all }),
    }
}

/// Whether the pointer at this address of a mapped file is one that may be bound when it is called first.
pub(super) fn is_bound_late(mapping: &Mapping, address: u64) -> bool {
    let is_it = |elf: &Elf<'_>| entries(elf).any(|entry| entry.is_late && entry.address == address);
    symbols::file_of(mapping).and_then(|file| read(file, is_it)).unwrap_or(false)
}

type Elf<'a> = ElfFile<'a, FileHeader, &'a ReadCache<File>>;

fn read<T>(file: File, work: impl FnOnce(&Elf<'_>) -> T) -> Option<T> {
    let cache = ReadCache::new(file);
    let elf = ElfFile::<FileHeader, _>::parse(&cache).ok()?;
    Some(work(&elf))
}

/// A relocation of a pointer to a function, or to data: the file does not tell.
struct Entry {
    /// As the file has it.
    address: u64,
    symbol: SymbolIndex,
    /// Whether it may be bound when it is called first.
    is_late: bool,
}

fn entries<'a>(elf: &'a Elf<'a>) -> impl Iterator<Item = Entry> + 'a {
    elf.dynamic_relocations().into_iter().flatten().filter_map(|(address, relocation)| {
        let RelocationFlags::Elf { r_type } = relocation.flags() else { return None };
        let RelocationTarget::Symbol(symbol) = relocation.target() else { return None };
        let is_late = r_type == R_JUMP_SLOT;
        (is_late || r_type == R_GLOB_DAT).then_some(Entry { address, symbol, is_late })
    })
}

impl Entry {
    fn name<'a>(&self, elf: &Elf<'a>) -> Option<&'a [u8]> {
        elf.dynamic_symbol_table()?.symbol_by_index(self.symbol).ok()?.name_bytes().ok()
    }

    /// The version of the symbol that the image was linked with.
    fn version(&self, elf: &Elf<'_>) -> Option<CString> {
        let versions = elf.elf_section_table().versions(LittleEndian, elf.data()).ok()??;
        let index = versions.version_index(LittleEndian, self.symbol).index();
        CString::new(versions.version(index).ok()??.name()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::arch;
    use super::*;

    #[test]
    fn the_program_imports_functions_of_libc() {
        let imports = imports(Image::Program, "malloc").unwrap();
        let malloc = (libc::malloc as unsafe extern "C" fn(usize) -> *mut libc::c_void as *const ()).addr();
        assert!(!imports.all.is_empty());
        for import in &imports.all {
            assert_eq!(import.place % arch::WORD as u64, 0);
            assert_eq!(imports.bind(import), Some(malloc as u64));
            assert!(import.version.as_ref().is_none_or(|version| version.as_bytes().starts_with(b"GLIBC_")));
        }
    }

    #[test]
    fn what_is_not_there_is_told() {
        let error = |image, symbol| imports(image, symbol).err();
        assert_eq!(error(Image::Program, "no_program_imports_this"), Some(Error::UnknownSymbol));
        assert_eq!(error(Image::Program, "mal\0loc"), Some(Error::UnknownSymbol));
        assert_eq!(error(Image::Named("libnothing.so"), "malloc"), Some(Error::UnknownImage));
        assert_eq!(error(Image::Named(""), "malloc"), Some(Error::UnknownImage));
        assert_eq!(error(Image::Holding(16), "malloc"), Some(Error::UnknownImage));
        let here = (what_is_not_there_is_told as fn() as *const ()).addr() as u64;
        assert!(error(Image::Holding(here), "malloc").is_none());
    }

    #[test]
    fn libraries_are_found_by_either_name() {
        // Libc calls malloc through a table, so that programs can bring their own.
        let by_file = imports(Image::Named("libc.so.6"), "malloc").unwrap();
        let path = by_file.image.name.to_str().unwrap();
        assert!(path.contains('/'));
        let by_path = imports(Image::Named(path), "malloc").unwrap();
        let places = |imports: &Imports| imports.all.iter().map(|one| one.place).collect::<Vec<_>>();
        assert_eq!(places(&by_file), places(&by_path));
    }
}
