//! Who branches into a function from outside it, where the other code's instructions are not known: by its bytes.
//!
//! A compiler moves the unlikely part of a function away (`.cold`), and that part jumps back to anywhere. Where no
//! symbol names it, whatever looks like a direct branch, from whichever byte on, is taken for one: too strict rather
//! than too lax, and seldom (four addresses of 2^32).

/// The longest direct branch that is looked for, in bytes: pieces of code have to overlap by one less.
pub const MAX_BRANCH: usize = 6;

/// Reports every place in 64-bit `bytes`, which begin at `address`, that reads as a direct branch or call to one of
/// the addresses from `first` to before `end`: where it is, and where it leads.
pub fn branches_beside(bytes: &[u8], address: u64, first: u64, end: u64, mut report: impl FnMut(u64, u64)) {
    let len = end.wrapping_sub(first);
    let place = |at: usize| address.wrapping_add(at as u64);
    let mut hit = |at: usize, size: usize, displacement: i64| {
        let into = place(at + size).wrapping_add_signed(displacement);
        if into.wrapping_sub(first) < len {
            report(place(at), into);
        }
    };
    // jcc, loop*, j*cxz, jmp with a rel8: they have to be near.
    let distance = first.wrapping_sub(address).cast_signed();
    let clamp = |at: i64| usize::try_from(at.max(0)).unwrap_or(usize::MAX).min(bytes.len());
    let near = clamp(distance.saturating_sub(SHORT));
    let behind = clamp(distance.saturating_add_unsigned(len).saturating_add(SHORT));
    for (at, pair) in bytes.get(near..behind).unwrap_or(&[]).windows(2).enumerate() {
        if let [0x70..=0x7f | 0xe0..=0xe3 | 0xeb, displacement] = *pair {
            hit(near + at, 2, i64::from(displacement.cast_signed()));
        }
    }
    // Those with a rel32 end with it. Modulo 2^32 few are left to be looked at.
    let (start, width) = (low_half(place(4).wrapping_sub(first)), low_half(len));
    let mut offset = 0_u32;
    for (at, field) in bytes.windows(4).enumerate() {
        let &[a, b, c, d] = field else { continue };
        let displacement = u32::from_le_bytes([a, b, c, d]);
        let leads = displacement.wrapping_add(start).wrapping_add(offset) < width;
        offset = offset.wrapping_add(1);
        if !leads {
            continue;
        }
        let displacement = i64::from(displacement.cast_signed());
        match *bytes.get(at.saturating_sub(2)..at).unwrap_or(&[]) {
            // call, jmp
            [_, 0xe8 | 0xe9] => hit(at - 1, 5, displacement),
            // jcc; xbegin
            [0x0f, 0x80..=0x8f] | [0xc7, 0xf8] => hit(at - 2, 6, displacement),
            [0xe8 | 0xe9] => hit(at - 1, 5, displacement),
            _ => {}
        }
    }
}

/// How far a branch with a rel8 is from where it leads, its own bytes included.
const SHORT: i64 = 132;

fn low_half(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn every_form_is_found_and_only_into_the_range() {
        let found = |bytes: &[u8]| {
            let mut found = Vec::new();
            branches_beside(bytes, 0x1000, 0x1101, 0x1105, |from, into| found.push((from, into)));
            found
        };
        // jmp rel32, call rel32, jcc rel32, xbegin
        assert_eq!(found(&[0xe9, 0xfc, 0, 0, 0]), [(0x1000, 0x1101)]);
        assert_eq!(found(&[0x90, 0xe8, 0xfe, 0, 0, 0]), [(0x1001, 0x1104)]);
        assert_eq!(found(&[0x0f, 0x84, 0xfb, 0, 0, 0]), [(0x1000, 0x1101)]);
        assert_eq!(found(&[0xc7, 0xf8, 0xfb, 0, 0, 0]), [(0x1000, 0x1101)]);
        // The same to the addresses on either side, and cut off.
        assert_eq!(found(&[0xe9, 0xfb, 0, 0, 0]), []);
        assert_eq!(found(&[0xe9, 0x00, 1, 0, 0]), []);
        assert_eq!(found(&[0xe9, 0xfc, 0, 0]), []);
        // From far away the same low half is something else.
        let mut far = Vec::new();
        branches_beside(&[0xe9, 0xfc, 0, 0, 0], 0x1_0000_1000, 0x1101, 0x1105, |from, into| {
            far.push((from, into))
        });
        assert_eq!(far, []);
        // jmp rel8 backwards
        let mut short = Vec::new();
        branches_beside(&[0x90, 0xeb, 0xfd], 0x1000, 0x1000, 0x1001, |from, into| short.push((from, into)));
        assert_eq!(short, [(0x1001, 0x1000)]);
    }
}
