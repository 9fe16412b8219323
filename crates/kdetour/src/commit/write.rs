//! Writing one stage of a whole set, many sites at a time.

use super::change::{Run, Stage};
use super::{Change, CommitError};
use crate::Error;
use crate::host::Text;
use arrayvec::ArrayVec;

/// How many writes are handed to the host at a time. They are on the stack, and a kernel's is small.
const BATCH: usize = 16;

/// A write that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed {
    /// The change that it belongs to.
    pub(super) index: usize,
    /// The changes from here on have not been touched.
    pub(super) end: usize,
    /// Why.
    pub(super) error: Error,
}

impl From<Failed> for CommitError {
    fn from(failed: Failed) -> Self {
        Self { index: failed.index, error: failed.error, written: true }
    }
}

/// Writes what differs between two stages, for every change of a set. Whether anything did.
pub(super) fn stage<T: Text>(
    text: &mut T,
    changes: &[Change],
    from: Stage,
    to: Stage,
) -> Result<bool, Failed> {
    some(text, changes.iter().enumerate(), from, to)
}

/// As [`stage`], for some changes of a set: each with its position.
pub(super) fn some<'a, T: Text>(
    text: &mut T,
    changes: impl Iterator<Item = (usize, &'a Change)>,
    from: Stage,
    to: Stage,
) -> Result<bool, Failed> {
    let runs = changes.flat_map(|(index, change)| change.runs(from, to).map(move |run| (index, run)));
    let mut batch = ArrayVec::<(usize, Run), BATCH>::new();
    let mut wrote = false;
    for one in runs {
        if batch.is_full() {
            flush(text, &batch)?;
            batch.clear();
        }
        batch.push(one);
        wrote = true;
    }
    flush(text, &batch)?;
    Ok(wrote)
}

fn flush<T: Text>(text: &mut T, batch: &[(usize, Run)]) -> Result<(), Failed> {
    let writes: ArrayVec<(u64, &[u8]), BATCH> =
        batch.iter().take(BATCH).map(|(_, run)| (run.address, run.bytes())).collect();
    if writes.is_empty() {
        return Ok(());
    }
    text.write_many(&writes).map_err(|(position, error)| {
        let first = batch.first().map_or(0, |&(index, _)| index);
        let end = batch.last().map_or(0, |&(index, _)| index + 1);
        let index = batch.get(position).map_or(first, |&(index, _)| index);
        Failed { index, end, error }
    })
}
