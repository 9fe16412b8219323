//! A PE image in memory: a module, by its handle, which is the address of its header.
//!
//! Everything that its tables say is looked at before it is used: what leads out of the image, or is not mapped, is an error.

use crate::arch::pe::{MACHINE, NtHeaders};
use crate::detours::modules::memory::{self, PAGE, Snapshot, unless};
use crate::detours::windows::{BAD_EXE_FORMAT, EXE_MARKED_INVALID, INVALID_EXE_SIGNATURE, Long};
use object::LittleEndian as LE;
use object::pe::{
    IMAGE_DIRECTORY_ENTRY_EXPORT, IMAGE_DIRECTORY_ENTRY_IMPORT, IMAGE_DOS_SIGNATURE, IMAGE_NT_SIGNATURE,
    ImageDosHeader,
};
use object::read::pe::{ImageNtHeaders as _, ImageOptionalHeader as _};

/// Headers are in front of everything else, and that begins here at the latest.
const HEADERS: u64 = 0x1_0000;
/// Names that are longer are none.
const LONGEST: u32 = 4096;

/// Where a table is, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) start: u32,
    pub(super) len: u32,
}

/// An image whose headers are right.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Image {
    base: u64,
    size: u32,
    entry: u32,
    exports: Option<Directory>,
    imports: Option<Directory>,
}

impl Image {
    /// Looks at what is at `base`.
    pub(super) fn open(base: u64) -> Result<Self, Long> {
        // No loader puts one anywhere but at the start of a page.
        if base == 0 || !base.is_multiple_of(PAGE) {
            return Err(BAD_EXE_FORMAT);
        }
        let copy = Snapshot::readable(base, HEADERS).map_err(unless(BAD_EXE_FORMAT))?;
        let dos = ImageDosHeader::parse(copy.bytes()).map_err(|_| BAD_EXE_FORMAT)?;
        if dos.e_magic.get(LE) != IMAGE_DOS_SIGNATURE {
            return Err(BAD_EXE_FORMAT);
        }
        let offset = dos.nt_headers_offset();
        let signature = usize::try_from(offset).ok().and_then(|at| copy.bytes().get(at..)?.first_chunk());
        if signature.copied().map(u32::from_le_bytes) != Some(IMAGE_NT_SIGNATURE) {
            return Err(INVALID_EXE_SIGNATURE);
        }
        // For whom it is stands at the same place in images of both classes.
        let machine = usize::try_from(offset).ok().and_then(|at| copy.bytes().get(at + 4..)?.first_chunk());
        if machine.copied().map(u16::from_le_bytes) != Some(MACHINE.0) {
            return Err(INVALID_EXE_SIGNATURE);
        }
        let mut offset = offset.into();
        let (headers, directories) =
            NtHeaders::parse(copy.bytes(), &mut offset).map_err(|_| EXE_MARKED_INVALID)?;
        let optional = headers.optional_header();
        let directory = |index| {
            let directory = directories.get(index)?;
            let found = Directory { start: directory.virtual_address.get(LE), len: directory.size.get(LE) };
            (found.start != 0).then_some(found)
        };
        let image = Self {
            base,
            size: optional.size_of_image(),
            entry: optional.address_of_entry_point(),
            exports: directory(IMAGE_DIRECTORY_ENTRY_EXPORT),
            imports: directory(IMAGE_DIRECTORY_ENTRY_IMPORT),
        };
        match image.size {
            0 => Err(EXE_MARKED_INVALID),
            _ => Ok(image),
        }
    }

    /// The address of its header, which is its handle.
    pub(super) const fn base(&self) -> u64 {
        self.base
    }

    /// How many bytes of addresses it takes.
    pub(in super::super) fn size(&self) -> u64 {
        self.size.into()
    }

    /// Where it says that it is entered; none if it does not.
    pub(in super::super) fn entry(&self) -> Result<Option<u64>, Long> {
        match self.entry {
            0 => Ok(None),
            entry => self.place(entry).map(Some),
        }
    }

    /// The table of what it has for others.
    pub(super) fn exports(&self) -> Result<Directory, Long> {
        self.exports.ok_or(EXE_MARKED_INVALID)
    }

    /// The table of what it wants of others.
    pub(super) fn imports(&self) -> Result<Directory, Long> {
        self.imports.ok_or(EXE_MARKED_INVALID)
    }

    /// Where a distance from its base leads.
    pub(super) fn place(&self, distance: u32) -> Result<u64, Long> {
        match distance < self.size {
            true => Ok(self.base.wrapping_add(distance.into())),
            false => Err(EXE_MARKED_INVALID),
        }
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader { image: self, at: u64::MAX, page: [0; PAGE as usize] }
    }
}

/// Reads an image's tables, a page at a time: they are near each other.
pub(super) struct Reader<'a> {
    image: &'a Image,
    /// Which page it is that is there.
    at: u64,
    page: [u8; PAGE as usize],
}

impl Reader<'_> {
    fn byte(&mut self, distance: u32) -> Result<u8, Long> {
        let address = self.image.place(distance)?;
        let page = address - address % PAGE;
        if page != self.at {
            self.at = u64::MAX;
            memory::read(page, &mut self.page).map_err(unless(EXE_MARKED_INVALID))?;
            self.at = page;
        }
        let byte = usize::try_from(address % PAGE).ok().and_then(|at| self.page.get(at)).copied();
        byte.ok_or(EXE_MARKED_INVALID)
    }

    fn bytes<const N: usize>(&mut self, distance: u32) -> Result<[u8; N], Long> {
        let mut bytes = [0; N];
        for (at, byte) in bytes.iter_mut().enumerate() {
            let at = u32::try_from(at).ok().and_then(|at| distance.checked_add(at));
            *byte = self.byte(at.ok_or(EXE_MARKED_INVALID)?)?;
        }
        Ok(bytes)
    }

    pub(super) fn half(&mut self, distance: u32) -> Result<u16, Long> {
        self.bytes(distance).map(u16::from_le_bytes)
    }

    pub(super) fn word(&mut self, distance: u32) -> Result<u32, Long> {
        self.bytes(distance).map(u32::from_le_bytes)
    }

    /// As wide as a pointer.
    pub(super) fn pointer(&mut self, distance: u32) -> Result<u64, Long> {
        self.bytes(distance).map(|bytes| usize::from_le_bytes(bytes) as u64)
    }

    /// The address of a text, which ends inside the image.
    pub(super) fn text(&mut self, distance: u32) -> Result<u64, Long> {
        for at in 0..LONGEST {
            if self.byte(distance.checked_add(at).ok_or(EXE_MARKED_INVALID)?)? == 0 {
                return self.image.place(distance);
            }
        }
        Err(EXE_MARKED_INVALID)
    }
}

/// The distance of an entry of a table.
pub(super) fn nth(table: u32, index: u32, size: u32) -> Result<u32, Long> {
    index.checked_mul(size).and_then(|offset| table.checked_add(offset)).ok_or(EXE_MARKED_INVALID)
}
