//! Commit where nobody else runs.

use super::{Change, CommitError, Part, verify, write_all};
use crate::host::Host;

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
/// What the comparison of expected bytes or a write found; everything written has then been taken back.
pub fn local<H: Host>(
    host: &H,
    text: &mut H::Text,
    changes: &[Change],
    _: &Alone,
) -> Result<(), CommitError> {
    verify(host, changes)?;
    let outcome = write_all(text, changes, Change::after, Part::Whole).inspect_err(|_| {
        let _ = write_all(text, changes, Change::before, Part::Whole);
    });
    host.sync_cores();
    outcome
}
