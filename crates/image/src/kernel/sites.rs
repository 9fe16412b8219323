//! The kernel's tables of places in its code that it patches, or that faults and traps are looked up by.
//!
//! Where a table is, its symbols say (`__start___ex_table`), or its section. How long an entry is depends on the
//! kernel's version: the length is taken with which every entry makes sense. A table with which none does is left
//! out, and said to be.

use crate::bytes::{array, i32_at, word_at};
use crate::elf::Section;
use crate::kernel::ENDBR;
use crate::left_out::Reason;
use crate::starts::{Found, What};
use kdetour_plan::{Mode, Owner, Reserved};

/// A table, by the symbols around it and by its section.
struct Table {
    kind: TableKind,
    start: &'static [u8],
    stop: &'static [u8],
    section: &'static [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TableKind {
    /// `struct exception_table_entry`.
    Exceptions,
    /// Addresses of calls of `__fentry__`.
    Ftrace,
    /// `struct alt_instr`.
    Alternatives,
    /// Where `lock` prefixes are, which one processor alone does not need.
    SmpLocks,
    /// `struct jump_entry`.
    JumpLabels,
    /// `struct static_call_site`.
    StaticCalls,
    /// `struct bug_entry`.
    Bugs,
    /// Rewritten once, while the kernel boots: indirect branches, returns, calls, landing pads.
    Retpolines,
    Returns,
    Calls,
    Seals,
}

const TABLES: [Table; 11] = {
    const fn table(kind: TableKind, start: &'static str, stop: &'static str, section: &'static str) -> Table {
        Table { kind, start: start.as_bytes(), stop: stop.as_bytes(), section: section.as_bytes() }
    }
    use TableKind::*;
    [
        table(Exceptions, "__start___ex_table", "__stop___ex_table", "__ex_table"),
        table(Ftrace, "__start_mcount_loc", "__stop_mcount_loc", "__mcount_loc"),
        table(Alternatives, "__alt_instructions", "__alt_instructions_end", ".altinstructions"),
        table(SmpLocks, "__smp_locks", "__smp_locks_end", ".smp_locks"),
        table(JumpLabels, "__start___jump_table", "__stop___jump_table", "__jump_table"),
        table(StaticCalls, "__start_static_call_sites", "__stop_static_call_sites", ".static_call_sites"),
        table(Bugs, "__start___bug_table", "__stop___bug_table", "__bug_table"),
        table(Retpolines, "__retpoline_sites", "__retpoline_sites_end", ".retpoline_sites"),
        table(Returns, "__return_sites", "__return_sites_end", ".return_sites"),
        table(Calls, "__call_sites", "__call_sites_end", ".call_sites"),
        table(Seals, "__ibt_endbr_seal", "__ibt_endbr_seal_end", ".ibt_endbr_seal"),
    ]
};

/// Where the tables are.
#[derive(Debug)]
pub(super) struct Sites {
    bounds: [(Option<u64>, Option<u64>); TABLES.len()],
    text: (Option<u64>, Option<u64>),
}

impl Sites {
    pub(super) fn new(sections: &[Section<'_>]) -> Self {
        let mut sites = Self { bounds: [(None, None); TABLES.len()], text: (None, None) };
        for (bounds, table) in sites.bounds.iter_mut().zip(&TABLES) {
            if let Some(section) = sections.iter().find(|section| section.name == table.section) {
                *bounds = (Some(section.range().start), Some(section.range().end));
            }
        }
        sites
    }

    /// Looks whether a symbol says where a table is.
    pub(super) fn note(&mut self, name: &[u8], address: u64) {
        if !name.starts_with(b"_") {
            return;
        }
        match name {
            b"_stext" => self.text.0 = Some(address),
            b"_etext" => self.text.1 = Some(address),
            _ => {}
        }
        for (bounds, table) in self.bounds.iter_mut().zip(&TABLES) {
            if name == table.start {
                bounds.0 = Some(address);
            } else if name == table.stop {
                bounds.1 = Some(address);
            }
        }
    }

    pub(super) const fn stext(&self) -> Option<u64> {
        self.text.0
    }

    /// The core's text.
    pub(super) fn text(&self) -> Option<(u64, u64)> {
        self.text.0.zip(self.text.1).filter(|(start, end)| start < end)
    }

    /// Takes all tables.
    pub(super) fn read(&self, found: &mut Found, file: &[u8]) {
        for (bounds, table) in self.bounds.iter().zip(&TABLES) {
            let &(Some(start), Some(end)) = bounds else { continue };
            let bytes = found.memory.between(file, start, end);
            if start >= end {
                continue;
            }
            // Some tables are filled up to a page, with zeros.
            let bytes = if table.kind == TableKind::SmpLocks { without_zeros(bytes) } else { bytes };
            let reader = Reader { file, bytes, start };
            let len = entry_lengths(table.kind, found)
                .iter()
                .copied()
                .find(|&len| reader.makes_sense(found, table.kind, len));
            match len {
                Some(len) => {
                    for at in (0..bytes.len() / len * len).step_by(len) {
                        reader.take(found, table.kind, at, len);
                    }
                }
                None => found.tally.add(Reason::Table(named(table.section)), start),
            }
        }
        split_ftrace(found);
    }
}

/// Keeps the ftrace sites that are the function's own: at its entry, or behind the landing pad there. A site further
/// in is somebody else's.
fn split_ftrace(found: &mut Found) {
    let functions = found.starts.iter().filter(|start| start.what <= What::Unwind);
    let mut entries: Vec<u64> = functions.map(|start| start.address).collect();
    entries.sort_unstable();
    let (own, others): (Vec<u64>, Vec<u64>) =
        core::mem::take(&mut found.fentry).into_iter().partition(|&site| {
            [site, site.wrapping_sub(ENDBR)].iter().any(|at| entries.binary_search(at).is_ok())
        });
    found.fentry = own;
    for address in others {
        found.reserve(Reserved { address, len: FENTRY, owner: Owner::Ftrace }, false);
    }
}

/// `call __fentry__`, or a nop.
const FENTRY: u32 = 5;

fn named(section: &'static [u8]) -> &'static str {
    core::str::from_utf8(section).unwrap_or("a table of sites")
}

/// Whether the kernel writes there once, while it boots, and never again. `lock` prefixes are rewritten only on a
/// machine that starts with one processor; should that be given another one later, they come back: there the running
/// kernel says so (`alternatives_text_reserved`), and its own survey refuses them.
fn only_at_boot(kind: TableKind) -> bool {
    matches!(
        kind,
        TableKind::Alternatives
            | TableKind::SmpLocks
            | TableKind::Retpolines
            | TableKind::Returns
            | TableKind::Calls
            | TableKind::Seals
    )
}

/// Without words of zero at the end.
fn without_zeros(mut bytes: &[u8]) -> &[u8] {
    bytes = bytes.get(..bytes.len() / 4 * 4).unwrap_or(bytes);
    while let Some((rest, [0, 0, 0, 0])) = bytes.split_last_chunk() {
        bytes = rest;
    }
    bytes
}

/// What the kernel's versions have, the newest first.
fn entry_lengths(kind: TableKind, found: &Found) -> &'static [usize] {
    match kind {
        TableKind::Exceptions => &[12, 8],
        TableKind::Ftrace if found.mode == Mode::Bits32 => &[4],
        TableKind::Ftrace => &[8],
        TableKind::Alternatives => &[14, 12, 13],
        TableKind::JumpLabels if found.mode == Mode::Bits32 => &[12],
        TableKind::JumpLabels => &[16],
        TableKind::StaticCalls => &[8],
        TableKind::Bugs => &[12, 16, 8],
        TableKind::SmpLocks
        | TableKind::Retpolines
        | TableKind::Returns
        | TableKind::Calls
        | TableKind::Seals => &[4],
    }
}

/// A table's bytes, and the address of the first.
struct Reader<'f> {
    file: &'f [u8],
    bytes: &'f [u8],
    start: u64,
}

impl Reader<'_> {
    /// The address that a 32-bit number says, relative to where it is.
    fn relative(&self, at: usize) -> Option<u64> {
        let place = self.start.wrapping_add(at as u64);
        Some(place.wrapping_add(i64::from(i32_at(self.bytes, at)?).cast_unsigned()))
    }

    /// The site that an entry is about.
    fn site(&self, found: &Found, kind: TableKind, at: usize) -> Option<u64> {
        match kind {
            TableKind::Ftrace => word_at(self.bytes, at, if found.mode == Mode::Bits32 { 4 } else { 8 }),
            _ => self.relative(at),
        }
    }

    /// Whether all entries can be what they should be, if they are `len` bytes long. Tables also have entries for
    /// code that is freed after boot.
    fn makes_sense(&self, found: &Found, kind: TableKind, len: usize) -> bool {
        if self.bytes.is_empty() || !self.bytes.len().is_multiple_of(len) {
            return false;
        }
        (0..self.bytes.len()).step_by(len).all(|at| {
            let Some(site) = self.site(found, kind, at) else { return false };
            // A weak function that lost leaves nothing of its ftrace site but a zero.
            if kind == TableKind::Ftrace && site == 0 {
                return true;
            }
            let code = found.memory.bytes(self.file, site);
            found.memory.segment(site).is_some_and(|segment| segment.executable)
                && match kind {
                    TableKind::Bugs => {
                        code.starts_with(&[0x0f, 0x0b])
                            || code.starts_with(&[0x67, 0x0f, 0xb9])
                            || code.starts_with(&[0xd6])
                    }
                    // Other prefixes may be in front.
                    TableKind::SmpLocks => code.iter().take(4).any(|byte| matches!(byte, 0xf0 | 0x3e)),
                    TableKind::Exceptions => {
                        self.relative(at + 4).is_some_and(|fixup| found.memory.segment(fixup).is_some())
                    }
                    TableKind::JumpLabels => {
                        self.relative(at + 4).is_some_and(|target| found.memory.segment(target).is_some())
                    }
                    TableKind::Alternatives => {
                        let (bytes, replacement) = self.alternative(at, len);
                        self.relative(at + 4).is_some_and(|new| found.memory.segment(new).is_some())
                            && bytes > 0
                            && replacement <= bytes
                    }
                    _ => true,
                }
        })
    }

    /// How long the original and the replacement of an alternative are: the last bytes of the entry, but for one of
    /// padding in old kernels.
    fn alternative(&self, at: usize, len: usize) -> (u8, u8) {
        let lengths = if len == 13 { at + 10 } else { at + len - 2 };
        let [bytes, replacement] = array(self.bytes, lengths).unwrap_or([0; 2]);
        (bytes, replacement)
    }

    fn take(&self, found: &mut Found, kind: TableKind, at: usize, len: usize) {
        let Some(site) = self.site(found, kind, at) else { return };
        if !found.code.contains(site) {
            return;
        }
        let code = found.memory.bytes(self.file, site);
        let once = only_at_boot(kind);
        let mut reserve = |len: u32, owner| found.reserve(Reserved { address: site, len, owner }, once);
        match kind {
            TableKind::Exceptions => reserve(1, Owner::ExceptionTable),
            TableKind::Ftrace => found.fentry.push(site),
            TableKind::Alternatives => {
                let (bytes, _) = self.alternative(at, len);
                reserve(bytes.into(), Owner::Alternative);
            }
            TableKind::SmpLocks => reserve(1, Owner::Alternative),
            TableKind::JumpLabels => {
                // jmp rel8 and its two-byte nop, jmp rel32 and its five-byte nop.
                let short = matches!(code, [0xeb, ..] | [0x66, 0x90, ..]);
                reserve(if short { 2 } else { 5 }, Owner::JumpLabel);
            }
            TableKind::StaticCalls => {
                // A conditional tail call is a byte longer.
                let conditional = matches!(code, [0x0f, 0x80..=0x8f, ..] | [0x2e, 0x0f, 0x80..=0x8f, ..]);
                reserve(if conditional { 6 } else { 5 }, Owner::StaticCall);
            }
            TableKind::Bugs => reserve(2, Owner::BugTable),
            TableKind::Retpolines | TableKind::Returns | TableKind::Calls => reserve(5, Owner::Alternative),
            TableKind::Seals => reserve(4, Owner::Alternative),
        }
        if matches!(kind, TableKind::Exceptions | TableKind::JumpLabels)
            && let Some(target) = self.relative(at + 4)
        {
            found.push_target(target);
        }
    }
}
