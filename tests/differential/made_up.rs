//! Functions that nobody wrote: instructions that are hard to move, in any order, and bytes of no meaning.

use crate::{far_of, lines};
use kdetour_plan::{Code, Context, Mode, Options, Traps};
use std::io::Write;

/// Pieces of 64-bit functions in hex. `+4` is a made-up displacement of four bytes, `i1` an immediate behind it.
const PIECES_64: &str = "\
    90 55 4889e5 4157 31c0 ffc8 85ff 4883ec18 eb+1 74+1 75+1 7f+1 2e74+1 e0+1 e1+1 e2+1 e3+1 67e3+1 \
    67e2+1 e9+4 0f84+4 0f8f+4 e8+4 f2e9+4 f2e8+4 48e9+4 40e8+4 e800000000 488b05+4 8905+4 803d+4i1 \
    c705+4i4 66c705+4i2 f705+4i4 4c8d1d+4 ff15+4 ff25+4 ff35+4 0f1005+4 660f700d+4i1 660f3a0f0d+4i1 \
    f0830d+4i1 c4e2c0f205+4 c5f81005+4 62f17c481005+4 4869c0+4i4 f6c2+1 ffd0 41ffd3 ff5708 ff542408 \
    ff6708 ffe0 3effe0 c3 c20800 64488b042528000000 65488b05+4 48b8+8 48a1+8 9c 58 6a+1 68+4 \
    48897c24f8 488b4424f8 f9 f5 11f0 f3aa f348a5 0f1f4000 660f1f440000 f30f1efa 0f05 0f0b cc f4 fa \
    c9 4889e0 488d6424f8 0f94c0 0f44c6 dd05+4 d9ee c7f8+4 662e0f1f840000000000";

/// Pieces of 32-bit functions.
const PIECES_32: &str = "\
    90 55 89e5 57 31c0 48 85ff 83ec18 8bff eb+1 74+1 75+1 7f+1 2e74+1 e0+1 e1+1 e2+1 e3+1 67e3+1 \
    67e2+1 e9+4 0f84+4 0f8f+4 e8+4 f2e9+4 f2e8+4 66e9+2 66e8+2 e800000000 5b 8b05+4 a1+4 803d+4i1 \
    c705+4i4 66c705+4i2 f705+4i4 8d1d+4 ff15+4 ff25+4 ff35+4 0f1005+4 660f700d+4i1 f0830d+4i1 69c0+4 \
    ffd0 ff5708 ff542408 ff6708 ffe0 3effe0 c3 c20800 65a114000000 648b0d14000000 9c 60 61 6a+1 68+4 \
    897c24f8 f9 f5 11f0 f3aa 0f1f4000 f30f1efb cd80 0f0b cc c9 89e0 0f94c0 0f44c6 dd05+4 d9ee c7f8+4 \
    8d742600 678d4705 8d642400 06 1f c8200000";

/// Random numbers that are the same each time (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    /// A displacement: near, so that it leads into the window more often than not, or anything.
    fn displacement(&mut self, len: usize) -> i64 {
        let near = len == 1 || self.below(3) == 0;
        if near { self.below(24).cast_signed() - 12 } else { self.below(0x8000).cast_signed() - 0x1000 }
    }
}

/// Writes records of `count` functions.
pub(crate) fn functions(count: u64, seed: u64, out: &mut impl Write) {
    let mut random = Random(seed.wrapping_mul(2) | 1);
    for index in 0..count {
        let mode = if random.below(2) == 0 { Mode::Bits32 } else { Mode::Bits64 };
        let bytes = function(mode, &mut random);
        let entry = match (mode, random.below(3)) {
            (Mode::Bits32, 0) => 0xffff_f000,
            (Mode::Bits32, _) => 0x0804_8000,
            (_, 0) => 0x40_1000,
            (_, 1) => 0xffff_ffff_8100_0000,
            _ => 0x7f00_0000_1000,
        } + random.below(0x800);
        let code = Code::in_mode(mode, entry, &bytes).with_length(bytes.len());
        let far = random.below(2) == 0;
        let detour = if far { far_of(mode, entry) } else { mode.wrap(entry.wrapping_add(0x2000_0000)) };
        let options = Options {
            landing_pad: random.below(2) == 0,
            reentry: true,
            traps: if random.below(2) == 0 { Traps::Invalid } else { Traps::Int3 },
            ..Options::default()
        };
        for line in lines(&format!("made-up-{index}"), &code, &Context::default(), detour, options) {
            writeln!(out, "{line}").expect("the record can be written");
        }
    }
}

fn function(mode: Mode, random: &mut Random) -> Vec<u8> {
    let pieces = if mode == Mode::Bits32 { PIECES_32 } else { PIECES_64 };
    let pieces: Vec<&str> = pieces.split_whitespace().collect();
    let mut bytes = Vec::new();
    let without_meaning = random.below(8) == 0;
    while bytes.len() < 40 {
        if without_meaning {
            bytes.push(random.below(256) as u8);
            continue;
        }
        let piece = pieces[random.below(pieces.len() as u64) as usize];
        let (hex, more) = piece.split_once('+').unwrap_or((piece, "0"));
        for at in (0..hex.len()).step_by(2) {
            bytes.push(u8::from_str_radix(&hex[at..at + 2], 16).expect("hex digits"));
        }
        let (displacement, immediate) = more.split_once('i').unwrap_or((more, "0"));
        let [displacement, immediate] = [displacement, immediate].map(|word| word.parse().expect("a length"));
        bytes.extend(&random.displacement(displacement).to_le_bytes()[..displacement]);
        bytes.extend(&0x0102_0304_u32.to_le_bytes()[..immediate]);
    }
    bytes
}
