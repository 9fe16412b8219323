//! Commit by exchange: nobody is stopped, and nobody meets a breakpoint.
//!
//! ```text
//!   prepare       everything that can fail                               nothing is written until here
//!   caves         the long jumps of short ones, where nobody runs        sync_cores
//!   one byte      a store for each change that is one byte               whoever fetches sees the old or the new one
//!   exchange      all other bytes at one moment                          whoever fetches sees all old or all new
//!                 sync_cores
//! ```
//!
//! A thread may stand on an interior boundary all the time and go on when it likes. So what needs a quiesce is not
//! committed this way: bytes that are kept stay as they are, and those of a
//! [`Jump5Trapped`](kdetour_plan::Shape::Jump5Trapped) trap from the moment at which the bytes behind them change.

use super::change::{Kind, Stage};
use super::{Change, CommitError, Protocol, at_fault, caves, verify, write};
use crate::Error;
use crate::host::Host;
use alloc::vec::Vec;
use kdetour_plan::Refusal;

/// A host that can replace any bytes of text at one moment, as every thread sees it, without a breakpoint: a process, whose
/// pages can be exchanged, or lose their execution for that moment.
///
/// A thread that fetches meanwhile sees all bytes of its instruction old or all new; one that has fetched new
/// bytes reads new data.
pub trait Exchange: Host {
    /// Everything that the exchange needs. Dropped, nothing has happened.
    type Prepared<'a>;

    /// Bytes that are exchanged with any one of them: a page.
    const GRANULE: u64 = 4096;

    /// Makes ready to replace these bytes. Nothing changes yet. Everything that can fail fails here. The other bytes of
    /// the pages concerned are not changed by anybody until the exchange.
    ///
    /// # Errors
    /// [`Error::NotExchangeable`], [`Error::Unreadable`], [`Error::OutOfMemory`] or [`Error::Host`].
    fn prepare<'a>(&self, writes: &'a [(u64, &'a [u8])]) -> Result<Self::Prepared<'a>, Error>;

    /// Replaces the bytes.
    ///
    /// # Errors
    /// What the environment answered; nothing is replaced then.
    fn exchange(&self, prepared: Self::Prepared<'_>) -> Result<(), Error>;
}

/// Writes all changes, or none.
///
/// The host's breakpoint hook must already answer the interior boundaries of every
/// [`Jump5Trapped`](kdetour_plan::Shape::Jump5Trapped), and every [`Breakpoint`](kdetour_plan::Shape::Breakpoint); nothing else
/// traps.
///
/// # Errors
/// [`Refusal::NoShape`] for a change that [needs a quiesce](Change::needs_quiesce); what the
/// comparison of expected bytes, the host or a write found. Everything written has then been taken back.
pub fn exchange<H: Exchange>(host: &H, text: &mut H::Text, changes: &[Change]) -> Result<(), CommitError> {
    host.lock_text();
    let outcome = locked(host, text, changes);
    host.unlock_text();
    outcome
}

fn locked<H: Exchange>(host: &H, text: &mut H::Text, changes: &[Change]) -> Result<(), CommitError> {
    for (index, change) in changes.iter().enumerate() {
        let written_so = Protocol::Exchange.shapes().contains(change.patch().shape());
        if change.kind() == Kind::Attach && !written_so {
            let refusal = Refusal::NoShape { address: change.patch().address() };
            return Err(CommitError { index, error: refusal.into(), written: false });
        }
    }
    verify(host, text, changes)?;
    let failed = |error| CommitError { index: at_fault(error, changes), error, written: false };
    let pages = Pages::of(changes, H::GRANULE).map_err(failed)?;
    let writes = pages.writes(changes).map_err(failed)?;
    let prepared = if writes.is_empty() { None } else { Some(host.prepare(&writes).map_err(failed)?) };

    if caves::fill(text, changes)? {
        host.sync_cores();
    }
    let outcome = steps(host, text, changes, &pages, prepared);
    host.sync_cores();
    outcome
}

fn steps<H: Exchange>(
    host: &H,
    text: &mut H::Text,
    changes: &[Change],
    pages: &Pages,
    prepared: Option<H::Prepared<'_>>,
) -> Result<(), CommitError> {
    let stored = || changes.iter().enumerate().filter(|(_, change)| pages.is_stored(change));
    let stores = write::some(text, stored(), Stage::Before, Stage::After);
    let mut end = changes.len();
    let outcome = stores.map_err(|failed| {
        end = failed.end;
        failed.into()
    });
    let outcome = outcome.and_then(|_| {
        let exchanged = prepared.map_or(Ok(()), |prepared| host.exchange(prepared));
        exchanged.map_err(|error| CommitError { index: at_fault(error, changes), error, written: true })
    });
    outcome.inspect_err(|_| {
        for one in stored().take_while(|&(index, _)| index < end) {
            let _ = write::some(text, core::iter::once(one), Stage::After, Stage::Before);
        }
    })
}

/// The pages that are exchanged. What else is written in them is exchanged with them, since the copies are made before.
struct Pages {
    /// Their numbers, sorted.
    numbers: Vec<u64>,
    granule: u64,
}

impl Pages {
    fn of(changes: &[Change], granule: u64) -> Result<Self, Error> {
        let mut numbers = Vec::new();
        numbers.try_reserve_exact(2 * changes.len())?;
        for change in changes.iter().filter(|change| !change.is_one_byte()) {
            let (address, bytes) = change.replacement();
            if let Some(last) = bytes.len().checked_sub(1) {
                numbers.extend([address / granule, address.wrapping_add(last as u64) / granule]);
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(Self { numbers, granule })
    }

    fn contain(&self, address: u64) -> bool {
        self.numbers.binary_search(&(address / self.granule)).is_ok()
    }

    /// Whether a change is written by one store.
    fn is_stored(&self, change: &Change) -> bool {
        change.is_one_byte() && !self.contain(change.replacement().0)
    }

    /// Everything that is written in these pages, caves too.
    fn writes<'a>(&self, changes: &'a [Change]) -> Result<Vec<(u64, &'a [u8])>, Error> {
        let mut writes = Vec::new();
        writes.try_reserve_exact(3 * changes.len())?;
        for change in changes.iter().filter(|_| !self.numbers.is_empty()) {
            if let Some(cave) = change.cave() {
                // The part on either side of a border.
                let border = self.granule.wrapping_sub(cave.cave.address % self.granule);
                let len = usize::try_from(border).unwrap_or(usize::MAX).min(cave.new.len());
                let (left, right) = cave.new.split_at_checked(len).unwrap_or((&cave.new, &[]));
                let parts = [(cave.cave.address, left), (cave.cave.address.wrapping_add(len as u64), right)];
                writes.extend(parts.into_iter().filter(|&(at, part)| !part.is_empty() && self.contain(at)));
            }
            let (address, bytes) = change.replacement();
            if !bytes.is_empty() && self.contain(address) {
                writes.push((address, bytes));
            }
        }
        Ok(writes)
    }
}
