//! The functions that `build.rs` has written, and those that are put where a measurement wants them.

use crate::system;
use anyhow::{Context as _, Result, ensure};
use kdetour::AtomicAddress;
use std::arch::global_asm;
use std::ptr;

include!(concat!(env!("OUT_DIR"), "/functions.rs"));
global_asm!(include_str!(concat!(env!("OUT_DIR"), "/functions.s")));

unsafe extern "C" {
    static process_dense: u8;
    static process_sparse: u8;
    static process_wrapper: u8;
    static process_cells: [AtomicAddress; WRAPPERS];
}

/// What every function here looks like.
pub(crate) type Function = extern "C" fn(u64) -> u64;

/// The function at an address.
///
/// # Safety
/// There is one of that type.
pub(crate) unsafe fn at(address: u64) -> Function {
    // SAFETY: the caller's promise.
    unsafe { std::mem::transmute::<*const (), Function>(ptr::with_exposed_provenance(address as usize)) }
}

fn address(symbol: *const u8) -> u64 {
    symbol.expose_provenance() as u64
}

/// Functions 64 bytes apart. The one with number N returns its argument and N.
pub(crate) fn dense() -> Vec<u64> {
    let base = address(&raw const process_dense);
    (0..DENSE as u64).map(|index| base + index * 64).collect()
}

/// Functions of which each page has one. The one with number N returns its argument and N.
pub(crate) fn sparse() -> Vec<u64> {
    let base = address(&raw const process_sparse);
    (0..SPARSE as u64).map(|index| base + index * 4096 + index % 128 * 16).collect()
}

/// A hand-written wrapper, which calls what its cell says.
#[derive(Clone, Copy)]
pub(crate) struct Wrapper {
    pub(crate) address: u64,
    pub(crate) cell: &'static AtomicAddress,
}

/// The wrapper with a number.
pub(crate) fn wrapper(number: usize) -> Result<Wrapper> {
    // SAFETY: the cells are there as long as the program, and are only used as atomics.
    let cells = unsafe { &process_cells };
    let cell = cells.get(number).context("too few wrappers")?;
    Ok(Wrapper { address: address(&raw const process_wrapper) + number as u64 * 64, cell })
}

/// A prologue that is toggled or called: it returns its argument and 1.
#[derive(Clone, Copy)]
pub(crate) struct Code {
    pub(crate) name: &'static str,
    /// The length of its first instructions, up to five bytes.
    pub(crate) bytes: &'static [u8],
}

/// Behind opcode and REX prefix: `lea rax, [rdi + 1]`, or on Windows, where arguments are elsewhere, `[rcx + 1]`.
const ONE_MORE: u8 = if cfg!(windows) { 0x41 } else { 0x47 };

/// push rbp; mov rbp, rsp; push rbx; lea rax, [argument + 1]; pop rbx; pop rbp; ret
pub(crate) const ONE_THREE_ONE: Code = Code {
    name: "1+3+1",
    bytes: &[0x55, 0x48, 0x89, 0xe5, 0x53, 0x48, 0x8d, ONE_MORE, 0x01, 0x5b, 0x5d, 0xc3],
};
/// push r15; push r14; push r13; lea rax, [argument + 1]; pop r13; pop r14; pop r15; ret
pub(crate) const TWO_TWO_TWO: Code = Code {
    name: "2+2+2",
    bytes: &[
        0x41, 0x57, 0x41, 0x56, 0x41, 0x55, 0x48, 0x8d, ONE_MORE, 0x01, 0x41, 0x5d, 0x41, 0x5e, 0x41, 0x5f,
        0xc3,
    ],
};
/// sub rsp, 16; push rbx; lea rax, [argument + 1]; pop rbx; add rsp, 16; ret
pub(crate) const FOUR_ONE: Code = Code {
    name: "4+1",
    bytes: &[0x48, 0x83, 0xec, 0x10, 0x53, 0x48, 0x8d, ONE_MORE, 0x01, 0x5b, 0x48, 0x83, 0xc4, 0x10, 0xc3],
};
/// sub rsp, 0x88; lea rax, [argument + 1]; add rsp, 0x88; ret
pub(crate) const SEVEN: Code = Code {
    name: "7",
    bytes: &[
        0x48, 0x81, 0xec, 0x88, 0, 0, 0, 0x48, 0x8d, ONE_MORE, 0x01, 0x48, 0x81, 0xc4, 0x88, 0, 0, 0, 0xc3,
    ],
};

const PAGE: usize = 4096;

/// Where code is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Within 2 GiB of this program's text.
    Near,
    /// Among the shared libraries: further away.
    Far,
    /// Where nothing else is for many GiB: a relay may be anywhere.
    Empty,
}

/// Two executable pages with `code` at an offset, and INT3 elsewhere. They stay for ever.
pub(crate) fn placed(code: Code, place: Place, offset: usize) -> Result<u64> {
    let text = address(&raw const process_dense) & !0xfff;
    let len = 2 * PAGE;
    let page = match place {
        Place::Near => (1..100_u64).find_map(|step| system::pages(text.checked_sub(step << 24)?, len)),
        Place::Empty => (1..1000_u64).find_map(|step| system::pages((1 << 44) + (step << 33), len)),
        Place::Far => system::pages_anywhere(len),
    };
    let page = page.context("no place for a function")?;
    let at = page.expose_provenance() as u64;
    ensure!(
        (at.abs_diff(text) < 1 << 31) == (place == Place::Near),
        "{at:#x} is not as far from {text:#x} as it should be"
    );
    ensure!(offset + code.bytes.len() <= len, "the function does not fit");
    // SAFETY: the pages were mapped above, writable, and nobody knows them.
    unsafe {
        page.write_bytes(0xcc, len);
        ptr::copy_nonoverlapping(code.bytes.as_ptr(), page.add(offset), code.bytes.len());
        system::protect(page, len, system::Protection::Executable)?;
    }
    Ok(at + offset as u64)
}

/// The first of the functions that are 64 bytes apart, which adds nothing.
pub(crate) fn first() -> Function {
    // SAFETY: it is a function of that type.
    unsafe { at(address(&raw const process_dense)) }
}
