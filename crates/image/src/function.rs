//! A function of an image.

use crate::names::Name;
use core::fmt;

/// What says that a function begins at an address. Of several, the first of this list.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A symbol: ELF's `.symtab` or `.dynsym`, or a COFF symbol.
    Symbol,
    /// A PE image's export table.
    Export,
    /// The kernel's own table of names.
    Kallsyms,
    /// The text of `/proc/kallsyms` or `System.map` that was given.
    SymbolFile,
    /// Unwind information in `.eh_frame`.
    EhFrame,
    /// Unwind information in `.pdata`.
    Pdata,
    /// A 32-bit PE image's table of safe exception handlers.
    SafeHandler,
    /// The file's entry point, or a function that the loader calls.
    Entry,
}

impl Source {
    /// A short word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Symbol => "symbol",
            Self::Export => "export",
            Self::Kallsyms => "kallsyms",
            Self::SymbolFile => "symbol file",
            Self::EhFrame => ".eh_frame",
            Self::Pdata => ".pdata",
            Self::SafeHandler => "safe handler",
            Self::Entry => "entry point",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A function: where it is and what says so. Its name and bytes are asked of its [`Image`](crate::Image).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    pub(crate) address: u64,
    /// 0 if it is not known.
    pub(crate) length: u32,
    pub(crate) name: Name,
    /// How far behind the entry the next symbol is; 0 if that is not known.
    pub(crate) next: u32,
    /// How many bytes of padding are in front of it.
    pub(crate) before: u16,
    pub(crate) source: Source,
    pub(crate) has_parts: bool,
    /// Whether the padding in front is there to be patched.
    pub(crate) dead: bool,
}

impl Function {
    /// The entry's address, as the file says (an image's base applied).
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes the function has from its entry on, if that is known: of a symbol, of unwind information,
    /// or, in a kernel, up to the padding in front of the next symbol. Parts elsewhere are not counted.
    pub const fn length(&self) -> Option<u64> {
        if self.length == 0 { None } else { Some(self.length as u64) }
    }

    /// What says that it is there.
    pub const fn source(&self) -> Source {
        self.source
    }

    /// Whether the file gives it a name.
    pub fn is_named(&self) -> bool {
        self.name != Name::NONE
    }

    /// Where the next symbol is, if the file's symbols are complete.
    pub const fn next_symbol(&self) -> Option<u64> {
        if self.next == 0 { None } else { Some(self.address + self.next as u64) }
    }
}
