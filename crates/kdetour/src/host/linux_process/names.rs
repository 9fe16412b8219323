//! Telling other tools what a slot is called: `perf` by a file, gdb by the interface for just-in-time compilers.
//!
//! Only on request. Neither is asked whether it listens.

use super::arch::{
    ELF_CLASS, ELF_HEADER as HEADER, ELF_MACHINE, ELF_SECTION as SECTION, ELF_SYMBOL as SYMBOL, WORD,
    elf_symbol,
};
use super::{lock, refused};
use crate::Error;
use crate::address::narrow;
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::fmt;
use core::ptr;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr, write};
use rustix::process::{geteuid, getpid};
use std::sync::Mutex;

/// Adds a line about a slot to `/tmp/perf-PID.map`, where `perf report` looks for the names of code that is in no
/// file (`tools/perf/Documentation/jit-interface.txt`).
///
/// A line cannot be taken back: if the slot is used again, `perf` gives both names to both.
///
/// # Errors
/// [`Error::Host`] if the file cannot be written, or is another user's: `/tmp` is everybody's.
pub(super) fn perf(slot: u64, len: usize, name: &str) -> Result<(), Error> {
    let path = format!("/tmp/perf-{}.map", getpid().as_raw_nonzero());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    let file = retry_on_intr(|| rustix::fs::open(path.as_str(), flags, mode)).map_err(refused)?;
    if rustix::fs::fstat(&file).map_err(refused)?.st_uid != geteuid().as_raw() {
        return Err(refused(Errno::PERM));
    }
    let line = format!("{slot:x} {len:x} {}\n", one_line(name));
    // In one piece, so that lines of other compilers in this process do not come between.
    let written = retry_on_intr(|| write(&file, line.as_bytes())).map_err(refused)?;
    if written == line.len() { Ok(()) } else { Err(refused(Errno::NOSPC)) }
}

/// A name that is what it says it is: a line end in it would begin another entry.
fn one_line(name: &str) -> std::string::String {
    name.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// Of "JIT Compilation Interface" in gdb's manual: one piece of code, in a list of all.
#[repr(C)]
struct CodeEntry {
    next: *mut Self,
    previous: *mut Self,
    file: *const u8,
    file_len: u64,
}

/// The list, and what has just happened to it.
#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *mut CodeEntry,
    first: *mut CodeEntry,
}

const JIT_NO_ACTION: u32 = 0;
const JIT_REGISTER: u32 = 1;
const JIT_UNREGISTER: u32 = 2;

// gdb looks for these two names in every file that the process has mapped, and stops at the function to read the list.
// They are weak: a just-in-time compiler that is linked into the same file has them too, and then both use its own.
core::arch::global_asm!(
    ".pushsection .text.__jit_debug_register_code, \"ax\", @progbits",
    ".weak __jit_debug_register_code",
    ".type __jit_debug_register_code, @function",
    "__jit_debug_register_code:",
    "ret",
    ".size __jit_debug_register_code, . - __jit_debug_register_code",
    ".popsection",
    ".pushsection .data.__jit_debug_descriptor, \"aw\", @progbits",
    ".balign 8",
    ".weak __jit_debug_descriptor",
    ".type __jit_debug_descriptor, @object",
    "__jit_debug_descriptor:",
    ".long 1, 0", // version, no action
    ".fill {pointers}, 1, 0",
    ".size __jit_debug_descriptor, . - __jit_debug_descriptor",
    ".popsection",
    pointers = const 2 * WORD,
);

unsafe extern "C" {
    fn __jit_debug_register_code();
    static mut __jit_debug_descriptor: Descriptor;
}

/// Who changes the list. Another compiler that uses the same list has a lock of its own: it must not do so at the
/// same time.
static LIST: Mutex<()> = Mutex::new(());

/// A slot that gdb knows by a name, and can find the caller of. Dropping it withdraws the slot.
pub(super) struct JitEntry {
    entry: *mut CodeEntry,
    /// Read by gdb for as long as the entry is in the list.
    _file: Box<[u8]>,
}

// SAFETY: the entry is only reached through the list, which is changed under a lock.
unsafe impl Send for JitEntry {}
// SAFETY: nothing can be done with a shared reference.
unsafe impl Sync for JitEntry {}

impl JitEntry {
    /// Makes a slot known. `eh_frame` is the section that describes it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn register(slot: u64, len: usize, name: &str, eh_frame: &[u8]) -> Result<Self, Error> {
        let file = symbol_file(slot, len, name, eh_frame)?;
        let entry = CodeEntry {
            next: ptr::null_mut(),
            previous: ptr::null_mut(),
            file: file.as_ptr(),
            file_len: file.len() as u64,
        };
        let entry = Box::into_raw(Box::new(entry));
        let _list = lock(&LIST);
        // SAFETY: the list consists of entries that are there until they are taken out of it, and is changed under
        // the lock.
        unsafe {
            let first = __jit_debug_descriptor.first;
            (*entry).next = first;
            if !first.is_null() {
                (*first).previous = entry;
            }
            __jit_debug_descriptor.first = entry;
            tell(JIT_REGISTER, entry);
        }
        Ok(Self { entry, _file: file })
    }
}

impl Drop for JitEntry {
    fn drop(&mut self) {
        let _list = lock(&LIST);
        // SAFETY: as in `register`; this entry was put into the list there, and is taken out of it once.
        unsafe {
            let CodeEntry { next, previous, .. } = *self.entry;
            if previous.is_null() {
                __jit_debug_descriptor.first = next;
            } else {
                (*previous).next = next;
            }
            if !next.is_null() {
                (*next).previous = previous;
            }
            tell(JIT_UNREGISTER, self.entry);
            drop(Box::from_raw(self.entry));
        }
    }
}

/// Lets gdb, if it is there, look at the list.
///
/// # Safety
/// The caller holds the lock of the list, and `entry` is there.
unsafe fn tell(action: u32, entry: *mut CodeEntry) {
    // SAFETY: the caller's promise; volatile, since gdb reads it.
    unsafe {
        (&raw mut __jit_debug_descriptor.action).write_volatile(action);
        (&raw mut __jit_debug_descriptor.relevant).write_volatile(entry);
        __jit_debug_register_code();
        (&raw mut __jit_debug_descriptor.action).write_volatile(JIT_NO_ACTION);
        (&raw mut __jit_debug_descriptor.relevant).write_volatile(ptr::null_mut());
    }
}

impl fmt::Debug for JitEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JitEntry").field("entry", &self.entry).finish()
    }
}

/// Names of sections, and then that of the symbol.
const NAMES: &[u8] = b"\0.text\0.eh_frame\0.symtab\0.strtab\0";
const SHT_PROGBITS: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_NOBITS: u32 = 8;
const SHF_ALLOC: usize = 2;
const SHF_EXECINSTR: usize = 4;

/// An ELF file of one function: its name, where it is, and how to find its caller. The code itself is not in it.
fn symbol_file(slot: u64, len: usize, name: &str, eh_frame: &[u8]) -> Result<Box<[u8]>, Error> {
    let name = one_line(name);
    let (sections, symbols) = (5_u16, 2);
    let frames_at = HEADER + usize::from(sections) * SECTION;
    let symbols_at = (frames_at + eh_frame.len()).next_multiple_of(WORD);
    let names_at = symbols_at + symbols * SYMBOL;
    let names_len = NAMES.len() + name.len() + 1;
    let mut file = Vec::new();
    file.try_reserve_exact(names_at + names_len)?;

    // So many bits, lowest byte first, version 1, System V; an executable for this processor.
    file.extend_from_slice(&[0x7f, b'E', b'L', b'F', ELF_CLASS, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&[2, 0, ELF_MACHINE, 0, 1, 0, 0, 0]);
    // No entry point, no segments; the section headers follow the header.
    for value in [0, 0, HEADER] {
        file.extend_from_slice(&value.to_le_bytes());
    }
    file.extend_from_slice(&[0; 4]);
    for value in [HEADER as u16, 0, 0, SECTION as u16, sections, sections - 1] {
        file.extend_from_slice(&value.to_le_bytes());
    }

    let section =
        |name: &[u8], kind, flags| Section { name: offset_of(name), kind, flags, ..Section::default() };
    let code = section(b".text\0", SHT_NOBITS, SHF_ALLOC | SHF_EXECINSTR);
    let frames = section(b".eh_frame\0", SHT_PROGBITS, SHF_ALLOC);
    let table = section(b".symtab\0", SHT_SYMTAB, 0);
    let names = section(b".strtab\0", SHT_STRTAB, 0);
    let at = |at: usize, len: usize, section| Section { offset: at, len, align: WORD, ..section };
    // Its names are in the fourth section, and the first symbol is the only local one.
    let table = Section { link: 4, info: 1, entry: SYMBOL, ..at(symbols_at, symbols * SYMBOL, table) };
    for section in [
        Section::default(),
        Section { address: narrow(slot), len, align: 16, offset: frames_at, ..code },
        at(frames_at, eh_frame.len(), frames),
        table,
        Section { align: 1, ..at(names_at, names_len, names) },
    ] {
        section.write(&mut file);
    }
    file.extend_from_slice(eh_frame);
    // The first symbol is empty; the other one is a global function in the first section.
    file.resize(symbols_at + SYMBOL, 0);
    file.extend(elf_symbol(NAMES.len() as u32, [0x12, 0, 1, 0], slot, len as u64));
    file.extend_from_slice(NAMES);
    file.extend_from_slice(name.as_bytes());
    file.push(0);
    Ok(file.into_boxed_slice())
}

/// Where a name begins in [`NAMES`].
fn offset_of(name: &[u8]) -> u32 {
    let at = NAMES.windows(name.len()).position(|window| window == name);
    at.and_then(|at| u32::try_from(at).ok()).unwrap_or(0)
}

/// A section header, as far as it is not zero.
#[derive(Default)]
struct Section {
    name: u32,
    kind: u32,
    flags: usize,
    address: usize,
    offset: usize,
    len: usize,
    link: u32,
    info: u32,
    align: usize,
    entry: usize,
}

impl Section {
    fn write(&self, file: &mut Vec<u8>) {
        let word = |file: &mut Vec<u8>, value: u32| file.extend_from_slice(&value.to_le_bytes());
        word(file, self.name);
        word(file, self.kind);
        for value in [self.flags, self.address, self.offset, self.len] {
            file.extend_from_slice(&value.to_le_bytes());
        }
        word(file, self.link);
        word(file, self.info);
        for value in [self.align, self.entry] {
            file.extend_from_slice(&value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::arch::MODE;
    use super::*;
    use object::{Object, ObjectSection, ObjectSymbol, SectionKind};
    use std::string::ToString;

    const SLOT: u64 = MODE.wrap(0x7f12_3456_7890);

    #[test]
    fn a_symbol_file_names_the_slot() {
        let eh_frame = [1, 2, 3, 4, 5];
        let file = symbol_file(SLOT, 48, "kdetour:getpid\n trampoline", &eh_frame).unwrap();
        let file = object::File::parse(&*file).unwrap();
        let symbols: Vec<_> = file.symbols().filter(|symbol| symbol.is_definition()).collect();
        assert_eq!(symbols.len(), 1);
        assert_eq!(symbols[0].name(), Ok("kdetour:getpid? trampoline"));
        assert_eq!((symbols[0].address(), symbols[0].size()), (SLOT, 48));
        let code = file.section_by_name(".text").unwrap();
        assert_eq!((code.address(), code.size()), (SLOT, 48));
        assert_eq!(symbols[0].section_index(), Some(code.index()));
        assert_eq!(file.section_by_name(".eh_frame").unwrap().data(), Ok(&eh_frame[..]));
        assert!(file.sections().all(|section| section.kind() != SectionKind::Unknown));
    }

    #[test]
    fn entries_come_and_go_in_any_order() {
        let list = || {
            let _list = lock(&LIST);
            let mut found = Vec::new();
            // SAFETY: under the lock; entries in the list are there.
            unsafe {
                let mut entry = __jit_debug_descriptor.first;
                let mut previous = ptr::null_mut();
                while !entry.is_null() {
                    assert_eq!((*entry).previous, previous);
                    found.push(entry);
                    (previous, entry) = (entry, (*entry).next);
                }
            }
            found
        };
        let mut entries: Vec<_> = (0..4)
            .map(|index| JitEntry::register(SLOT + 64 * index, 48, &index.to_string(), &[0; 4]).unwrap())
            .collect();
        for gone in [1, 2, 0, 0] {
            let expected: Vec<_> = entries.iter().rev().map(|entry| entry.entry).collect();
            assert_eq!(list(), expected);
            entries.remove(gone);
        }
        assert!(list().is_empty());
    }

    #[test]
    fn perf_is_told() {
        perf(SLOT, 0x30, "kdetour:one trampoline").unwrap();
        perf(SLOT + 64, 0x40, "kdetour:two\n trampoline").unwrap();
        let path = format!("/tmp/perf-{}.map", std::process::id());
        let told = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        let (one, two) = (SLOT, SLOT + 64);
        let expected = format!("{one:x} 30 kdetour:one trampoline\n{two:x} 40 kdetour:two? trampoline\n");
        assert_eq!(told, expected);
    }
}
