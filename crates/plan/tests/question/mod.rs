//! Questions to the crate: functions that are made of odd instructions, and everything that can be said about them.
#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "not every test needs everything")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test: it may fail")]

mod templates;

use iced_x86::{Decoder, DecoderOptions};
use kdetour_oracle::Given;
use kdetour_plan::{
    Code, Context, MAX_SLOT, Mode, Options, Owner, Plan, Region, Reserved, Returns, Shape, Shapes, Slot,
    Survey, Traps,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use templates::{BITS32, BITS64};

/// A target and everything that is said about it.
#[derive(Clone, Debug)]
pub struct Question {
    pub mode: Mode,
    pub address: u64,
    pub bytes: Vec<u8>,
    pub length: Option<usize>,
    pub fentry: Option<u64>,
    pub next: Option<u64>,
    pub before: Vec<u8>,
    pub dead: bool,
    pub image: Option<(u64, u64)>,
    pub targets: Vec<u64>,
    pub parts: Vec<(u64, Vec<u8>)>,
    pub reserved: Vec<Reserved>,
    pub data: Vec<(u64, Vec<u8>)>,
    pub slot: Slot,
    pub detour: u64,
    pub options: Options,
}

impl Question {
    /// Surveys the target, and hands on what the survey was given. A target that is refused is no question.
    pub fn ask(
        &self,
        answer: impl FnOnce(&Survey, &Given<'_>) -> Result<(), TestCaseError>,
    ) -> Result<(), TestCaseError> {
        let mut code = Code::in_mode(self.mode, self.address, &self.bytes);
        if let Some(length) = self.length {
            code = code.with_length(length);
        }
        let parts: Vec<_> =
            self.parts.iter().map(|(at, bytes)| Code::in_mode(self.mode, *at, bytes)).collect();
        let data: Vec<_> =
            self.data.iter().map(|(address, bytes)| Region { address: *address, bytes }).collect();
        let context = Context {
            fentry: self.fentry,
            next_symbol: self.next,
            before: &self.before,
            dead: self.dead,
            image: self.image,
            parts: &parts,
            branch_targets: &self.targets,
            reserved: &self.reserved,
            rewritten: &self.reserved,
            data: &data,
            got: data.first().map(|region| region.address),
        };
        let Ok(survey) = Survey::of(&code, &context) else { return Ok(()) };
        let given = Given { code, context, slot: self.slot, detour: self.detour, options: self.options };
        answer(&survey, &given)
    }
}

/// Whether the oracle agrees with a plan in `slot`.
pub fn judge(given: &Given<'_>, slot: Slot, survey: &Survey, plan: &Plan) -> Result<(), TestCaseError> {
    let given = Given { slot, ..*given };
    kdetour_oracle::check(&given, survey, plan).map_err(TestCaseError::fail)
}

pub fn instruction(mode: Mode) -> impl Strategy<Value = Vec<u8>> {
    let templates = if mode == Mode::Bits32 { BITS32 } else { BITS64 };
    let fill = |(template, bytes, small): (&str, Vec<u8>, i8)| {
        let mut bytes = bytes.into_iter();
        let byte = |word| match word {
            "?" => bytes.next().unwrap(),
            "~" => small.cast_unsigned(),
            word => u8::from_str_radix(word, 16).unwrap(),
        };
        template.split_whitespace().map(byte).collect()
    };
    prop_oneof![
        12 => (select(templates), vec(any::<u8>(), 15), -24_i8..24).prop_map(fill),
        1 => vec(any::<u8>(), 1..16),
    ]
}

pub fn function(mode: Mode) -> impl Strategy<Value = Vec<u8>> {
    let last = if mode == Mode::Bits32 { 0xfb } else { 0xfa };
    let pad = vec![0xf3, 0x0f, 0x1e, last];
    let nop5 = vec![0x0f, 0x1f, 0x44, 0, 0];
    let landing = vec![vec![], vec![], vec![], pad.clone(), nop5.clone(), [pad, nop5].concat()];
    prop_oneof![
        8 => (select(landing), vec(instruction(mode), 1..12))
            .prop_map(|(landing, rest)| [landing, rest.concat()].concat()),
        1 => vec(any::<u8>(), 0..40),
    ]
}

pub fn mode() -> impl Strategy<Value = Mode> {
    select(&[Mode::Bits64, Mode::Bits64, Mode::Bits32][..])
}

pub fn options() -> impl Strategy<Value = Options> {
    (any::<[bool; 6]>(), 0_u8..128).prop_map(
        |([landing_pad, slot, invalid, reentry, one_byte, roomy], shapes)| {
            let chosen = Shape::ALL.into_iter().filter(|shape| shapes >> *shape as u8 & 1 != 0);
            let chosen = chosen.fold(Shapes::NONE, Shapes::with);
            Options {
                landing_pad,
                shapes: if shapes < 64 { Shapes::ALL } else { chosen },
                returns: if slot { Returns::Slot } else { Returns::Original },
                traps: if invalid { Traps::Invalid } else { Traps::Int3 },
                reentry,
                one_byte,
                roomy,
            }
        },
    )
}

/// Small distances, and all others.
pub fn distance() -> impl Strategy<Value = i64> {
    prop_oneof![-40_i64..40, -0x1_0000_i64..0x1_0000, -0x9000_0000_i64..0x9000_0000, any::<i64>()]
}

/// Places where code stands, the ends of the address space among them.
pub fn address(mode: Mode) -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0x40_1000),
        Just(0x7f12_3456_7000),
        Just(0xffff_ffff_8123_4560),
        Just(0xffff_ffff_c000_0010),
        0_u64..64,
        (0_u64..64).prop_map(|below| u64::MAX - below),
        any::<u64>(),
    ]
    .prop_map(move |address| mode.wrap(address))
}

/// Anything at all.
pub fn question() -> impl Strategy<Value = Question> {
    mode().prop_flat_map(question_in)
}

fn question_in(mode: Mode) -> impl Strategy<Value = Question> {
    let length = option::weighted(0.8, prop_oneof![4 => Just(None), 1 => (0_usize..60).prop_map(Some)]);
    let before =
        prop_oneof![Just(vec![]), Just(vec![0xcc; 16]), Just(vec![0x90; 9]), vec(any::<u8>(), 4..8),];
    (
        (address(mode), function(mode), length, before, any::<bool>(), options()),
        (
            option::of(select(&[0_u64, 4, 5, 9][..])),
            option::of(distance()),
            option::weighted(0.1, (distance(), distance())),
        ),
        (vec(distance(), 0..2), vec((distance(), 0_u32..20), 0..2), vec((distance(), function(mode)), 0..2)),
        (
            vec((distance(), vec(any::<u8>(), 0..40)), 0..2),
            distance(),
            0..=MAX_SLOT,
            any::<bool>(),
            distance(),
        ),
    )
        .prop_map(
            move |(code, known, (targets, reserved, parts), (data, slot, capacity, roomy, detour))| {
                let (address, bytes, length, before, dead, options) = code;
                let (fentry, next, image) = known;
                let at = |distance: i64| mode.wrap(address.wrapping_add_signed(distance));
                let owned =
                    |(address, len)| Reserved { address: at(address), len, owner: Owner::Alternative };
                Question {
                    mode,
                    address,
                    length: length.map(|other| other.unwrap_or(bytes.len())),
                    bytes,
                    fentry: fentry.map(|offset| mode.wrap(address.wrapping_add(offset))),
                    next: next.map(at),
                    before,
                    dead,
                    image: image.map(|(first, end)| (at(first), at(end))),
                    targets: targets.into_iter().map(at).collect(),
                    parts: parts.into_iter().map(|(address, bytes)| (at(address), bytes)).collect(),
                    reserved: reserved.into_iter().map(owned).collect(),
                    data: data.into_iter().map(|(address, bytes)| (at(address), bytes)).collect(),
                    // Not wrapped: beyond the end of the address space they are to be refused.
                    slot: Slot {
                        address: address.wrapping_add_signed(slot),
                        capacity: if roomy { MAX_SLOT } else { capacity },
                    },
                    detour: address.wrapping_add_signed(detour),
                    options,
                }
            },
        )
}

/// As [`question`], but with nothing in the way of a plan except the bytes.
pub fn easy_question() -> impl Strategy<Value = Question> {
    question().prop_map(|question| {
        let last = question.mode.last_address();
        let roomy = (1 << 20..last - (1 << 22)).contains(&question.address);
        let address = if roomy { question.address } else { question.mode.wrap(0x7f12_3456_7000) };
        Question {
            address,
            length: question.length.map(|_| question.bytes.len()),
            fentry: None,
            next: None,
            image: None,
            targets: Vec::new(),
            parts: Vec::new(),
            reserved: Vec::new(),
            data: Vec::new(),
            slot: Slot { address: address + 0x1_0000, capacity: MAX_SLOT },
            detour: address + 0x2_0000,
            ..question
        }
    })
}

/// A template that is no instruction would test nothing.
#[test]
fn templates_are_instructions() {
    for (mode, templates) in [(Mode::Bits64, BITS64), (Mode::Bits32, BITS32)] {
        for template in templates {
            let byte = |word| match word {
                "?" | "~" => 0x10,
                word => u8::from_str_radix(word, 16).unwrap(),
            };
            let bytes: Vec<u8> = template.split_whitespace().map(byte).collect();
            let one = Decoder::with_ip(mode.bits(), &bytes, 0, DecoderOptions::NONE).decode();
            let expected =
                if matches!(*template, "06" | "0f 04") && one.is_invalid() { 0 } else { bytes.len() };
            let len = if one.is_invalid() { 0 } else { one.len() };
            assert_eq!(len, expected, "{mode:?}: {template}");
        }
    }
}
