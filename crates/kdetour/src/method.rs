//! By what calls of a target reach the detour.

/// By what calls of a target reach the detour.
///
/// All of them share originals, chains, sessions and drains; `docs/methods.md` says when which is right, and what each
/// costs. A target has one method at a time: another one is refused as [`AlreadyDetoured`](crate::Error::AlreadyDetoured).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// A jump over the target's first instructions, in the shape that fits best: whoever calls the function, by whatever way, comes
    /// to the detour.
    #[default]
    Jump,
    /// The pointer at the target is exchanged: whoever calls through this one pointer comes to the detour. The target is the
    /// address of the pointer; the original is the function that it led to.
    Pointer,
    /// One byte becomes an INT3, in the shape [`Breakpoint`](kdetour_plan::Shape::Breakpoint): each call traps, and the trap
    /// handler sends it on to the detour. Written by every protocol but [`Local`](crate::Protocol::Local).
    Breakpoint,
    /// A debug register of the processor holds the target's address: each call traps in front of the instruction, and no byte
    /// of the text changes. There are four on x86, which debuggers use too. By every protocol but
    /// [`Local`](crate::Protocol::Local).
    DebugRegister,
}

impl Method {
    /// In lower case, for lists.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jump => "jump",
            Self::Pointer => "pointer",
            Self::Breakpoint => "breakpoint",
            Self::DebugRegister => "debug-register",
        }
    }

    /// Whether attaching to code changes its bytes.
    pub(crate) const fn writes(self) -> bool {
        !matches!(self, Self::DebugRegister)
    }
}
