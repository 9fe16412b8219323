//! What was found at a target.

use crate::arch::x86::classify::{
    Class, Flow, Kind, Note, classify, is_breakpoint, is_padding, label, touches,
};
use crate::arch::x86::decode::{self, Failure};
use crate::arch::x86::relocate::{CALL, ENDBR64, Moved, NOP5, SEALED_ENDBR};
use crate::arch::x86::scan::{self, Forbidden};
use crate::arch::x86::thunk::absolute_jump;
use crate::code::{Code, Context, MAX_INSTRUCTION};
use crate::hazard::Hazard;
use crate::patch::{MAX_BOUNDARIES, MAX_DISPLACED, MAX_WINDOW};
use crate::refusal::{Refusal, Unsupported};
use crate::shape::Shape;
use arrayvec::ArrayVec;

/// How many hazards a survey keeps; there is one at most of each kind per displaced instruction, and a few more.
const MAX_HAZARDS: usize = 12;

/// One displaced instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Displaced {
    address: u64,
    bytes: [u8; MAX_INSTRUCTION],
    len: u8,
    kind: Kind,
}

impl Displaced {
    /// Where it stands.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }

    /// One past its last byte.
    pub fn end(&self) -> u64 {
        self.address.wrapping_add(u64::from(self.len))
    }

    pub(crate) fn moved(&self) -> Moved<'_> {
        Moved { address: self.address, bytes: self.bytes(), kind: self.kind }
    }
}

/// The addresses at which a slot may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Lowest address of a slot's first byte.
    pub first: u64,
    /// Highest address of a slot's first byte.
    pub last: u64,
}

impl Reach {
    /// Whether a slot may begin at `address`.
    pub const fn contains(&self, address: u64) -> bool {
        self.first <= address && address <= self.last
    }

    /// The slots from which `target` is a 32-bit displacement away, with room for the slot itself. Displacements
    /// wrap at both ends of the address space: kernel code at the top refers to per-CPU data at the bottom.
    fn around(target: u64, window: u64) -> Self {
        const NEAR: i64 = (1 << 31) - 4096;
        let distance = target.wrapping_sub(window).cast_signed();
        Self {
            first: window.saturating_add_signed(distance.saturating_sub(NEAR)),
            last: window.saturating_add_signed(distance.saturating_add(NEAR)),
        }
    }

    fn and(self, other: Self) -> Self {
        Self { first: self.first.max(other.first), last: self.last.min(other.last) }
    }
}

/// What was found at a target that can be detoured: a [`Plan`](crate::Plan) is made from it.
#[derive(Clone, Debug)]
pub struct Survey {
    entry: u64,
    window: u64,
    displaced: ArrayVec<Displaced, MAX_BOUNDARIES>,
    original: [u8; MAX_DISPLACED],
    original_len: u8,
    goes_on: bool,
    shape: Shape,
    reach: Reach,
    hazards: ArrayVec<Hazard, MAX_HAZARDS>,
}

impl Survey {
    /// Looks at a function and says how it can be detoured, or why not.
    ///
    /// # Errors
    /// A [`Refusal`] that names the address and the reason.
    pub fn of(code: &Code<'_>, context: &Context<'_>) -> Result<Self, Refusal> {
        let bytes = below_end(code);
        let skip = landing(bytes, code.address(), context)?;
        let window = code.address().wrapping_add(skip as u64);
        let bytes = bytes.get(skip..).unwrap_or(&[]);
        if bytes.len() < MAX_WINDOW {
            return Err(Refusal::Truncated { address: window, have: bytes.len() });
        }
        let length = code.length().map(|length| length.saturating_sub(skip));
        let mut hazards = Hazards(ArrayVec::new());

        let found = displace(bytes, window, length, context, &mut hazards)?;
        check_inside(&found.instructions, window, found.code_len)?;
        check_context(window, found.len, context)?;
        check_rest(bytes, context.parts, window, length, &found, &mut hazards)?;

        let mut original = [0; MAX_DISPLACED];
        for (to, from) in original.iter_mut().zip(bytes.iter().take(found.len)) {
            *to = *from;
        }
        let reach = found
            .instructions
            .iter()
            .filter_map(|instruction| instruction.kind.target())
            .fold(Reach::around(window, window), |reach, target| reach.and(Reach::around(target, window)));
        Ok(Self {
            entry: code.address(),
            window,
            shape: if found.instructions.len() > 1 { Shape::Jump5 } else { Shape::WholeInstruction },
            displaced: found.instructions,
            original,
            original_len: u8::try_from(found.len).unwrap_or(u8::MAX),
            goes_on: found.goes_on,
            reach,
            hazards: hazards.0,
        })
    }

    /// The function's entry, as given.
    pub const fn entry(&self) -> u64 {
        self.entry
    }

    /// Start of the window: the entry, or behind its landing pad and ftrace site.
    pub const fn window(&self) -> u64 {
        self.window
    }

    /// Length of the window in bytes.
    pub const fn window_len(&self) -> usize {
        MAX_WINDOW
    }

    /// The whole instructions that overlap the window; padding behind the function's end is not among them.
    pub fn displaced(&self) -> &[Displaced] {
        &self.displaced
    }

    /// Starts of displaced instructions strictly inside the window: where a parked thread may resume.
    pub fn interior_boundaries(&self) -> impl Iterator<Item = u64> + '_ {
        self.displaced.iter().skip(1).map(Displaced::address)
    }

    /// The best shape for this target.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// Where the slot may lie; empty (`first > last`) if what the displaced instructions refer to is too far apart.
    pub const fn reach(&self) -> Reach {
        self.reach
    }

    /// What a careful caller wants to know.
    pub fn hazards(&self) -> &[Hazard] {
        &self.hazards
    }

    /// All bytes of the displaced instructions (and of padding inside the window).
    pub fn original_bytes(&self) -> &[u8] {
        self.original.get(..usize::from(self.original_len)).unwrap_or(&self.original)
    }

    /// Bytes that a slot for this target needs at most, with a landing pad and a far relay.
    pub fn slot_need(&self) -> usize {
        let copies: usize = self.displaced.iter().map(|displaced| displaced.moved().copy_len()).sum();
        4 + copies + 5 + 14
    }

    pub(crate) fn original_array(&self) -> ([u8; MAX_DISPLACED], u8) {
        (self.original, self.original_len)
    }

    /// One past the last byte of [`original_bytes`](Self::original_bytes).
    pub(crate) fn displaced_end(&self) -> u64 {
        self.window.wrapping_add(u64::from(self.original_len))
    }

    /// Where the code goes on behind the displaced instructions, if it does.
    pub(crate) fn resume(&self) -> Option<u64> {
        self.displaced.last().filter(|_| self.goes_on).map(Displaced::end)
    }
}

/// The hazards found so far; what does not fit any more is dropped, the first ones matter most.
struct Hazards(ArrayVec<Hazard, MAX_HAZARDS>);

impl Hazards {
    fn add(&mut self, hazard: Hazard) {
        let _ = self.0.try_push(hazard);
    }
}

/// The bytes that lie below the end of the address space, so that the window's end does not wrap.
fn below_end<'a>(code: &Code<'a>) -> &'a [u8] {
    let room = usize::try_from(u64::MAX - code.address()).unwrap_or(usize::MAX);
    code.bytes().get(..room).unwrap_or(code.bytes())
}

/// Bytes between the entry and the window: a landing pad, and the function's ftrace site.
fn landing(bytes: &[u8], entry: u64, context: &Context<'_>) -> Result<usize, Refusal> {
    let pad = if bytes.starts_with(&ENDBR64) { ENDBR64.len() } else { 0 };
    let Some(site) = context.fentry else {
        return Ok(pad);
    };
    let not_fentry = Refusal::NotFentry { address: site };
    let before = usize::try_from(site.wrapping_sub(entry)).map_err(|_| not_fentry)?;
    // Between the entry and the site: nothing, an ENDBR, or one that the kernel has sealed.
    let between = bytes.get(..before).ok_or(not_fentry)?;
    let at = bytes.get(before..).ok_or(not_fentry)?;
    let pad_only = between.is_empty() || between == ENDBR64 || between == SEALED_ENDBR;
    let is_site = at.starts_with(&NOP5) || (at.first() == Some(&CALL) && at.len() >= NOP5.len());
    if pad_only && is_site { Ok(before + NOP5.len()) } else { Err(not_fentry) }
}

/// The displaced instructions.
struct Found {
    instructions: ArrayVec<Displaced, MAX_BOUNDARIES>,
    /// Bytes of these instructions.
    code_len: usize,
    /// These, and padding up to the window's end.
    len: usize,
    /// These, and whole instructions of padding: where the rest of the function begins.
    rest: usize,
    /// Whether the last of them can be left at its end.
    goes_on: bool,
}

/// Collects whole instructions until the window is full.
fn displace(
    bytes: &[u8],
    window: u64,
    length: Option<usize>,
    context: &Context<'_>,
    hazards: &mut Hazards,
) -> Result<Found, Refusal> {
    let mut found = Found { instructions: ArrayVec::new(), code_len: 0, len: 0, rest: 0, goes_on: true };
    let mut shadowed = None;
    let end = window.wrapping_add(MAX_WINDOW as u64);
    while found.code_len < MAX_WINDOW {
        let at = window.wrapping_add(found.code_len as u64);
        let jumped_to = found.instructions.iter().any(|earlier| earlier.kind.jump_target() == Some(at));
        let ended = !found.goes_on && !jumped_to || length.is_some_and(|length| found.code_len >= length);
        if ended {
            if found.goes_on {
                // It runs into whatever follows: a trampoline would have to jump back into the window.
                return Err(Refusal::TooShort { target: window, len: found.code_len, needed: MAX_WINDOW });
            }
            found.rest = proven_padding(bytes, window, length, found.code_len, context)?;
            found.len = MAX_WINDOW;
            return Ok(found);
        }
        let rest = bytes.get(found.code_len..).unwrap_or(&[]);
        let decoded = decode::instruction(rest, at).map_err(|failure| match failure {
            Failure::NoMoreBytes => Refusal::Truncated { address: at, have: rest.len() },
            Failure::Invalid => Refusal::Undecodable { address: at },
        })?;
        let class = classify(&decoded)?;
        if is_breakpoint(&decoded) {
            return Err(Refusal::Breakpoint { address: at });
        }
        if let Some(into) = label(&decoded).filter(|&label| window < label && label < end) {
            return Err(Refusal::BranchIntoWindow { from: at, into });
        }
        if touches(&decoded, window, end) {
            return Err(Refusal::Unsupported { address: at, why: Unsupported::TouchesWindow });
        }
        check_foreign(rest, at, at == window, class.kind, context)?;
        note(at, decoded.len(), &class, hazards);
        let mut copy = [0; MAX_INSTRUCTION];
        for (to, from) in copy.iter_mut().zip(decoded.bytes) {
            *to = *from;
        }
        let displaced = Displaced {
            address: at,
            bytes: copy,
            len: u8::try_from(decoded.len()).unwrap_or(0),
            kind: class.kind,
        };
        // Five bytes hold five instructions at most, so this never fails.
        let _ = found.instructions.try_push(displaced);
        found.code_len += decoded.len();
        found.goes_on = class.flow == Flow::On;
        shadowed = (class.note == Note::InterruptShadow).then_some(at);
        // The function must not end in the middle of an instruction.
        if let Some(length) = length.filter(|&length| found.code_len > length) {
            return Err(Refusal::TooShort { target: window, len: length, needed: MAX_WINDOW });
        }
    }
    // The jump back would stand in the shadow instead of the instruction that needs it.
    if let Some(address) = shadowed {
        return Err(Refusal::Unsupported { address, why: Unsupported::InterruptShadow });
    }
    found.len = found.code_len;
    found.rest = found.code_len;
    Ok(found)
}

/// A jump out of the image is somebody else's: a hook at the window's start, or a probe that was made a jump on any
/// of the displaced instructions. Ordinary code that ends in an absolute jump does so behind its first instruction.
fn check_foreign(
    bytes: &[u8],
    at: u64,
    is_first: bool,
    kind: Kind,
    context: &Context<'_>,
) -> Result<(), Refusal> {
    let Some((start, end)) = context.image else {
        return Ok(());
    };
    let to = match kind {
        Kind::Jump { target } => Some(target),
        _ if is_first => absolute_jump(bytes, at),
        _ => None,
    };
    match to.filter(|to| !(start..end).contains(to)) {
        Some(to) => Err(Refusal::Foreign { address: at, to }),
        None => Ok(()),
    }
}

fn note(at: u64, len: usize, class: &Class, hazards: &mut Hazards) {
    let returns_to = at.wrapping_add(len as u64);
    match (class.kind, class.note) {
        (Kind::Call { .. } | Kind::IndirectCall { .. }, _) => {
            hazards.add(Hazard::Call { address: at, returns_to })
        }
        (_, Note::SystemCall) => hazards.add(Hazard::SystemCall { address: at }),
        (_, Note::IndirectJump) => hazards.add(Hazard::IndirectJump { address: at }),
        _ => {}
    }
}

/// The bytes from `len` on to the window's end may be overwritten only if they are proven to be padding: they
/// decode so, and lie inside the function's symbol bounds, or in front of the next symbol. In the second case there
/// may be a function without a symbol before it, and that one may begin with a no-op: the padding must go on to the
/// next symbol or to an address that functions are aligned to.
///
/// Returns where the last instruction of padding ends that begins in the window.
fn proven_padding(
    bytes: &[u8],
    window: u64,
    length: Option<usize>,
    len: usize,
    context: &Context<'_>,
) -> Result<usize, Refusal> {
    /// What compilers align functions to.
    const ALIGNMENT: u64 = 16;
    let refused = Refusal::TooShort { target: window, len, needed: MAX_WINDOW };
    let length = length.ok_or(refused)?;
    let inside = length >= MAX_WINDOW;
    let bound = match context.next_symbol {
        _ if inside => window.saturating_add(length as u64),
        Some(next) => next,
        None => return Err(refused),
    };
    let mut len = len;
    loop {
        let at = window.wrapping_add(len as u64);
        let proven = inside || at == bound || at.is_multiple_of(ALIGNMENT);
        if at > bound {
            return Err(refused);
        }
        if len >= MAX_WINDOW && proven {
            return Ok(len);
        }
        let padding = bytes
            .get(len..)
            .and_then(|rest| decode::instruction(rest, at).ok())
            .filter(is_padding)
            .ok_or(refused)?;
        len += padding.len();
    }
}

/// Branches of the displaced instructions themselves must land on one of them or outside the window (padding in it
/// included), and an indirect call must not return into it.
fn check_inside(
    instructions: &ArrayVec<Displaced, MAX_BOUNDARIES>,
    window: u64,
    code_len: usize,
) -> Result<(), Refusal> {
    let end = window.wrapping_add(MAX_WINDOW as u64);
    let displaced_end = end.max(window.wrapping_add(code_len as u64));
    for instruction in instructions {
        let from = instruction.address;
        if let Some(into) =
            instruction.kind.jump_target().filter(|target| (window..displaced_end).contains(target))
            && !instructions.iter().any(|other| other.address == into)
        {
            return Err(Refusal::BranchIntoWindow { from, into });
        }
        match instruction.kind {
            Kind::Call { target }
                if target != window && target != instruction.end() && (window..end).contains(&target) =>
            {
                return Err(Refusal::BranchIntoWindow { from, into: target });
            }
            Kind::IndirectCall { .. } | Kind::Call { .. } if instruction.end() < end => {
                return Err(Refusal::ReturnIntoWindow { call: from, returns_to: instruction.end() });
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the environment knows: addresses that others jump to, bytes that belong to others.
fn check_context(window: u64, len: usize, context: &Context<'_>) -> Result<(), Refusal> {
    let end = window.wrapping_add(MAX_WINDOW as u64);
    if let Some(&into) = context.branch_targets.iter().find(|target| (window..end).contains(target)) {
        return Err(Refusal::BranchIntoWindow { from: into, into });
    }
    let end = window.wrapping_add(len as u64);
    let overlaps = |address: u64, len: u32| address < end && address.saturating_add(u64::from(len)) > window;
    match context.reserved.iter().find(|reserved| overlaps(reserved.address, reserved.len)) {
        Some(reserved) => Err(Refusal::Reserved { address: reserved.address, owner: reserved.owner }),
        None => Ok(()),
    }
}

/// The rest of the function, and its other parts, must not branch into the window.
fn check_rest(
    bytes: &[u8],
    parts: &[Code<'_>],
    window: u64,
    length: Option<usize>,
    found: &Found,
    hazards: &mut Hazards,
) -> Result<(), Refusal> {
    let forbidden = Forbidden { start: window, end: window.wrapping_add(MAX_WINDOW as u64) };
    for part in parts {
        scan::branches(part.bytes(), part.address(), forbidden, |hazard| hazards.add(hazard))?;
    }
    let Some(length) = length else {
        hazards.add(Hazard::LengthUnknown);
        return Ok(());
    };
    let end = length.min(bytes.len());
    if length > end {
        hazards.add(Hazard::NotWhollyRead { address: window.wrapping_add(end as u64) });
    }
    let rest = bytes.get(found.rest..end).unwrap_or(&[]);
    scan::branches(rest, window.wrapping_add(found.rest as u64), forbidden, |hazard| hazards.add(hazard))
}
