//! What a module wants of others: the slots that the loader has filled, and with what.

use super::super::{File, Import, Imports, pointer_to, read};
use super::image::nth;
use super::{containing, open};
use crate::arch::Jump;
use crate::detours::modules::pointer;
use crate::detours::windows::{EXE_MARKED_INVALID, Long, NOT_ENOUGH_MEMORY};
use core::ffi::{CStr, c_char};

// Where the fields of IMAGE_IMPORT_DESCRIPTOR are ("PE Format", Microsoft, ".idata").
const NAMES: u32 = 0;
const FILE: u32 = 12;
const SLOTS: u32 = 16;
const DESCRIPTOR: u32 = 20;
/// No module needs more files, nor more functions of all of them.
const MOST: usize = 1 << 20;

const POINTER: u32 = size_of::<usize>() as u32;
/// What is wanted by its number has this bit.
const BY_NUMBER: u64 = 1 << (usize::BITS - 1);

/// What a module wants of others, in the order of its tables. What was imported late (delay-loaded) is in another table; where a linker has left no
/// names beside the slots, these are left out: they do not tell what for they are.
pub(in super::super) fn imports(module: u64) -> Result<Imports, Long> {
    let image = open(module)?;
    let directory = image.imports()?;
    let mut reader = image.reader();
    let mut found = Imports::default();
    for number in 0.. {
        let descriptor = nth(directory.start, number, DESCRIPTOR)?;
        let mut field = |offset| reader.word(nth(descriptor, offset, 1)?);
        let (names, name, slots) = (field(NAMES)?, field(FILE)?, field(SLOTS)?);
        // Loaders stop here, whatever else it says.
        if name == 0 || slots == 0 {
            break;
        }
        let (file, name) = (found.files.len(), reader.text(name)?);
        // Whose the first one is, as long as nobody has exchanged that.
        let module = reader.pointer(slots).ok().and_then(containing).unwrap_or(0);
        found.files.try_reserve(1).map_err(|_| NOT_ENOUGH_MEMORY)?;
        found.files.push(File { module, name });
        if names == 0 || names == slots {
            continue;
        }
        for index in 0.. {
            let wanted = reader.pointer(nth(names, index, POINTER)?)?;
            if wanted == 0 {
                break;
            }
            let (ordinal, name) = match wanted & BY_NUMBER {
                // Behind a hint of two bytes.
                0 => (0, reader.text(u32::try_from(wanted + 2).map_err(|_| EXE_MARKED_INVALID)?)?),
                _ => (u32::try_from(wanted & 0xffff).unwrap_or(0), 0),
            };
            let slot = nth(slots, index, POINTER)?;
            let function = reader.pointer(slot)?;
            found.functions.try_reserve(1).map_err(|_| NOT_ENOUGH_MEMORY)?;
            found.functions.push(Import { file, ordinal, name, slot: image.place(slot)?, function });
            if found.functions.len() > MOST {
                return Err(EXE_MARKED_INVALID);
            }
        }
    }
    Ok(found)
}

/// The function that a jump leads to through a slot of the loader's. None if the slot is none of the module that the code is in.
pub(in crate::detours) fn function_through(code: u64, jump: &Jump) -> Option<u64> {
    let slot = jump.slot(|| None)?;
    let found = imports(containing(code)?).ok()?;
    let is_it = found.functions.iter().any(|import| import.slot == slot);
    let function = is_it.then(|| pointer(slot).ok()).flatten()?;
    (function != 0).then_some(function)
}

/// The name of the library from which the program imports something by this name.
pub(crate) fn imported_from(name: &CStr) -> Option<*const c_char> {
    let found = imports(0).ok()?;
    let wanted = name.to_bytes_with_nul();
    let mut bytes = alloc::vec![0; wanted.len()];
    let is_it =
        |import: &&Import| import.name != 0 && read(import.name, &mut bytes).is_ok() && bytes == wanted;
    let file = found.functions.iter().find(is_it)?.file;
    found.files.get(file).map(|file| pointer_to(file.name).cast_const().cast())
}
