//! What each shape would need at a target, or what forbids it.

use super::Survey;
use super::landings;
use super::sequence::{self, Step};
use crate::arch::x86::classify::{Kind, Note, Through};
use crate::code::Mode;
use crate::patch::Cave;
use crate::place::{Reach, Relays};
use crate::plan::{Options, Returns};
use crate::refusal::{Refusal, Unsupported};
use crate::shape::Shape;
use core::fmt;

/// One way to detour a target: what a slot has to be for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    pub(crate) shape: Shape,
    pub(crate) displaced: u8,
    pub(crate) covered: u8,
    pub(crate) reach: Reach,
    pub(crate) need: u16,
    pub(crate) cave: Option<Cave>,
    pub(crate) returns: Returns,
    pattern: Option<Pattern>,
}

/// Which bytes of a jump's displacement are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pattern {
    after: u64,
    mode: Mode,
    mask: u32,
    /// The original bytes of the window, behind its first one.
    original: u32,
}

/// Which bytes behind the first one a [`Jump5Kept`](Shape::Jump5Kept) leaves as they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Those from the first interior boundary on.
    Boundaries,
    /// All of them.
    AllButFirst,
}

impl Offer {
    /// The shape.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// Where the slot may begin; empty (`first > last`) if what the displaced instructions refer to is too far
    /// apart.
    pub const fn reach(&self) -> Reach {
        self.reach
    }

    /// Bytes that the slot needs at most, with a landing pad and a relay to a detour that is far away.
    pub const fn need(&self) -> usize {
        self.need as usize
    }

    /// Bytes of the displaced instructions, and of padding in the window: what must not change any more between
    /// survey and commit.
    pub const fn displaced_len(&self) -> usize {
        self.covered as usize
    }

    /// The addresses at which the slot has to begin, since it begins with the relay; none where any address within
    /// reach will do. [`Jump5Kept`](Shape::Jump5Kept) has one set, [`Jump5Trapped`](Shape::Jump5Trapped) one for
    /// each byte that traps.
    pub fn relays(&self, options: &Options) -> impl Iterator<Item = Relays> + use<> {
        let Self { shape, pattern, .. } = *self;
        let traps = options.traps.bytes(pattern.map_or(Mode::Bits64, |pattern| pattern.mode));
        let count = match shape {
            Shape::Jump5Kept => 1,
            Shape::Jump5Trapped => traps.len(),
            _ => 0,
        };
        (0..count).filter_map(move |index| {
            let Pattern { after, mode, mask, original } = pattern?;
            let value = match shape {
                Shape::Jump5Kept => original,
                _ => u32::from_le_bytes([*traps.get(index)?; 4]),
            };
            Some(Relays { after, mask, value: value & mask, mode })
        })
    }

    /// Whether a slot may begin at `address`.
    pub fn admits(&self, address: u64, options: &Options) -> bool {
        let placed =
            !self.shape.begins_with_relay() || self.relays(options).any(|relays| relays.contains(address));
        placed && self.reach.contains(address)
    }
}

impl Survey {
    /// What `shape` would need.
    ///
    /// # Errors
    /// What forbids it.
    pub fn offer(&self, shape: Shape, options: &Options) -> Result<Offer, Refusal> {
        self.offer_keeping(shape, Keep::Boundaries, options)
    }

    /// What a [`Jump5Kept`](Shape::Jump5Kept) needs that changes the first byte of the window and no other: the
    /// displacement repeats all four bytes behind it, so one address will do for the relay. It makes no difference
    /// where the instructions begin, so a single long instruction serves as well.
    ///
    /// # Errors
    /// What forbids it.
    pub fn one_byte_offer(&self, options: &Options) -> Result<Offer, Refusal> {
        self.offer_keeping(Shape::Jump5Kept, Keep::AllButFirst, options)
    }

    fn offer_keeping(&self, shape: Shape, keep: Keep, options: &Options) -> Result<Offer, Refusal> {
        if shape == Shape::Jump14 && self.mode == Mode::Bits32 {
            return Err(Refusal::NotInMode { address: self.window });
        }
        let window = shape.window_len();
        let (displaced, covered) = self.sequence.cover(window, self.window)?;
        let (inside, outside) = self.sequence.steps.split_at_checked(displaced).unwrap_or_default();
        let first = match keep {
            Keep::Boundaries => inside.first().map_or(0, Step::end),
            Keep::AllButFirst => 1,
        };
        let has_interior = inside.get(1).is_some_and(|second| usize::from(second.at) < window);
        if keep == Keep::Boundaries {
            self.check_shape(shape, has_interior, inside)?;
        }
        if let Some(last) = inside.last() {
            sequence::check_last(last, self.at(last))?;
        }
        let kept_from = if shape == Shape::Jump5Kept { first } else { window };
        self.check_landings(window, kept_from, outside, options)?;
        for step in inside {
            self.check_displaced(shape, step, inside, window, covered, options)?;
        }
        self.check_reserved(covered)?;
        let cave = match shape {
            Shape::ShortJump => Some(self.cave.ok_or(Refusal::NoCave { address: self.window })?),
            _ => None,
        };
        let small = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
        let reach = self.reach_of(shape, inside);
        Ok(Offer {
            shape,
            displaced: small(displaced),
            covered: small(covered),
            reach,
            need: u16::try_from(self.need_of(inside, shape, options)).unwrap_or(u16::MAX),
            cave,
            returns: options.returns,
            pattern: shape.begins_with_relay().then(|| self.pattern(shape, inside, first)),
        })
    }

    pub(super) fn at(&self, step: &Step) -> u64 {
        self.mode.wrap(self.window.wrapping_add(u64::from(step.at)))
    }

    fn next(&self, step: &Step) -> u64 {
        self.mode.wrap(self.window.wrapping_add(step.end() as u64))
    }

    /// What the shape itself asks of the window's instructions.
    fn check_shape(&self, shape: Shape, has_interior: bool, inside: &[Step]) -> Result<(), Refusal> {
        let second = inside.get(1).map_or(self.window, |second| self.at(second));
        match shape {
            Shape::WholeInstruction | Shape::ShortJump if has_interior => {
                Err(Refusal::InteriorBoundary { address: second })
            }
            // The same patch without the need for luck.
            Shape::Jump5Kept | Shape::Jump5Trapped | Shape::Jump5 if !has_interior => {
                Err(Refusal::NoInterior { address: self.window })
            }
            _ => Ok(()),
        }
    }

    /// Branches from outside the displaced instructions into the window. From `kept_from` on the window stays as
    /// it is.
    fn check_landings(
        &self,
        window: usize,
        kept_from: usize,
        outside: &[Step],
        options: &Options,
    ) -> Result<(), Refusal> {
        let refused = |distance: usize, from| {
            let into = self.mode.wrap(self.window.wrapping_add(distance as u64));
            match distance {
                0 => Refusal::BranchToStart { from, start: into },
                _ => Refusal::BranchIntoWindow { from, into },
            }
        };
        let first = usize::from(options.reentry);
        let forbidden = first..window.min(kept_from);
        if let Some((distance, from)) = self.landings.first_in(forbidden.clone()) {
            return Err(refused(distance, from));
        }
        let distance = |target: u64| landings::distance(self.mode, self.entry, self.window, target);
        for step in outside {
            let from = self.at(step);
            let call = match step.kind {
                Kind::Call { target } => distance(target),
                _ => None,
            };
            // The start's address is the function's own, and a call of it a new one; a jump there is not.
            let named = [call, step.label.map(usize::from)].map(|hit| hit.filter(|&distance| distance != 0));
            let jump = step.kind.jump_target().and_then(distance);
            let mut hits = named.into_iter().chain([jump]).flatten();
            if let Some(distance) = hits.find(|distance| forbidden.contains(distance)) {
                return Err(refused(distance, from));
            }
        }
        Ok(())
    }

    /// What one displaced instruction refers to must not be inside the bytes that change, but for the start of a
    /// displaced instruction, which has a copy.
    fn check_displaced(
        &self,
        shape: Shape,
        step: &Step,
        inside: &[Step],
        window: usize,
        covered: usize,
        options: &Options,
    ) -> Result<(), Refusal> {
        let address = self.at(step);
        let within = |target: u64, len: usize| self.distance(target) < len as u64;
        let has_copy = |target: u64| inside.iter().any(|other| self.at(other) == target);
        if let Some(into) = step.kind.jump_target()
            && within(into, covered.max(window))
            && !has_copy(into)
        {
            return Err(Refusal::BranchIntoWindow { from: address, into });
        }
        // A copy that goes on in front of the window would come back to it. So would a kept instruction, which stays
        // where it is.
        let kept = shape == Shape::Jump5Kept && step.at > 0;
        let enters_again = |target: u64| self.is_start(target) && (kept || target != self.window);
        if let Some(start) =
            step.kind.jump_target().filter(|&target| !options.reentry && enters_again(target))
        {
            return Err(Refusal::BranchToStart { from: address, start });
        }
        if let Some(label) = step.label.filter(|&label| label != 0 && usize::from(label) < window) {
            let into = self.mode.wrap(self.window.wrapping_add(u64::from(label)));
            return Err(Refusal::BranchIntoWindow { from: address, into });
        }
        if step.touches.is_some_and(|touched| usize::from(touched) < covered.max(window)) {
            return Err(Refusal::Unsupported { address, why: Unsupported::TouchesWindow });
        }
        let next = self.next(step);
        if let Kind::Call { target } = step.kind
            && target != self.window
            && target != next
            && within(target, window)
        {
            return Err(Refusal::BranchIntoWindow { from: address, into: target });
        }
        // Bytes that are kept, or trap, may be returned to. No grace period ends a call that sleeps; and what `call $+5`
        // pushes may be returned to as well as popped.
        let calls = matches!(step.kind, Kind::Call { .. } | Kind::IndirectCall { .. });
        if calls && step.end() < window && shape.needs_quiesce() {
            return Err(Refusal::ReturnIntoWindow { call: address, returns_to: next });
        }
        // The push would change the operand, or may overwrite the pointer in memory.
        let copied =
            inside.iter().take_while(|other| other.at < step.at).any(|other| other.note == Note::CopiesStack);
        let on_stack = match step.kind {
            Kind::IndirectCall { through: Through::Stack, .. } => true,
            Kind::IndirectCall { through: Through::Memory, .. } => copied,
            _ => false,
        };
        if on_stack && options.returns == Returns::Original {
            return Err(Refusal::Unsupported { address, why: Unsupported::CallThroughStackPointer });
        }
        Ok(())
    }

    fn check_reserved(&self, covered: usize) -> Result<(), Refusal> {
        match self.reserved.filter(|&(at, _)| at < covered as u64) {
            Some((_, reserved)) => {
                Err(Refusal::Reserved { address: reserved.address, owner: reserved.owner })
            }
            None => Ok(()),
        }
    }

    /// The slots from which everything is reached that a displacement has to reach.
    fn reach_of(&self, shape: Shape, inside: &[Step]) -> Reach {
        let around = |target| Reach::around(self.mode, target, self.window);
        // These two jump to the detour by themselves, and go back by a jump of any length.
        let anywhere = matches!(shape, Shape::Jump14 | Shape::Breakpoint);
        let from = if anywhere { Reach::anywhere(self.mode) } else { around(self.window) };
        inside
            .iter()
            .filter_map(|step| if anywhere { step.kind.near_only() } else { step.kind.target() })
            .fold(from, |reach, target| reach.and(around(target)))
    }

    /// Landing pad, copies, the jump back, the relay.
    fn need_of(&self, inside: &[Step], shape: Shape, options: &Options) -> usize {
        let anywhere = matches!(shape, Shape::Jump14 | Shape::Breakpoint);
        // The slot's place decides which form an instruction takes: a near one within reach, else a far one.
        let len = |step: &Step, slot: u64| self.moved(step, slot, options.returns).copy_len(|target| target);
        let far = |step: &Step| step.kind.target().map_or(self.window, |target| target ^ 1 << 62);
        let copies: usize = inside
            .iter()
            .map(|step| {
                let near = len(step, step.kind.target().unwrap_or(self.window));
                if anywhere { near.max(len(step, far(step))) } else { near }
            })
            .sum();
        let back = if anywhere && self.mode == Mode::Bits64 { 14 } else { 5 };
        let relay = match (anywhere, self.mode) {
            (true, _) => 0,
            (false, Mode::Bits64) => 14,
            (false, Mode::Bits32) => 5,
        };
        4 + copies + back + relay
    }

    /// Which bytes of the displacement are given: for a kept jump all from the first interior boundary on, for a
    /// trapped one those on boundaries.
    fn pattern(&self, shape: Shape, inside: &[Step], first: usize) -> Pattern {
        let [_, original @ ..] = self.original.first_chunk::<5>().copied().unwrap_or_default();
        let mut mask = [0_u8; 4];
        for (index, byte) in mask.iter_mut().enumerate() {
            let offset = index + 1;
            let given = match shape {
                Shape::Jump5Kept => offset >= first,
                _ => inside.iter().any(|step| usize::from(step.at) == offset),
            };
            *byte = if given { 0xff } else { 0 };
        }
        Pattern {
            after: self.mode.wrap(self.window.wrapping_add(5)),
            mode: self.mode,
            mask: u32::from_le_bytes(mask),
            original: u32::from_le_bytes(original),
        }
    }
}

/// What the survey has to say for its choice: each shape with what it needs, or with what forbids it.
pub struct Explanation<'a> {
    pub(super) survey: &'a Survey,
    pub(super) options: Options,
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for shape in Shape::ALL {
            match self.survey.offer(shape, &self.options) {
                _ if !self.options.shapes.contains(shape) => writeln!(f, "{shape}: not asked for")?,
                Err(refusal) => writeln!(f, "{shape}: {refusal}")?,
                Ok(offer) => {
                    write!(f, "{shape}: window of {} bytes", shape.window_len())?;
                    let (mut sets, mut count) = (0, 0);
                    for relays in offer.relays(&self.options) {
                        sets += 1;
                        count += relays.count();
                    }
                    if sets > 0 {
                        write!(f, ", {count} addresses for the relay")?;
                    }
                    if let Some(cave) = offer.cave {
                        write!(f, ", cave at {:#x}", cave.address)?;
                    }
                    if shape.needs_quiesce() {
                        f.write_str(", needs a quiesce")?;
                    }
                    writeln!(f)?;
                }
            }
        }
        Ok(())
    }
}
