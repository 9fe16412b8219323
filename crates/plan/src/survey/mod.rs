//! What was found at a target.
//!
//! A survey reads the instructions at the window's start (`sequence`), behind a landing pad and an ftrace site
//! (`entry`), the padding around the function (`padding`, `caves`), and who branches to the bytes that a patch might overwrite
//! (`landings`). From that it answers for each shape what a slot would have to be, or what forbids it (`offers`).

mod boundary;
mod caves;
mod entry;
mod landings;
mod offers;
mod padding;
mod sequence;

pub use boundary::boundary;
pub use offers::{Explanation, Offer};

use crate::arch::x86::relocate::Moved;
use crate::code::{Code, Context, Mode, Reserved};
use crate::hazard::Hazard;
use crate::patch::{Cave, MAX_BOUNDARIES, MAX_DISPLACED};
use crate::plan::{Options, Returns};
use crate::refusal::Refusal;
use crate::shape::Shape;
use arrayvec::ArrayVec;
use landings::{Function, Landings};
use sequence::{Sequence, Step};

/// How many hazards a survey keeps; what does not fit any more is dropped, the first ones matter most.
const MAX_HAZARDS: usize = 6;

/// One displaced instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Displaced<'a> {
    address: u64,
    bytes: &'a [u8],
}

impl<'a> Displaced<'a> {
    pub(crate) const fn new(address: u64, bytes: &'a [u8]) -> Self {
        Self { address, bytes }
    }

    /// Where it stands.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// One past its last byte.
    pub const fn end(&self) -> u64 {
        self.address.wrapping_add(self.bytes.len() as u64)
    }
}

/// What was found at a target: a [`Plan`](crate::Plan) is made from it.
#[derive(Clone, Debug)]
pub struct Survey {
    mode: Mode,
    entry: u64,
    window: u64,
    sequence: Sequence,
    /// One past the function's last byte; the window's start if that is unknown.
    end: u64,
    /// The sequence's bytes, and padding that a window may take.
    original: [u8; MAX_DISPLACED],
    landings: Landings,
    /// The first bytes of others from the window's start on, with their distance from it.
    reserved: Option<(u64, Reserved)>,
    /// The first bytes that are rewritten before the image runs, likewise.
    rewritten: Option<(u64, Reserved)>,
    cave: Option<Cave>,
    hazards: ArrayVec<Hazard, MAX_HAZARDS>,
    each_time: bool,
}

impl Survey {
    /// Looks at a function and says how it can be detoured, or why not.
    ///
    /// # Errors
    /// A [`Refusal`] that names the address and the reason, if not even the first instruction can be displaced.
    /// What forbids the single shapes is told by [`offer`](Self::offer) and [`best`](Self::best).
    pub fn of(code: &Code<'_>, context: &Context<'_>) -> Result<Self, Refusal> {
        let mut survey = Self::none();
        survey.look_at(code, context)?;
        Ok(survey)
    }

    /// A survey of nothing, to [look at](Self::look_at) something with.
    pub const fn none() -> Self {
        Self {
            mode: Mode::Bits64,
            entry: 0,
            window: 0,
            sequence: Sequence::none(),
            end: 0,
            original: [0; MAX_DISPLACED],
            landings: Landings::none(),
            reserved: None,
            rewritten: None,
            cave: None,
            hazards: ArrayVec::new_const(),
            each_time: false,
        }
    }

    /// As [`of`](Self::of), in place of what was found before: a survey takes almost a kilobyte, and who has little stack keeps
    /// one elsewhere. After a refusal it says nothing of either function.
    ///
    /// # Errors
    /// As for [`of`](Self::of).
    pub fn look_at(&mut self, code: &Code<'_>, context: &Context<'_>) -> Result<(), Refusal> {
        let mode = code.mode();
        let bytes = below_end(code);
        let skip = entry::skip(bytes, mode, code.address(), context)?;
        let window = code.address().wrapping_add(skip as u64);
        let bytes = bytes.get(skip..).unwrap_or(&[]);
        let length = code.length().map(|length| length.saturating_sub(skip));
        (self.mode, self.entry, self.window) = (mode, code.address(), window);
        self.end = window.saturating_add(length.unwrap_or(0) as u64);
        self.each_time = false;
        sequence::read(bytes, mode, window, length, context, &mut self.sequence);
        self.sequence.cover(1, window)?;
        sequence::check_by_way(bytes, mode, (self.entry, window), &self.sequence, context)?;
        let sequence = self.sequence.len();
        let function = Function { bytes, mode, entry: code.address(), window, length, sequence };
        self.hazards.clear();
        let hazards = &mut self.hazards;
        self.landings = function.landings(context, &mut |hazard| {
            let _ = hazards.try_push(hazard);
        });
        let mut bytes = bytes.iter().copied();
        self.original.fill_with(|| bytes.next().unwrap_or(0));
        self.reserved = self.first_of(context.reserved);
        self.rewritten = self.first_of(context.rewritten);
        self.cave = caves::find(&function, context);
        Ok(())
    }

    /// Lets a displaced branch back to the window's start enter the detour as every other branch there does, instead
    /// of staying in the slot: for a detour inside a function, which is to see each round of a loop. Goes with
    /// [`Options::reentry`].
    pub const fn enter_each_time(&mut self) {
        self.each_time = true;
    }

    pub(crate) const fn enters_each_time(&self) -> bool {
        self.each_time
    }

    /// How the code is decoded.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// The function's entry, as given.
    pub const fn entry(&self) -> u64 {
        self.entry
    }

    /// Start of the window: the entry, or behind its landing pad and ftrace site.
    pub const fn window(&self) -> u64 {
        self.window
    }

    /// The best offer among the shapes that the options accept.
    ///
    /// # Errors
    /// What forbids the least demanding of these shapes.
    pub fn best(&self, options: &Options) -> Result<Offer, Refusal> {
        match self.offers(options).next() {
            Some(offer) => Ok(offer),
            None => Err(self.refusal(options)),
        }
    }

    /// What can be offered, the best first.
    pub fn offers(&self, options: &Options) -> impl Iterator<Item = Offer> {
        let wanted = options.one_byte && options.shapes.contains(Shape::Jump5Kept);
        let one_byte = wanted.then(|| self.one_byte_offer(options).ok()).flatten();
        let others = options.shapes.iter().filter_map(move |shape| self.offer(shape, options).ok());
        one_byte.into_iter().chain(others)
    }

    /// What forbids the least demanding of the shapes that the options accept. That one is merely not the right one
    /// for a target says least.
    pub(crate) fn refusal(&self, options: &Options) -> Refusal {
        let refusals = || {
            let shapes = options.shapes.iter().collect::<ArrayVec<Shape, 7>>();
            shapes.into_iter().rev().filter_map(|shape| self.offer(shape, options).err())
        };
        let unfit = |refusal: &Refusal| {
            matches!(
                refusal,
                Refusal::NoInterior { .. }
                    | Refusal::InteriorBoundary { .. }
                    | Refusal::NoCave { .. }
                    | Refusal::NotInMode { .. }
            )
        };
        let telling = refusals().find(|refusal| !unfit(refusal));
        telling.or_else(|| refusals().next()).unwrap_or(Refusal::NoShape { address: self.window })
    }

    /// For each shape what it needs or what forbids it, in words.
    pub const fn explain(&self, options: &Options) -> Explanation<'_> {
        Explanation { survey: self, options: *options }
    }

    /// The whole instructions that the offer's window overlaps; padding behind the function's end is not among them.
    pub fn displaced(&self, offer: &Offer) -> impl Iterator<Item = Displaced<'_>> + Clone {
        self.steps(offer).iter().map(|step| Displaced {
            address: self.mode.wrap(self.window.wrapping_add(u64::from(step.at))),
            bytes: self.bytes_of(step),
        })
    }

    /// What a careful caller wants to know, of the function and of what the offer displaces.
    pub fn hazards(&self, offer: &Offer) -> impl Iterator<Item = Hazard> {
        let displaced = self.steps(offer).iter().flat_map(|step| {
            let address = self.at(step);
            let start = step.kind.jump_target().is_some_and(|target| self.is_start(target));
            let in_slot = self.moved(step, self.window, offer.returns).stays_call();
            let own = if in_slot {
                Some(Hazard::ReturnsToSlot { address })
            } else {
                sequence::hazard(address, step)
            };
            own.into_iter().chain(start.then_some(Hazard::LoopToStart { address }))
        });
        // A computed jump that is displaced was found in the function, too.
        let general = self.hazards.iter().copied();
        let twice =
            self.steps(offer).iter().map(|step| self.at(step)).collect::<ArrayVec<u64, MAX_BOUNDARIES>>();
        let rewritten = self
            .rewritten
            .filter(|&(at, _)| at < u64::from(offer.covered))
            .map(|(_, Reserved { address, owner, .. })| Hazard::Rewritten { address, owner });
        displaced.chain(rewritten).chain(general.filter(move |hazard| match hazard {
            Hazard::IndirectJump { address } => !twice.contains(address),
            _ => true,
        }))
    }

    /// The first computed jump of the function, if not all that it has were followed: it could lead anywhere in the
    /// function.
    pub fn computed_jump(&self) -> Option<u64> {
        self.hazards.iter().find_map(|hazard| match *hazard {
            Hazard::IndirectJump { address } => Some(address),
            _ => None,
        })
    }

    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    pub(crate) fn steps(&self, offer: &Offer) -> &[Step] {
        self.sequence.steps.get(..usize::from(offer.displaced)).unwrap_or(&self.sequence.steps)
    }

    pub(crate) const fn original(&self) -> [u8; MAX_DISPLACED] {
        self.original
    }

    /// Where the code goes on behind the displaced instructions, if it does.
    pub(crate) fn resume(&self, offer: &Offer) -> Option<u64> {
        let last = self.steps(offer).last()?;
        let goes_on = last.flow == crate::arch::x86::classify::Flow::On;
        goes_on.then(|| self.mode.wrap(self.window.wrapping_add(last.end() as u64)))
    }

    pub(crate) fn moved(&self, step: &Step, slot: u64, returns: Returns) -> Moved<'_> {
        let address = self.mode.wrap(self.window.wrapping_add(u64::from(step.at)));
        Moved {
            mode: self.mode,
            address,
            bytes: self.bytes_of(step),
            kind: step.kind,
            slot,
            returns,
            alone: false,
        }
    }

    /// Whether `target` is the window's first byte, or stands in front of it in the function.
    fn is_start(&self, target: u64) -> bool {
        landings::distance(self.mode, self.entry, self.window, target) == Some(0)
    }

    fn bytes_of(&self, step: &Step) -> &[u8] {
        self.original.get(usize::from(step.at)..step.end()).unwrap_or(&[])
    }

    /// How far `address` is behind the window's start.
    fn distance(&self, address: u64) -> u64 {
        self.mode.wrap(address.wrapping_sub(self.window))
    }

    /// The bytes of others that begin first, from the window's start on: who displaces more than that many bytes
    /// displaces them.
    fn first_of(&self, spans: &[Reserved]) -> Option<(u64, Reserved)> {
        let at = |reserved: &Reserved| {
            // They may begin before the window and reach into it.
            let reaches =
                self.mode.wrap(self.window.wrapping_sub(reserved.address)) < u64::from(reserved.len);
            if reaches { 0 } else { self.distance(reserved.address) }
        };
        spans.iter().map(|reserved| (at(reserved), *reserved)).min_by_key(|(at, _)| *at)
    }
}

/// The bytes that lie below the end of the address space, so that the window's end does not wrap.
fn below_end<'a>(code: &Code<'a>) -> &'a [u8] {
    let room = usize::try_from(code.mode().last_address() - code.address()).unwrap_or(usize::MAX);
    code.bytes().get(..room).unwrap_or(code.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    /// A kernel thread has 16 KiB of stack, and several of these are on it.
    #[test]
    fn a_survey_is_small_enough_for_a_kernel_stack() {
        assert!(size_of::<Survey>() <= 1024, "{}", size_of::<Survey>());
        assert!(size_of::<crate::Plan>() <= 800, "{}", size_of::<crate::Plan>());
    }

    #[test]
    fn what_was_found_before_leaves_no_trace() {
        let first = [0x48, 0xff, 0xcf, 0x75, 0xfb, 0xc3];
        let second = [0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0x41, 0x56, 0x5d, 0xc3];
        let mut survey = Survey::none();
        for (address, bytes) in [(0x1000, &first[..]), (0x5000, &second), (0x5000, &[0x06]), (0x1000, &first)]
        {
            let code = Code::new(address, bytes).with_length(bytes.len());
            let anew = Survey::of(&code, &Context::default());
            let again = survey.look_at(&code, &Context::default());
            match anew {
                Ok(anew) => assert_eq!(format!("{survey:?}"), format!("{anew:?}")),
                Err(refusal) => assert_eq!(again, Err(refusal)),
            }
            survey.enter_each_time();
        }
    }

    #[test]
    fn a_short_jump_to_somebody_elses_long_one_is_somebody_elses() {
        // In the padding behind: jmp +6 / nop; nop; nop; ret; and there jmp far away.
        let behind = [0xeb, 6, 0x90, 0x90, 0x90, 0xc3, 0xcc, 0xcc, 0xe9, 0, 0, 0, 0x40];
        // In that in front: jmp -7 / mov eax, 7 / ret
        let (before, hot) = ([0xe9, 0, 0, 0, 0x40], [0xeb, 0xf9, 0xb8, 7, 0, 0, 0, 0xc3]);
        let image = Some((0x1000, 0x9000));
        let context = Context { image, ..Context::default() };
        let code = Code::new(0x2000, &behind).with_length(6);
        let refused = |to| Err(Refusal::Foreign { address: 0x2000, to });
        assert_eq!(Survey::of(&code, &context).map(|_| ()), refused(0x4000_200d));
        let code = Code::new(0x2000, &hot).with_length(hot.len());
        let context = Context { before: &before, ..context };
        assert_eq!(Survey::of(&code, &context).map(|_| ()), refused(0x4000_2000));
        // Within the image it is the function's own way.
        let own = [0xe9, 0, 0, 0, 0];
        Survey::of(&code, &Context { before: &own, ..context }).unwrap();
        Survey::of(&code, &Context { before: &[], ..context }).unwrap();
    }

    #[test]
    fn a_displaced_loop_enters_each_time_if_that_is_asked_for() {
        // dec rdi / jne to the start / ret
        let bytes = [0x48, 0xff, 0xcf, 0x75, 0xfb, 0xc3];
        let code = Code::new(0x1000, &bytes).with_length(bytes.len());
        let mut survey = Survey::of(&code, &Context::default()).unwrap();
        let options = Options { reentry: true, ..Options::default() };
        let slot = crate::Slot { address: 0x8000, capacity: 64 };
        let jump = |survey: &Survey| {
            let plan = crate::Plan::in_shape(survey, Shape::Jump5, slot, 0x9000, options).unwrap();
            plan.slot_bytes().get(3..9).unwrap().to_vec()
        };
        assert_eq!(jump(&survey), [0x0f, 0x85, 0xf7, 0xff, 0xff, 0xff]); // jne 0x8000
        survey.enter_each_time();
        assert_eq!(jump(&survey), [0x0f, 0x85, 0xf7, 0x8f, 0xff, 0xff]); // jne 0x1000
    }
}
