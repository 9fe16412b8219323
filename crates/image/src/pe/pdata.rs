//! `.pdata`: bounds of all 64-bit functions that are not leaves.
//!
//! A function may have several entries. One whose unwind information is chained (`UNW_FLAG_CHAININFO`) is about
//! another piece of the function that the chain ends at: it is no function of its own. A piece that follows on the
//! function makes it longer, another one is a part elsewhere.

use super::Reader;
use crate::bytes::u32_at;
use crate::function::Source;
use crate::left_out::Reason;
use crate::names::Name;
use crate::starts::{Piece, What};

const ENTRY: usize = 12;
const CHAINED: u8 = 4;
/// Longer chains are damaged ones.
const MAX_CHAIN: usize = 32;

#[derive(Clone, Copy)]
struct Entry {
    begin: u32,
    end: u32,
    unwind: u32,
}

fn entry(bytes: &[u8], at: usize) -> Option<Entry> {
    let entry =
        Entry { begin: u32_at(bytes, at)?, end: u32_at(bytes, at + 4)?, unwind: u32_at(bytes, at + 8)? };
    (entry.begin < entry.end).then_some(entry)
}

/// Takes all entries; says whether there were any.
pub(super) fn read(reader: &mut Reader<'_>, rva: u32, size: u32) -> bool {
    let all = reader.bytes(rva);
    let table = all.get(..size as usize).unwrap_or(all);
    if table.len() < size as usize {
        reader.found.tally.add(Reason::Table(".pdata"), reader.base.wrapping_add(rva.into()));
    }
    let mut any = false;
    // The primary entry that was seen last, and where it now ends: entries are sorted.
    let mut last: Option<Entry> = None;
    let ends = (0..table.len() / ENTRY * ENTRY).step_by(ENTRY);
    for at in ends {
        let Some(this) = entry(table, at) else {
            // A linker that removed a function leaves zeros.
            if u32_at(table, at) != Some(0) {
                reader.found.tally.add(Reason::Table(".pdata"), reader.base.wrapping_add(rva.into()));
            }
            continue;
        };
        any = true;
        match primary(reader, this) {
            None => {
                flush(reader, last.replace(this));
            }
            Some(owner) => match &mut last {
                Some(last) if last.begin == owner.begin && last.end == this.begin => last.end = this.end,
                _ => {
                    let base = reader.base;
                    if reader.found.pieces.len() < reader.found.limit {
                        reader.found.pieces.push(Piece {
                            owner: base.wrapping_add(owner.begin.into()),
                            address: base.wrapping_add(this.begin.into()),
                            size: this.end - this.begin,
                        });
                    }
                    // Something begins there, so that nothing reaches across.
                    reader.push(this.begin, this.end - this.begin, What::Part, Source::Pdata, Name::NONE);
                }
            },
        }
    }
    flush(reader, last);
    any
}

fn flush(reader: &mut Reader<'_>, entry: Option<Entry>) {
    if let Some(entry) = entry {
        reader.push(entry.begin, entry.end - entry.begin, What::Unwind, Source::Pdata, Name::NONE);
    }
}

/// The entry that a chain ends at; none if this one is not chained.
fn primary(reader: &mut Reader<'_>, first: Entry) -> Option<Entry> {
    let mut this = first;
    let mut next = Some(chained(reader, this)?);
    for _ in 0..MAX_CHAIN {
        let Some(found) = next else { return Some(this) };
        this = found;
        next = chained(reader, this);
    }
    reader
        .found
        .tally
        .add(Reason::Table("chained unwind information"), reader.base.wrapping_add(first.begin.into()));
    Some(this)
}

/// The entry that the unwind information of this one is chained to: behind its codes, of which there is an even
/// number.
fn chained(reader: &Reader<'_>, entry: Entry) -> Option<Entry> {
    // An odd address says directly which entry this one shares its information with.
    if entry.unwind & 1 != 0 {
        return self::entry(reader.bytes(entry.unwind & !1), 0);
    }
    let info = reader.bytes(entry.unwind);
    let (first, codes) = (*info.first()?, usize::from(*info.get(2)?));
    if first >> 3 & CHAINED == 0 {
        return None;
    }
    self::entry(info, 4 + codes.next_multiple_of(2) * 2)
}
