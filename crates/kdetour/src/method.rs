//! The ways in which calls are led to a detour.

/// How calls are led to a detour.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// A patch at the target's entry: whoever calls the function, by whatever way, comes to the detour.
    #[default]
    Jump,
    /// The pointer at the target is exchanged: whoever calls through this one pointer comes to the detour. The target is the
    /// address of the pointer; the original is the function that it led to.
    Pointer,
}

impl Method {
    /// In lower case, for lists.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jump => "jump",
            Self::Pointer => "pointer",
        }
    }
}
