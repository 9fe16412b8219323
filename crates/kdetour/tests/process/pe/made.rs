//! A PE image that is made up: what a loader would have mapped, its first byte at the image's base.
//!
//! ```text
//!   0x0000   headers
//!   0x1000   code     treble(n) = 3 * n; buy and seventh go on through the pointers of two imports
//!   0x2000   tables   exports #5 treble, #6 buy, #8 elsewhere (forwarded), #9 data
//!            imports of PRICES.dll: other, price, #7; of NAMELESS.dll, whose names were not kept
//!            late imports of LATE.dll: late, which leads to buy as long as it is not bound; and #3
//! ```

use std::vec;
use std::vec::Vec;

/// For which machine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Pe32,
    Pe64,
}

/// All numbers but the base are distances from it.
pub(crate) struct Made {
    pub(crate) bytes: Vec<u8>,
    /// Where the functions are.
    pub(crate) treble: u32,
    pub(crate) buy: u32,
    /// Where the pointers are that `buy` and `seventh`, which is 16 bytes behind it, go on by; the loader has not filled them.
    pub(crate) imported_price: u32,
    pub(crate) imported_seventh: u32,
    /// Where the pointer is that is bound late, of two.
    pub(crate) late: u32,
    /// Where the headers say where the descriptors of imports are.
    pub(crate) import_directory: usize,
}

pub(crate) const PAGE: usize = 0x1000;
/// Where the headers say how long the image is.
pub(crate) const SIZE_OF_IMAGE: usize = OPTIONAL + 56;

const NT: usize = 0x80;
const OPTIONAL: usize = NT + 24;
const CODE: u32 = 0x1000;
const EXPORTS: u32 = 0x2000;
const ENTRIES: u32 = 0x2028;
const NAMES: u32 = 0x2040;
const NUMBERS: u32 = 0x2050;
const IMPORTS: u32 = 0x2200;
const LOOKUP: u32 = 0x2280;
const POINTERS: u32 = 0x2300;
const NAMELESS: u32 = 0x2340;
const LATE: u32 = 0x2500;
const LATE_LOOKUP: u32 = 0x2580;
const LATE_POINTERS: u32 = 0x25c0;
const DATA: u32 = 0x2f00;

impl Made {
    pub(crate) fn new(class: Class, base: u64) -> Self {
        let (word, machine, magic, directories) = match class {
            Class::Pe32 => (4, 0x14c_u16, 0x10b_u16, 96),
            Class::Pe64 => (8, 0x8664, 0x20b, 112),
        };
        let mut image = Image(vec![0; 3 * PAGE]);
        image.put(0, b"MZ");
        image.put(0x3c, &(NT as u32).to_le_bytes());
        image.put(NT, b"PE\0\0");
        image.put(NT + 4, &machine.to_le_bytes());
        image.put(NT + 20, &(directories as u16 + 16 * 8).to_le_bytes());
        image.put(OPTIONAL, &magic.to_le_bytes());
        image.put(SIZE_OF_IMAGE, &(3 * PAGE as u32).to_le_bytes());
        image.put(OPTIONAL + directories - 4, &16_u32.to_le_bytes());

        let (price, seventh) = (POINTERS + word, POINTERS + 2 * word);
        let [treble, buy, by_number] = [CODE, CODE + 16, CODE + 32];
        image.put(
            treble as usize,
            match class {
                // lea eax, [rdi + rdi * 2]; ret
                Class::Pe64 => &[0x8d, 0x04, 0x7f, 0xc3],
                // mov eax, [esp + 4]; lea eax, [eax + eax * 2]; ret
                Class::Pe32 => &[0x8b, 0x44, 0x24, 0x04, 0x8d, 0x04, 0x40, 0xc3],
            },
        );
        for (at, pointer) in [(buy, price), (by_number, seventh)] {
            // jmp [pointer]
            image.put(at as usize, &[0xff, 0x25]);
            let operand = match class {
                Class::Pe64 => pointer - (at + 6),
                Class::Pe32 => base as u32 + pointer,
            };
            image.put(at as usize + 2, &operand.to_le_bytes());
        }

        let mut texts = EXPORTS as usize + 0x60;
        let mut text = |image: &mut Image, text: &str| {
            let at = texts;
            image.put(at, text.as_bytes());
            texts += text.len() + 1;
            at as u32
        };
        let forward = text(&mut image, "OTHER.sold");
        let name = text(&mut image, "MADE.dll");
        let names = ["buy", "data", "elsewhere", "treble"].map(|name| text(&mut image, name));
        let end = texts as u32;
        image.numbers(EXPORTS + 12, &[name, 5, 5, 4, ENTRIES, NAMES, NUMBERS]);
        image.numbers(ENTRIES, &[treble, buy, 0, forward, DATA]);
        image.numbers(NAMES, &names);
        // Two numbers of 16 bits in each: 1, 4, 3, 0.
        image.numbers(NUMBERS, &[0x0004_0001, 0x0000_0003]);
        image.numbers(OPTIONAL as u32 + directories as u32, &[EXPORTS, end - EXPORTS]);

        // An even address each, behind a hint.
        let hinted = ["other", "price"];
        let at = |index: usize| 0x23c0 + 0x10 * index as u32;
        for (index, name) in hinted.iter().enumerate() {
            image.put(at(index) as usize + 2, name.as_bytes());
        }
        let (prices, nameless) = (0x23e0, 0x23f0);
        image.put(prices as usize, b"PRICES.dll");
        image.put(nameless as usize, b"NAMELESS.dll");
        image.numbers(IMPORTS, &[LOOKUP, 0, 0, prices, POINTERS]);
        image.numbers(IMPORTS + 20, &[0, 0, 0, nameless, NAMELESS]);
        // The end, though not all of it is zero.
        image.numbers(IMPORTS + 40, &[0, 0x5eed, 0, 0, 0]);
        let number = 1_u64 << (8 * word - 1) | 7;
        for (index, thunk) in [at(0).into(), at(1).into(), number].into_iter().enumerate() {
            for list in [LOOKUP, POINTERS] {
                let place = (list + word * index as u32) as usize;
                image.put(place, thunk.to_le_bytes().get(..word as usize).unwrap_or_default());
            }
        }
        image.numbers(NAMELESS, &[at(1)]);
        let (late_library, late_name) = (0x2600_u32, 0x2610_u32);
        image.put(late_library as usize, b"LATE.dll");
        image.put(late_name as usize + 2, b"late");
        // Distances, not addresses; the library's handle is kept where nothing is.
        image.numbers(LATE, &[1, late_library, 0x2620, LATE_POINTERS, LATE_LOOKUP, 0, 0, 0]);
        let number = 1_u64 << (8 * word - 1) | 3;
        for (index, thunk) in [late_name.into(), number].into_iter().enumerate() {
            let at = word * index as u32;
            for (list, value) in [(LATE_LOOKUP, thunk), (LATE_POINTERS, base + u64::from(buy))] {
                image.put((list + at) as usize, value.to_le_bytes().get(..word as usize).unwrap_or_default());
            }
        }
        image.numbers((OPTIONAL + directories + 13 * 8) as u32, &[LATE, 64]);
        let import_directory = OPTIONAL + directories + 8;
        image.numbers(import_directory as u32, &[IMPORTS, 60]);
        Self {
            bytes: image.0,
            treble,
            buy,
            imported_price: price,
            imported_seventh: seventh,
            late: LATE_POINTERS,
            import_directory,
        }
    }

    /// Where an export's entry is.
    #[expect(clippy::unused_self, reason = "it is this image's")]
    pub(crate) fn entry(&self, index: u32) -> u32 {
        ENTRIES + 4 * index
    }
}

struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    fn numbers(&mut self, at: u32, numbers: &[u32]) {
        for (index, number) in numbers.iter().enumerate() {
            self.put(at as usize + 4 * index, &number.to_le_bytes());
        }
    }
}
