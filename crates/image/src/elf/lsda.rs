//! Landing pads: where the unwinder lets a function go on with an exception.
//!
//! The language-specific data area of a function, as GCC and LLVM write it into `.gcc_except_table` (described in
//! the Itanium C++ ABI's "Exception Handling Tables"):
//!
//! ```text
//!   byte      encoding of lpstart, 0xff: it is the function's entry
//!   (lpstart)
//!   byte      encoding of the type table, 0xff: there is none
//!   (uleb     offset of the type table)
//!   byte      encoding of the call sites
//!   uleb      size of the call sites in bytes
//!   call site: start, length, landing pad (0: none), uleb action
//! ```

use crate::left_out::Reason;
use crate::starts::Found;
use gimli::{EndianSlice, LittleEndian, Reader};

const OMITTED: u8 = 0xff;
/// The largest functions have some thousand.
const MAX_PADS: usize = 1 << 16;

/// Takes a function's landing pads as branch targets. `effort` is how many bytes may still be looked at.
pub(super) fn read(found: &mut Found, file: &[u8], lsda: u64, entry: u64, effort: &mut usize) {
    let bytes = found.memory.bytes(file, lsda);
    if bytes.is_empty() {
        found.tally.add(Reason::Table(".gcc_except_table"), lsda);
        return;
    }
    let mut pads = Vec::new();
    let read = read_pads(bytes, lsda, entry, effort, &mut pads);
    for pad in pads {
        found.push_target(pad);
    }
    if read.is_none() {
        found.tally.add(Reason::Table(".gcc_except_table"), lsda);
    }
}

fn read_pads(bytes: &[u8], lsda: u64, entry: u64, effort: &mut usize, pads: &mut Vec<u64>) -> Option<()> {
    let mut reader = EndianSlice::new(bytes, LittleEndian);
    let encoding = reader.read_u8().ok()?;
    let start = if encoding == OMITTED {
        entry
    } else {
        let place = lsda.wrapping_add((bytes.len() - reader.len()) as u64);
        let value = read_value(&mut reader, encoding)?;
        if encoding & 0x70 == 0x10 { place.wrapping_add(value) } else { value }
    };
    if reader.read_u8().ok()? != OMITTED {
        reader.read_uleb128().ok()?;
    }
    let encoding = reader.read_u8().ok()?;
    let size = usize::try_from(reader.read_uleb128().ok()?).ok()?;
    *effort = effort.checked_sub(size)?;
    let mut sites = reader.split(size).ok()?;
    while !sites.is_empty() {
        read_value(&mut sites, encoding)?;
        read_value(&mut sites, encoding)?;
        let pad = read_value(&mut sites, encoding)?;
        sites.read_uleb128().ok()?;
        if pad != 0 {
            if pads.len() == MAX_PADS {
                return None;
            }
            pads.push(start.wrapping_add(pad));
        }
    }
    // Many calls land at the same place.
    pads.sort_unstable();
    pads.dedup();
    Some(())
}

/// A number in one of the encodings `DW_EH_PE_*`, without what it is relative to.
fn read_value(reader: &mut EndianSlice<'_, LittleEndian>, encoding: u8) -> Option<u64> {
    match encoding & 0x0f {
        0x01 => reader.read_uleb128().ok(),
        0x02 => reader.read_u16().ok().map(u64::from),
        0x03 => reader.read_u32().ok().map(u64::from),
        0x00 | 0x04 | 0x0c => reader.read_u64().ok(),
        0x09 => reader.read_sleb128().ok().map(i64::cast_unsigned),
        0x0a => reader.read_i16().ok().map(|value| i64::from(value).cast_unsigned()),
        0x0b => reader.read_i32().ok().map(|value| i64::from(value).cast_unsigned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn landing_pads_are_relative_to_the_entry() {
        // No lpstart, no types, uleb128 sites of 8 bytes: (0, 5, pad 0x20, 1), (5, 3, none, 0).
        let table = [0xff, 0xff, 0x01, 8, 0, 5, 0x20, 1, 5, 3, 0, 0];
        let mut pads = Vec::new();
        assert_eq!(read_pads(&table, 0x9000, 0x1000, &mut 100, &mut pads), Some(()));
        assert_eq!(pads, [0x1020]);
        assert_eq!(read_pads(&table, 0x9000, 0x1000, &mut 7, &mut pads), None);
        assert_eq!(read_pads(&table[..9], 0x9000, 0x1000, &mut 100, &mut pads), None);
    }
}
