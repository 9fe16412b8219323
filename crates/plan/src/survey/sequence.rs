//! The instructions from the window's start on: as many as the longest window may displace.

use super::padding;
use crate::arch::x86::classify::{Class, Flow, Kind, Memory, Note, classify, is_breakpoint, label, memory};
use crate::arch::x86::decode::{Failure, Reader};
use crate::arch::x86::thunk::absolute_jump;
use crate::code::{Code, Context, Mode};
use crate::hazard::Hazard;
use crate::patch::{MAX_BOUNDARIES, MAX_DISPLACED, MAX_WINDOW};
use crate::refusal::{Refusal, Unsupported};
use arrayvec::ArrayVec;

/// One instruction of the sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Distance from the window's start.
    pub(crate) at: u8,
    pub(crate) len: u8,
    pub(super) kind: Kind,
    pub(super) note: Note,
    pub(super) flow: Flow,
    /// The label whose address it takes, if that is inside the longest window: its distance from the start.
    pub(super) label: Option<u8>,
    /// The first byte, of those that can be displaced, that it reads or writes as memory.
    pub(super) touches: Option<u8>,
}

impl Step {
    /// Distance of the next instruction from the window's start.
    pub(super) const fn end(&self) -> usize {
        self.at as usize + self.len as usize
    }
}

/// The instructions, and why there are no more of them.
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    pub(super) steps: ArrayVec<Step, MAX_BOUNDARIES>,
    pub(super) stop: Stop,
}

/// Why a sequence ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// It is long enough for every window.
    Full,
    /// The next bytes cannot be displaced.
    Refused(Refusal),
    /// The function ends here, or nothing leads on. `padding` more bytes may be overwritten.
    End { goes_on: bool, padding: usize },
}

impl Sequence {
    pub(super) const fn none() -> Self {
        Self { steps: ArrayVec::new_const(), stop: Stop::Full }
    }

    /// Bytes of all instructions.
    pub(super) fn len(&self) -> usize {
        self.steps.last().map_or(0, Step::end)
    }

    /// The first instructions that cover `window` bytes: how many, and their bytes with the padding that the
    /// window takes.
    pub(super) fn cover(&self, window: usize, start: u64) -> Result<(usize, usize), Refusal> {
        if let Some(last) = self.steps.iter().position(|step| step.end() >= window) {
            return Ok((last + 1, self.steps.get(last).map_or(0, Step::end)));
        }
        let len = self.len();
        let too_short = Refusal::TooShort { target: start, len, needed: window };
        match self.stop {
            Stop::Refused(refusal) => Err(refusal),
            Stop::End { goes_on: false, padding } if len + padding >= window => {
                Ok((self.steps.len(), window))
            }
            // Where it runs into whatever follows, a trampoline would have to jump back into the window.
            Stop::End { .. } | Stop::Full => Err(too_short),
        }
    }
}

/// Decodes whole instructions until the longest window is full. `bytes` begin at `window`.
#[inline(never)]
pub(super) fn read(
    bytes: &[u8],
    mode: Mode,
    window: u64,
    length: Option<usize>,
    context: &Context<'_>,
    sequence: &mut Sequence,
) {
    sequence.steps.clear();
    sequence.stop = Stop::Full;
    let mut goes_on = true;
    let mut reader = Reader::new(mode, bytes, window);
    while sequence.len() < MAX_WINDOW {
        let offset = sequence.len();
        let at = mode.wrap(window.wrapping_add(offset as u64));
        let jumped_to = sequence.steps.iter().any(|earlier| earlier.kind.jump_target() == Some(at));
        if !goes_on && !jumped_to || length.is_some_and(|length| offset >= length) {
            let padding =
                if goes_on { 0 } else { padding::behind(bytes, mode, window, length, offset, context) };
            sequence.stop = Stop::End { goes_on, padding };
            return;
        }
        let code = Code::in_mode(mode, at, bytes.get(offset..).unwrap_or(&[]));
        match step(&mut reader, &code, window, context) {
            Ok(step) if length.is_some_and(|length| step.end() > length) => {
                // The function would end in the middle of an instruction.
                let len = length.unwrap_or(0);
                sequence.stop = Stop::Refused(Refusal::TooShort { target: window, len, needed: step.end() });
                return;
            }
            Ok(step) => {
                goes_on = step.flow == Flow::On;
                // Fourteen bytes hold fourteen instructions at most, so this never fails.
                let _ = sequence.steps.try_push(step);
            }
            Err(refusal) => {
                sequence.stop = Stop::Refused(refusal);
                return;
            }
        }
    }
}

fn step(
    reader: &mut Reader<'_>,
    code: &Code<'_>,
    window: u64,
    context: &Context<'_>,
) -> Result<Step, Refusal> {
    let (mode, at, bytes) = (code.mode(), code.address(), code.bytes());
    let offset = usize::try_from(mode.wrap(at.wrapping_sub(window))).unwrap_or(usize::MAX);
    let decoded = reader.read_fields(offset).map_err(|failure| match failure {
        Failure::NoMoreBytes => Refusal::Truncated { address: at, have: bytes.len() },
        Failure::Invalid => Refusal::Undecodable { address: at },
    })?;
    if is_breakpoint(&decoded) {
        return Err(Refusal::Breakpoint { address: at });
    }
    let Class { kind, flow, note } = classify(&decoded)?;
    check_foreign(code, at == window, kind, context)?;
    let inside = |address: u64| {
        let distance = mode.wrap(address.wrapping_sub(window));
        u8::try_from(distance).ok().filter(|&distance| usize::from(distance) < MAX_WINDOW)
    };
    let touches = memory(&decoded).and_then(|Memory { address, size }| {
        let reaches = mode.wrap(window.wrapping_sub(address)) < u64::from(size);
        let distance = u8::try_from(mode.wrap(address.wrapping_sub(window)));
        let displaced = distance.ok().filter(|&distance| usize::from(distance) < MAX_DISPLACED);
        if reaches { Some(0) } else { displaced }
    });
    Ok(Step {
        at: inside(at).unwrap_or(u8::MAX),
        len: u8::try_from(decoded.len()).unwrap_or(u8::MAX),
        kind,
        note,
        flow,
        label: label(&decoded).and_then(inside),
        touches,
    })
}

/// A jump out of the image is somebody else's: a hook at the window's start, or a probe that was made a jump on any
/// of the displaced instructions. Ordinary code that ends in an absolute jump does so behind its first instruction.
pub(super) fn check_foreign(
    code: &Code<'_>,
    is_first: bool,
    kind: Kind,
    context: &Context<'_>,
) -> Result<(), Refusal> {
    let Some((start, end)) = context.image else {
        return Ok(());
    };
    let to = match kind {
        Kind::Jump { target } => Some(target),
        _ if is_first => absolute_jump(code.mode(), code.bytes(), code.address()),
        _ => None,
    };
    match to.filter(|to| !(start..end).contains(to)) {
        Some(to) => Err(Refusal::Foreign { address: code.address(), to }),
        None => Ok(()),
    }
}

/// A jump at the window's start that leads to a jump out of the image is somebody else's, too: the long one is in padding near the function,
/// as that of a [`ShortJump`](crate::Shape::ShortJump) is. `bytes` begin at `window`.
#[inline(never)]
pub(super) fn check_by_way(
    bytes: &[u8],
    mode: Mode,
    (entry, window): (u64, u64),
    sequence: &Sequence,
    context: &Context<'_>,
) -> Result<(), Refusal> {
    let Some(Kind::Jump { target }) = sequence.steps.first().map(|first| first.kind) else { return Ok(()) };
    let place = |start: u64| usize::try_from(mode.wrap(target.wrapping_sub(start))).unwrap_or(usize::MAX);
    let in_front = entry.wrapping_sub(context.before.len() as u64);
    let there = bytes.get(place(window)..).filter(|there| !there.is_empty());
    let Some(there) = there.or_else(|| context.before.get(place(in_front)..)) else { return Ok(()) };
    let mut reader = Reader::new(mode, there, target);
    let Ok(decoded) = reader.read_fields(0) else { return Ok(()) };
    let Ok(Class { kind, .. }) = classify(&decoded) else { return Ok(()) };
    check_foreign(&Code::in_mode(mode, target, there), true, kind, context).map_err(|refusal| match refusal {
        Refusal::Foreign { to, .. } => Refusal::Foreign { address: window, to },
        other => other,
    })
}

/// What a careful caller wants to know of a displaced instruction, which stands at `at`.
pub(super) fn hazard(at: u64, step: &Step) -> Option<Hazard> {
    match (step.kind, step.note) {
        (Kind::Call { .. } | Kind::IndirectCall { .. }, _) => {
            Some(Hazard::Call { address: at, returns_to: at.wrapping_add(u64::from(step.len)) })
        }
        (_, Note::SystemCall) => Some(Hazard::SystemCall { address: at }),
        (_, Note::X87) => Some(Hazard::X87 { address: at }),
        (_, Note::IndirectJump) => Some(Hazard::IndirectJump { address: at }),
        _ => None,
    }
}

/// What one shape displaces may not include these.
pub(super) fn check_last(step: &Step, at: u64) -> Result<(), Refusal> {
    match step.note {
        // The jump back would stand in the shadow instead of the instruction that needs it.
        Note::InterruptShadow => Err(Refusal::Unsupported { address: at, why: Unsupported::InterruptShadow }),
        _ => Ok(()),
    }
}
