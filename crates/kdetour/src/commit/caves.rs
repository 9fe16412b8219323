//! The long jumps of short ones, in padding.
//!
//! A cave is filled before the window leads there. It is not given back with the window: a thread may have executed
//! the short jump and not yet the long one. So it holds the jump for as long as the slot lives, also when a commit
//! fails, and is given back when the detour has been drained. Until then the same patch can be attached again.

use super::write::Failed;
use super::{Change, CommitError};
use crate::Error;
use crate::host::Text;
use kdetour_plan::{CavePatch, Patch};

/// Fills the caves. Whether there are any.
pub(super) fn fill<T: Text>(text: &mut T, changes: &[Change]) -> Result<bool, CommitError> {
    let mut wrote = false;
    for (index, change) in changes.iter().enumerate() {
        if let Some(cave) = change.cave() {
            let failed = |error| Failed { index, end: index + 1, error };
            text.write(cave.cave.address, &cave.new).map_err(failed)?;
            wrote = true;
        }
    }
    Ok(wrote)
}

/// Whether a cave holds its padding, or its jump; or, of a write that failed half-way, some of both.
pub(super) fn verify<T: Text>(text: &mut T, cave: &CavePatch) -> Result<(), Error> {
    let mut found = [0; 5];
    text.read(cave.cave.address, &mut found)?;
    let mut bytes = found.iter().zip(&cave.cave.expected).zip(&cave.new).enumerate();
    let other = bytes.find(|&(_, ((found, expected), new))| found != expected && found != new);
    match other {
        None => Ok(()),
        Some((at, ((&found, &expected), _))) => {
            let address = cave.cave.address.wrapping_add(at as u64);
            Err(Error::Changed { address, expected, found })
        }
    }
}

/// Gives back the caves of patches that are detached and drained: nobody stands in a window or on a cave, or will
/// come there.
///
/// # Errors
/// [`Error::Changed`] if somebody else wrote to one of them, [`Error::Unreadable`]; none is given back then. Or what
/// writing found.
pub fn restore_caves<'a, T: Text>(
    text: &mut T,
    patches: impl Iterator<Item = &'a Patch> + Clone,
) -> Result<(), Error> {
    let mut caves = patches.clone().filter_map(Patch::cave);
    caves.try_for_each(|cave| verify(text, &cave))?;
    let mut caves = patches.filter_map(Patch::cave);
    caves.try_for_each(|cave| text.write(cave.cave.address, &cave.cave.expected))
}
