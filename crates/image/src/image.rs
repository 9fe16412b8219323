//! A file, read: every function of it, and what a survey of each should know.

use crate::assemble::{Alias, assemble};
use crate::branches::Sweep;
use crate::error::Error;
use crate::facts::{Facts, MAX_REGIONS};
use crate::function::Function;
use crate::kernel::{self, KernelSymbols};
use crate::left_out::LeftOut;
use crate::memory::{Memory, Ranges, Segment};
use crate::names::Names;
use crate::starts::{Found, Piece};
use crate::{elf, pe};
use arrayvec::ArrayVec;
use core::fmt;
use core::ops::Range;
use kdetour_plan::{Code, Mode, Region, Reserved};
use std::borrow::Cow;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// What a file is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An ELF program or library.
    Elf,
    /// An ELF object file whose sections were laid out here: a kernel module, for example.
    Object,
    /// A PE32 or PE32+ image.
    Pe,
    /// A Linux kernel: `vmlinux`, or unpacked from a boot image.
    Kernel,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Elf => "ELF",
            Self::Object => "ELF object",
            Self::Pe => "PE",
            Self::Kernel => "Linux kernel",
        })
    }
}

/// What is given besides the file.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The text of a kernel's `/proc/kallsyms` or `System.map`, for an image without symbols or instead of them.
    /// The addresses may be those of a running kernel that was loaded elsewhere (KASLR).
    pub kallsyms: Option<String>,
}

/// A file, read.
pub struct Image {
    file: Vec<u8>,
    kind: Kind,
    mode: Mode,
    memory: Memory,
    code: Ranges,
    names: Names,
    functions: Vec<Function>,
    aliases: Vec<Alias>,
    pieces: Vec<Piece>,
    targets: Vec<u64>,
    reserved: Vec<Reserved>,
    rewritten: Vec<Reserved>,
    fentry: Vec<u64>,
    data: ArrayVec<Range<u64>, MAX_REGIONS>,
    got: Option<u64>,
    bounds: Option<(u64, u64)>,
    complete: bool,
    left_out: Vec<LeftOut>,
}

/// How an ELF file begins.
const ELF: &[u8] = b"\x7fELF";
/// How a PE file begins, and a kernel that firmware can start.
const PE: &[u8] = b"MZ";
/// So much of a file tells what it is: a boot image's header is behind its first sector.
const START: u64 = 4096;
/// Bytes in front of a function that a survey may take for a cave.
const CAVE: u64 = 5;
/// What is shown behind a function's end, so that padding can be looked at.
const BEHIND: u64 = 64;
/// What is shown of a function of unknown length, at most.
const UNKNOWN: u64 = 4096;

impl Image {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`] if the file cannot be read, or nothing can be made of it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path, &Options::default())
    }

    /// Reads a file, with what is known besides.
    ///
    /// # Errors
    /// As [`open`](Self::open); and if [`Options::kallsyms`] is no list of this kernel's symbols.
    pub fn open_with(path: impl AsRef<Path>, options: &Options) -> Result<Self, Error> {
        let mut source = File::open(path)?;
        // A large file that is none of ours is not read to its end.
        let mut file = Vec::new();
        source.by_ref().take(START).read_to_end(&mut file)?;
        let compressed = kernel::is_compressed(&file);
        if compressed || kernel::is_boot_image(&file) || file.starts_with(ELF) || file.starts_with(PE) {
            source.read_to_end(&mut file)?;
        }
        Self::parse_with(file, options)
    }

    /// Takes the bytes of a file.
    ///
    /// # Errors
    /// [`Error`] if nothing can be made of it.
    pub fn parse(file: Vec<u8>) -> Result<Self, Error> {
        Self::parse_with(file, &Options::default())
    }

    /// Takes the bytes of a file, with what is known besides.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); and if [`Options::kallsyms`] is no list of this kernel's symbols.
    pub fn parse_with(mut file: Vec<u8>, options: &Options) -> Result<Self, Error> {
        let symbols = options.kallsyms.as_deref().map(KernelSymbols::parse).transpose()?;
        if kernel::is_compressed(&file) {
            file = kernel::decompress(&file)?;
        }
        let boot = kernel::is_boot_image(&file);
        if boot {
            file = kernel::unpack(file)?;
        }
        let mut found = if file.starts_with(ELF) {
            elf::read(&mut file, symbols.as_ref(), boot)?
        } else if file.starts_with(PE) {
            pe::read(&file)?
        } else {
            return Err(Error::UnknownFormat);
        };
        drop(symbols);
        found.starts.sort_unstable_by_key(|start| (start.address, start.what));
        let sweep = Sweep {
            file: &file,
            memory: &found.memory,
            code: &found.code,
            mode: found.mode,
            gapless: found.gapless,
            limit: found.limit,
        };
        let branches = sweep.run(&mut found.starts);
        for target in branches {
            found.push_target(target);
        }
        let made = assemble(&mut found, &file);
        let mut image = Self::of(file, found);
        image.functions = made.functions;
        image.aliases = made.aliases;
        image.mark_hot_patchable();
        Ok(image)
    }

    fn of(file: Vec<u8>, mut found: Found) -> Self {
        found.targets.sort_unstable();
        found.targets.dedup();
        for sites in [&mut found.reserved, &mut found.rewritten] {
            sites.sort_by_key(|site| site.address);
            // Alternatives to alternatives are about the same bytes.
            sites.dedup();
        }
        found.fentry.sort_unstable();
        Self {
            file,
            kind: found.kind,
            mode: found.mode,
            memory: found.memory,
            code: found.code,
            names: found.names,
            functions: Vec::new(),
            aliases: Vec::new(),
            pieces: found.pieces,
            targets: found.targets,
            reserved: found.reserved,
            rewritten: found.rewritten,
            fentry: found.fentry,
            data: largest(found.data),
            got: found.got,
            bounds: found.bounds,
            complete: found.complete,
            left_out: found.tally.finish(),
        }
    }

    /// `mov edi, edi` behind five bytes of padding is there to be patched: 32-bit images built with `/hotpatch`.
    fn mark_hot_patchable(&mut self) {
        if self.kind != Kind::Pe || self.mode != Mode::Bits32 {
            return;
        }
        for function in &mut self.functions {
            let Some(pad) = function.address.checked_sub(5) else { continue };
            let bytes = self.memory.between(&self.file, pad, function.address + 2);
            let padded = |byte: &u8| matches!(byte, 0x90 | 0xcc);
            if bytes.get(5..) == Some(&[0x8b, 0xff])
                && bytes.get(..5).is_some_and(|pad| pad.iter().all(padded))
            {
                function.before = function.before.clamp(5, 5);
                function.dead = true;
            }
        }
    }

    /// What the file is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it is a Linux kernel.
    pub fn is_kernel(&self) -> bool {
        self.kind == Kind::Kernel
    }

    /// How its code is decoded.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Every function, sorted by address, one for each address.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Whether the file says of every function that it is there. If not, something unknown may be between two.
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// The function that begins at an address.
    pub fn function_at(&self, address: u64) -> Option<&Function> {
        let index = self.functions.binary_search_by_key(&address, |function| function.address).ok()?;
        self.functions.get(index)
    }

    /// The function whose bytes hold an address: the innermost if there are several.
    pub fn function_around(&self, address: u64) -> Option<&Function> {
        let behind = self.functions.partition_point(|function| function.address <= address);
        // A function that others are nested in begins not far below them.
        let below = self.functions.get(..behind)?.iter().rev().take(1024);
        below.into_iter().find(|function| address - function.address < u64::from(function.length.max(1)))
    }

    /// The function of a name or alias. Of several (static functions of one name) the one at the lowest address.
    pub fn function_by_name(&self, name: &str) -> Option<&Function> {
        self.functions_by_name(name).next()
    }

    /// All functions of a name or alias, by address. It goes through all names. A function without a name is found
    /// by the one that [`name`](Self::name) makes up.
    pub fn functions_by_name(&self, name: &str) -> impl Iterator<Item = &Function> {
        let wanted = name.as_bytes();
        let aliases = self.aliases.iter().filter(|alias| self.names.get(&self.file, alias.name) == wanted);
        let mut found: Vec<u64> = aliases.map(|alias| alias.address).collect();
        let named = self
            .functions
            .iter()
            .filter(|function| function.is_named() && self.names.get(&self.file, function.name) == wanted);
        found.extend(named.map(|function| function.address));
        if let Some(address) = name.strip_prefix(NAMELESS).and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
            found.extend(
                self.function_at(address)
                    .filter(|function| !function.is_named())
                    .map(|function| function.address),
            );
        }
        found.sort_unstable();
        found.dedup();
        found.into_iter().filter_map(|address| self.function_at(address))
    }

    /// The function's name; `sub_` and its address if the file gives it none.
    pub fn name(&self, function: &Function) -> Cow<'_, str> {
        match self.names.get(&self.file, function.name) {
            [] => Cow::Owned(format!("{NAMELESS}{:x}", function.address)),
            name => String::from_utf8_lossy(name),
        }
    }

    /// Its further names.
    pub fn aliases(&self, function: &Function) -> impl Iterator<Item = Cow<'_, str>> {
        let address = function.address;
        let from = self.aliases.partition_point(|alias| alias.address < address);
        let aliases = self.aliases.get(from..).unwrap_or_default().iter();
        let aliases = aliases.take_while(move |alias| alias.address == address);
        aliases.map(|alias| String::from_utf8_lossy(self.names.get(&self.file, alias.name)))
    }

    /// The function's bytes and some behind its end, so that padding can be looked at; and its length, if known.
    pub fn code(&self, function: &Function) -> Code<'_> {
        let end = match (function.length, function.next) {
            (0, 0) => UNKNOWN,
            (0, next) => u64::from(next).min(UNKNOWN),
            (length, _) => length.into(),
        };
        let end = function.address.saturating_add(end).saturating_add(BEHIND);
        let code = Code::in_mode(
            self.mode,
            function.address,
            self.memory.between(&self.file, function.address, end),
        );
        match usize::try_from(function.length) {
            Ok(0) | Err(_) => code,
            Ok(length) => code.with_length(length),
        }
    }

    /// What a survey of the function should know.
    pub fn facts(&self, function: &Function) -> Facts<'_> {
        let address = function.address;
        let reach = u64::from(function.length) + BEHIND;
        let end = address.saturating_add(reach).min(function.next_symbol().unwrap_or(u64::MAX));
        let before = address.saturating_sub(function.before.into());
        // No cave where somebody jumps to, or that somebody owns.
        let cave = address.saturating_sub(CAVE);
        let taken = !between(&self.targets, cave, address, |&target| target).is_empty()
            || !between(&self.reserved, cave, address, |reserved| reserved.address).is_empty();
        let before = if taken { address } else { before };
        let region = |range: &Range<u64>| Region {
            address: range.start,
            bytes: self.memory.between(&self.file, range.start, range.end),
        };
        Facts {
            fentry: self.fentry(address),
            next_symbol: function.next_symbol(),
            before: self.memory.between(&self.file, before, address),
            dead: function.dead,
            image: self.bounds,
            parts: if function.has_parts { self.parts(address) } else { Vec::new() },
            branch_targets: between(&self.targets, address.saturating_add(1), end, |&target| target),
            reserved: between(&self.reserved, address, end, |reserved| reserved.address),
            rewritten: between(&self.rewritten, address, end, |rewritten| rewritten.address),
            data: self.data.iter().map(region).collect(),
            got: self.got,
        }
    }

    /// The function's own ftrace site: at the entry, or behind the landing pad there.
    fn fentry(&self, address: u64) -> Option<u64> {
        let from = self.fentry.partition_point(|&site| site < address);
        let site = *self.fentry.get(from)?;
        (site == address || site == address.saturating_add(kernel::ENDBR)).then_some(site)
    }

    fn parts(&self, owner: u64) -> Vec<Code<'_>> {
        let pieces = between(&self.pieces, owner, owner.saturating_add(1), |piece| piece.owner);
        let parts = pieces.iter().map(|piece| {
            let end = piece.address.saturating_add(if piece.size == 0 { UNKNOWN } else { piece.size.into() });
            let bytes = self.memory.between(&self.file, piece.address, end);
            let code = Code::in_mode(self.mode, piece.address, bytes);
            if piece.size == 0 { code } else { code.with_length(bytes.len()) }
        });
        parts.collect()
    }

    /// What was found in the file and is not among the functions, or is with a reservation.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// The addresses that the image maps, sorted.
    pub fn segments(&self) -> &[Segment] {
        self.memory.segments()
    }

    /// The file's bytes from an address to the end of its segment; none if nothing is mapped there.
    pub fn bytes_at(&self, address: u64) -> &[u8] {
        self.memory.bytes(&self.file, address)
    }

    /// Whether an address is in a section or segment of code that is looked at.
    pub fn is_code(&self, address: u64) -> bool {
        self.code.contains(address)
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("kind", &self.kind)
            .field("mode", &self.mode)
            .field("functions", &self.functions.len())
            .field("left_out", &self.left_out)
            .finish_non_exhaustive()
    }
}

/// What the names begin with that are made up.
const NAMELESS: &str = "sub_";

fn between<T>(sorted: &[T], start: u64, end: u64, key: impl Fn(&T) -> u64) -> &[T] {
    let from = sorted.partition_point(|item| key(item) < start);
    let rest = sorted.get(from..).unwrap_or_default();
    rest.get(..rest.partition_point(|item| key(item) < end)).unwrap_or_default()
}

/// The largest ranges, by address.
fn largest(data: Vec<Range<u64>>) -> ArrayVec<Range<u64>, MAX_REGIONS> {
    let data = Ranges::new(data);
    let mut ranges: Vec<Range<u64>> = data.iter().cloned().collect();
    ranges.sort_by_key(|range| core::cmp::Reverse(range.end - range.start));
    ranges.truncate(MAX_REGIONS);
    ranges.sort_by_key(|range| range.start);
    ranges.into_iter().collect()
}
