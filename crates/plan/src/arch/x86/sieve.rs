//! A sieve over the bytes of a function: where could a branch into the window be?
//!
//! A direct branch ends with its displacement, and so does the `lea` of a label. So a branch into the window shows
//! as a displacement that leads there, wherever in the bytes it stands; and an indirect jump as `FF /4`. Bytes in
//! which neither is found hold no such branch, however they are decoded: from whichever byte. Only what is caught
//! has to be decoded.

use crate::code::Mode;

/// What the sieve catches, as it is given the bytes of a function piece by piece.
#[derive(Clone, Copy)]
pub(crate) struct Sieve {
    /// The first address that matters.
    pub(crate) start: u64,
    /// How many addresses from there on do.
    pub(crate) len: u32,
    /// How many of them are the function's start: its entry, a landing pad, up to the window's first byte.
    pub(crate) starts: u32,
    pub(crate) mode: Mode,
}

impl Sieve {
    /// How many of the `bytes`, which begin at `address`, have to be decoded: behind them nothing is caught.
    pub(crate) fn caught(self, bytes: &[u8], address: u64) -> usize {
        // A rel16 leads to the lowest 64 KiB only.
        if self.start <= 0xffff {
            return bytes.len();
        }
        let wide = self.wide(bytes, address);
        wide.max(self.short(bytes, address))
    }

    /// A branch with a rel8 that leads to the window; it has to be near.
    fn short(self, bytes: &[u8], address: u64) -> usize {
        let distance = match self.mode {
            Mode::Bits64 => self.start.wrapping_sub(address).cast_signed(),
            Mode::Bits32 => i64::from(low_half(self.start.wrapping_sub(address)).cast_signed()),
        };
        let place = |distance: i64| usize::try_from(distance.max(0)).unwrap_or(usize::MAX).min(bytes.len());
        let first = place(distance.saturating_sub(SHORT));
        let last = place(distance.saturating_add(SHORT + i64::from(self.len)));
        let near = bytes.get(first..last).unwrap_or(&[]);
        let found = near.windows(2).enumerate().rev().find(|(at, pair)| match **pair {
            [0x70..=0x7f | 0xe0..=0xe3 | 0xeb, displacement] => {
                let end = address.wrapping_add((first + *at) as u64 + 2);
                self.holds(end.wrapping_add_signed(i64::from(displacement.cast_signed())))
            }
            _ => false,
        });
        found.map_or(0, |(at, _)| first + at + 2)
    }

    /// A rel32 that leads to the window, an address inside it as an immediate, or an indirect jump.
    fn wide(self, bytes: &[u8], address: u64) -> usize {
        /// So many places are looked at together.
        const BLOCK: usize = 64;
        // Modulo 2^32 the arithmetic is the same in both modes. A far function that looks near is merely decoded.
        let (start, end) = (low_half(self.start), low_half(address.wrapping_add(4)));
        let (len, labels) = (self.len, self.len.saturating_sub(1));
        let mut caught = 0;
        let mut at = 0;
        while let Some(block) = bytes.get(at..).filter(|rest| rest.len() >= 4) {
            let block = block.get(..BLOCK + 3).unwrap_or(block);
            let places = block.len() - 3;
            let mut end = end.wrapping_add(low_half(at as u64)).wrapping_sub(start);
            let mut hit = false;
            let columns = block.iter().zip(block.iter().skip(1));
            for ((&a, &b), (&c, &d)) in columns.zip(block.iter().skip(2).zip(block.iter().skip(3))) {
                let value = u32::from_le_bytes([a, b, c, d]);
                let relative = value.wrapping_add(end) < len;
                let absolute = value.wrapping_sub(start).wrapping_sub(1) < labels;
                // FF /4 of any addressing form; C7 F8: an xbegin may have a rel16.
                let indirect = value & 0x38ff == 0x20ff;
                let transaction = value & 0xffff == 0xf8c7;
                hit |= relative | absolute | indirect | transaction;
                end = end.wrapping_add(1);
            }
            at += places;
            if hit {
                caught = at + 3;
            }
        }
        // An indirect jump takes two bytes, and may be the last ones.
        let tail = bytes.len().saturating_sub(4);
        let last = bytes.get(tail..).unwrap_or(&[]);
        if last.windows(2).any(|pair| matches!(*pair, [0xff, modrm] if modrm & 0x38 == 0x20)) {
            caught = bytes.len();
        }
        caught
    }

    /// Whether `target` is one of the addresses that matter.
    pub(crate) fn holds(self, target: u64) -> bool {
        self.mode.wrap(target.wrapping_sub(self.start)) < u64::from(self.len)
    }

    /// Whether `target` is the function's start.
    pub(crate) fn is_start(self, target: u64) -> bool {
        self.mode.wrap(target.wrapping_sub(self.start)) < u64::from(self.starts)
    }
}

/// How far a branch with a rel8 is from where it leads, its own bytes included.
const SHORT: i64 = 132;

fn low_half(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
