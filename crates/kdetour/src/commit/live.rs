//! Live commit: every processor keeps running.
//!
//! Attaching a free five-byte jump over several instructions:
//!
//! ```text
//!   before   55           48 89 e5        41 57        push rbp / mov rbp,rsp / push r15
//!   1        CC           48 89 e5        41 57        nobody enters any more; who is inside runs on
//!            sync_cores, then quiesce: nobody is inside any more
//!   2        CC           xx xx xx xx                  tail of the jump
//!            sync_cores
//!   3        E9           xx xx xx xx                  jmp detour
//!            sync_cores
//! ```
//!
//! A thread that meets the breakpoint is sent to the detour, where it was going. The quiesce is left out where no
//! change of the set has an interior boundary: a single instruction has no inside, so nobody can stand there.
//!
//! Detaching writes the same steps with the original bytes and never quiesces: a jump has no inside. A thread
//! that meets the breakpoint is sent to the trampoline, which is the original code.
//!
//! Each `sync_cores` serves all changes of the set. The order of the steps is that of Linux's own
//! `text_poke_bp` (arch/x86/kernel/alternative.c); the quiesce between is what its callers, such as optimised
//! kprobes, add for windows of more than one instruction.

use super::{Change, CommitError, INT3, Part, verify, write_all};
use crate::host::{BreakpointHook, Quiesce};

/// Writes all changes, or none. The host's breakpoint hook must already answer every window's first byte.
///
/// May sleep in the quiesce; the rest does not.
///
/// # Errors
/// What the comparison of expected bytes or a write found; everything written has then been taken back.
pub fn live<H>(host: &H, text: &mut H::Text, changes: &[Change]) -> Result<(), CommitError>
where
    H: BreakpointHook + Quiesce,
{
    host.lock_text();
    let outcome = verify(host, changes)
        .and_then(|()| steps(host, text, changes).inspect_err(|_| undo(host, text, changes)));
    host.unlock_text();
    outcome
}

fn steps<H>(host: &H, text: &mut H::Text, changes: &[Change]) -> Result<(), CommitError>
where
    H: BreakpointHook + Quiesce,
{
    write_all(text, changes, |_| INT3, Part::First)?;
    host.sync_cores();
    if changes.iter().any(Change::needs_quiesce) {
        host.quiesce();
    }
    write_all(text, changes, Change::after, Part::Tail)?;
    host.sync_cores();
    write_all(text, changes, Change::after, Part::First)?;
    host.sync_cores();
    Ok(())
}

/// Takes back whatever was written. The breakpoint may or may not stand in each window; a jump that was already
/// completed is led back over it. Writes that fail here cannot be mended: the breakpoint, and with it a working
/// detour, stays.
fn undo<H>(host: &H, text: &mut H::Text, changes: &[Change])
where
    H: BreakpointHook + Quiesce,
{
    if write_all(text, changes, |_| INT3, Part::First).is_err() {
        return;
    }
    host.sync_cores();
    // Leaving an original for a jump again (a failed detach) gives it an inside back: wait until it is empty.
    if changes.iter().any(|change| change.patch.shape().needs_quiesce()) {
        host.quiesce();
    }
    if write_all(text, changes, Change::before, Part::Tail).is_err() {
        return;
    }
    host.sync_cores();
    let _ = write_all(text, changes, Change::before, Part::First);
    host.sync_cores();
}
