//! One input: a function with everything that is said about it, a slot and a detour. Survey, every offer, every plan.
//!
//! No input may panic; whatever plan is made, the oracle agrees with it, it takes no more bytes than its offer said,
//! and it is made again in the same way; and a slot that an offer allows is not refused.

use kdetour_oracle::Given;
use kdetour_plan::{
    Allocator, Code, Context, MAX_SLOT, Mode, Offer, Options, Owner, Plan, Reach, Refusal, Region, Relays,
    Reserved, Returns, Shape, Shapes, Slot, Survey, Traps, thunk,
};

/// Bytes in front of the code.
pub const HEADER: usize = 40;

/// What an input says: the first [`HEADER`] bytes are these fields, little-endian, one behind the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    /// 1: 32-bit code; 2: length unknown; 4: landing pad; 8: calls return to the slot; 16: invalid opcodes trap;
    /// 32: reentry; 64: what is in front is dead; 128: fourteen bytes of no-ops in front, instead of `int3`.
    pub choices: u8,
    /// The shapes, one bit for each; 0 for all.
    pub shapes: u8,
    /// 1: an ftrace site; 2: the next symbol; 4: bytes in front; 8: another part; 16: a branch target; 32: reserved
    /// bytes; 64: data; 128: the image's bounds.
    pub knows: u8,
    /// Where the next symbol is, from the end of the code.
    pub next: i8,
    /// The branch target and the reserved bytes, from the entry.
    pub place: i8,
    /// By how much the length differs from that of the code.
    pub length: i8,
    /// Bytes at the end that are another part of the function.
    pub part: u8,
    /// Bytes at the end that are data.
    pub data: u8,
    /// The entry.
    pub address: u64,
    /// The slot, from the entry.
    pub slot: i64,
    /// The detour, from the entry.
    pub detour: i64,
    /// The other part, from the entry.
    pub part_at: i32,
    /// The data, from the entry.
    pub data_at: i32,
}

impl Header {
    /// The fields in front of an input.
    pub fn read(input: &[u8]) -> Option<(Self, &[u8])> {
        let (&head, code) = input.split_first_chunk::<HEADER>()?;
        let [choices, shapes, knows, next, place, length, part, data, rest @ ..] = head;
        let long = |at: usize| i64::from_le_bytes(std::array::from_fn(|byte| rest[at + byte]));
        let int = |at: usize| i32::from_le_bytes(std::array::from_fn(|byte| rest[at + byte]));
        let header = Self {
            choices,
            shapes,
            knows,
            next: next.cast_signed(),
            place: place.cast_signed(),
            length: length.cast_signed(),
            part,
            data,
            address: long(0).cast_unsigned(),
            slot: long(8),
            detour: long(16),
            part_at: int(24),
            data_at: int(28),
        };
        Some((header, code))
    }

    /// The same as bytes.
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = vec![self.choices, self.shapes, self.knows];
        bytes.extend([self.next, self.place, self.length].map(i8::cast_unsigned));
        bytes.extend([self.part, self.data]);
        bytes.extend(self.address.to_le_bytes());
        bytes.extend(self.slot.to_le_bytes());
        bytes.extend(self.detour.to_le_bytes());
        bytes.extend(self.part_at.to_le_bytes());
        bytes.extend(self.data_at.to_le_bytes());
        bytes
    }

    const fn has(&self, bit: u8) -> bool {
        self.choices & bit != 0
    }

    const fn knows(&self, bit: u8) -> bool {
        self.knows & bit != 0
    }

    fn mode(&self) -> Mode {
        if self.has(1) { Mode::Bits32 } else { Mode::Bits64 }
    }

    fn options(&self) -> Options {
        let chosen = Shape::ALL.into_iter().enumerate().filter(|(bit, _)| self.shapes >> bit & 1 != 0);
        let shapes = chosen.fold(Shapes::NONE, |shapes, (_, shape)| shapes.with(shape));
        Options {
            landing_pad: self.has(4),
            shapes: if self.shapes & 0x7f == 0 { Shapes::ALL } else { shapes },
            returns: if self.has(8) { Returns::Slot } else { Returns::Original },
            traps: if self.has(16) { Traps::Invalid } else { Traps::Int3 },
            reentry: self.has(32),
            one_byte: self.shapes & 0x80 != 0,
            roomy: self.shapes & 0x80 != 0,
        }
    }
}

/// Runs an input.
///
/// # Panics
/// If something is wrong.
pub fn run(input: &[u8]) {
    let Some((header, bytes)) = Header::read(input) else { return };
    let mode = header.mode();
    let address = mode.wrap(header.address);
    let at = |distance: i64| mode.wrap(address.wrapping_add_signed(distance));

    let (bytes, data) = bytes.split_at(bytes.len().saturating_sub(usize::from(header.data)));
    let (bytes, part) = bytes.split_at(bytes.len().saturating_sub(usize::from(header.part)));
    let mut code = Code::in_mode(mode, address, bytes);
    if !header.has(2) {
        code = code.with_length(bytes.len().saturating_add_signed(isize::from(header.length)));
    }
    let end = address.wrapping_add(bytes.len() as u64);
    let fill = if header.has(128) { [0x90; 14] } else { [0xcc; 14] };
    let parts = [Code::in_mode(mode, at(header.part_at.into()), part)];
    let targets = [at(header.place.into())];
    let reserved = [Reserved { address: targets[0], len: 1 + u32::from(header.part), owner: Owner::Kprobe }];
    let data = [Region { address: at(header.data_at.into()), bytes: data }];
    let context = Context {
        fentry: header.knows(1).then(|| at(if bytes.first() == Some(&0xf3) { 4 } else { 0 })),
        next_symbol: header.knows(2).then(|| mode.wrap(end.wrapping_add_signed(header.next.into()))),
        before: if header.knows(4) { &fill } else { &[] },
        dead: header.has(64),
        image: header.knows(128).then_some((address, end)),
        parts: if header.knows(8) { &parts } else { &[] },
        branch_targets: if header.knows(16) { &targets } else { &[] },
        reserved: if header.knows(32) { &reserved } else { &[] },
        rewritten: &reserved,
        data: if header.knows(64) { &data } else { &[] },
        got: header.knows(64).then(|| data[0].address),
    };
    let _ = thunk(&code);
    let Ok(survey) = Survey::of(&code, &context) else { return };
    let _ = survey.explain(&header.options()).to_string();
    let question = Question {
        code,
        context,
        options: header.options(),
        // Not wrapped: beyond 4 GiB they are to be refused in 32-bit code.
        slot: Slot { address: address.wrapping_add_signed(header.slot), capacity: MAX_SLOT },
        detour: address.wrapping_add_signed(header.detour),
    };
    question.plan_every_way(&survey);
}

struct Question<'a> {
    code: Code<'a>,
    context: Context<'a>,
    options: Options,
    slot: Slot,
    detour: u64,
}

impl Question<'_> {
    fn plan_every_way(&self, survey: &Survey) {
        let (options, detour) = (self.options, self.detour);
        let _ = self.judge(survey, self.slot, || Plan::with_options(survey, self.slot, detour, options));
        let mut exact = Exact { wish: self.slot.address, end: self.code.mode().last_address(), given: None };
        let best = Plan::best(survey, &mut exact, detour, options);
        if let Some(slot) = exact.given {
            let best = self.judge(survey, slot, || best.clone());
            assert!(!matches!(best, Err(Refusal::SlotTooSmall { .. })), "{best:?}\n{self:#x?}");
        }
        for offer in survey.offers(&options) {
            let _ =
                self.judge(survey, self.slot, || Plan::of_offer(survey, offer, self.slot, detour, options));
            for slot in self.allowed(&offer) {
                let plan = || Plan::of_offer(survey, offer, slot, detour, options);
                match self.judge(survey, slot, plan) {
                    // It lies on something; or the detour does, or is beyond the end of the address space.
                    Ok(()) | Err(Refusal::SlotOverlaps { .. } | Refusal::DetourInWindow { .. }) => {}
                    Err(Refusal::OutOfReach { target, .. }) if target == detour && self.beyond() => {}
                    Err(refusal) => {
                        panic!("{offer:x?} does not keep its word for {slot:x?}: {refusal}\n{self:#x?}")
                    }
                }
            }
        }
    }

    fn beyond(&self) -> bool {
        self.detour > self.code.mode().last_address()
    }

    /// Slots that the offer allows, with no byte more than it needs.
    fn allowed(&self, offer: &Offer) -> Vec<Slot> {
        let reach = offer.reach();
        let last = self.code.mode().last_address() - MAX_SLOT as u64;
        let mut addresses = vec![reach.first, reach.last, self.slot.address];
        for relays in offer.relays(&self.options) {
            for (first, last) in relays.ranges().take(3) {
                assert!(relays.contains(first) && relays.contains(last), "{relays:x?}: {first:#x} {last:#x}");
                addresses.extend([first, last]);
            }
        }
        addresses.retain(|&address| address <= last && offer.admits(address, &self.options));
        addresses.into_iter().map(|address| Slot { address, capacity: offer.need() }).collect()
    }

    /// Makes a plan twice, and lets the oracle read it.
    fn judge(
        &self,
        survey: &Survey,
        slot: Slot,
        plan: impl Fn() -> Result<Plan, Refusal>,
    ) -> Result<(), Refusal> {
        let made = plan()?;
        let again = plan()?;
        assert_eq!(made.slot_bytes(), again.slot_bytes(), "another slot\n{self:#x?}");
        assert_eq!(made.patch(), again.patch(), "another patch\n{self:#x?}");
        let Self { code, context, options, detour, .. } = *self;
        let given = Given { code, context, slot, detour, options };
        if let Err(why) = kdetour_oracle::check(&given, survey, &made) {
            panic!("{why}\n{self:#x?}\n{slot:x?}\n{:x?}\n{made:x?}", code.bytes());
        }
        Ok(())
    }
}

impl std::fmt::Debug for Question<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x?}\n{:x?}\n{:?}\n", self.code, self.context, self.options)?;
        write!(f, "{:x?}, detour {:#x}", self.slot, self.detour)
    }
}

/// An allocator that gives exactly what it is asked for, as near to an address as it may.
struct Exact {
    wish: u64,
    /// The last address at which a slot of any length ends.
    end: u64,
    given: Option<Slot>,
}

impl Allocator for Exact {
    fn near(&mut self, reach: Reach, len: usize) -> Option<Slot> {
        let address = self.wish.max(reach.first).min(reach.last).min(self.end - len as u64);
        self.given = reach.contains(address).then_some(Slot { address, capacity: len });
        self.given
    }

    fn at(&mut self, relays: Relays, reach: Reach, len: usize) -> Option<Slot> {
        let last = reach.last.min(self.end - len as u64);
        let range = relays.ranges().find(|range| range.0 >= reach.first && range.1 <= last)?;
        let address = self.wish.max(range.0).min(range.1);
        self.given = Some(Slot { address, capacity: len });
        self.given
    }
}
