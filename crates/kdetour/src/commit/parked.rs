//! Commit where all others are parked, and nobody can tell where they stand.
//!
//! ```text
//!   processor 0   ...running | all parked? compare everything, write everything, fetch anew | go on
//!   processor 1   ...running | parked ....................................... fetch anew    | go on
//!                                   no -> given up      other bytes -> given up       nothing is written
//! ```
//!
//! A thread that was preempted inside a window runs there later, and this environment has nothing that would wait for it: no grace
//! period, no look at every thread's stack, no breakpoint that would be answered. So what is put in must keep every interior boundary:
//! a jump over one instruction, one that repeats the original bytes from the first boundary on, a short one over a first instruction
//! that is long enough. A jump over several instructions needs the caller's word: [`Preempted`]. Taking a jump out needs none: it is
//! one instruction, and nobody stands inside of it.
//!
//! A non-maskable interrupt is not parked. One whose handler calls a target just while its window is written may fetch half of it; a
//! breakpoint would not help, since nobody answers it. Windows that lie in one aligned word are written by one store.

use super::local::{at_once, refuse_unanswered};
use super::{Change, CommitError};
use crate::Error;
use crate::host::Park;
use kdetour_plan::{Refusal, Shape};

/// Acceptance of the risk that a thread stands inside a window.
#[derive(Debug)]
pub struct Preempted(());

impl Preempted {
    /// Accepts it.
    ///
    /// # Safety
    /// No thread stands, or will return, strictly inside a window that is committed under it; or what the machine does with one
    /// that does, since it goes on in the middle of a jump, is accepted.
    pub const unsafe fn accept() -> Self {
        Self(())
    }
}

/// Writes all changes at one moment, or none.
///
/// # Errors
/// [`Error::NoGracePeriod`] for a jump over several instructions, if that was not accepted; a refusal of shapes that trap. What
/// [`Park::park`] says, or what the comparison or a write found.
pub fn parked<H: Park>(
    host: &H,
    text: &mut H::Text,
    changes: &[Change],
    by: H::By,
    accepted: Option<&Preempted>,
) -> Result<(), CommitError> {
    refuse_unanswered(changes)?;
    // Who stands on a boundary that traps would not be answered either.
    let traps = |change: &Change| change.is_attach() && change.patch().shape() == Shape::Jump5Trapped;
    if let Some(index) = changes.iter().position(traps) {
        let address = changes.get(index).map_or(0, |change| change.patch().address());
        return Err(CommitError { index, error: Refusal::NoShape { address }.into(), written: false });
    }
    if accepted.is_none() {
        let mut unsure = changes.iter().enumerate().filter(|(_, change)| change.needs_quiesce());
        if let Some((index, change)) = unsure.next() {
            let address = change.interior().next().map_or(change.patch().address(), |(at, _)| at);
            return Err(CommitError { index, error: Error::NoGracePeriod { address }, written: false });
        }
    }
    let mut failed = None;
    let outcome = host.park(by, &mut || {
        failed = at_once(host, text, changes).err();
        failed.map_or(Ok(()), |failure| Err(failure.error))
    });
    match (outcome, failed) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(failure)) => Err(failure),
        (Err(error), None) => Err(CommitError::before(error)),
    }
}
