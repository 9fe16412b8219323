//! The dynamic symbols of an image: their names, how many there are, and their versions.

use super::image::{Dynamic, ENDIAN, Elf, Image, Symbol};
use crate::detours::modules::memory::{Snapshot, wide};
use crate::detours::windows::{EXE_MARKED_INVALID, Long};
use alloc::vec::Vec;
use core::ffi::CStr;
use object::LittleEndian;
use object::elf::{
    DT_GNU_HASH, DT_HASH, DT_STRSZ, DT_STRTAB, DT_SYMENT, DT_SYMTAB, DT_VERDEF, DT_VERNEED, DT_VERSYM,
    Verdaux, Verdef, Vernaux, Verneed, Versym, VersymIndex,
};
use object::pod::{Pod, from_bytes};
use object::read::elf::{GnuHashTable, HashTable, Sym as _};

/// No image has more versions: their numbers have 15 bits.
const VERSIONS: usize = 1 << 15;

/// A table of strings.
#[derive(Debug)]
pub(super) struct Strings {
    address: u64,
    copy: Snapshot,
}

impl Strings {
    pub(super) fn of(image: &Image, dynamic: &Dynamic) -> Result<Self, Long> {
        let (address, copy) = image.table(dynamic.need(DT_STRTAB)?, dynamic.need(DT_STRSZ)?)?;
        Ok(Self { address, copy })
    }

    /// A string, and where it is in memory, for as long as the image is.
    pub(super) fn get(&self, offset: u64) -> Result<(u64, &CStr), Long> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.copy.bytes().get(offset..));
        let text = from.and_then(|from| CStr::from_bytes_until_nul(from).ok()).ok_or(EXE_MARKED_INVALID)?;
        Ok((self.address + offset, text))
    }
}

/// The symbols.
#[derive(Debug)]
pub(super) struct Symbols {
    /// From the first one on, and what follows the last one.
    table: Snapshot,
    /// A version for each, if there are any.
    versions: Snapshot,
    /// Their names, as offsets of strings.
    names: Vec<(u16, u32)>,
}

impl Symbols {
    pub(super) fn of(image: &Image, dynamic: &Dynamic) -> Result<Self, Long> {
        if dynamic.need(DT_SYMENT)? != size_of::<Symbol>() as u64 {
            return Err(EXE_MARKED_INVALID);
        }
        let table = image.rest(dynamic.need(DT_SYMTAB)?)?;
        let versions = dynamic.get(DT_VERSYM).map(|at| image.rest(at)).transpose()?.unwrap_or_default();
        Ok(Self { table, versions, names: names(image, dynamic)? })
    }

    pub(super) fn get(&self, index: usize) -> Result<&Symbol, Long> {
        self.table.table().get(index).ok_or(EXE_MARKED_INVALID)
    }

    /// The symbols that others find in the image, with their numbers.
    pub(super) fn defined(
        &self,
        image: &Image,
        dynamic: &Dynamic,
    ) -> Result<impl Iterator<Item = (usize, &Symbol)> + use<'_>, Long> {
        let all = self.all(image, dynamic)?;
        Ok(all.iter().enumerate().filter(|(_, symbol)| is_visible(symbol)))
    }

    /// Where the image has something that it does not define: stubs for functions of others.
    pub(super) fn stubs(&self, image: &Image, dynamic: &Dynamic) -> Result<Vec<u64>, Long> {
        let all = self.all(image, dynamic)?.iter().filter(|symbol| symbol.is_undefined(ENDIAN));
        let values = all.map(|symbol| wide(symbol.st_value(ENDIAN))).filter(|&value| value != 0);
        Ok(values.map(|value| image.moved(value)).collect())
    }

    fn all(&self, image: &Image, dynamic: &Dynamic) -> Result<&[Symbol], Long> {
        self.table.table().get(..count(image, dynamic)?).ok_or(EXE_MARKED_INVALID)
    }

    /// The version of a symbol: whether it is one that has to be asked for by name, and the name.
    pub(super) fn version<'a>(
        &self,
        index: usize,
        strings: &'a Strings,
    ) -> Result<(bool, Option<&'a CStr>), Long> {
        let table: &[Versym<LittleEndian>] = self.versions.table();
        let version = table.get(index).map_or(VersymIndex(0), |version| version.0.get(ENDIAN));
        let number = version.index().0;
        // 0 and 1 stand for none, though 1 may have the name of the image.
        let name = self.names.iter().find(|(found, _)| *found == number && number > 1);
        let name = name.map(|&(_, name)| u64::from(name));
        let name = name.map(|name| strings.get(name)).transpose()?;
        Ok((version.is_hidden(), name.map(|(_, name)| name)))
    }
}

/// Whether a symbol is defined, for others too.
fn is_visible(symbol: &Symbol) -> bool {
    use object::elf::{
        STB_GLOBAL, STB_GNU_UNIQUE, STB_WEAK, STT_FILE, STT_SECTION, STV_DEFAULT, STV_PROTECTED,
    };
    !symbol.is_undefined(ENDIAN)
        && matches!(symbol.st_bind(), STB_GLOBAL | STB_WEAK | STB_GNU_UNIQUE)
        && matches!(symbol.st_visibility(), STV_DEFAULT | STV_PROTECTED)
        && !matches!(symbol.st_type(), STT_SECTION | STT_FILE)
}

/// How many symbols there are, as the hash tables have it. Where a table finds nobody, there is nobody to be found.
fn count(image: &Image, dynamic: &Dynamic) -> Result<usize, Long> {
    let count = if let Some(at) = dynamic.get(DT_HASH) {
        let copy = image.rest(at)?;
        let table = HashTable::<Elf>::parse(ENDIAN, copy.bytes()).map_err(|_| EXE_MARKED_INVALID)?;
        table.symbol_table_length()
    } else {
        let copy = image.rest(dynamic.need(DT_GNU_HASH)?)?;
        let table = GnuHashTable::<Elf>::parse(ENDIAN, copy.bytes()).map_err(|_| EXE_MARKED_INVALID)?;
        table.symbol_table_length(ENDIAN).unwrap_or(0)
    };
    usize::try_from(count).map_err(|_| EXE_MARKED_INVALID)
}

/// The numbers and names of all versions: those that the image has, and those that it needs.
fn names(image: &Image, dynamic: &Dynamic) -> Result<Vec<(u16, u32)>, Long> {
    let mut names = Vec::new();
    if let Some(at) = dynamic.get(DT_VERDEF) {
        let table = image.rest(at)?;
        let step = |version: &Verdef<LittleEndian>| version.vd_next.get(ENDIAN);
        for (at, version) in Linked::new(&table, 0, step) {
            let first = at + version.vd_aux.get(ENDIAN) as usize;
            let name = entry::<Verdaux<LittleEndian>>(&table, first)?.vda_name.get(ENDIAN);
            push(&mut names, version.vd_ndx.get(ENDIAN).0, name)?;
        }
    }
    if let Some(at) = dynamic.get(DT_VERNEED) {
        let table = image.rest(at)?;
        let step = |file: &Verneed<LittleEndian>| file.vn_next.get(ENDIAN);
        for (at, file) in Linked::new(&table, 0, step) {
            let step = |version: &Vernaux<LittleEndian>| version.vna_next.get(ENDIAN);
            for (_, version) in Linked::new(&table, at + file.vn_aux.get(ENDIAN) as usize, step) {
                push(&mut names, version.vna_other.get(ENDIAN).0, version.vna_name.get(ENDIAN))?;
            }
        }
    }
    Ok(names)
}

fn push(names: &mut Vec<(u16, u32)>, number: u16, name: u32) -> Result<(), Long> {
    if names.len() >= VERSIONS {
        return Err(EXE_MARKED_INVALID);
    }
    names.push((number, name));
    Ok(())
}

fn entry<T: Pod>(table: &Snapshot, at: usize) -> Result<&T, Long> {
    let bytes = table.bytes().get(at..).unwrap_or_default();
    from_bytes(bytes).map(|(entry, _)| entry).map_err(|()| EXE_MARKED_INVALID)
}

/// Entries of which each tells how far away the next one is; 0 ends them, and so does whatever leads out of the table.
struct Linked<'a, T, F> {
    table: &'a Snapshot,
    at: Option<usize>,
    step: F,
    of: core::marker::PhantomData<&'a T>,
}

impl<'a, T: Pod, F: Fn(&T) -> u32> Linked<'a, T, F> {
    const fn new(table: &'a Snapshot, at: usize, step: F) -> Self {
        Self { table, at: Some(at), step, of: core::marker::PhantomData }
    }
}

impl<'a, T: Pod + 'a, F: Fn(&T) -> u32> Iterator for Linked<'a, T, F> {
    type Item = (usize, &'a T);

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at.take()?;
        let entry = entry::<T>(self.table, at).ok()?;
        let step = (self.step)(entry) as usize;
        // Entries do not overlap: what says so would be gone through for ever.
        self.at = (step >= size_of::<T>()).then_some(at + step);
        Some((at, entry))
    }
}
