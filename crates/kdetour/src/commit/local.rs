//! Commit where nobody else runs.

use super::change::{Kind, Stage};
use super::{Change, CommitError, Protocol, caves, verify, write};
use crate::host::Host;
use kdetour_plan::Refusal;

/// A promise that nobody else runs.
#[derive(Debug)]
pub struct Alone(());

impl Alone {
    /// Promises it.
    ///
    /// # Safety
    /// As long as the value lives no other thread or processor runs, stands or returns inside any window that is
    /// committed under it, or calls one of the targets.
    pub const unsafe fn promise() -> Self {
        Self(())
    }
}

/// Writes all changes at once, or none.
///
/// # Errors
/// [`Refusal::NoShape`] for a breakpoint that is put in, or led elsewhere: nobody would answer it rightly. What the comparison
/// of expected bytes or a write found; everything written has then been taken back.
pub fn local<H: Host>(
    host: &H,
    text: &mut H::Text,
    changes: &[Change],
    _: &Alone,
) -> Result<(), CommitError> {
    refuse_unanswered(changes)?;
    let outcome = at_once(host, text, changes);
    host.sync_cores();
    outcome
}

/// Refuses what only somebody who answers breakpoints can put in, or lead elsewhere.
pub(super) fn refuse_unanswered(changes: &[Change]) -> Result<(), CommitError> {
    for (index, change) in changes.iter().enumerate() {
        let written_so = Protocol::Local.shapes().contains(change.patch().shape());
        if change.kind() != Kind::Detach && !written_so {
            let refusal = Refusal::NoShape { address: change.patch().address() };
            return Err(CommitError { index, error: refusal.into(), written: false });
        }
    }
    Ok(())
}

/// Compares, writes each window as one, and takes everything back if one of them cannot be written. Whoever fetches the bytes next has to
/// fetch them anew.
pub(super) fn at_once<H: Host>(host: &H, text: &mut H::Text, changes: &[Change]) -> Result<(), CommitError> {
    verify(host, text, changes)?;
    caves::fill(text, changes)?;
    let outcome = write::stage(text, changes, Stage::Before, Stage::After).map_err(|failed| {
        for change in changes.get(..failed.end).unwrap_or(changes) {
            let _ = write::stage(text, core::slice::from_ref(change), Stage::After, Stage::Before);
        }
        failed.into()
    });
    outcome.map(|_| ())
}
