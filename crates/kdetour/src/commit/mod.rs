//! The protocols that write patches into running code.
//!
//! Each takes plain [`Change`]s of plain [`Patch`](kdetour_plan::Patch)es, allocates nothing once it writes, compares the
//! expected bytes before the first write and does a bounded number of writes. A commit knows neither sessions nor types.

pub mod breakpoints;
mod caves;
mod change;
mod exchange;
mod live;
mod local;
#[cfg(test)]
mod model;
mod parked;
mod rendezvous;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod sites;
#[cfg(test)]
mod tests;
mod write;

pub use caves::restore_caves;
pub use change::Change;
pub use exchange::{Exchange, exchange};
pub use live::live;
pub use local::{Alone, local};
pub use parked::{Preempted, parked};
pub use rendezvous::{Move, moves, rendezvous, solo};

use crate::Error;
use crate::host::{Host, Span, Text};
use alloc::vec::Vec;
use change::Kind;
use kdetour_plan::{MAX_DISPLACED, Shape, Shapes};

/// The shapes that some protocol writes.
pub const SHAPES: Shapes = Shapes::ALL;

/// How a set of patches is written while the code runs.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Stops nobody: a breakpoint first, a quiesce where a shape needs one, then the rest.
    #[default]
    Live,
    /// Parks every other processor, or thread of a process, looks for threads inside the windows, writes, lets them go. All patches of the
    /// set take effect at the same moment.
    Rendezvous,
    /// Stops nobody, and traps nobody unless a breakpoint is what was asked for: one byte is stored, and what is longer exchanged
    /// at one moment.
    Exchange,
    /// Writes at once: for a single thread, or where the caller has stopped all others; in a kernel for a single processor.
    Local,
}

impl Protocol {
    /// The protocol's name, as in the documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "Live",
            Self::Rendezvous => "Rendezvous",
            Self::Exchange => "Exchange",
            Self::Local => "Local",
        }
    }

    /// The shapes that the protocol attaches.
    pub const fn shapes(self) -> Shapes {
        match self {
            Self::Live | Self::Rendezvous => SHAPES,
            // Whoever meets a breakpoint has to be answered, which is arranged beside other threads only.
            Self::Local => SHAPES.without(Shape::Breakpoint),
            Self::Exchange => SHAPES.without(Shape::Jump5).without(Shape::Jump14),
        }
    }
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

/// The interior boundaries where nobody may be left standing while the changes are written, or taken back: what a
/// live commit is given, prepared before the first write. Sorted.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn boundaries(changes: &[Change]) -> Result<Vec<u64>, Error> {
    let mut boundaries = Vec::new();
    for change in changes.iter().filter(|change| change.needs_quiesce() || change.needs_quiesce_back()) {
        boundaries.try_reserve(change.interior().count())?;
        boundaries.extend(change.interior().map(|(at, _)| at));
    }
    boundaries.sort_unstable();
    Ok(boundaries)
}

/// Compares what is there with what every change expects. Nobody else may own bytes that get a jump.
fn verify<H: Host>(host: &H, text: &mut H::Text, changes: &[Change]) -> Result<(), CommitError> {
    for (index, change) in changes.iter().enumerate() {
        verify_one(host, text, change).map_err(|error| CommitError { index, error, written: false })?;
    }
    Ok(())
}

fn verify_one<H: Host>(host: &H, text: &mut H::Text, change: &Change) -> Result<(), Error> {
    if change.kind() != Kind::Detach {
        host.contested(change.span())?;
    }
    if let Some(cave) = change.cave() {
        host.contested(Span { address: cave.cave.address, len: cave.new.len() })?;
        caves::verify(text, cave)?;
    }
    // The whole displaced instructions: the trampoline holds a copy of what is behind the window, too.
    match change.kind() {
        Kind::Attach => same(text, change.patch().address(), change.patch().original_bytes()),
        Kind::Detach => {
            let (bytes, len) = change.patch().patched_bytes();
            same(text, change.patch().address(), bytes.get(..len).unwrap_or(&bytes))?;
            // A probe that is not armed keeps the jump's first byte, and would put it back when it goes.
            host.contested(change.span())
        }
        Kind::Retarget => {
            let (address, bytes) = change.site();
            same(text, address, bytes)
        }
    }
}

fn same<T: Text>(text: &mut T, address: u64, expected: &[u8]) -> Result<(), Error> {
    let mut found = [0; MAX_DISPLACED];
    let found = found.get_mut(..expected.len()).unwrap_or_default();
    text.read(address, found)?;
    let mut bytes = expected.iter().zip(found.iter()).enumerate();
    match bytes.find(|(_, (expected, found))| expected != found) {
        None => Ok(()),
        Some((at, (&expected, &found))) => {
            Err(Error::Changed { address: address.wrapping_add(at as u64), expected, found })
        }
    }
}

/// The change whose bytes an error is about; else the first.
fn at_fault(error: Error, changes: &[Change]) -> usize {
    let address = error.address();
    let concerned = |change: &Change| address != 0 && change.concerns(address);
    changes.iter().position(concerned).unwrap_or(0)
}
