//! How a patch looks.

use core::fmt;

/// How a patch looks in the target, the best first. What each one asks of a commit is told in the crate `kdetour`.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shape {
    /// `jmp rel32` over one instruction of five bytes or more (or over one that is followed by proven padding
    /// only): no thread can stand inside the window, so no quiesce is needed.
    WholeInstruction,
    /// `jmp rel32` over several instructions to a relay whose address is chosen so that the displacement repeats
    /// the original bytes from the first interior boundary on: a thread that stands there, or returns or jumps
    /// there, goes on in unchanged code. With a first instruction of one byte the patch changes one byte.
    Jump5Kept,
    /// `jmp rel32` over several instructions to a relay whose address is chosen so that the displacement has a
    /// trapping byte on every interior boundary: a thread that stands there traps and is sent to its copy.
    Jump5Trapped,
    /// `jmp rel8` over a first instruction of two bytes or more, to a cave: five bytes of proven padding that hold
    /// a `jmp rel32`. No thread can stand inside.
    ShortJump,
    /// `jmp rel32` over several instructions, with any displacement: a thread that stands on an interior
    /// boundary would resume in the middle of the jump, so the commit has to quiesce.
    Jump5,
    /// `jmp qword ptr [rip+0]` and the detour's address, fourteen bytes: where neither the detour nor a relay is
    /// within 2 GiB. 64-bit only; needs a quiesce as [`Jump5`](Self::Jump5) does.
    Jump14,
    /// `int3`: one byte. The host's breakpoint handler sends the thread on to the detour, each time.
    Breakpoint,
}

impl Shape {
    /// All shapes, the best first.
    pub const ALL: [Self; 7] = [
        Self::WholeInstruction,
        Self::Jump5Kept,
        Self::Jump5Trapped,
        Self::ShortJump,
        Self::Jump5,
        Self::Jump14,
        Self::Breakpoint,
    ];

    /// Whether a commit must wait until no thread stands inside the window before it writes the bytes there.
    pub const fn needs_quiesce(self) -> bool {
        matches!(self, Self::Jump5 | Self::Jump14)
    }

    /// Bytes that the patch writes at the window.
    pub const fn window_len(self) -> usize {
        match self {
            Self::WholeInstruction | Self::Jump5Kept | Self::Jump5Trapped | Self::Jump5 => 5,
            Self::ShortJump => 2,
            Self::Jump14 => 14,
            Self::Breakpoint => 1,
        }
    }

    /// Whether the slot begins with a relay, whose address matters.
    pub(crate) const fn begins_with_relay(self) -> bool {
        matches!(self, Self::Jump5Kept | Self::Jump5Trapped)
    }

    /// The shape's name, as in the documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WholeInstruction => "WholeInstruction",
            Self::Jump5Kept => "Jump5Kept",
            Self::Jump5Trapped => "Jump5Trapped",
            Self::ShortJump => "ShortJump",
            Self::Jump5 => "Jump5",
            Self::Jump14 => "Jump14",
            Self::Breakpoint => "Breakpoint",
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of shapes: those that a host can commit, or that a caller accepts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shapes(u8);

impl Shapes {
    /// Every shape.
    pub const ALL: Self = Self(0x7f);
    /// None.
    pub const NONE: Self = Self(0);

    /// This set and `shape`.
    #[must_use]
    pub const fn with(self, shape: Shape) -> Self {
        Self(self.0 | 1 << shape as u8)
    }

    /// This set without `shape`.
    #[must_use]
    pub const fn without(self, shape: Shape) -> Self {
        Self(self.0 & !(1 << shape as u8))
    }

    /// Only `shape`.
    pub const fn only(shape: Shape) -> Self {
        Self::NONE.with(shape)
    }

    /// The shapes of both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether `shape` is among them.
    pub const fn contains(self, shape: Shape) -> bool {
        self.0 & 1 << shape as u8 != 0
    }

    /// The shapes, the best first.
    pub fn iter(self) -> impl Iterator<Item = Shape> {
        Shape::ALL.into_iter().filter(move |&shape| self.contains(shape))
    }
}

impl Default for Shapes {
    fn default() -> Self {
        Self::ALL
    }
}

impl fmt::Debug for Shapes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
