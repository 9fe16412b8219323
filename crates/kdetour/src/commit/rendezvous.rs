//! Commit at a rendezvous: all other processors are parked while the windows are written.
//!
//! Parking alone does not make it safe: a task that was preempted inside a window resumes there later. So the
//! host looks at every thread first, and the commit gives up before the first write if one of them stands, or
//! will return, strictly inside a window that gets a jump.
//!
//! What cannot be parked, a non-maskable interrupt, may still call a target at any moment: so here too a
//! breakpoint stands at the first byte until the others are written.

use super::{Change, CommitError, INT3, Part, verify, write_all};
use crate::Error;
use crate::host::{BreakpointHook, Rendezvous, Text};

/// Writes all changes at one moment, or none. The host's breakpoint hook must already answer every window's first
/// byte. `boundaries` are the interior boundaries of those changes that
/// [need a quiesce](Change::needs_quiesce), sorted.
///
/// # Errors
/// [`Error::ThreadInWindow`], [`Error::TextBusy`], or what the comparison or a write found.
pub fn rendezvous<H: Rendezvous + BreakpointHook>(
    host: &H,
    text: &mut H::Text,
    changes: &[Change],
    boundaries: &[u64],
) -> Result<(), CommitError> {
    let mut failed = None;
    let outcome = host.rendezvous(boundaries, &mut || {
        let outcome = verify(host, changes).and_then(|()| {
            steps(text, changes, Change::after).inspect_err(|_| {
                let _ = steps(text, changes, Change::before);
            })
        });
        failed = outcome.err();
        failed.map_or(Ok(()), |failure| Err(failure.error))
    });
    match (outcome, failed) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(failure)) => Err(failure),
        (Err(error), None) => Err(CommitError { index: at_fault(error, changes), error, written: false }),
    }
}

fn steps<T: Text>(
    text: &mut T,
    changes: &[Change],
    bytes: impl Fn(&Change) -> &[u8] + Copy,
) -> Result<(), CommitError> {
    write_all(text, changes, |_| INT3, Part::First)?;
    write_all(text, changes, bytes, Part::Tail)?;
    write_all(text, changes, bytes, Part::First)
}

/// The change whose window the error is about.
fn at_fault(error: Error, changes: &[Change]) -> usize {
    let inside = |change: &Change| {
        let start = change.patch.address();
        (start..start.wrapping_add(change.patch.original_bytes().len() as u64)).contains(&error.address())
    };
    changes.iter().position(inside).unwrap_or(0)
}
