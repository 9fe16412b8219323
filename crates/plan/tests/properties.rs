//! What must hold for any bytes, any context, any slot and any detour, in both modes and for every shape.
#![expect(clippy::indexing_slicing, reason = "a test: it may fail")]

mod question;

use iced_x86::{Decoder, DecoderOptions};
use kdetour_plan::{
    Allocator, Code, Context, MAX_SLOT, Mode, Options, Plan, Reach, Refusal, Relays, Shape, Slot, Survey,
    thunk,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use question::{Question, easy_question, judge, mode, question};
use std::collections::{BTreeMap, BTreeSet};

/// A size that fits every run of the tests; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { 4_000 };
    ProptestConfig { cases, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    /// Never a panic, and every plan that is made is right, whatever shape is asked for.
    #[test]
    fn every_plan_is_right(question in prop_oneof![question(), easy_question()]) {
        let _ = thunk(&Code::in_mode(question.mode, question.address, &question.bytes));
        let Question { slot, detour, options, .. } = question;
        question.ask(|survey, given| {
            let _ = survey.explain(&options).to_string();
            if let Ok(plan) = Plan::with_options(survey, slot, detour, options) {
                judge(given, slot, survey, &plan)?;
            }
            for offer in survey.offers(&options) {
                if let Ok(plan) = Plan::of_offer(survey, offer, slot, detour, options) {
                    prop_assert_eq!(plan.shape(), offer.shape());
                    judge(given, slot, survey, &plan)?;
                }
            }
            Ok(())
        })?;
    }

    /// An offer is no promise too much: a slot that it allows, of the size that it asks for, will do.
    #[test]
    fn offers_keep_their_word(question in easy_question(), low in any::<bool>(), far in any::<bool>()) {
        let last = question.mode.last_address() - MAX_SLOT as u64;
        let detour = if far { question.mode.wrap(question.address ^ 1 << 45) } else { question.detour };
        let options = question.options;
        question.ask(|survey, given| {
            for offer in survey.offers(&options) {
                let reach = offer.reach();
                let mut addresses = vec![if low { reach.first } else { reach.last }];
                addresses.extend(offer.relays(&options).filter_map(|relays| relays.ranges().next()).map(|one| one.0));
                for address in addresses {
                    if !offer.admits(address, &options) || address > last {
                        continue;
                    }
                    let slot = Slot { address, capacity: offer.need() };
                    match Plan::of_offer(survey, offer, slot, detour, options) {
                        Ok(plan) => judge(&kdetour_oracle::Given { detour, ..*given }, slot, survey, &plan)?,
                        Err(Refusal::SlotOverlaps { .. } | Refusal::DetourInWindow { .. }) => {}
                        Err(refusal) => prop_assert!(false, "{offer:x?} at {address:#x}: {refusal}"),
                    }
                }
            }
            Ok(())
        })?;
    }

    /// The best shape for which the allocator has something.
    #[test]
    fn best_takes_the_first_that_is_given(question in easy_question(), gives in vec(any::<bool>(), 16)) {
        let options = question.options;
        question.ask(|survey, given| {
            let mut moody = Moody { gives: gives.clone(), asked: 0, gave: None };
            let plan = Plan::best(survey, &mut moody, question.detour, options);
            match (plan, moody.gave) {
                (Ok(plan), Some(slot)) => {
                    prop_assert_eq!(plan.slot(), slot.address);
                    judge(given, slot, survey, &plan)?;
                }
                (Ok(_), None) => prop_assert!(false, "a plan without a slot"),
                (Err(Refusal::NoSlot { .. }), gave) => prop_assert!(gave.is_none(), "{:x?} was given", gave),
                (Err(Refusal::SlotTooSmall { .. }), gave) => prop_assert!(false, "{:x?} is too small", gave),
                (Err(_), _) => {}
            }
            Ok(())
        })?;
    }

    /// A patch writes the window, the cave and nothing else, and what it keeps of them undoes it.
    #[test]
    fn detach_restores(question in prop_oneof![question(), easy_question()]) {
        let Question { mode, slot, detour, options, .. } = question;
        question.ask(|survey, _| {
            let front = question.address.wrapping_sub(question.before.len() as u64);
            let bytes = question.before.iter().chain(&question.bytes);
            let at = |index: usize| mode.wrap(front.wrapping_add(index as u64));
            let memory: BTreeMap<u64, u8> = bytes.enumerate().map(|(index, byte)| (at(index), *byte)).collect();
            for offer in survey.offers(&options) {
                let Ok(plan) = Plan::of_offer(survey, offer, slot, detour, options) else { continue };
                let patch = plan.patch();
                let put = |memory: &mut BTreeMap<u64, u8>, address: u64, bytes: &[u8]| {
                    bytes.iter().zip(address..).all(|(byte, at)| memory.insert(at, *byte).is_some())
                };
                let mut now = memory.clone();
                if let Some(cave) = patch.cave() {
                    prop_assert!(put(&mut now, cave.cave.address, &cave.new));
                }
                prop_assert!(put(&mut now, patch.address(), patch.new_bytes()));
                let (patched, len) = patch.patched_bytes();
                let seen: Vec<u8> = now.range(patch.address()..).take(len).map(|one| *one.1).collect();
                prop_assert_eq!(&seen, &patched[..len]);
                prop_assert!(put(&mut now, patch.address(), patch.window_bytes()));
                if let Some(cave) = patch.cave() {
                    prop_assert!(put(&mut now, cave.cave.address, &cave.cave.expected));
                }
                prop_assert_eq!(&now, &memory);
            }
            Ok(())
        })?;
    }

    /// The sieve lets no branch through: one that was put somewhere among other instructions is found.
    #[test]
    fn branches_are_found(landing in landing()) {
        landing.check()?;
    }

    /// What is said of the relays' addresses is one and the same thing.
    #[test]
    fn relays_agree(question in easy_question(), picks in vec(any::<u32>(), 8)) {
        let options = question.options;
        question.ask(|survey, _| {
            for offer in survey.offers(&options) {
                for relays in offer.relays(&options) {
                    check_relays(question.mode, relays, &picks)?;
                }
            }
            Ok(())
        })?;
    }
}

/// Gives what it is asked for, or not, as the mood takes it.
struct Moody {
    gives: Vec<bool>,
    asked: usize,
    gave: Option<Slot>,
}

impl Moody {
    fn give(&mut self, address: Option<u64>, len: usize) -> Option<Slot> {
        self.asked += 1;
        let willing = self.gives[self.asked % self.gives.len()];
        self.gave = address.filter(|_| willing).map(|address| Slot { address, capacity: len });
        self.gave
    }
}

impl Allocator for Moody {
    fn near(&mut self, reach: Reach, len: usize) -> Option<Slot> {
        let middle = reach.first + (reach.last.saturating_sub(reach.first)) / 2;
        self.give(reach.contains(middle).then_some(middle), len)
    }

    fn at(&mut self, relays: Relays, reach: Reach, len: usize) -> Option<Slot> {
        let found =
            relays.ranges().find(|range| reach.contains(range.0) && range.0.checked_add(1 << 12).is_some());
        self.give(found.map(|range| range.0), len)
    }
}

/// A function with a branch into its window.
#[derive(Clone, Debug)]
struct Landing {
    mode: Mode,
    entry: u64,
    /// What stands before and behind the branch, in whole instructions; or bytes that are none.
    before: Vec<Vec<u8>>,
    behind: Vec<Vec<u8>>,
    branch: usize,
    into: u64,
    /// The branch stands in a part of its own, at this distance.
    part: Option<i64>,
}

/// Branches that are no calls: their opcode, and the bytes of their displacement.
const BRANCHES: &[(&[u8], usize)] = &[
    (&[0xeb], 1),             // jmp rel8
    (&[0x7e], 1),             // jle rel8
    (&[0xe2], 1),             // loop
    (&[0xe3], 1),             // jrcxz, jecxz
    (&[0xf2, 0x75], 1),       // bnd jne rel8
    (&[0xe9], 4),             // jmp rel32
    (&[0x0f, 0x85], 4),       // jne rel32
    (&[0x3e, 0x0f, 0x84], 4), // je rel32 with a hint
    (&[0xc7, 0xf8], 4),       // xbegin rel32
    (&[0x66, 0xc7, 0xf8], 2), // xbegin rel16
];

fn landing() -> impl Strategy<Value = Landing> {
    let fill: &[&[u8]] = &[
        &[0x90],                                     // nop
        &[0x31, 0xc0],                               // xor eax, eax
        &[0x83, 0xc0, 0x01],                         // add eax, 1
        &[0x0f, 0x1f, 0x44, 0x00, 0x00],             // nop
        &[0xb8, 0x78, 0x56, 0x34, 0x12],             // mov eax, 0x12345678
        &[0xc7, 0x04, 0x24, 0xeb, 0xfe, 0xff, 0x25], // mov dword ptr [esp], 0x25fffeeb
        &[0x74, 0x00],                               // je to the next one
        &[0x0f, 0x04],                               // no instruction
    ];
    let fill: Vec<Vec<u8>> = fill.iter().map(|bytes| bytes.to_vec()).collect();
    let part = proptest::option::weighted(
        0.4,
        prop_oneof![-600_i64..600, -0x7000_i64..0x7000, -0x4000_0000_i64..0x4000_0000],
    );
    let entries = |mode| match mode {
        Mode::Bits32 => &[0x804_9000_u64, 0x200, 0xfff0, 0x1_0000, 0xf7ff_0000, 0xffff_f000][..],
        _ => &[0x4000_1000, 0x200, 0xfff0, 0x1_0000, 0x7f12_3456_7000, 0xffff_ffff_8123_4560][..],
    };
    let place = mode().prop_flat_map(move |mode| (Just(mode), select(entries(mode)), part.clone()));
    (place, vec(select(fill.clone()), 0..120), vec(select(fill), 0..60), 0..BRANCHES.len(), 0_u64..5)
        .prop_map(|((mode, entry, part), before, behind, branch, into)| Landing {
            mode,
            entry,
            before,
            behind,
            branch,
            into,
            part,
        })
}

impl Landing {
    fn check(&self) -> Result<(), TestCaseError> {
        let Self { mode, entry, .. } = *self;
        // Five bytes of one-byte instructions, and a sixth that ends the sequence.
        let start = [0x90; 16];
        let (front, tail) = (self.before.concat(), self.behind.concat());
        let base = match self.part {
            Some(distance) => mode.wrap(entry.wrapping_add_signed(distance)),
            None => entry + start.len() as u64,
        };
        let (opcode, size) = BRANCHES[self.branch];
        let end = base.wrapping_add((front.len() + opcode.len() + size) as u64);
        let distance = (entry + self.into).wrapping_sub(end);
        let distance = match mode {
            Mode::Bits32 => i64::from((distance as u32).cast_signed()),
            _ => distance.cast_signed(),
        };
        let fits = match size {
            1 => i8::try_from(distance).is_ok(),
            2 => i16::try_from(distance).is_ok(),
            _ => i32::try_from(distance).is_ok(),
        };
        let displacement = &distance.to_le_bytes()[..size];
        let code = [&front, opcode, displacement, &tail].concat();
        // A part that lies on the function is none, nor one that goes round the end of the address space.
        let overlaps = self.part.is_some_and(|distance| distance.unsigned_abs() < 32 + code.len() as u64)
            || base > mode.last_address() - code.len() as u64;
        if !fits || overlaps {
            return Ok(());
        }
        let branch = &code[front.len()..];
        let one = Decoder::with_ip(mode.bits(), branch, end, DecoderOptions::NONE).decode();
        prop_assert!(!one.is_invalid(), "{branch:x?}");
        let (bytes, parts) = match self.part {
            Some(_) => (start.to_vec(), vec![Code::in_mode(mode, base, &code)]),
            None => ([&start[..], &code].concat(), vec![]),
        };
        let context = Context { parts: &parts, ..Context::default() };
        let target = Code::in_mode(mode, entry, &bytes).with_length(bytes.len());
        let survey = Survey::of(&target, &context);
        let options = Options::default();
        let offer = survey.and_then(|survey| survey.offer(Shape::Jump5, &options));
        let found = matches!(offer, Err(Refusal::BranchIntoWindow { .. } | Refusal::BranchToStart { .. }));
        prop_assert!(found, "{offer:x?}, {base:#x}: {code:02x?}");
        Ok(())
    }
}

fn check_relays(mode: Mode, relays: Relays, picks: &[u32]) -> Result<(), TestCaseError> {
    /// No more ranges than these are looked at.
    const BOUND: usize = 1_000;
    let mut ranges: Vec<(u64, u64)> = relays.ranges().take(BOUND).collect();
    let complete = ranges.len() < BOUND;
    let mut seen = BTreeSet::new();
    for &(first, last) in &ranges {
        prop_assert!(first <= last && last <= mode.last_address(), "{first:#x} to {last:#x}");
        prop_assert!(relays.contains(first) && relays.contains(last), "{first:#x} to {last:#x}");
        prop_assert!(seen.insert(first), "{first:#x} twice");
        let middle = first + (last - first) / 2;
        prop_assert!(relays.contains(middle), "{middle:#x}");
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        prop_assert!(pair[0].1 < pair[1].0, "{:x?} overlap", pair);
    }
    let in_ranges = |address: u64| ranges.iter().any(|range| (range.0..=range.1).contains(&address));
    for &pick in picks {
        // Any displacement, and one that has the given bytes.
        for displacement in [pick, pick & !relays.mask | relays.value] {
            let address = mode.wrap(relays.after.wrapping_add_signed(displacement.cast_signed().into()));
            let exists = mode == Mode::Bits32
                || relays.after.checked_add_signed(displacement.cast_signed().into()).is_some();
            let expected = exists && displacement & relays.mask == relays.value;
            prop_assert_eq!(relays.contains(address), expected, "{:#x}", address);
            if complete {
                prop_assert_eq!(in_ranges(address), expected, "{:#x}", address);
            }
        }
    }
    if complete {
        let all: u128 = ranges.iter().map(|range| u128::from(range.1 - range.0) + 1).sum();
        let far = (1 << 31..=mode.last_address() - (1 << 31)).contains(&relays.after) || mode == Mode::Bits32;
        prop_assert!(all <= u128::from(relays.count()));
        prop_assert!(!far || all == u128::from(relays.count()), "{all} of {}", relays.count());
    }
    Ok(())
}
