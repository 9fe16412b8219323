//! How a patch looks.

use core::fmt;

/// How a patch looks in the target. What each one asks of a commit is told in the crate `kdetour`.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// `jmp rel32` over one instruction of five bytes or more (or over one that is followed by proven padding
    /// only): no thread can stand inside the window, so no quiesce is needed.
    WholeInstruction,
    /// `jmp rel32` over several instructions, with any displacement: a thread that stands on an interior
    /// boundary would resume in the middle of the jump, so the commit has to quiesce.
    Jump5,
}

impl Shape {
    /// Whether a commit must wait until no thread stands inside the window before it writes the bytes there.
    pub const fn needs_quiesce(self) -> bool {
        matches!(self, Self::Jump5)
    }

    /// The shape's name, as in the documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WholeInstruction => "WholeInstruction",
            Self::Jump5 => "Jump5",
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
