//! Commit at a rendezvous: all other processors or threads are parked while the windows are written.
//!
//! Parking alone does not make it safe: a thread that was preempted inside a window resumes there later. So the
//! host looks at every thread first. One that stands strictly inside a window that gets a jump is moved on to the copy of
//! its instruction, by a host that can; one that cannot be moved, or will return there, makes the commit give up before
//! the first write.
//!
//! What cannot be parked, a non-maskable interrupt, may still call a target at any moment: so here too a
//! breakpoint stands at the first byte until the others are written.
//!
//! Where there is one processor nobody has to be parked, and all else is the same: [`solo`], the kernel's `Local`.

use super::change::Stage;
use super::{Change, CommitError, at_fault, caves, verify, write};
use crate::Error;
use crate::host::{BreakpointHook, Host, Rendezvous, Solo, Text};
use alloc::vec::Vec;

/// A place where no thread may be left, and where one that stands there goes on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The interior boundary.
    pub at: u64,
    /// The copy of its instruction.
    pub resume: u64,
}

/// The interior boundaries that the changes overwrite, sorted: those of every change that
/// [needs a quiesce](Change::needs_quiesce).
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn moves(changes: &[Change]) -> Result<Vec<Move>, Error> {
    let mut moves = Vec::new();
    for change in changes.iter().filter(|change| change.needs_quiesce()) {
        moves.try_reserve(change.interior().count())?;
        moves.extend(change.interior().map(|(at, resume)| Move { at, resume }));
    }
    moves.sort_unstable_by_key(|one| one.at);
    Ok(moves)
}

/// Writes all changes at one moment, or none. The host's breakpoint hook must already answer as for
/// [`live`](super::live()). `moves` are those of [`moves`].
///
/// # Errors
/// [`Error::ThreadInWindow`], [`Error::TextBusy`], or what the comparison or a write found.
pub fn rendezvous<H: Rendezvous + BreakpointHook>(
    host: &H,
    text: &mut H::Text,
    changes: &[Change],
    moves: &[Move],
) -> Result<(), CommitError> {
    at_one_moment(host, text, changes, |work| host.rendezvous(moves, work))
}

/// As [`rendezvous`], by a host that has nobody to park.
///
/// # Errors
/// [`Error::OtherThreads`], or as for [`rendezvous`].
pub fn solo<H: Solo + BreakpointHook>(
    host: &H,
    text: &mut H::Text,
    changes: &[Change],
    moves: &[Move],
) -> Result<(), CommitError> {
    at_one_moment(host, text, changes, |work| host.solo(moves, work))
}

/// Writes all changes in the work that `meet` runs.
fn at_one_moment<H: Host>(
    host: &H,
    text: &mut H::Text,
    changes: &[Change],
    meet: impl FnOnce(&mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error>,
) -> Result<(), CommitError> {
    let mut failed = None;
    let outcome = meet(&mut || {
        let outcome = verify(host, text, changes).and_then(|()| steps(text, changes));
        failed = outcome.err();
        failed.map_or(Ok(()), |failure| Err(failure.error))
    });
    match (outcome, failed) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(failure)) => Err(failure),
        (Err(error), None) => Err(CommitError { index: at_fault(error, changes), error, written: false }),
    }
}

fn steps<T: Text>(text: &mut T, changes: &[Change]) -> Result<(), CommitError> {
    caves::fill(text, changes)?;
    for stage in Stage::UP {
        if let Err(failed) = write::stage(text, changes, stage.previous(), stage) {
            undo(text, changes, stage, failed.end);
            return Err(failed.into());
        }
    }
    Ok(())
}

/// Takes back whatever was written: the changes before `end` may have come to `stage`, the others to the one before.
/// One that cannot be taken back stays behind its breakpoints.
fn undo<T: Text>(text: &mut T, changes: &[Change], stage: Stage, end: usize) {
    for (index, change) in changes.iter().enumerate() {
        let mut at = if index < end { stage } else { stage.previous() };
        while at > Stage::Before
            && write::stage(text, core::slice::from_ref(change), at, at.previous()).is_ok()
        {
            at = at.previous();
        }
    }
}
