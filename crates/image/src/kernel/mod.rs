//! A Linux kernel: `vmlinux`, or a distribution's `vmlinuz`.
//!
//! ```text
//!   vmlinuz --payload, unpacked--> vmlinux --.symtab------------------\
//!                                          --its own kallsyms table----+--> text symbols --> functions
//!           /proc/kallsyms, System.map ----------(KASLR undone)-------/
//!                                          --tables of sites--> what is reserved, branch targets, ftrace sites
//! ```
//! A kernel's symbols have no sizes, or sizes that hand-written assembly does not tell: but there is one for
//! everything in its text, so that a function reaches to the next symbol, and ends at its padding.

mod boot;
mod kallsyms;
mod sites;
mod symbol_file;

pub(crate) use boot::{decompress, is_boot_image, is_compressed, unpack};
pub(crate) use symbol_file::KernelSymbols;

use crate::elf::Section;
use crate::error::Error;
use crate::function::Source;
use crate::left_out::Reason;
use crate::names::{Name, Names};
use crate::starts::{Found, Start, What};
use kallsyms::Kallsyms;
use sites::Sites;

/// How long a landing pad is: `endbr64`.
pub(crate) const ENDBR: u64 = 4;

/// A symbol that is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visited<'v> {
    pub(crate) address: u64,
    /// 0 if it is not known.
    pub(crate) size: u32,
    pub(crate) what: What,
    pub(crate) global: bool,
    pub(crate) name: &'v [u8],
    /// Where the name is, if the file has it as it is.
    pub(crate) at: Name,
}

/// What a letter of `nm` says of a symbol.
fn what_of(letter: u8) -> What {
    if matches!(letter, b't' | b'T' | b'w' | b'W') { What::Function } else { What::Other }
}

/// Takes a kernel's functions, and what else its tables say. `table` shows the symbols of its `.symtab`, and says
/// whether there are any.
pub(crate) fn read(
    found: &mut Found,
    file: &[u8],
    sections: &[Section<'_>],
    symbols: Option<&KernelSymbols<'_>>,
    table: impl Fn(&mut dyn FnMut(Visited<'_>)) -> bool,
) -> Result<(), Error> {
    let mut sites = Sites::new(sections);
    let has_table = table(&mut |symbol| sites.note(symbol.name, symbol.address));
    let own = if has_table { None } else { Kallsyms::find(file, found) };
    if let Some(own) = &own {
        own.visit(file, &mut |symbol| sites.note(symbol.name, symbol.address));
    }
    let shift = match symbols {
        None => 0,
        Some(symbols) => {
            let anchor = sites.stext().or_else(|| found.code.iter().map(|range| range.start).next());
            let shift = symbols.shift(anchor.unwrap_or(0))?;
            symbols.visit(shift, &mut |symbol| sites.note(symbol.name, symbol.address));
            shift
        }
    };
    if let (Some(symbols), Some(own)) = (symbols, &own) {
        check_same_kernel(found, file, own, symbols, shift)?;
    }
    if symbols.is_none() && !has_table && own.is_none() {
        return Err(Error::NoKernelSymbols);
    }
    if let Some((stext, etext)) = sites.text() {
        found.narrow(core::iter::once(stext..etext).collect());
        // Code jumps out of the text too: to what alternatives are checked by. What of a processor's own memory is
        // at 0 and not of the image.
        found.bounds = found.memory.bounds().map(|(_, end)| (stext, end));
    }
    found.complete = true;
    found.gapless = true;
    let (source, limit) = match (symbols, &own) {
        (Some(_), _) => (Source::SymbolFile, file.len() / 4),
        (None, Some(_)) => (Source::Kallsyms, file.len() / 4),
        (None, None) => (Source::Symbol, 0),
    };
    found.names = if limit > 0 { Names::Pool(Vec::new()) } else { Names::File };
    let mut take = |symbol: Visited<'_>| take(found, symbol, source, limit);
    match (symbols, &own) {
        (Some(symbols), _) => symbols.visit(shift, &mut take),
        (None, Some(own)) => own.visit(file, &mut take),
        (None, None) => {
            table(&mut take);
        }
    }
    if symbols.is_some() && found.starts.is_empty() {
        return Err(Error::OtherKernel);
    }
    found.data.retain(|range| range.start >= found.code.iter().next().map_or(0, |code| code.start));
    sites.read(found, file);
    static_call_trampolines(found, file);
    Ok(())
}

/// The functions of a list of symbols have to be where the kernel's own table has them, but for a few that one of them
/// leaves out.
fn check_same_kernel(
    found: &Found,
    file: &[u8],
    own: &Kallsyms,
    symbols: &KernelSymbols<'_>,
    shift: u64,
) -> Result<(), Error> {
    let mut known = Vec::new();
    own.visit(file, &mut |symbol| {
        if symbol.what == What::Function {
            known.push(symbol.address);
        }
    });
    known.sort_unstable();
    let (mut all, mut same) = (0_usize, 0_usize);
    symbols.visit(shift, &mut |symbol| {
        if symbol.what == What::Function && found.code.contains(symbol.address) {
            all += 1;
            same += usize::from(known.binary_search(&symbol.address).is_ok());
        }
    });
    if same.saturating_mul(10) < all.saturating_mul(9) { Err(Error::OtherKernel) } else { Ok(()) }
}

/// The tables of sites of a module, whose sections were laid out and relocated.
pub(crate) fn read_module(found: &mut Found, file: &[u8], sections: &[Section<'_>]) {
    Sites::new(sections).read(found, file);
    static_call_trampolines(found, file);
}

fn take(found: &mut Found, symbol: Visited<'_>, source: Source, limit: usize) {
    if !found.code.contains(symbol.address) {
        if symbol.what == What::Function {
            // Counted, not kept.
            found.push(Start {
                address: symbol.address,
                size: 0,
                name: Name::NONE,
                what: What::Function,
                source,
                rank: 0,
            });
        }
        return;
    }
    let what = if is_bound(symbol.name) && symbol.size == 0 { What::Label } else { symbol.what };
    let name = if limit > 0 { found.names.add(symbol.name, limit) } else { symbol.at };
    let rank = if symbol.global { 0 } else { 2 };
    let start = Start { address: symbol.address, size: symbol.size, name, what, source, rank };
    found.push_symbol(start, symbol.name);
}

/// Symbols of the linker script that stand where a part of the text begins or ends.
fn is_bound(name: &[u8]) -> bool {
    name == b"_text"
        || name == b"_stext"
        || name.ends_with(b"_text_start")
        || name.ends_with(b"_text_end")
        || name == b"__indirect_thunk_start"
        || name == b"__indirect_thunk_end"
        || name == b"__x86_indirect_thunk_array"
        || name == b"__x86_indirect_call_thunk_array"
        || name == b"__x86_indirect_jump_thunk_array"
}

/// A static call's trampoline, which the kernel rewrites whole: a jump or return, and then a mark. It is no function,
/// as an entry of a procedure linkage table is none.
fn static_call_trampolines(found: &mut Found, file: &[u8]) {
    const MARK: [u8; 3] = [0x0f, 0xb9, 0xcc]; // ud1 esp, ecx
    for start in &mut found.starts {
        let is_function = matches!(start.what, What::Function | What::Assembly);
        let bytes = found.memory.between(file, start.address, start.address.saturating_add(8));
        if is_function && bytes.get(5..) == Some(&MARK) {
            start.what = What::Other;
            found.tally.add(Reason::StaticCall, start.address);
        }
    }
}
