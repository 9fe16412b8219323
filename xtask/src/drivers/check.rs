//! What a driver has to be, looked at in the image itself.

use super::{Machine, checksum};
use crate::stack;
use anyhow::{Context as _, Result, bail};
use object::LittleEndian as LE;
use object::pe;
use object::read::pe::{ImageNtHeaders, ImageOptionalHeader as _, Import, PeFile};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The most bytes of a driver's file.
pub(super) const MOST: usize = 200 << 10;
/// Where its imports may be from.
const LIBRARIES: [&str; 2] = ["ntoskrnl.exe", "hal.dll"];
/// The first NT that loads it: 5.2.
const OLDEST: (u16, u16) = (5, 2);
/// What may be taken of a kernel thread's stack, which has 24 KB on x64 and 12 KB on x86 ("Using the Kernel Stack", Windows driver
/// documentation). A driver is loaded, and unloaded, by a thread that has little on it; others have to see to that.
// The largest that is found is 9 KB and 7.6.
const STACK: [(Machine, u64); 2] = [(Machine::X64, 10 << 10), (Machine::I386, 8 << 10)];

/// What is known of a driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// The bytes of its file.
    pub(crate) size: usize,
    /// How many functions of NT it is linked against.
    pub(crate) imports: usize,
    /// The most that its functions take of a stack, by its own direct calls.
    pub(crate) stack: u64,
}

/// The names that a driver may import: `x64:ntoskrnl.exe:Name` and the like, of `imports.txt`.
pub(super) fn allowed(file: &Path) -> Result<BTreeSet<String>> {
    let list = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut names = BTreeSet::new();
    for line in list.lines() {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        match words[..] {
            [] => {}
            [name, x64, i386] => {
                for (machine, library) in [(Machine::X64, x64), (Machine::I386, i386)] {
                    if library != "-" {
                        names.insert(key(machine, library, name));
                    }
                }
            }
            _ => bail!(
                "{} has a line that is no name with its libraries for x64 and i386: {line}",
                file.display()
            ),
        }
    }
    Ok(names)
}

fn key(machine: Machine, library: &str, name: &str) -> String {
    format!("{}:{}:{name}", machine.name(), library.to_ascii_lowercase())
}

/// Refuses an image that some NT from 5.2 on would not load, or not as it is meant. `whole` is the same one with its symbols.
pub(super) fn check(
    image: &[u8],
    whole: &[u8],
    machine: Machine,
    most: usize,
    allowed: &BTreeSet<String>,
) -> Result<Facts> {
    let imports = loadable(image, machine, most, allowed)?;
    let limit = STACK.iter().find(|(of, _)| *of == machine).map_or(0, |&(_, limit)| limit);
    let stack = stack::check_image(whole, limit)?;
    Ok(Facts { size: image.len(), imports, stack })
}

/// The same for somebody's own driver, of whatever size and with whatever imports: whether a NT would load it.
pub(super) fn would_load(image: &[u8], machine: Machine, allowed: &BTreeSet<String>) -> Result<usize> {
    loadable(image, machine, usize::MAX, allowed)
}

/// All of that but the stack: how many imports it has.
fn loadable(image: &[u8], machine: Machine, most: usize, allowed: &BTreeSet<String>) -> Result<usize> {
    let imports = match machine {
        Machine::X64 => look::<pe::ImageNtHeaders64>(image, machine, allowed)?,
        Machine::I386 => look::<pe::ImageNtHeaders32>(image, machine, allowed)?,
    };
    if image.len() > most {
        bail!("it has {} bytes, more than {most}", image.len());
    }
    if checksum::written(image)? != checksum::of(image)? {
        bail!("its checksum is wrong");
    }
    Ok(imports)
}

/// What its headers and tables say.
fn look<Pe: ImageNtHeaders>(image: &[u8], machine: Machine, allowed: &BTreeSet<String>) -> Result<usize> {
    let file = PeFile::<Pe>::parse(image).context("it is no PE image")?;
    let headers = file.nt_headers();
    let optional = headers.optional_header();
    let wanted = match machine {
        Machine::X64 => pe::IMAGE_FILE_MACHINE_AMD64,
        Machine::I386 => pe::IMAGE_FILE_MACHINE_I386,
    };
    if headers.file_header().machine.get(LE) != wanted {
        bail!("it is for another machine");
    }
    if optional.subsystem() != pe::IMAGE_SUBSYSTEM_NATIVE {
        bail!("its subsystem is not native");
    }
    let versions = [
        ("subsystem", optional.major_subsystem_version(), optional.minor_subsystem_version()),
        ("system", optional.major_operating_system_version(), optional.minor_operating_system_version()),
        ("image", optional.major_image_version(), optional.minor_image_version()),
    ];
    for (what, major, minor) in versions {
        // An image for a later system is not loaded by an earlier one; one for NT 4 has its text made writable.
        if (major, minor) != OLDEST {
            bail!("its {what} version is {major}.{minor}, and has to be {}.{}", OLDEST.0, OLDEST.1);
        }
    }
    let characteristics = optional.dll_characteristics();
    for (what, bit) in [
        ("NX compatible", pe::IMAGE_DLLCHARACTERISTICS_NX_COMPAT),
        ("relocatable at random", pe::IMAGE_DLLCHARACTERISTICS_DYNAMIC_BASE),
    ] {
        if !characteristics.contains(bit) {
            bail!("its header does not say that it is {what}");
        }
    }
    if headers.file_header().characteristics.get(LE).contains(pe::IMAGE_FILE_RELOCS_STRIPPED)
        || file.data_directory(pe::IMAGE_DIRECTORY_ENTRY_BASERELOC).is_none()
    {
        bail!("it has no relocations");
    }
    sections(&file, optional.address_of_entry_point())?;
    imports(&file, machine, allowed)
}

/// No section is both writable and executable, or thrown away but the relocations; the entry point and the slots are in such as can be
/// executed.
fn sections<Pe: ImageNtHeaders>(file: &PeFile<'_, Pe>, entry: u32) -> Result<()> {
    let mut starts_in_code = false;
    let mut has_slots = false;
    for section in file.section_table().iter() {
        let name = String::from_utf8_lossy(section.raw_name()).into_owned();
        let flags = section.characteristics.get(LE);
        let can = |bit| flags.contains(bit);
        let executable = can(pe::IMAGE_SCN_MEM_EXECUTE);
        if executable && can(pe::IMAGE_SCN_MEM_WRITE) {
            bail!("its section {name} is both writable and executable");
        }
        if can(pe::IMAGE_SCN_MEM_DISCARDABLE) && name != ".reloc" {
            bail!("its section {name} is thrown away when the driver has been initialized");
        }
        // NT pages what is called so (MmPageEntireDriver and the like apart).
        if name.starts_with("PAGE") || name.starts_with("INIT") {
            bail!("its section {name} is paged, or thrown away");
        }
        let start = section.virtual_address.get(LE);
        let within = (start..start.saturating_add(section.virtual_size.get(LE))).contains(&entry);
        starts_in_code |= within && executable;
        has_slots |= name == ".kdslot" && executable && can(pe::IMAGE_SCN_MEM_READ);
    }
    if !starts_in_code {
        bail!("its entry point is in no section that can be executed");
    }
    if !has_slots {
        bail!("it has no section .kdslot that can be read and executed");
    }
    Ok(())
}

fn imports<Pe: ImageNtHeaders>(
    file: &PeFile<'_, Pe>,
    machine: Machine,
    allowed: &BTreeSet<String>,
) -> Result<usize> {
    let table = file.import_table()?.context("it imports nothing")?;
    let mut count = 0;
    let mut libraries = table.descriptors()?;
    while let Some(library) = libraries.next()? {
        let from = String::from_utf8_lossy(table.name(library.name.get(LE))?).to_ascii_lowercase();
        if !LIBRARIES.contains(&from.as_str()) {
            bail!("it imports from {from}");
        }
        let mut thunks = table.thunks(library.original_first_thunk.get(LE))?;
        while let Some(thunk) = thunks.next::<Pe>()? {
            let Import::Name(_, name) = table.import::<Pe>(thunk)? else {
                bail!("it imports a function of {from} by its number");
            };
            let name = String::from_utf8_lossy(name);
            if !allowed.contains(&key(machine, &from, &name)) {
                bail!(
                    "it imports {name} of {from}, which kernel/windows/imports.txt does not have: is it in NT 5.2?"
                );
            }
            count += 1;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 0xc00;
    const OPTIONAL: usize = 0x58;
    const SECTIONS: usize = OPTIONAL + 0xf0;
    /// Where a section's header has its flags, how long a header is, and where `.idata` is in the file.
    const FLAGS: usize = 36;
    const HEADER: usize = 40;
    const IMPORTS: usize = 0x800;
    const CODE: u32 = 0x6000_0020;

    fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_word(image: &mut [u8], at: usize, word: u32) {
        put(image, at, &word.to_le_bytes());
    }

    type Change = fn(&mut Vec<u8>);

    /// A driver for x64 with one import and nothing wrong but what `change` makes so.
    fn driver(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut image = vec![0; SIZE];
        put(&mut image, 0, b"MZ");
        put_word(&mut image, 0x3c, 0x40);
        put(&mut image, 0x40, b"PE\0\0\x64\x86\x04\0");
        put(&mut image, 0x54, &[0xf0, 0, 0x22, 0]);
        put(&mut image, OPTIONAL, &[0x0b, 2]);
        let words = [
            (16, 0x1000),  // entry point
            (24, 0x10000), // base
            (32, 0x1000),  // alignment of sections, in memory and in the file
            (36, 0x200),
            (40, 0x2_0005), // versions: system, image, subsystem
            (44, 0x2_0005),
            (48, 0x2_0005),
            (56, 0x5000), // size of image and headers
            (60, 0x400),
            (68, 0x140_0001), // native; NX, relocatable
            (108, 16),        // tables
            (120, 0x3000),    // imports
            (124, 40),
            (152, 0x4000), // relocations
            (156, 12),
        ];
        for (at, word) in words {
            put_word(&mut image, OPTIONAL + at, word);
        }
        let sections: [(&[u8], u32); 4] =
            [(b".text", CODE), (b".kdslot", CODE), (b".idata", 0xc000_0040), (b".reloc", 0x4200_0040)];
        for (number, (name, flags)) in (0_u32..).zip(sections) {
            let header = SECTIONS + HEADER * number as usize;
            put(&mut image, header, name);
            for (at, word) in
                [(8, 0x200), (12, 0x1000 + 0x1000 * number), (16, 0x200), (20, 0x400 + 0x200 * number)]
            {
                put_word(&mut image, header + at, word);
            }
            put_word(&mut image, header + FLAGS, flags);
        }
        // One descriptor, its two lists of one name each, the library's name, the function's.
        for (at, word) in [(0, 0x3040), (12, 0x3080), (16, 0x3060), (0x40, 0x30a0), (0x60, 0x30a0)] {
            put_word(&mut image, IMPORTS + at, word);
        }
        put(&mut image, IMPORTS + 0x80, b"ntoskrnl.exe");
        put(&mut image, IMPORTS + 0xa2, b"DbgPrint");
        change(&mut image);
        checksum::write(&mut image).unwrap();
        image
    }

    fn looked_at(image: &[u8]) -> Result<usize> {
        let allowed = BTreeSet::from([key(Machine::X64, "ntoskrnl.exe", "DbgPrint")]);
        loadable(image, Machine::X64, SIZE, &allowed)
    }

    #[test]
    fn a_driver_is_looked_at() {
        assert_eq!(looked_at(&driver(|_| ())).unwrap(), 1);
    }

    #[test]
    fn what_nt_would_not_load_is_refused() {
        let cases: [(&str, Change); 19] = [
            ("imports ExAllocatePool2 of ntoskrnl.exe", |it| put(it, IMPORTS + 0xa2, b"ExAllocatePool2")),
            ("imports from win32k.sys", |it| put(it, IMPORTS + 0x80, b"win32k.sys\0\0")),
            ("by its number", |it| put(it, IMPORTS + 0x47, &[0x80])),
            ("imports nothing", |it| put(it, OPTIONAL + 120, &[0; 8])),
            ("system version is 4.0", |it| put_word(it, OPTIONAL + 40, 4)),
            ("image version is 6.0", |it| put_word(it, OPTIONAL + 44, 6)),
            ("subsystem version is 4.0", |it| put_word(it, OPTIONAL + 48, 4)),
            ("subsystem is not native", |it| put(it, OPTIONAL + 68, &[2])),
            ("NX compatible", |it| put(it, OPTIONAL + 70, &[0x40, 0])),
            ("relocatable at random", |it| put(it, OPTIONAL + 70, &[0, 1])),
            ("no relocations", |it| put(it, OPTIONAL + 152, &[0; 8])),
            ("no relocations", |it| put(it, 0x56, &[0x23])),
            (".text is both writable and executable", |it| {
                put_word(it, SECTIONS + FLAGS, CODE | 0x8000_0000)
            }),
            (".text is thrown away", |it| put_word(it, SECTIONS + FLAGS, CODE | 0x0200_0000)),
            ("PAGE is paged", |it| put(it, SECTIONS, b"PAGE\0")),
            ("entry point is in no section", |it| put_word(it, OPTIONAL + 16, 0x3000)),
            ("no section .kdslot", |it| put(it, SECTIONS + HEADER, b".other\0\0")),
            ("for another machine", |it| put(it, 0x44, &[0x64, 0xaa])),
            ("more than 3072", |it| it.push(0)),
        ];
        for (why, change) in cases {
            let error = looked_at(&driver(change)).unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        let mut image = driver(|_| ());
        image[0x500] ^= 1;
        assert!(looked_at(&image).unwrap_err().to_string().contains("checksum"));
    }
}
