//! PE images as a loader has laid them out: the tables by which they import and export functions.
//!
//! ```text
//!   imports   for each library a list of names, and beside it a list of pointers, which the loader has filled
//!   late      imports that the image binds itself, when it calls through such a pointer first (delay-loaded): the same two lists
//!   exports   a list of names; for each the index of an entry. An entry is a function's distance from the image's base, 32
//!             bits wide. One that leads into the export directory itself leads to a text: another image's export
//! ```
//!
//! "PE Format", Microsoft, sections ".edata", ".idata" and "Delay-Load Import Tables".

use core::marker::PhantomData;
use object::LittleEndian as LE;
use object::pe;
#[cfg(any(windows, test))]
use object::read::pe::DelayLoadImportTable;
use object::read::pe::{
    DataDirectories, ExportOrdinal, ExportTable, ImageNtHeaders, ImageOptionalHeader, ImageThunkData,
    ImportTable,
};
use std::vec::Vec;

/// The image is cut off, or leads out of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damaged;

impl From<object::read::Error> for Damaged {
    fn from(_: object::read::Error) -> Self {
        Self
    }
}

/// What a function is imported or exported by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Symbol<'a> {
    Name(&'a [u8]),
    Ordinal(u16),
}

impl<'a> Symbol<'a> {
    /// A name; or an ordinal, in the words of an export that is forwarded to one: `#12`.
    pub(crate) fn new(text: &'a str) -> Self {
        let digits = text.strip_prefix('#').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let ordinal = digits.and_then(|digits| digits.parse().ok());
        ordinal.map_or(Self::Name(text.as_bytes()), Self::Ordinal)
    }
}

/// An export's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where it is, from the image's base.
    pub(crate) place: u32,
    /// Where it leads, from there.
    pub(crate) leads_to: u32,
    /// Whether that is the name of another image's export.
    pub(crate) is_forwarded: bool,
}

/// The tables of an image, in a copy of it.
pub(crate) struct Tables<'a, Headers> {
    /// From the image's base on. Pages that were not to be had are zero.
    image: &'a [u8],
    directories: DataDirectories<'a>,
    /// How long the image is, as it says.
    pub(crate) size: u32,
    of: PhantomData<Headers>,
}

impl<'a, Headers: ImageNtHeaders> Tables<'a, Headers> {
    /// Finds the tables. The headers suffice to know the size.
    ///
    /// # Errors
    /// It is no PE image for this machine.
    pub(crate) fn parse(image: &'a [u8], machine: pe::Machine) -> Result<Self, Damaged> {
        let mut offset = pe::ImageDosHeader::parse(image)?.nt_headers_offset().into();
        let (headers, directories) = Headers::parse(image, &mut offset)?;
        if headers.file_header().machine.get(LE) != machine {
            return Err(Damaged);
        }
        Ok(Self { image, directories, size: headers.optional_header().size_of_image(), of: PhantomData })
    }

    fn directory(&self, index: usize) -> Option<(u32, u32)> {
        let directory = self.directories.get(index)?;
        Some((directory.virtual_address.get(LE), directory.size.get(LE)))
    }

    /// Where the pointers are through which the image calls a function, from its base; of one library, or of any. A list of pointers
    /// whose names are not kept beside it is left out: once the loader has filled it, it does not tell what for.
    ///
    /// # Errors
    /// The tables are damaged.
    pub(crate) fn imports(&self, library: Option<&[u8]>, symbol: Symbol<'_>) -> Result<Vec<u32>, Damaged> {
        let mut places = Vec::new();
        let Some((address, _)) = self.directory(pe::IMAGE_DIRECTORY_ENTRY_IMPORT) else { return Ok(places) };
        let table = ImportTable::new(self.image, 0, address);
        let size = size_of::<Headers::ImageThunkData>();
        // No two lists share bytes: more than this is one that was made to last.
        let mut left = self.image.len() / size;
        let mut descriptors = table.descriptors()?;
        while let Some(descriptor) = descriptors.next()? {
            let (name, mut place) = (descriptor.name.get(LE), descriptor.first_thunk.get(LE));
            // Loaders stop here, whatever else it says.
            if name == 0 || place == 0 {
                break;
            }
            left = left.checked_sub(1).ok_or(Damaged)?;
            let is_of_it = match library {
                Some(library) => self.is_text(name, library, <[u8]>::eq_ignore_ascii_case)?,
                None => true,
            };
            let names = descriptor.original_first_thunk.get(LE);
            // Names and pointers in one list: the loader has written over the names.
            if names == 0 || names == place || !is_of_it {
                continue;
            }
            let mut thunks = table.thunks(names)?;
            while let Some(thunk) = thunks.next::<Headers>()? {
                left = left.checked_sub(1).ok_or(Damaged)?;
                let is_it = match symbol {
                    Symbol::Ordinal(number) => thunk.is_ordinal() && thunk.ordinal() == number,
                    Symbol::Name(_) if thunk.is_ordinal() => false,
                    // Behind a hint of two bytes.
                    Symbol::Name(name) => {
                        self.is_text(thunk.address().saturating_add(2), name, <[u8]>::eq)?
                    }
                };
                if is_it {
                    self.holds(place, size)?;
                    places.try_reserve(1).map_err(|_| Damaged)?;
                    places.push(place);
                }
                place = u32::try_from(size).ok().and_then(|size| place.checked_add(size)).ok_or(Damaged)?;
            }
        }
        Ok(places)
    }

    /// Whether the image has pointers that it binds itself. The headers suffice to know.
    #[cfg(any(windows, test))]
    pub(crate) fn has_late(&self) -> bool {
        self.directory(pe::IMAGE_DIRECTORY_ENTRY_DELAY_IMPORT).is_some()
    }

    /// Whether the pointer at this distance from the base is one of those, bound or not.
    ///
    /// # Errors
    /// The tables are damaged.
    #[cfg(any(windows, test))]
    pub(crate) fn is_late(&self, place: u32) -> Result<bool, Damaged> {
        let Some((address, _)) = self.directory(pe::IMAGE_DIRECTORY_ENTRY_DELAY_IMPORT) else {
            return Ok(false);
        };
        let table = DelayLoadImportTable::new(self.image, 0, address);
        let size = u32::try_from(size_of::<Headers::ImageThunkData>()).map_err(|_| Damaged)?;
        // As above: no two lists share bytes.
        let mut left = self.image.len() / size_of::<Headers::ImageThunkData>();
        let mut descriptors = table.descriptors()?;
        while let Some(descriptor) = descriptors.next()? {
            left = left.checked_sub(1).ok_or(Damaged)?;
            let mut at = descriptor.import_address_table_rva.get(LE);
            let mut thunks = table.thunks(descriptor.import_name_table_rva.get(LE))?;
            while thunks.next::<Headers>()?.is_some() {
                left = left.checked_sub(1).ok_or(Damaged)?;
                if at == place {
                    return Ok(true);
                }
                at = at.checked_add(size).ok_or(Damaged)?;
            }
        }
        Ok(false)
    }

    /// The entry of a function that the image exports, if it does.
    ///
    /// # Errors
    /// The tables are damaged.
    pub(crate) fn export(&self, symbol: Symbol<'_>) -> Result<Option<Entry>, Damaged> {
        let Some((address, size)) = self.directory(pe::IMAGE_DIRECTORY_ENTRY_EXPORT) else { return Ok(None) };
        let start = usize::try_from(address).map_err(|_| Damaged)?;
        // The tables may lie behind what the directory calls its end.
        let table = ExportTable::parse(self.image.get(start..).ok_or(Damaged)?, address)?;
        let index = match symbol {
            Symbol::Ordinal(number) => table.index_from_ordinal(ExportOrdinal(number)).ok(),
            Symbol::Name(name) => {
                let mut found = None;
                for (at, index) in table.name_iter() {
                    if self.is_text(at, name, <[u8]>::eq)? {
                        found = Some(index);
                        break;
                    }
                }
                found
            }
        };
        let Some(index) = index else { return Ok(None) };
        let leads_to = table.address_by_index(index)?;
        // An ordinal that nothing has.
        if leads_to == 0 {
            return Ok(None);
        }
        let entries = table.directory().address_of_functions.get(LE);
        let place = entries.checked_add(4 * u32::from(index.0)).ok_or(Damaged)?;
        // What leads into the directory, as long as it says it is, is a name.
        let is_forwarded = leads_to.wrapping_sub(address) < size;
        Ok(Some(Entry { place, leads_to, is_forwarded }))
    }

    /// Whether so many bytes from there on are part of the image.
    fn holds(&self, place: u32, size: usize) -> Result<(), Damaged> {
        let start = usize::try_from(place).map_err(|_| Damaged)?;
        let end = start.checked_add(size).ok_or(Damaged)?;
        self.image.get(start..end).map(drop).ok_or(Damaged)
    }

    /// Whether this text is there, and ends there. No more is read of a longer one.
    fn is_text(
        &self,
        address: u32,
        text: &[u8],
        are_equal: impl Fn(&[u8], &[u8]) -> bool,
    ) -> Result<bool, Damaged> {
        let rest = usize::try_from(address).ok().and_then(|at| self.image.get(at..)).ok_or(Damaged)?;
        match rest.split_at_checked(text.len()) {
            Some((found, [0, ..])) => Ok(are_equal(found, text)),
            Some((_, [_, ..])) => Ok(false),
            // The image ends here: so has the text to.
            _ if rest.contains(&0) => Ok(false),
            _ => Err(Damaged),
        }
    }
}

#[cfg(test)]
#[path = "../../tests/process/pe/made.rs"]
mod made;

#[cfg(test)]
mod tests {
    use super::made::{Class, Made};
    use super::*;
    use object::pe::{IMAGE_FILE_MACHINE_AMD64, IMAGE_FILE_MACHINE_I386, ImageNtHeaders32, ImageNtHeaders64};
    use proptest::prelude::*;
    use std::vec;

    fn with<T>(image: &[u8], class: Class, work: impl Fn(&dyn Reads) -> T) -> Result<T, Damaged> {
        Ok(match class {
            Class::Pe32 => work(&Tables::<ImageNtHeaders32>::parse(image, IMAGE_FILE_MACHINE_I386)?),
            Class::Pe64 => work(&Tables::<ImageNtHeaders64>::parse(image, IMAGE_FILE_MACHINE_AMD64)?),
        })
    }

    /// What is asked of tables of either class.
    trait Reads {
        fn size(&self) -> u32;
        fn imports(&self, library: Option<&str>, symbol: &str) -> Result<Vec<u32>, Damaged>;
        fn export(&self, symbol: &str) -> Result<Option<Entry>, Damaged>;
        fn is_late(&self, place: u32) -> Result<bool, Damaged>;
    }

    impl<Headers: ImageNtHeaders> Reads for Tables<'_, Headers> {
        fn size(&self) -> u32 {
            self.size
        }

        fn imports(&self, library: Option<&str>, symbol: &str) -> Result<Vec<u32>, Damaged> {
            Tables::imports(self, library.map(str::as_bytes), Symbol::new(symbol))
        }

        fn export(&self, symbol: &str) -> Result<Option<Entry>, Damaged> {
            Tables::export(self, Symbol::new(symbol))
        }

        fn is_late(&self, place: u32) -> Result<bool, Damaged> {
            assert!(self.has_late());
            Tables::is_late(self, place)
        }
    }

    #[test]
    fn pointers_that_are_bound_late_are_told_from_others() {
        for (class, size) in [(Class::Pe32, 4), (Class::Pe64, 8)] {
            let made = Made::new(class, 0);
            let is_late = |place| with(&made.bytes, class, |tables| tables.is_late(place)).unwrap();
            assert_eq!([made.late, made.late + size].map(is_late), [Ok(true); 2]);
            let others =
                [made.late - size, made.late + 1, made.late + 2 * size, made.imported_price, made.treble];
            assert_eq!(others.map(is_late), [Ok(false); 5]);
            let mut bytes = made.bytes.clone();
            // Names outside of the image.
            bytes.get_mut(0x2510..0x2514).unwrap().copy_from_slice(&u32::MAX.to_le_bytes());
            assert_eq!(with(&bytes, class, |tables| tables.is_late(made.late)), Ok(Err(Damaged)));
        }
    }

    const CLASSES: [Class; 2] = [Class::Pe32, Class::Pe64];

    #[test]
    fn what_is_imported_is_found_by_name_and_by_number() {
        for class in CLASSES {
            let made = Made::new(class, 0);
            let found =
                |library, symbol| with(&made.bytes, class, |tables| tables.imports(library, symbol)).unwrap();
            assert_eq!(found(Some("PRICES.dll"), "price"), Ok(vec![made.imported_price]));
            assert_eq!(found(None, "price"), Ok(vec![made.imported_price]));
            assert_eq!(found(Some("prices.DLL"), "#7"), Ok(vec![made.imported_seventh]));
            for (library, symbol) in [
                (Some("price"), "price"),
                (Some("prices.dll.dll"), "price"),
                (Some("other.dll"), "price"),
                (None, "pric"),
                (None, "prices"),
                (None, "Price"),
                (None, ""),
                (None, "#8"),
                (None, "#65543"),
                // Of a library whose names the linker did not keep.
                (Some("nameless.dll"), "price"),
            ] {
                assert_eq!(found(library, symbol), Ok(vec![]), "{library:?} {symbol}");
            }
            assert_eq!(with(&made.bytes, class, |tables| tables.size()), Ok(made.bytes.len() as u32));
        }
    }

    #[test]
    fn what_is_exported_is_found_by_name_and_by_number() {
        for class in CLASSES {
            let made = Made::new(class, 0);
            let found = |symbol| with(&made.bytes, class, |tables| tables.export(symbol)).unwrap();
            let treble = Entry { place: made.entry(0), leads_to: made.treble, is_forwarded: false };
            assert_eq!((found("treble"), found("#5")), (Ok(Some(treble)), Ok(Some(treble))));
            let buy = Entry { place: made.entry(1), leads_to: made.buy, is_forwarded: false };
            assert_eq!(found("buy"), Ok(Some(buy)));
            let forwarded = found("elsewhere").unwrap().unwrap();
            assert!(forwarded.is_forwarded && forwarded.place == made.entry(3));
            // An ordinal between them that nothing has, one before them and one behind.
            for symbol in ["trebl", "trebles", "", "#7", "#4", "#10", "#0", "#x"] {
                assert_eq!(found(symbol), Ok(None), "{symbol}");
            }
        }
    }

    #[test]
    fn an_image_for_another_machine_is_none() {
        for (class, other) in [(Class::Pe32, Class::Pe64), (Class::Pe64, Class::Pe32)] {
            assert_eq!(with(&Made::new(class, 0).bytes, other, |tables| tables.size()), Err(Damaged));
        }
        // Of the right class, but for ARM64.
        let mut bytes = Made::new(Class::Pe64, 0).bytes;
        bytes.get_mut(0x84..0x86).unwrap().copy_from_slice(&0xaa64_u16.to_le_bytes());
        assert_eq!(with(&bytes, Class::Pe64, |tables| tables.size()), Err(Damaged));
    }

    #[test]
    fn one_that_was_cut_off_is_told() {
        for class in CLASSES {
            let made = Made::new(class, 0);
            for len in 0..made.bytes.len() {
                let cut = made.bytes.get(..len).unwrap();
                let Ok((imports, export)) =
                    with(cut, class, |tables| (tables.imports(None, "price"), tables.export("treble")))
                else {
                    continue;
                };
                assert!(imports.is_err() || imports == Ok(vec![made.imported_price]), "{len}");
                assert!(export.is_err() || export.is_ok_and(|entry| entry.is_some()), "{len}");
            }
        }
    }

    /// Lists that share bytes: to look through them would take as long as their number times their length.
    #[test]
    fn lists_that_share_bytes_are_damaged() {
        for class in CLASSES {
            let made = Made::new(class, 0);
            let names = made.bytes.len();
            let descriptors = names + 0x1000;
            let image = |count: usize| {
                let mut bytes = made.bytes.clone();
                // Numbers, by their highest bit; and the end of the list.
                bytes.resize(names + 0xff0, 0x81);
                bytes.resize(descriptors, 0);
                for _ in 0..count {
                    bytes.extend_from_slice(&u32::try_from(names).unwrap().to_le_bytes());
                    bytes.extend_from_slice(&[0x11; 16]);
                }
                bytes.resize(bytes.len() + 20, 0);
                let at = made.import_directory;
                let start = u32::try_from(descriptors).unwrap().to_le_bytes();
                bytes.get_mut(at..at + 4).unwrap().copy_from_slice(&start);
                bytes
            };
            let found = |count| with(&image(count), class, |tables| tables.imports(None, "price"));
            assert_eq!(found(1), Ok(Ok(vec![])));
            assert_eq!(found(200), Ok(Err(Damaged)));
        }
    }

    /// The first descriptor's fields: names, time, forwarders, library, pointers.
    #[test]
    fn lists_that_tell_nothing_and_places_outside_are_no_imports() {
        for class in CLASSES {
            let found = |field: usize, value: u32| {
                let mut bytes = Made::new(class, 0).bytes;
                let at = 0x2200 + 4 * field;
                bytes.get_mut(at..at + 4).unwrap().copy_from_slice(&value.to_le_bytes());
                with(&bytes, class, |tables| tables.imports(None, "price")).unwrap()
            };
            // Bound to addresses before it was loaded: the names are there.
            assert_eq!(found(1, u32::MAX), Ok(vec![Made::new(class, 0).imported_price]));
            // Names in the pointers' own list, or none.
            assert_eq!((found(0, 0x2300), found(0, 0)), (Ok(vec![]), Ok(vec![])));
            // The end.
            assert_eq!((found(3, 0), found(4, 0)), (Ok(vec![]), Ok(vec![])));
            for outside in [0x2ffc, 0x3000, u32::MAX - 8, u32::MAX] {
                assert_eq!(found(4, outside), Err(Damaged), "{outside:#x}");
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_tables_nothing_panics(
            is_64 in any::<bool>(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        ) {
            let class = if is_64 { Class::Pe64 } else { Class::Pe32 };
            let mut bytes = Made::new(class, 0).bytes;
            for (index, byte) in changes {
                // Headers and tables: the rest is not read.
                let at = index.index(0x180 + 0x400);
                let at = if at < 0x180 { at } else { 0x2000 - 0x180 + at };
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            for symbol in ["price", "treble", "#7", "#9"] {
                let _ = with(&bytes, class, |tables| (tables.imports(None, symbol), tables.export(symbol)));
            }
        }
    }
}
