//! What a session does with debug registers: they are set in front of the commit of what is written, and cleared behind it.

use crate::commit::CommitError;
use crate::host::{Host, NotSet};
use crate::kdetour::Kdetour;
use kdetour_plan::Refusal;

/// A debug register's target that the session does something at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Register {
    pub(crate) slot: u64,
    /// Where it traps.
    pub(crate) address: u64,
    /// The first request that did.
    pub(crate) request: usize,
    pub(crate) turns: Turns,
}

/// What becomes of a debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turns {
    On,
    Off,
    /// It stays, and who traps is sent to another detour.
    Elsewhere,
}

impl Turns {
    /// By whether it was set, and whether a detour is left; none if it was not and stays so.
    pub(super) const fn of(was_set: bool, is_wanted: bool) -> Option<Self> {
        match (was_set, is_wanted) {
            (false, true) => Some(Self::On),
            (true, false) => Some(Self::Off),
            (true, true) => Some(Self::Elsewhere),
            (false, false) => None,
        }
    }
}

/// For a commit after which nobody would answer those who trap.
pub(super) fn refuse<H: Host>(_: &mut Kdetour<H>, registers: &[Register]) -> Result<(), CommitError> {
    let Some(first) = registers.first() else { return Ok(()) };
    let error = Refusal::NoShape { address: first.address }.into();
    Err(CommitError { index: first.request, error, written: false })
}

/// Sets the debug registers of all that come, or of none.
pub(super) fn set<H: Host>(host: &H, registers: &[Register]) -> Result<(), CommitError> {
    let mut any = false;
    for (at, register) in registers.iter().enumerate().filter(|(_, one)| one.turns == Turns::On) {
        if let Err(NotSet { error, met }) = host.set_register(register.address) {
            clear(host, registers.get(..at).unwrap_or_default(), Turns::On);
            return Err(CommitError { index: register.request, error, written: met || any });
        }
        any = true;
    }
    Ok(())
}

pub(super) fn clear<H: Host>(host: &H, registers: &[Register], gone: Turns) {
    registers.iter().filter(|one| one.turns == gone).for_each(|one| host.clear_register(one.address));
}
