//! Images as a loader has laid them out, and the code in them.

use super::memory::{Kind, Memory};
use crate::host::Span;
use crate::host::windows_kernel::nt::Module;
use std::vec::Vec;

const PAGE: u64 = 4096;
pub(super) const CODE: u32 = 0x6000_0020;
pub(super) const DATA: u32 = 0x4000_0040;
pub(super) const DISCARDABLE: u32 = 0x0200_0000;

/// A section of one page: its name, its flags, what is in it.
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) flags: u32,
    pub(super) bytes: Vec<u8>,
}

pub(super) fn section(name: &'static str, flags: u32, bytes: &[u8]) -> Section {
    Section { name, flags, bytes: bytes.to_vec() }
}

/// The headers of an image, and the directories of exports, exceptions and pointers to imports as addresses and lengths.
pub(super) fn headers(sections: &[Section], directories: [(u32, u32); 3]) -> Vec<u8> {
    let mut bytes = std::vec![0; 4096];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"MZ");
    put(0x3c, &0x80_u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    // AMD64; how many sections; the optional header's size; an executable image.
    put(0x84, &0x8664_u16.to_le_bytes());
    put(0x86, &u16::try_from(sections.len()).unwrap().to_le_bytes());
    put(0x94, &240_u16.to_le_bytes());
    put(0x96, &0x22_u16.to_le_bytes());
    let optional = 0x98;
    put(optional, &0x20b_u16.to_le_bytes());
    put(optional + 32, &4096_u32.to_le_bytes());
    put(optional + 36, &512_u32.to_le_bytes());
    let size = 4096 * (1 + u32::try_from(sections.len()).unwrap());
    put(optional + 56, &size.to_le_bytes());
    put(optional + 60, &1024_u32.to_le_bytes());
    put(optional + 108, &16_u32.to_le_bytes());
    for (index, (address, len)) in [0, 3, 12].into_iter().zip(directories) {
        put(optional + 112 + 8 * index, &address.to_le_bytes());
        put(optional + 116 + 8 * index, &len.to_le_bytes());
    }
    for (index, section) in sections.iter().enumerate() {
        let at = optional + 240 + 40 * index;
        put(at, section.name.as_bytes());
        put(at + 8, &4096_u32.to_le_bytes());
        put(at + 12, &(4096 * (1 + u32::try_from(index).unwrap())).to_le_bytes());
        put(at + 16, &4096_u32.to_le_bytes());
        put(at + 36, &section.flags.to_le_bytes());
    }
    bytes
}

/// Puts an image of these sections at a page.
pub(super) fn load(
    memory: &Memory,
    page: u64,
    name: &str,
    sections: &[Section],
    directories: [(u32, u32); 3],
) -> Module {
    let base = memory.base() + page * PAGE;
    memory.poke(base, &headers(sections, directories));
    for (at, section) in (1..).zip(sections) {
        memory.poke(base + at * PAGE, &section.bytes);
        if section.name.starts_with("PAGE") {
            memory.set_kind(base + at * PAGE, 1, Kind::Paged);
        } else if section.flags & DISCARDABLE != 0 || section.name == "INIT" {
            memory.set_kind(base + at * PAGE, 1, Kind::Gone);
        }
    }
    let size = u32::try_from((1 + sections.len() as u64) * PAGE).unwrap();
    Module::new(base, size, std::format!("\\SystemRoot\\system32\\drivers\\{name}").as_bytes())
}

/// Where the functions of [`code`] begin, from the section's start.
pub(super) const WHOLE: u64 = 0;
pub(super) const SEVERAL: u64 = 0x20;
pub(super) const SHORT: u64 = 0x40;
pub(super) const FOREIGN: u64 = 0x60;
pub(super) const TRAPPED: u64 = 0x80;
pub(super) const OTHER: u64 = 0xa0;
pub(super) const HOT: u64 = 0xc0;
/// Functions of that section: where each begins, and how long it is.
pub(super) const FUNCTIONS: [(u64, u64); 7] =
    [(WHOLE, 6), (SEVERAL, 11), (SHORT, 14), (FOREIGN, 8), (TRAPPED, 6), (OTHER, 6), (HOT, 8)];

/// The code that is detoured.
#[rustfmt::skip]
pub(super) fn code() -> Vec<u8> {
    let mut bytes = std::vec![0xcc; 4096];
    let mut put = |at: u64, code: &[u8]| bytes[at as usize..at as usize + code.len()].copy_from_slice(code);
    put(WHOLE, &[
        0xb8, 7, 0, 0, 0,               // mov eax, 7
        0xc3,                           // ret
    ]);
    put(SEVERAL, &[
        0x55,                           // push rbp
        0x48, 0x89, 0xe5,               // mov rbp, rsp
        0x5d,                           // pop rbp
        0xb8, 7, 0, 0, 0,               // mov eax, 7
        0xc3,                           // ret
    ]);
    put(SHORT, &[
        0x31, 0xc0,                     // xor eax, eax
        0x83, 0xc0, 7,                  // add eax, 7
        0x0f, 0x1f, 0x80, 0, 0, 0, 0,   // nop
        0x90,                           // nop
        0xc3,                           // ret
    ]);
    put(FOREIGN, &[
        0xe9, 0, 0, 0, 0x40,            // jmp far away
        0x31, 0xc0, 0xc3,               // xor eax, eax / ret
    ]);
    put(TRAPPED, &[
        0xcc, 7, 0, 0, 0,               // mov eax, 7 under a debugger's breakpoint
        0xc3,                           // ret
    ]);
    put(OTHER, &[
        0xb8, 9, 0, 0, 0,               // mov eax, 9
        0xc3,                           // ret
    ]);
    put(HOT, &[
        0x8b, 0xff,                     // mov edi, edi: made to be patched, as the padding in front of it is
        0xb8, 7, 0, 0, 0,               // mov eax, 7
        0xc3,                           // ret
    ]);
    bytes
}

/// `.pdata` of these functions, whose section is at `text`; behind it, at `rva`, their common unwind information.
pub(super) fn pdata(rva: u32, text: u32) -> Vec<u8> {
    let info = rva + 0x800;
    let mut bytes = Vec::new();
    for (begin, len) in FUNCTIONS {
        for word in [text + begin as u32, text + (begin + len) as u32, info] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    bytes.resize(0x800, 0);
    // Version 1, nothing to undo.
    bytes.extend_from_slice(&[1, 0, 0, 0]);
    bytes
}

/// A detour: counts itself, calls the original, adds 35 to what that gives.
#[rustfmt::skip]
pub(super) fn detour(counter: u64, original: u64) -> Vec<u8> {
    let mut code = std::vec![0x48, 0xb8];               // mov rax, counter
    code.extend_from_slice(&counter.to_le_bytes());
    code.extend_from_slice(&[0xf0, 0xff, 0x00]);        // lock inc dword [rax]
    code.extend_from_slice(&[0x48, 0xb8]);              // mov rax, original
    code.extend_from_slice(&original.to_le_bytes());
    code.extend_from_slice(&[0xff, 0x10]);              // call [rax]
    code.extend_from_slice(&[0x83, 0xc0, 35]);          // add eax, 35
    code.extend_from_slice(&[0x48, 0xb9]);              // mov rcx, counter
    code.extend_from_slice(&counter.to_le_bytes());
    code.extend_from_slice(&[0xf0, 0xff, 0x09]);        // lock dec dword [rcx]
    code.push(0xc3);                                    // ret
    code
}

/// The room for slots in the driver.
pub(super) const fn room(driver: &Module) -> Span {
    Span { address: driver.base + 2 * PAGE, len: 4096 }
}
