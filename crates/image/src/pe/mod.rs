//! PE images, 32-bit and 64-bit, at the base that they ask for.
//!
//! | what | says |
//! |---|---|
//! | exports | where functions begin, and their names |
//! | COFF symbols (MinGW leaves them) | the same, of all functions |
//! | `.pdata` (64-bit) | where functions that are not leaves begin and end; pieces that the compiler moved away |
//! | safe exception handlers (32-bit) | functions that nobody calls by name |
//! | base relocations | addresses of code that are in data: jump tables |

mod coff;
mod pdata;

use crate::bytes::{u16_at, u32_at, until_zero, word_at};
use crate::elf::eh_frame;
use crate::error::Error;
use crate::function::Source;
use crate::image::Kind;
use crate::left_out::Reason;
use crate::memory::Segment;
use crate::names::{MAX_NAME, Name, Names};
use crate::starts::{Found, Start, What};
use kdetour_plan::Mode;
use object::LittleEndian as LE;
use object::pe::{self, ImageNtHeaders32, ImageNtHeaders64};
use object::read::coff::CoffHeader;
use object::read::pe::{ExportAddressIndex, ExportTarget, ImageNtHeaders, ImageOptionalHeader, PeFile};

/// Reads a PE image.
pub(crate) fn read(file: &[u8]) -> Result<Found, Error> {
    match object::read::pe::optional_header_magic(file) {
        Ok(pe::IMAGE_NT_OPTIONAL_HDR32_MAGIC) => read_class::<ImageNtHeaders32>(file, 4),
        Ok(pe::IMAGE_NT_OPTIONAL_HDR64_MAGIC) => read_class::<ImageNtHeaders64>(file, 8),
        Ok(_) => Err(Error::Header("the PE optional header is neither of PE32 nor of PE32+")),
        Err(_) => Err(Error::Header("the file begins with MZ and has no PE header")),
    }
}

fn read_class<Pe: ImageNtHeaders>(file: &[u8], word: usize) -> Result<Found, Error> {
    let pe = PeFile::<Pe>::parse(file).map_err(|_| Error::Header("the PE headers are cut off"))?;
    let headers = pe.nt_headers();
    let mode = match headers.file_header().machine.get(LE) {
        pe::IMAGE_FILE_MACHINE_I386 => Mode::Bits32,
        pe::IMAGE_FILE_MACHINE_AMD64 => Mode::Bits64,
        machine => return Err(Error::Machine(machine.0)),
    };
    let base = headers.optional_header().image_base();
    let mut segments = Vec::new();
    for section in pe.section_table().iter() {
        let flags = section.characteristics.get(LE).0;
        let address = base.wrapping_add(section.virtual_address.get(LE).into());
        let raw = u64::from(section.size_of_raw_data.get(LE));
        // Old linkers leave the size in memory out.
        let size = match section.virtual_size.get(LE) {
            0 => raw,
            size => size.into(),
        };
        let offset = section.pointer_to_raw_data.get(LE).into();
        let mut segment = Segment::new(address, size, offset, raw, file.len());
        segment.executable = flags & pe::IMAGE_SCN_MEM_EXECUTE.0 != 0;
        segment.writable = flags & pe::IMAGE_SCN_MEM_WRITE.0 != 0;
        segments.push(segment);
    }
    let mut found = Found::new(Kind::Pe, mode, segments, file.len())?;
    found.names = Names::Pool(Vec::new());
    found.bounds = Some((base, base.saturating_add(headers.optional_header().size_of_image().into())));
    // MSVC puts tables into .text, GCC into .rdata.
    let constant = found.memory.segments().iter().filter(|segment| !segment.writable);
    found.data = constant.map(|segment| segment.address..segment.filled_end()).collect();

    let mut reader = Reader { found, file, base, word };
    reader.exports(&pe);
    let symbols = coff::read(&mut reader, headers.file_header());
    let directory = |index: usize| {
        pe.data_directory(index).map(|directory| {
            let rva = directory.virtual_address.get(LE);
            (rva, directory.size.get(LE))
        })
    };
    let unwind = mode == Mode::Bits64
        && directory(pe::IMAGE_DIRECTORY_ENTRY_EXCEPTION)
            .is_some_and(|(rva, size)| rva != 0 && pdata::read(&mut reader, rva, size));
    // MinGW's 32-bit images unwind as ELF files do.
    let strings = headers.file_header().symbols(file).map(|symbols| symbols.strings()).unwrap_or_default();
    let frames = pe.section_table().section_by_name(strings, b".eh_frame");
    let unwind = unwind
        | frames.is_some_and(|(_, section)| {
            let address = base.wrapping_add(section.virtual_address.get(LE).into());
            let bytes = reader.found.memory.bytes(file, address);
            eh_frame::read_frames(&mut reader.found, file, address, bytes, true)
        });
    if mode == Mode::Bits32
        && let Some((rva, _)) = directory(pe::IMAGE_DIRECTORY_ENTRY_LOAD_CONFIG)
    {
        reader.safe_handlers(rva);
    }
    if let Some((rva, size)) = directory(pe::IMAGE_DIRECTORY_ENTRY_BASERELOC)
        && rva != 0
    {
        reader.relocations(rva, size);
    }
    let entry = headers.optional_header().address_of_entry_point();
    if entry != 0 {
        reader.push(entry, 0, What::Function, Source::Entry, Name::NONE);
    }
    // Leaf functions have no unwind information: only what is between two can tell that there is none.
    reader.found.complete = symbols || unwind;
    Ok(reader.found)
}

/// A PE image that is being read. Addresses in it are relative to its base (RVA).
struct Reader<'f> {
    found: Found,
    file: &'f [u8],
    base: u64,
    word: usize,
}

impl<'f> Reader<'f> {
    /// The bytes from an RVA to the end of its section.
    fn bytes(&self, rva: u32) -> &'f [u8] {
        self.found.memory.bytes(self.file, self.base.wrapping_add(rva.into()))
    }

    fn push(&mut self, rva: u32, size: u32, what: What, source: Source, name: Name) {
        let address = self.base.wrapping_add(rva.into());
        let rank = if source == Source::Export { 0 } else { 1 };
        self.found.push(Start { address, size, name, what, source, rank });
    }

    fn exports<Pe: ImageNtHeaders>(&mut self, pe: &PeFile<'f, Pe>) {
        let table = match pe.export_table() {
            Ok(Some(table)) => table,
            Ok(None) => return,
            Err(_) => return self.found.tally.add(Reason::Table("export table"), 0),
        };
        // By the ordinals, since some have no name.
        let mut named = vec![None; table.addresses().len().min(1 << 16)];
        for (pointer, index) in table.name_iter() {
            if let Some(slot) = named.get_mut(usize::from(index.0)) {
                slot.get_or_insert(pointer);
            }
        }
        for (index, pointer) in named.iter().enumerate() {
            let Ok(target) = table.target_by_index(ExportAddressIndex(index as u16)) else {
                self.found.tally.add(Reason::Table("export table"), 0);
                continue;
            };
            let rva = match target {
                ExportTarget::Address(0) => continue,
                ExportTarget::Address(rva) => rva,
                ExportTarget::ForwardByName(..) | ExportTarget::ForwardByOrdinal(..) => {
                    self.found.tally.add(Reason::Forwarded, 0);
                    continue;
                }
            };
            let limit = self.file.len();
            let name = match pointer {
                Some(pointer) => {
                    let from = self.bytes(*pointer);
                    self.found.names.add(until_zero(from.get(..MAX_NAME).unwrap_or(from)), limit)
                }
                None => {
                    let ordinal = format!("#{}", table.ordinal_base().wrapping_add(index as u16));
                    self.found.names.add(ordinal.as_bytes(), limit)
                }
            };
            self.push(rva, 0, What::Function, Source::Export, name);
        }
    }

    /// The load configuration of a 32-bit image: `SEHandlerTable` and `SEHandlerCount`.
    fn safe_handlers(&mut self, rva: u32) {
        let config = self.bytes(rva);
        let Some((table, count)) = u32_at(config, 64).zip(u32_at(config, 68)) else { return };
        if u32_at(config, 0).is_none_or(|size| size < 72) || table == 0 {
            return;
        }
        let handlers = self.found.memory.bytes(self.file, table.into());
        let count = (count as usize).min(handlers.len() / 4);
        for index in 0..count {
            if let Some(handler) = u32_at(handlers, index * 4) {
                self.push(handler, 0, What::Function, Source::SafeHandler, Name::NONE);
            }
        }
    }

    /// Base relocations, in blocks of one page: `HIGHLOW` (3) and `DIR64` (10) are on whole addresses.
    fn relocations(&mut self, rva: u32, size: u32) {
        let all = self.bytes(rva);
        let mut rest = all.get(..size as usize).unwrap_or(all);
        while let Some((page, len)) = u32_at(rest, 0).zip(u32_at(rest, 4)) {
            let Some(block) = rest.get(8..len as usize) else { break };
            // A page has no more than this many.
            for at in (0..block.len().min(2 * 4096)).step_by(2) {
                let Some(entry) = u16_at(block, at) else { break };
                let kind = entry >> 12;
                if (kind == 3 && self.word == 4) || (kind == 10 && self.word == 8) {
                    let bytes = self.bytes(page.wrapping_add(u32::from(entry & 0xfff)));
                    if let Some(target) = word_at(bytes, 0, self.word) {
                        self.found.push_target(target);
                    }
                }
            }
            rest = rest.get((len as usize).max(8)..).unwrap_or_default();
        }
    }
}
