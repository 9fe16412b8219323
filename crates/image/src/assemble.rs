//! Functions out of starts: one for each address, with bounds, and what is left out.

use crate::function::{Function, Source};
use crate::left_out::Reason;
use crate::names::{Name, owner_of_part};
use crate::starts::{Found, Piece, Start, What};

/// A further name of a function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alias {
    pub(crate) address: u64,
    pub(crate) name: Name,
}

#[derive(Debug, Default)]
pub(crate) struct Functions {
    pub(crate) functions: Vec<Function>,
    pub(crate) aliases: Vec<Alias>,
}

/// More padding than this in front of a function is not padding but code without a symbol.
const MAX_BEFORE: u64 = 4096;

/// Of more names for one address the rest is not looked at.
const MAX_NAMES: usize = 256;
/// Of static functions of one name that have more parts, nobody can say whose is whose.
const MAX_PARTS: usize = 32;

/// What was seen below the start that is looked at.
#[derive(Default)]
struct Below {
    /// Where the longest of all that is below ends.
    reach: u64,
    /// Where the longest symbol below ends.
    symbol_reach: u64,
    /// Whether it is known where the last one below ends.
    known: bool,
    /// The padding that is there to be patched, if it is the last one below.
    pad: Option<u64>,
    /// The range of code that they are in.
    range: u64,
}

/// `found.starts` are sorted by address.
pub(crate) fn assemble(found: &mut Found, file: &[u8]) -> Functions {
    let starts = core::mem::take(&mut found.starts);
    let mut made = Functions::default();
    let mut parts: Vec<(Name, u64, u32)> = Vec::new();
    let mut below = Below::default();
    // What comparing names may cost. A file made for it has long ones that are the same.
    let mut effort = file.len().saturating_mul(32).saturating_add(1 << 24);
    // What surveys of all functions may have to look through. Functions overlap a little where hands wrote them; a file
    // made for it has many that all reach to the end.
    let mut reading = found.code.total().saturating_mul(16).saturating_add(1 << 24);
    let mut inside = Vec::new();
    let mut index = 0;
    while let Some(first) = starts.get(index) {
        let rest = starts.get(index..).unwrap_or_default();
        let count = rest.iter().take_while(|start| start.address == first.address).count();
        let group = Group::of(rest.get(..count).unwrap_or_default());
        index += count;
        let Some(range) = found.code.around(group.address).cloned() else { continue };
        if range.start != below.range {
            below = Below { range: range.start, ..Below::default() };
        }
        if group.address < below.reach {
            inside.push(group.address);
        }
        let verdict = group.verdict(&below);
        match verdict {
            Verdict::Function { mut length } => {
                if group.address < below.symbol_reach {
                    found.tally.add(Reason::Overlaps, group.address);
                }
                if length == 0 {
                    found.tally.add(Reason::NoLength, group.address);
                } else if group.address.saturating_add(length.into()) > range.end {
                    found.tally.add(Reason::TooLong, group.address);
                    length = 0;
                }
                match reading.checked_sub(length.into()) {
                    Some(rest) => reading = rest,
                    None => {
                        found.tally.add(Reason::TooMany("bytes in functions that overlap"), group.address);
                        length = 0;
                    }
                }
                let mut function = group.function(found, file, length, &mut made.aliases, &mut effort);
                (function.before, function.dead) = before(found.complete, &below, group.address);
                if found.complete {
                    function.next =
                        next(&starts, index - count, &function).min(range.end - function.address) as u32;
                }
                made.functions.push(function);
            }
            Verdict::Part => {
                let name = group.starts.iter().find(|start| start.what == What::Part);
                parts.extend(name.map(|start| (start.name, start.address, group.size())));
            }
            Verdict::Left(reason) => found.tally.add(reason, group.address),
            Verdict::Boundary => {}
        }
        if group.all(What::Pad) {
            below.pad = Some(group.address);
            continue;
        }
        let end = group.address.saturating_add(group.size().into());
        below.known = end > group.address || group.address < below.reach;
        below.reach = below.reach.max(end);
        below.symbol_reach = below.symbol_reach.max(group.address.saturating_add(group.symbol_size().into()));
        below.pad = None;
    }
    for target in inside {
        found.push_target(target);
    }
    found.starts = starts;
    join_parts(found, file, &mut made, parts);
    made
}

/// How far behind the entry the next start is that is not inside the function.
fn next(starts: &[Start], index: usize, function: &Function) -> u64 {
    let end = function.address.saturating_add(u64::from(function.length).max(1));
    let rest = starts.get(index..).unwrap_or_default();
    let next = rest.partition_point(|start| start.address < end);
    rest.get(next).map_or(u64::from(u32::MAX), |start| start.address - function.address).min(u32::MAX.into())
}

/// How many bytes are between a start and the end of what is below it; and whether they are there to be patched.
fn before(complete: bool, below: &Below, address: u64) -> (u16, bool) {
    if !complete {
        return (0, false);
    }
    let from = match below.pad {
        Some(pad) => pad,
        None if below.known => below.reach,
        None => address,
    };
    let len = address.saturating_sub(from);
    let len = if len > MAX_BEFORE { 0 } else { u16::try_from(len).unwrap_or(0) };
    (len, len > 0 && below.pad.is_some())
}

enum Verdict {
    Function { length: u32 },
    Part,
    Boundary,
    Left(Reason),
}

/// All that begins at one address.
struct Group<'s> {
    address: u64,
    starts: &'s [Start],
}

impl<'s> Group<'s> {
    fn of(starts: &'s [Start]) -> Self {
        Self { address: starts.first().map_or(0, |start| start.address), starts }
    }

    fn has(&self, what: What) -> bool {
        self.starts.iter().any(|start| start.what == what)
    }

    fn all(&self, what: What) -> bool {
        self.starts.iter().all(|start| start.what == what)
    }

    fn size_of(&self, counts: impl Fn(What) -> bool) -> u32 {
        self.starts.iter().filter(|start| counts(start.what)).map(|start| start.size).max().unwrap_or(0)
    }

    /// Of several names the longest says where the function ends.
    fn symbol_size(&self) -> u32 {
        self.size_of(|what| matches!(what, What::Function | What::Assembly | What::Part))
    }

    /// Unwind information may hold for several functions at once: a symbol's size goes before it.
    fn size(&self) -> u32 {
        match self.symbol_size() {
            0 => self.size_of(|what| what != What::Pad),
            size => size,
        }
    }

    fn verdict(&self, below: &Below) -> Verdict {
        if self.has(What::Function) || self.has(What::Assembly) {
            let length = self.size();
            if length == 0 && self.address < below.reach {
                return Verdict::Left(Reason::LabelInside);
            }
            return Verdict::Function { length };
        }
        if self.has(What::Part) {
            return Verdict::Part;
        }
        if self.has(What::Piece) {
            return Verdict::Left(Reason::Piece);
        }
        if self.has(What::Unwind) && !self.has(What::Other) {
            // Hand-written assembly may have several pieces of unwind information in one function.
            if self.address < below.symbol_reach {
                return Verdict::Left(Reason::Piece);
            }
            return Verdict::Function { length: self.size() };
        }
        Verdict::Boundary
    }

    /// Chooses the name: of the lowest rank, then the one with the fewest underscores in front, then the
    /// shortest, then the first in the alphabet.
    fn function(
        &self,
        found: &mut Found,
        file: &[u8],
        length: u32,
        aliases: &mut Vec<Alias>,
        effort: &mut usize,
    ) -> Function {
        if self.starts.len() > MAX_NAMES {
            found.tally.add(Reason::TooMany("names of one function"), self.address);
        }
        let named = self.starts.iter().filter(|start| start.name != Name::NONE).take(MAX_NAMES);
        let mut named: Vec<(&Start, &[u8])> =
            named.map(|start| (start, found.names.get(file, start.name))).collect();
        named.retain(|(_, name)| !name.is_empty());
        let bytes: usize = named.iter().map(|(_, name)| name.len()).sum();
        *effort = effort.saturating_sub(if named.len() > 1 { bytes * named.len() } else { 0 });
        if named.len() > 1 && *effort > 0 {
            named.sort_by_key(|(start, name)| {
                let underscores = name.iter().take_while(|&&byte| byte == b'_').count();
                (start.rank, underscores, name.len(), *name)
            });
            let first = named.first().map(|(_, name)| *name);
            let mut others: Vec<(&[u8], Name)> =
                named.iter().skip(1).map(|(start, name)| (*name, start.name)).collect();
            others.sort_unstable_by_key(|(name, _)| *name);
            others.dedup_by_key(|(name, _)| *name);
            let others = others.iter().filter(|(name, _)| Some(*name) != first);
            aliases.extend(others.map(|&(_, name)| Alias { address: self.address, name }));
        }
        let functions = self.starts.iter().filter(|start| start.what <= What::Unwind);
        Function {
            address: self.address,
            length,
            name: named.first().map_or(Name::NONE, |(start, _)| start.name),
            next: 0,
            before: 0,
            source: functions.map(|start| start.source).min().unwrap_or(Source::Entry),
            has_parts: false,
            dead: false,
        }
    }
}

/// Gives parts to the functions whose names they carry. Static functions of one name have parts of one name:
/// each gets them all.
fn join_parts(found: &mut Found, file: &[u8], made: &mut Functions, parts: Vec<(Name, u64, u32)>) {
    if !parts.is_empty() {
        let mut by_owner: Vec<(&[u8], u64, u32, bool)> = Vec::with_capacity(parts.len());
        for (name, address, size) in parts {
            let owner = owner_of_part(found.names.get(file, name)).unwrap_or_default();
            by_owner.push((owner, address, size, false));
        }
        by_owner.sort_unstable();
        let aliases = made.aliases.iter().map(|alias| (alias.address, alias.name));
        let names = made.functions.iter().map(|function| (function.address, function.name)).chain(aliases);
        for (owner, name) in names {
            let name = found.names.get(file, name);
            let from = by_owner.partition_point(|part| part.0 < name);
            let parts = by_owner.iter_mut().skip(from).take_while(|part| part.0 == name);
            for part in parts.take(MAX_PARTS) {
                if !name.is_empty() && found.pieces.len() < found.limit {
                    part.3 = true;
                    found.pieces.push(Piece { owner, address: part.1, size: part.2 });
                }
            }
        }
        for part in by_owner.iter().filter(|part| !part.3) {
            found.tally.add(Reason::Piece, part.1);
        }
    }
    found.pieces.sort_unstable_by_key(|piece| (piece.owner, piece.address));
    found.pieces.dedup_by_key(|piece| (piece.owner, piece.address));
    for piece in &found.pieces {
        if let Ok(index) = made.functions.binary_search_by_key(&piece.owner, |function| function.address)
            && let Some(function) = made.functions.get_mut(index)
        {
            function.has_parts = true;
        }
    }
}
