//! The protocols that write patches into running code.
//!
//! Each takes plain [`Patch`] values, allocates nothing, compares the expected bytes before the first write and
//! does a bounded number of writes. A commit knows neither sessions nor types.

pub mod breakpoints;
mod live;
mod local;
#[cfg(test)]
mod model;
mod rendezvous;
#[cfg(test)]
mod simulated;

pub use live::live;
pub use local::{Alone, local};
pub use rendezvous::rendezvous;

use crate::Error;
use crate::host::{Host, Span, Text};
use kdetour_plan::{MAX_DISPLACED, Patch, Shape, Shapes};

/// The shapes that the protocols write. Plans of other shapes are not asked for.
pub const SHAPES: Shapes = Shapes::NONE.with(Shape::WholeInstruction).with(Shape::Jump5);

/// How a set of patches is written while the code runs.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Stops nobody: a breakpoint first, a quiesce where a shape needs one, then the rest.
    #[default]
    Live,
    /// Parks every other processor, looks for threads inside the windows, writes, lets them go. All patches of the
    /// set take effect at the same moment.
    Rendezvous,
    /// Writes at once: for a single thread, or where the caller has stopped all others.
    Local,
}

impl Protocol {
    /// The protocol's name, as in the documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "Live",
            Self::Rendezvous => "Rendezvous",
            Self::Local => "Local",
        }
    }
}

/// Whether a patch is put in or taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The jump is written.
    Attach,
    /// The original bytes come back.
    Detach,
}

/// One patch to write or to take back.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The patch.
    pub patch: Patch,
    /// In or out.
    pub direction: Direction,
}

/// Why a commit failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitError {
    /// Position of the change that failed.
    pub index: usize,
    /// Why.
    pub error: Error,
    /// Whether anything was written, and taken back, before the failure: a thread may then have been sent to a
    /// detour or trampoline, which must not be freed before a drain.
    pub written: bool,
}

impl CommitError {
    /// A failure of the whole set, before anything was written.
    pub(crate) const fn before(error: Error) -> Self {
        Self { index: 0, error, written: false }
    }
}

impl Change {
    /// The bytes that must be there, with their number: the whole displaced instructions.
    fn expected(&self) -> ([u8; MAX_DISPLACED], usize) {
        let (patched, len) = self.patch.patched_bytes();
        match self.direction {
            Direction::Detach => (patched, len),
            Direction::Attach => {
                let mut bytes = [0; MAX_DISPLACED];
                for (to, from) in bytes.iter_mut().zip(self.patch.original_bytes()) {
                    *to = *from;
                }
                (bytes, len)
            }
        }
    }

    /// The window after the change.
    fn after(&self) -> &[u8] {
        match self.direction {
            Direction::Attach => self.patch.new_bytes(),
            Direction::Detach => self.patch.window_bytes(),
        }
    }

    /// The window before the change.
    fn before(&self) -> &[u8] {
        match self.direction {
            Direction::Attach => self.patch.window_bytes(),
            Direction::Detach => self.patch.new_bytes(),
        }
    }

    /// Whether a thread may stand on a boundary that the change overwrites. Only attaching does so: the jump that
    /// detaching removes is one instruction, and has no inside.
    pub fn needs_quiesce(&self) -> bool {
        self.direction == Direction::Attach && self.patch.shape().needs_quiesce()
    }

    fn write<T: Text>(&self, text: &mut T, bytes: &[u8], part: Part) -> Result<(), Error> {
        let (first, tail) = bytes.split_at_checked(1).unwrap_or((bytes, &[]));
        match part {
            Part::First => text.write(self.patch.address(), first),
            Part::Tail => text.write(self.patch.address().wrapping_add(1), tail),
            Part::Whole => text.write(self.patch.address(), bytes),
        }
    }
}

/// `int3`, as the first byte of a window.
const INT3: &[u8] = &[0xcc];

/// Which bytes of a window are written.
#[derive(Clone, Copy)]
enum Part {
    First,
    Tail,
    Whole,
}

/// Compares what is there with what every change expects.
fn verify<H: Host>(host: &H, changes: &[Change]) -> Result<(), CommitError> {
    for (index, change) in changes.iter().enumerate() {
        let failed = |error| CommitError { index, error, written: false };
        let (expected, len) = change.expected();
        if change.direction == Direction::Attach {
            host.contested(Span { address: change.patch.address(), len }).map_err(failed)?;
        }
        let mut found = [0; MAX_DISPLACED];
        let window = found.get_mut(..len).unwrap_or_default();
        host.read(change.patch.address(), window).map_err(failed)?;
        let different = expected.iter().zip(window.iter()).position(|(expected, found)| expected != found);
        if let Some(at) = different {
            return Err(failed(Error::Changed {
                address: change.patch.address().wrapping_add(at as u64),
                expected: expected.get(at).copied().unwrap_or_default(),
                found: found.get(at).copied().unwrap_or_default(),
            }));
        }
    }
    Ok(())
}

/// Writes the same part of every change.
fn write_all<T: Text>(
    text: &mut T,
    changes: &[Change],
    bytes: impl Fn(&Change) -> &[u8],
    part: Part,
) -> Result<(), CommitError> {
    changes.iter().enumerate().try_for_each(|(index, change)| {
        change.write(text, bytes(change), part).map_err(|error| CommitError { index, error, written: true })
    })
}
