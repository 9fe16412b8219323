//! What happens at one site, and the stages through which its bytes go.
//!
//! A change of one byte needs one store: whoever fetches sees the old byte or the new one. Every other change goes
//! through stages, and whoever fetches at any moment meets an instruction that was there, one that will be there, or
//! a breakpoint that is answered:
//!
//! ```text
//!               the first byte    boundaries that trap    all other bytes
//!               |                 attach      detach      |
//!   Before      old               old         trap        old
//!   Broken      INT3              trap        trap        old
//!   Rest        INT3              trap        trap        new
//!   Inside      INT3              trap        new         new
//!   After       new               trap        new         new
//! ```
//!
//! The boundaries of a [`Jump5Trapped`](Shape::Jump5Trapped) trap before the bytes behind them change, and as long as
//! those are not the old ones again: so nobody fetches an old opcode with new operands. A commit takes every change
//! up, stage by stage; what fails is taken down again the same way.

use crate::host::Span;
use kdetour_plan::{CavePatch, Lead, MAX_WINDOW, Patch, Shape};

/// `int3`.
pub(super) const INT3: u8 = 0xcc;

/// What happens at one site: nothing becomes a patch, a patch becomes nothing, or a patch leads elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    kind: Kind,
    /// The patch after the change, else before it.
    patch: Patch,
    /// Where the bytes change: the window, or the jump that leads to the detour.
    address: u64,
    before: Piece,
    after: Piece,
    /// The offsets of the bytes that differ, one bit each.
    differing: u16,
    /// The offsets of the interior boundaries on which the patch has a trapping byte.
    trapping: u16,
    /// The cave to fill first.
    cave: Option<CavePatch>,
}

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Attach,
    Detach,
    Retarget,
}

/// How far a change has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Before,
    /// Nobody enters any more.
    Broken,
    /// What is only fetched behind a breakpoint is new.
    Rest,
    /// The window can be run through from every boundary.
    Inside,
    After,
}

impl Stage {
    /// The stages that are written, in their order.
    pub(super) const UP: [Self; 4] = [Self::Broken, Self::Rest, Self::Inside, Self::After];

    /// The stage that comes before this one.
    pub(super) const fn previous(self) -> Self {
        match self {
            Self::Before | Self::Broken => Self::Before,
            Self::Rest => Self::Broken,
            Self::Inside => Self::Rest,
            Self::After => Self::Inside,
        }
    }
}

/// Up to fourteen bytes.
#[derive(Clone, Copy, Debug)]
struct Piece {
    bytes: [u8; MAX_WINDOW],
    len: u8,
}

impl Piece {
    fn new(from: &[u8]) -> Self {
        let mut bytes = [0; MAX_WINDOW];
        for (to, from) in bytes.iter_mut().zip(from) {
            *to = *from;
        }
        Self { bytes, len: u8::try_from(from.len().min(MAX_WINDOW)).unwrap_or_default() }
    }

    fn of_lead(lead: Lead) -> Self {
        Self::new(lead.bytes())
    }

    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }

    fn get(&self, offset: usize) -> Option<u8> {
        self.as_slice().get(offset).copied()
    }
}

/// Neighbouring bytes that a stage changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) address: u64,
    bytes: [u8; MAX_WINDOW],
    len: usize,
}

impl Run {
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

impl Change {
    /// The patch is put in.
    pub fn attach(patch: Patch) -> Self {
        let (before, after) = (Piece::new(patch.window_bytes()), Piece::new(patch.new_bytes()));
        Self { cave: patch.cave(), ..Self::new(Kind::Attach, patch, patch.address(), before, after) }
    }

    /// The original bytes come back. A cave is left as it is: a thread may be on its way there. What was in it comes back
    /// with [`restore_caves`](super::restore_caves).
    pub fn detach(patch: Patch) -> Self {
        let (before, after) = (Piece::new(patch.new_bytes()), Piece::new(patch.window_bytes()));
        Self::new(Kind::Detach, patch, patch.address(), before, after)
    }

    /// The patch leads elsewhere. Both are one patch but for that ([`Patch::leading_to`]).
    pub fn retarget(before: Patch, after: Patch) -> Self {
        let (old, new) = (before.lead(), after.lead());
        Self::new(Kind::Retarget, after, old.address, Piece::of_lead(old), Piece::of_lead(new))
    }

    fn new(kind: Kind, patch: Patch, address: u64, before: Piece, after: Piece) -> Self {
        let bit = |offset: usize| 1_u16 << offset.min(MAX_WINDOW);
        let bytes = after.as_slice().iter().enumerate();
        let differing = bytes.filter(|&(offset, byte)| before.get(offset) != Some(*byte));
        let differing = differing.fold(0, |mask, (offset, _)| mask | bit(offset));
        let trapping = if kind != Kind::Retarget && patch.shape() == Shape::Jump5Trapped {
            patch.boundaries().skip(1).fold(0, |mask, boundary| mask | bit(usize::from(boundary.offset)))
        } else {
            0
        };
        Self { kind, patch, address, before, after, differing, trapping, cave: None }
    }

    /// The patch after the change, else before it.
    pub const fn patch(&self) -> &Patch {
        &self.patch
    }

    /// Whether the patch is put in.
    pub const fn is_attach(&self) -> bool {
        matches!(self.kind, Kind::Attach)
    }

    pub(super) const fn kind(&self) -> Kind {
        self.kind
    }

    /// The cave that is filled before anything else is written.
    pub(super) const fn cave(&self) -> Option<&CavePatch> {
        self.cave.as_ref()
    }

    /// Whether a thread may stand on a boundary that the change overwrites. Only an attach does so: the jump that
    /// detaching removes is one instruction, and has no inside; and one byte is not a boundary.
    pub const fn needs_quiesce(&self) -> bool {
        self.is_attach() && self.patch.shape().needs_quiesce() && !self.is_one_byte()
    }

    /// Whether taking the change back needs the quiesce once the original could be entered again.
    pub(super) const fn needs_quiesce_back(&self) -> bool {
        matches!(self.kind, Kind::Detach) && self.patch.shape().needs_quiesce() && !self.is_one_byte()
    }

    /// Whether exactly one byte differs: a single store does, in every protocol. A cave is not counted.
    pub const fn is_one_byte(&self) -> bool {
        self.differing.is_power_of_two()
    }

    /// What the change replaces, in the order in which it does: the cave, then the window or the jump that leads to
    /// the detour. Each with its address, its bytes before, and after. Where a relay becomes longer, what was behind
    /// it is not told.
    pub fn edits(&self) -> impl Iterator<Item = (u64, &[u8], &[u8])> {
        let cave = self.cave.iter().map(|cave| (cave.cave.address, &cave.cave.expected[..], &cave.new[..]));
        cave.chain([(self.address, self.before.as_slice(), self.after.as_slice())])
    }

    /// The bytes from the first to the last that differ, with their address; empty if none does.
    pub(super) fn replacement(&self) -> (u64, &[u8]) {
        let end = (u16::BITS - self.differing.leading_zeros()) as usize;
        let first = (self.differing.trailing_zeros() as usize).min(end);
        (self.address.wrapping_add(first as u64), self.after.as_slice().get(first..end).unwrap_or_default())
    }

    /// What has to be at the site, and nobody else's, before the change.
    pub(super) fn site(&self) -> (u64, &[u8]) {
        (self.address, self.before.as_slice())
    }

    /// Whether an address is one of those that the change writes, or relies on.
    pub(super) fn concerns(&self, address: u64) -> bool {
        let within = |start: u64, len: usize| address.wrapping_sub(start) < len as u64;
        within(self.patch.address(), self.patch.original_bytes().len())
            || self.edits().any(|(start, before, after)| within(start, before.len().max(after.len())))
    }

    /// The interior boundaries of the window: their addresses, and where their copies are.
    pub(super) fn interior(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let start = self.patch.address();
        self.patch
            .boundaries()
            .skip(1)
            .map(move |one| (start.wrapping_add(u64::from(one.offset)), one.address))
    }

    /// What has to be written to get from one stage to the other.
    pub(super) fn runs(&self, from: Stage, to: Stage) -> impl Iterator<Item = Run> + '_ {
        let all = usize::from(self.before.len.max(self.after.len));
        let whole = from.min(to) == Stage::Before && from.max(to) == Stage::After;
        // What somebody may run while it is written is a write of its own: a single store.
        let alone = move |offset: usize| !whole && (offset == 0 || self.trapping >> offset & 1 != 0);
        let changed = move |offset: usize| {
            let byte = self.byte(to, offset)?;
            (self.byte(from, offset) != Some(byte)).then_some(byte)
        };
        let mut at = 0;
        core::iter::from_fn(move || {
            let start = (at..all).find(|&offset| changed(offset).is_some())?;
            let joined = |&offset: &usize| offset == start || !alone(start) && !alone(offset);
            let found = (start..all).take_while(joined).map_while(changed);
            let mut run =
                Run { address: self.address.wrapping_add(start as u64), bytes: [0; MAX_WINDOW], len: 0 };
            for (to, byte) in run.bytes.iter_mut().zip(found) {
                *to = byte;
                run.len += 1;
            }
            at = start + run.len;
            Some(run)
        })
    }

    /// The span that the change writes or compares.
    pub(super) fn span(&self) -> Span {
        match self.kind {
            Kind::Attach | Kind::Detach => {
                Span { address: self.patch.address(), len: self.patch.original_bytes().len() }
            }
            Kind::Retarget => Span { address: self.address, len: usize::from(self.before.len) },
        }
    }

    /// A byte at a stage; none if it may be any.
    fn byte(&self, stage: Stage, offset: usize) -> Option<u8> {
        let old = self.before.get(offset);
        // What is behind a relay that became shorter stays.
        let new = self.after.get(offset).or(old);
        let from = if self.is_one_byte() {
            Stage::After
        } else if offset == 0 {
            match stage {
                Stage::Before => return old,
                Stage::After => return new,
                // A patch that is found by its breakpoint is led elsewhere without a write.
                _ if self.differing == 0 => return old,
                _ => return Some(INT3),
            }
        } else if self.trapping >> offset & 1 != 0 {
            if self.kind == Kind::Attach { Stage::Broken } else { Stage::Inside }
        } else {
            Stage::Rest
        };
        if stage >= from { new } else { old }
    }
}
