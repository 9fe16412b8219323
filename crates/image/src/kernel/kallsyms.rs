//! The kernel's own table of names, found in its read-only data.
//!
//! `scripts/kallsyms.c` of the kernel writes it. Names are compressed: each byte stands for one of 256 tokens, and
//! the first letter is the symbol's type. No symbol says where it is, but it can be recognised:
//!
//! ```text
//!   to 6.3   offsets  relative_base  num_syms  names  markers  (seqs)  token_table  token_index
//!   from 6.4                         num_syms  names  markers          token_table  token_index  offsets  relative_base
//! ```
//! 1. The tokens of the digits are the digits, one behind the other: `"0\0" "1\0" .. "9\0"`.
//! 2. `token_index` follows and says where each token is, and so where the table begins.
//! 3. Backwards from there, `num_syms` is a number behind which just so many names can be read whose types are
//!    letters of `nm`, with a marker for every 256th.
//! 4. The offsets are behind the index or in front of `num_syms`: where they are sorted.

use super::{Visited, what_of};
use crate::bytes::{i32_at, u16_at, u32_at, word_at};
use crate::left_out::Reason;
use crate::names::Name;
use crate::starts::Found;
use kdetour_plan::Mode;

/// `KSYM_NAME_LEN`, and the type's letter.
const MAX_NAME: usize = 513;
/// Names are looked for so far in front of the tokens.
const MAX_NAMES: usize = 32 << 20;
const MIN_SYMBOLS: usize = 256;
const MAX_SYMBOLS: usize = 1 << 22;

#[derive(Clone, Copy, Debug)]
enum Addresses {
    /// 32-bit offsets from a base; those of a processor's own memory are not negative and not relative.
    Relative { at: usize, base: u64, absolute_percpu: bool },
    /// Whole addresses.
    Whole { at: usize },
}

/// Where the tables are in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kallsyms {
    count: usize,
    names: usize,
    tokens: usize,
    index: usize,
    addresses: Addresses,
    word: usize,
}

impl Kallsyms {
    pub(super) fn find(file: &[u8], found: &mut Found) -> Option<Self> {
        let word = if found.mode == Mode::Bits32 { 4 } else { 8 };
        // One of them is the table; who looks for digits finds a few others.
        for digits in digits(file).take(64) {
            let Some((tokens, index)) = tokens(file, digits, word) else { continue };
            let Some((count, names)) = names(file, tokens, index, word) else {
                found.tally.add(Reason::Table("kallsyms names"), 0);
                continue;
            };
            let table = Self { count, names, tokens, index, addresses: Addresses::Whole { at: 0 }, word };
            match table.addresses(file, found) {
                Some(addresses) => return Some(Self { addresses, ..table }),
                None => found.tally.add(Reason::Table("kallsyms addresses"), 0),
            }
        }
        None
    }

    /// Looks where the addresses may be.
    fn addresses(&self, file: &[u8], found: &Found) -> Option<Addresses> {
        let behind = align(self.index + 512, self.word);
        let offsets = align(self.count * 4, self.word);
        let mut relative = vec![(behind, behind + offsets)];
        let base = self.names.checked_sub(2 * self.word);
        relative.extend(base.and_then(|base| Some((base.checked_sub(offsets)?, base))));
        for (at, base) in relative {
            let Some(base) = word_at(file, base, self.word) else { continue };
            if found.memory.segment(base).is_none() {
                continue;
            }
            let negative =
                (0..self.count).filter(|i| i32_at(file, at + i * 4).is_some_and(|offset| offset < 0));
            let absolute_percpu = negative.count() > self.count / 2;
            let addresses = Addresses::Relative { at, base, absolute_percpu };
            if self.is_plausible(file, addresses) {
                return Some(addresses);
            }
        }
        let before = self.names.checked_sub(self.word).and_then(|at| at.checked_sub(self.count * self.word));
        let whole = [Some(behind), before].into_iter().flatten().map(|at| Addresses::Whole { at });
        whole.into_iter().find(|&addresses| self.is_plausible(file, addresses))
    }

    /// Whether the addresses are sorted, as the kernel needs them, and not all the same.
    fn is_plausible(&self, file: &[u8], addresses: Addresses) -> bool {
        let table = Self { addresses, ..*self };
        let mut last = 0;
        let mut different = 0usize;
        for index in 0..self.count {
            let Some(address) = table.address(file, index) else { return false };
            if address < last {
                return false;
            }
            different += usize::from(address != last);
            last = address;
        }
        different > self.count / 4
    }

    fn address(&self, file: &[u8], index: usize) -> Option<u64> {
        match self.addresses {
            Addresses::Whole { at } => word_at(file, at + index * self.word, self.word),
            Addresses::Relative { at, base, absolute_percpu } => {
                let offset = i32_at(file, at + index * 4)?;
                Some(match (absolute_percpu, offset) {
                    (true, 0..) => u64::from(offset.cast_unsigned()),
                    (true, _) => base.wrapping_sub(1).wrapping_sub(i64::from(offset).cast_unsigned()),
                    (false, _) => base.wrapping_add(u64::from(offset.cast_unsigned())),
                })
            }
        }
    }

    /// Shows all symbols.
    pub(super) fn visit(&self, file: &[u8], visit: &mut dyn FnMut(Visited<'_>)) {
        let mut at = self.names;
        let mut name = Vec::with_capacity(MAX_NAME);
        for index in 0..self.count {
            let Some((compressed, next)) = compressed(file, at) else { return };
            at = next;
            name.clear();
            for &byte in compressed {
                let token = token(file, self.tokens, self.index, byte).unwrap_or_default();
                name.extend_from_slice(token.get(..MAX_NAME.saturating_sub(name.len())).unwrap_or(token));
            }
            if let Some((&letter, name)) = name.split_first()
                && let Some(address) = self.address(file, index)
            {
                let global = letter.is_ascii_uppercase();
                visit(Visited { address, size: 0, what: what_of(letter), global, name, at: Name::NONE });
            }
        }
    }
}

const fn align(value: usize, to: usize) -> usize {
    value.next_multiple_of(to)
}

/// Where the tokens of the ten digits are.
fn digits(file: &[u8]) -> impl Iterator<Item = usize> {
    const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";
    // Wherever the table is, one of these steps meets a digit of it, or the zero in front of one.
    let steps = (0..file.len()).step_by(DIGITS.len() - 2);
    let starts = steps.filter_map(|at| {
        let (at, digit) = match *file.get(at)? {
            0 => (at + 1, *file.get(at + 1)?),
            digit => (at, digit),
        };
        at.checked_sub(2 * usize::from(digit.checked_sub(b'0').filter(|&digit| digit <= 9)?))
    });
    starts.filter(|&start| file.get(start..start + DIGITS.len()) == Some(DIGITS))
}

/// Where the table of tokens and its index begin.
fn tokens(file: &[u8], digits: usize, word: usize) -> Option<(usize, usize)> {
    let mut end = digits;
    for _ in b'0'..=u8::MAX {
        let token = file.get(end..end.checked_add(MAX_NAME)?)?.iter().position(|&byte| byte == 0)?;
        if token == 0 {
            return None;
        }
        end += token + 1;
    }
    let index = align(end, word);
    let offset = |byte: u8| u16_at(file, index + usize::from(byte) * 2).map(usize::from);
    let table = digits.checked_sub(offset(b'0')?)?;
    if offset(0)? != 0 {
        return None;
    }
    for byte in 1..=u8::MAX {
        let (last, this) = (offset(byte - 1)?, offset(byte)?);
        if this <= last || file.get(table + this - 1) != Some(&0) {
            return None;
        }
    }
    Some((table, index))
}

fn token(file: &[u8], tokens: usize, index: usize, byte: u8) -> Option<&[u8]> {
    let offset = u16_at(file, index + usize::from(byte) * 2)?;
    let from = file.get(tokens + usize::from(offset)..)?;
    Some(crate::bytes::until_zero(from.get(..MAX_NAME).unwrap_or(from)))
}

/// A compressed name, and where the next one is. The length has two bytes if it does not fit into seven bits.
fn compressed(file: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let first = usize::from(*file.get(at)?);
    let (start, len) = match first {
        0..=0x7f => (at + 1, first),
        _ => (at + 2, first & 0x7f | usize::from(*file.get(at + 1)?) << 7),
    };
    let name = file.get(start..start + len)?;
    (len > 0).then_some((name, start + len))
}

/// How many names there are, and where the first one is.
fn names(file: &[u8], tokens: usize, index: usize, word: usize) -> Option<(usize, usize)> {
    let first = tokens.saturating_sub(MAX_NAMES).next_multiple_of(word);
    // A file made to deceive has many numbers that look right for a while.
    let mut effort = 4 * MAX_NAMES;
    let starts = (first..tokens).step_by(word);
    for at in starts.rev() {
        let Some(count) = u32_at(file, at).map(|count| count as usize) else { continue };
        if !(MIN_SYMBOLS..MAX_SYMBOLS).contains(&count) || word == 8 && u32_at(file, at + 4) != Some(0) {
            continue;
        }
        let names = at + word;
        if let Some(count) = verify(file, names, count, tokens, index, word, &mut effort) {
            return Some((count, names));
        }
        if effort == 0 {
            return None;
        }
    }
    None
}

/// Reads all names; then there must be a marker for every 256th of them.
fn verify(
    file: &[u8],
    names: usize,
    count: usize,
    tokens: usize,
    index: usize,
    word: usize,
    effort: &mut usize,
) -> Option<usize> {
    let mut at = names;
    let mut marked = Vec::new();
    for number in 0..count {
        if number % 256 == 0 {
            marked.push(at - names);
        }
        *effort = effort.saturating_sub(1);
        let (name, next) = compressed(file, at)?;
        let letter = token(file, tokens, index, *name.first()?)?.first().copied()?;
        if next > tokens || *effort == 0 || !(letter.is_ascii_alphabetic() || letter == b'?') {
            return None;
        }
        at = next;
    }
    let markers = align(at, word);
    let mut fits = marked.iter().enumerate();
    let fits = fits.all(|(number, &offset)| u32_at(file, markers + number * 4) == u32::try_from(offset).ok());
    fits.then_some(count)
}
