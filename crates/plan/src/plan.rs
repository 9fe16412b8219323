//! The exact bytes of a detour.

use crate::arch::x86::classify::Kind;
use crate::arch::x86::landing_pad;
use crate::arch::x86::relocate::{Moved, absolute_jump, far_jump, near_jump, short_jump};
use crate::code::Mode;
use crate::ipmap::IpMap;
use crate::patch::{CavePatch, MAX_BOUNDARIES, MAX_WINDOW, Patch, RELAY_ROOM, Relay};
use crate::place::{Allocator, Slot};
use crate::refusal::Refusal;
use crate::room::PlanRoom;
use crate::shape::{Shape, Shapes};
use crate::slot_bytes::SlotBytes;
use crate::survey::{Displaced, Offer, Survey};

/// `int3`, where nothing runs.
const INT3: &[u8] = &[0xcc];

/// The most bytes that any slot takes.
pub const MAX_SLOT: usize = 160;

/// What the callee of a displaced call sees as its return address.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Returns {
    /// The original one: the call becomes a push and a jump. The callee, stack walkers and whatever compares
    /// return addresses see what they always saw, and nobody sleeps with an address of the slot on the stack. The
    /// processor's return predictor misses once per call, and a shadow stack would not agree.
    #[default]
    Original,
    /// An address in the slot: the call stays a call. No misprediction, and a shadow stack agrees; but a callee
    /// that looks at its return address is led astray, and the slot must not be freed while a callee sleeps.
    /// `call $+5`, and every direct call in 32-bit code (the callee may be there to tell the program counter), is
    /// still given the original address.
    Slot,
}

/// Which bytes trap when they are executed, for a [`Jump5Trapped`](Shape::Jump5Trapped).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Traps {
    /// `int3` alone.
    #[default]
    Int3,
    /// In 64-bit code also the opcodes that are invalid there; the host answers invalid opcodes as it answers
    /// breakpoints.
    Invalid,
}

impl Traps {
    /// The bytes.
    pub const fn bytes(self, mode: Mode) -> &'static [u8] {
        match (self, mode) {
            (Self::Int3, _) | (_, Mode::Bits32) => &[0xcc],
            // Push and pop of segment registers, BCD arithmetic, pusha, popa: Intel SDM volume 2, "64-Bit Mode:
            // Invalid".
            (Self::Invalid, Mode::Bits64) => {
                &[0xcc, 0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61]
            }
        }
    }
}

/// Choices about a detour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Begin the trampoline with ENDBR, so that it may be reached by an indirect call where the processor
    /// enforces landing pads (Linux with IBT). Costs four bytes and one instruction.
    pub landing_pad: bool,
    /// The shapes that may be taken: what the host can commit, and what the caller accepts.
    pub shapes: Shapes,
    /// What the callee of a displaced call sees as its return address.
    pub returns: Returns,
    /// The bytes that trap.
    pub traps: Traps,
    /// Accept a target that branches back to its own start, though each such branch enters the detour again.
    pub reentry: bool,
    /// Prefer a patch that changes one byte: [`Survey::one_byte_offer`] comes before all shapes. A store of one byte
    /// is seen or not seen, never in part, so such a patch comes and goes while the code runs; the price is a relay
    /// at a given address, often in a page of its own.
    pub one_byte: bool,
    /// Give a relay room to lead anywhere later: [`Patch::leading_to`].
    pub roomy: bool,
}

/// The exact bytes of the slot and of the patch, and which old address is which new one.
///
/// It exists only for bytes that were surveyed, and is bound to them: a commit compares them first.
#[derive(Clone, Debug)]
pub struct Plan {
    mode: Mode,
    displaced_count: u8,
    /// Bytes of the displaced instructions, without padding.
    code_len: u8,
    slot: u64,
    trampoline_offset: u8,
    returns_to_slot: bool,
    bytes: SlotBytes,
    ip_map: IpMap,
    patch: Patch,
}

impl Plan {
    /// Plans a detour of the surveyed target to `detour`, in the best shape that `slot` allows.
    ///
    /// # Errors
    /// [`Refusal::OutOfReach`], [`Refusal::SlotTooSmall`] or [`Refusal::SlotOverlaps`]: another slot may do.
    /// [`Refusal::DetourInWindow`]: the detour lies on the target itself. Or what forbids every shape.
    pub fn new(survey: &Survey, slot: Slot, detour: u64) -> Result<Self, Refusal> {
        Self::with_options(survey, slot, detour, Options::default())
    }

    /// As [`new`](Self::new), with choices.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(survey: &Survey, slot: Slot, detour: u64, options: Options) -> Result<Self, Refusal> {
        let mut refused = None;
        for offer in survey.offers(&options) {
            if offer.shape.begins_with_relay() && !offer.admits(slot.address, &options) {
                let target = slot.address;
                refused = refused.or(Some(Refusal::OutOfReach { address: survey.window(), target }));
                continue;
            }
            match Self::of_offer(survey, offer, slot, detour, options) {
                // A less demanding shape may reach, or do without the relay or the cave.
                Err(refusal) if reaches_further(refusal, offer.shape) => {
                    refused = refused.or(Some(refusal));
                }
                outcome => return outcome,
            }
        }
        Err(refused.unwrap_or_else(|| survey.refusal(&options)))
    }

    /// Plans a detour in the best shape for which `allocator` has a slot.
    ///
    /// # Errors
    /// [`Refusal::NoSlot`], or what forbids every shape.
    pub fn best(
        survey: &Survey,
        allocator: &mut impl Allocator,
        detour: u64,
        options: Options,
    ) -> Result<Self, Refusal> {
        let mut room = PlanRoom::new();
        room.best(survey, allocator, detour, options)?;
        Ok(room.plan)
    }

    /// Plans a detour in one shape.
    ///
    /// # Errors
    /// What forbids the shape, [`Refusal::NoShape`] if the options do not accept it, or as [`new`](Self::new).
    pub fn in_shape(
        survey: &Survey,
        shape: Shape,
        slot: Slot,
        detour: u64,
        options: Options,
    ) -> Result<Self, Refusal> {
        if !options.shapes.contains(shape) {
            return Err(Refusal::NoShape { address: survey.window() });
        }
        Self::of_offer(survey, survey.offer(shape, &options)?, slot, detour, options)
    }

    /// Plans a detour as one offer says, which must be this survey's, for these options.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of_offer(
        survey: &Survey,
        offer: Offer,
        slot: Slot,
        detour: u64,
        options: Options,
    ) -> Result<Self, Refusal> {
        let mut plan = Self::none();
        plan.make(survey, &offer, slot, detour, options)?;
        Ok(plan)
    }

    pub(crate) const fn none() -> Self {
        Self {
            mode: Mode::Bits64,
            displaced_count: 0,
            code_len: 0,
            slot: 0,
            trampoline_offset: 0,
            returns_to_slot: false,
            bytes: SlotBytes::none(),
            ip_map: IpMap::none(),
            patch: Patch::none(),
        }
    }

    /// Makes it in place: it is large for a kernel's stack, and nothing of it is there twice. After a refusal it is no plan.
    #[inline(never)]
    pub(crate) fn make(
        &mut self,
        survey: &Survey,
        offer: &Offer,
        slot: Slot,
        detour: u64,
        options: Options,
    ) -> Result<(), Refusal> {
        let mode = survey.mode();
        let displaced_end = survey.window().wrapping_add(u64::from(offer.covered));
        let entry_bytes = survey.entry()..displaced_end;
        // Not from the window on: a landing pad in front of it leads back into the window.
        let in_cave = offer.cave.is_some_and(|cave| mode.wrap(detour.wrapping_sub(cave.address)) < 5);
        if entry_bytes.contains(&detour) || in_cave {
            return Err(Refusal::DetourInWindow { detour });
        }
        if let Some(beyond) = [slot.address, detour].into_iter().find(|&at| at > mode.last_address()) {
            return Err(Refusal::OutOfReach { address: survey.window(), target: beyond });
        }
        let from = Moved {
            mode,
            address: survey.window(),
            bytes: &[],
            kind: Kind::Plain,
            slot: slot.address,
            returns: options.returns,
            alone: false,
        };
        let Self { bytes, ip_map, .. } = self;
        bytes.clear();
        let mut relay = None;
        if offer.shape.begins_with_relay() {
            if !offer.admits(slot.address, &options) {
                return Err(Refusal::OutOfReach { address: survey.window(), target: slot.address });
            }
            from.jump(bytes, detour)?;
            let room = if options.roomy && mode == Mode::Bits64 { RELAY_ROOM } else { bytes.len() };
            while bytes.len() < room {
                bytes.put(INT3)?;
            }
            relay = Some(Relay { address: slot.address, room: u8::try_from(room).unwrap_or(0), far: false });
        }
        let trampoline_offset = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        if options.landing_pad {
            bytes.put(&landing_pad(mode))?;
        }
        let moved =
            || survey.steps(offer).iter().map(|step| survey.moved(step, slot.address, options.returns));
        // Where each pass is to enter the detour, a branch back to the start leads to the patch.
        let enters_again = |target: u64| survey.enters_each_time() && target == survey.window();
        let is_displaced = |target: u64| {
            !enters_again(target) && survey.displaced(offer).any(|displaced| displaced.address() == target)
        };
        layout(ip_map, survey, offer, slot.address, bytes.len(), moved(), is_displaced);
        // A branch to a displaced instruction goes to its copy, every other one where it went.
        let resolve = |target| ip_map.to_slot(target).filter(|_| is_displaced(target)).unwrap_or(target);
        for moved in moved() {
            moved.write(bytes, resolve)?;
        }
        if let Some(resume) = survey.resume(offer) {
            Moved { address: resume, ..from }.jump(bytes, resume)?;
        }
        let jumps = patch_bytes(survey, offer, slot.address, detour, bytes)?;
        let jumps = Jumps { relay: relay.or(jumps.relay), ..jumps };
        // No slot goes round the end of the address space.
        let room = usize::try_from(mode.last_address() - mode.wrap(slot.address)).unwrap_or(usize::MAX);
        let capacity = slot.capacity.min(room);
        if bytes.len() > capacity {
            return Err(Refusal::SlotTooSmall { needed: bytes.len(), capacity });
        }
        let slot_end = slot.address.wrapping_add(bytes.len() as u64);
        let overlaps = |start: u64, end: u64| slot.address < end && slot_end > start;
        let on_cave = jumps.cave.is_some_and(|cave| overlaps(cave.cave.address, cave.cave.address + 5));
        if overlaps(entry_bytes.start, entry_bytes.end.max(survey.end()))
            || on_cave
            || (slot.address..slot_end).contains(&detour)
        {
            return Err(Refusal::SlotOverlaps { address: slot.address });
        }
        patch(&mut self.patch, survey, offer, ip_map, jumps, detour);
        self.mode = mode;
        self.displaced_count = offer.displaced;
        self.code_len = survey.steps(offer).last().map_or(0, |last| last.at + last.len);
        self.slot = slot.address;
        self.trampoline_offset = trampoline_offset;
        self.returns_to_slot = moved().any(|moved| moved.stays_call());
        Ok(())
    }

    /// How the code is decoded.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Address of the slot's first byte.
    pub const fn slot(&self) -> u64 {
        self.slot
    }

    /// What the detour calls as the original.
    pub const fn trampoline(&self) -> u64 {
        self.slot.wrapping_add(self.trampoline_offset as u64)
    }

    /// Where the trampoline begins in the slot: behind the relay, for shapes whose slot begins with one.
    pub fn trampoline_offset(&self) -> usize {
        usize::from(self.trampoline_offset)
    }

    /// The bytes to put into the slot.
    pub fn slot_bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// Old instruction pointers against addresses in the slot.
    pub const fn ip_map(&self) -> &IpMap {
        &self.ip_map
    }

    /// Whether a callee of a displaced call will see an address in the slot as its return address, as
    /// [`Returns::Slot`] asked.
    pub const fn returns_to_slot(&self) -> bool {
        self.returns_to_slot
    }

    /// The shape.
    pub const fn shape(&self) -> Shape {
        self.patch.shape()
    }

    /// The displaced instructions.
    pub fn displaced(&self) -> impl Iterator<Item = Displaced<'_>> + Clone {
        let start = self.patch.address();
        let offset = move |address: u64| usize::try_from(address.wrapping_sub(start)).unwrap_or(usize::MAX);
        let pairs = self.ip_map.pairs();
        (0..usize::from(self.displaced_count)).filter_map(move |index| {
            let address = pairs.get(index)?.0;
            let last = index + 1 == usize::from(self.displaced_count);
            let end = if last { usize::from(self.code_len) } else { offset(pairs.get(index + 1)?.0) };
            let bytes = self.patch.original_bytes().get(offset(address)..end)?;
            Some(Displaced::new(address, bytes))
        })
    }

    /// What the commit needs.
    pub const fn patch(&self) -> &Patch {
        &self.patch
    }
}

/// Whether a less demanding shape than this one may do where it was refused.
pub(crate) const fn reaches_further(refusal: Refusal, shape: Shape) -> bool {
    let own_needs = shape.begins_with_relay() || matches!(shape, Shape::ShortJump);
    match refusal {
        Refusal::OutOfReach { .. } => true,
        Refusal::SlotTooSmall { .. } | Refusal::SlotOverlaps { .. } | Refusal::DetourInWindow { .. } => {
            own_needs
        }
        _ => false,
    }
}

/// Where each copy will begin, and the jump back.
fn layout<'a>(
    map: &mut IpMap,
    survey: &Survey,
    offer: &Offer,
    slot: u64,
    start: usize,
    moved: impl Iterator<Item = Moved<'a>>,
    is_displaced: impl Fn(u64) -> bool,
) {
    map.clear();
    let mut at = slot.wrapping_add(start as u64);
    for moved in moved {
        let _ = map.push(moved.address, at);
        // A copy is near every other one.
        let len = moved.copy_len(|target| if is_displaced(target) { slot } else { target });
        at = at.wrapping_add(len as u64);
    }
    if let Some(resume) = survey.resume(offer) {
        let _ = map.push(resume, at);
    }
}

/// The bytes at the window and in the cave; a relay is added to the slot where the detour is out of reach.
fn patch_bytes(
    survey: &Survey,
    offer: &Offer,
    slot: u64,
    detour: u64,
    bytes: &mut SlotBytes,
) -> Result<Jumps, Refusal> {
    let (mode, window) = (survey.mode(), survey.window());
    let mut relay = None;
    let mut long_jump = |from: u64| -> Result<[u8; 5], Refusal> {
        if let Some(jump) = near_jump(mode, from, detour) {
            return Ok(jump);
        }
        let at = slot.wrapping_add(bytes.len() as u64);
        let jump = near_jump(mode, from, at).ok_or(Refusal::OutOfReach { address: from, target: at })?;
        far_jump(bytes, detour)?;
        relay = Some(Relay { address: at, room: u8::try_from(RELAY_ROOM).unwrap_or(0), far: true });
        Ok(jump)
    };
    let mut new = [0; MAX_WINDOW];
    let mut put = |bytes: &[u8]| {
        for (to, from) in new.iter_mut().zip(bytes) {
            *to = *from;
        }
    };
    let mut cave = None;
    match offer.shape {
        Shape::WholeInstruction | Shape::Jump5 => put(&long_jump(window)?),
        Shape::Jump5Kept | Shape::Jump5Trapped => {
            put(&near_jump(mode, window, slot)
                .ok_or(Refusal::OutOfReach { address: window, target: slot })?)
        }
        Shape::ShortJump => {
            let found = offer.cave.ok_or(Refusal::NoCave { address: window })?;
            let beyond = Refusal::OutOfReach { address: window, target: found.address };
            put(&short_jump(mode, window, found.address).ok_or(beyond)?);
            cave = Some(CavePatch { cave: found, new: long_jump(found.address)? });
        }
        Shape::Jump14 => put(&absolute_jump(detour)),
        Shape::Breakpoint => put(&[0xcc]), // int3
    }
    Ok(Jumps { slot, new, cave, relay })
}

/// The jumps of a patch, from the window to the relay.
struct Jumps {
    slot: u64,
    new: [u8; MAX_WINDOW],
    cave: Option<CavePatch>,
    relay: Option<Relay>,
}

fn patch(
    patch: &mut Patch,
    survey: &Survey,
    offer: &Offer,
    ip_map: &IpMap,
    Jumps { slot, new, cave, relay }: Jumps,
    detour: u64,
) {
    let trampoline = ip_map.pairs().first().map_or(0, |pair| pair.1);
    let mut boundaries = [(0, 0); MAX_BOUNDARIES];
    let mut boundary_count = 0;
    let inside = survey.steps(offer).iter().filter(|step| usize::from(step.at) < offer.shape.window_len());
    for (boundary, (step, pair)) in boundaries.iter_mut().zip(inside.zip(ip_map.pairs())) {
        *boundary = (step.at, u8::try_from(pair.1.wrapping_sub(trampoline)).unwrap_or(u8::MAX));
        boundary_count += 1;
    }
    let mut original = survey.original();
    for byte in original.iter_mut().skip(usize::from(offer.covered)) {
        *byte = 0;
    }
    *patch = Patch {
        mode: survey.mode(),
        address: survey.window(),
        slot,
        detour,
        trampoline,
        relay,
        cave,
        shape: offer.shape,
        displaced_len: offer.covered,
        original,
        new,
        boundary_count,
        boundaries,
    };
}
