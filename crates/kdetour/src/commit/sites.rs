//! Functions to detour in tests: every shape, every sequence of instructions that can lie under it.

use super::Change;
use kdetour_plan::{
    Allocator, Code, Context, Options, Patch, Plan, Reach, Relays, Shape, Shapes, Slot, Survey,
};
use std::vec;
use std::vec::Vec;

/// The target. Its cave lies in front of it.
pub(super) const T: u64 = 0x7000_0000_1040;
/// Detours: near, near, far and far.
pub(super) const NEAR: u64 = T + 0x12_3456;
pub(super) const NEAR_TOO: u64 = T + 0x23_4567;
pub(super) const FAR: u64 = 0x1234_5678_9abc;
pub(super) const FAR_TOO: u64 = 0x2345_6789_abcd;

/// How far behind the target a slot lies if nothing asks for another place.
const SLOT: u64 = 0x8000;

/// Instructions by length.
const INSTRUCTIONS: [&[u8]; 6] = [
    &[0x55],                                     // push rbp
    &[0x41, 0x57],                               // push r15
    &[0x48, 0x89, 0xe5],                         // mov rbp, rsp
    &[0x48, 0x83, 0xec, 0x08],                   // sub rsp, 8
    &[0x48, 0x81, 0xec, 0x00, 0x01, 0x00, 0x00], // sub rsp, 0x100
    // cmp ecx, 5: its second byte is the displacement from here to the cave
    &[0x83, 0xf9, 0x05],
];

/// A function, and a patch of it.
#[derive(Clone)]
pub(super) struct Site {
    /// The displaced instructions: where each one is, and its bytes.
    pub(super) instructions: Vec<(u64, Vec<u8>)>,
    pub(super) patch: Patch,
    /// What is in memory before the first commit, the slot filled.
    pub(super) memory: Vec<(u64, Vec<u8>)>,
}

/// Which relay address is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relay {
    /// The first one that is allowed.
    Any,
    /// The one whose displacement is the original bytes: one byte changes.
    Same,
}

struct Anywhere {
    near: u64,
    relay: Option<u64>,
}

impl Allocator for Anywhere {
    fn near(&mut self, _: Reach, len: usize) -> Option<Slot> {
        Some(Slot { address: self.near, capacity: len })
    }

    fn at(&mut self, relays: Relays, reach: Reach, len: usize) -> Option<Slot> {
        let address = match self.relay {
            Some(one) => Some(one).filter(|one| relays.contains(*one)),
            // Not at the start of a range, where the free bytes are all zero.
            None => relays.ranges().map(|(first, last)| first + (last - first) / 3).next(),
        };
        let address = address.filter(|address| reach.contains(*address))?;
        Some(Slot { address, capacity: len })
    }
}

impl Site {
    fn new(target: u64, shape: Shape, instructions: &[&[u8]], detour: u64, relay: Relay) -> Option<Self> {
        let mut code = instructions.concat();
        code.push(0xc3); // ret
        let before = [0x90; 5];
        let context = Context { before: &before, dead: true, ..Context::default() };
        let survey = Survey::of(&Code::new(target, &code), &context).ok()?;
        let options = Options { shapes: Shapes::only(shape), ..Options::default() };
        let displacement = i32::from_le_bytes(code.get(1..5)?.try_into().ok()?);
        let same = (target + 5).wrapping_add_signed(i64::from(displacement));
        let mut place = Anywhere { near: target + SLOT, relay: (relay == Relay::Same).then_some(same) };
        let plan = Plan::best(&survey, &mut place, detour, options).ok()?;
        let mut at = target;
        let mut placed = Vec::new();
        for instruction in instructions {
            placed.push((at, instruction.to_vec()));
            at += instruction.len() as u64;
        }
        placed.truncate(plan.displaced().count());
        let mut slot = plan.slot_bytes().to_vec();
        slot.resize(kdetour_plan::MAX_SLOT + 14, 0xcc);
        let memory = vec![(target - 5, before.to_vec()), (target, code), (plan.slot(), slot)];
        Some(Self { instructions: placed, patch: *plan.patch(), memory })
    }

    /// Every site of a shape, with each of these detours.
    pub(super) fn all(shape: Shape, detours: &[u64]) -> Vec<Self> {
        let mut sites = Vec::new();
        for instructions in windows(shape) {
            for &detour in detours {
                let relays: &[Relay] =
                    if shape == Shape::Jump5Kept { &[Relay::Any, Relay::Same] } else { &[Relay::Any] };
                let with = |&relay: &Relay| Self::new(T, shape, &instructions, detour, relay);
                sites.extend(relays.iter().filter_map(with));
            }
        }
        assert!(!sites.is_empty(), "{shape}");
        sites
    }

    /// A site at `target` with push rbp / mov rbp, rsp / push r15, as far as the shape goes with that, and a detour that
    /// is far away.
    pub(super) fn one(shape: Shape, target: u64) -> Self {
        let [push, push_far, moved, _, long, _] = INSTRUCTIONS;
        let instructions: &[&[u8]] = match shape {
            Shape::WholeInstruction => &[long],
            Shape::ShortJump => &[push_far, moved],
            _ => &[push, moved, push_far, long, long],
        };
        Self::new(target, shape, instructions, FAR, Relay::Any).unwrap()
    }

    pub(super) fn attach(&self) -> Change {
        Change::attach(self.patch)
    }

    pub(super) fn detach(&self) -> Change {
        Change::detach(self.patch)
    }

    /// The same, with its patch leading elsewhere; none if it cannot.
    pub(super) fn leading_to(&self, detour: u64) -> Option<Self> {
        let patch = self.patch.leading_to(detour).ok()?;
        Some(Self { patch, ..self.clone() })
    }
}

/// Every sequence of instructions that fills a window.
fn windows(shape: Shape) -> Vec<Vec<&'static [u8]>> {
    let window = shape.window_len().max(5);
    let instructions: Vec<&[u8]> = match shape {
        // Of the long sequences only some, and of those of which the first byte is all that matters.
        Shape::Jump14 | Shape::Breakpoint => [0, 2, 4].map(|index| INSTRUCTIONS[index]).to_vec(),
        Shape::ShortJump => [1, 2, 5].map(|index| INSTRUCTIONS[index]).to_vec(),
        _ => INSTRUCTIONS[..5].to_vec(),
    };
    let mut complete = Vec::new();
    let mut open: Vec<Vec<&[u8]>> = Vec::from([Vec::new()]);
    while let Some(sequence) = open.pop() {
        for instruction in &instructions {
            // A long run of the shortest shows nothing new.
            let short = sequence.iter().filter(|one| one.len() == 1).count();
            if shape == Shape::Jump14 && instruction.len() == 1 && short == 2 {
                continue;
            }
            let mut longer: Vec<&[u8]> = sequence.clone();
            longer.push(instruction);
            let len: usize = longer.iter().map(|one| one.len()).sum();
            if len < window { open.push(longer) } else { complete.push(longer) }
        }
    }
    complete
}
