//! Live commit: every processor keeps running.
//!
//! Attaching a free five-byte jump over several instructions:
//!
//! ```text
//!   before   55           48 89 e5        41 57        push rbp / mov rbp,rsp / push r15
//!   Broken   CC           48 89 e5        41 57        nobody enters any more; who is inside runs on
//!            sync_cores, then quiesce: nobody is inside any more
//!   Rest     CC           xx xx xx xx                  tail of the jump
//!            sync_cores
//!   After    E9           xx xx xx xx                  jmp detour
//!            sync_cores
//! ```
//!
//! A thread that meets a breakpoint is sent to where it was going: attaching to the detour, detaching to the
//! trampoline, from an interior boundary to the copy of its instruction. Every shape goes through these
//! [stages](super::change), and those that write nothing at a site are left out:
//!
//! ```text
//!                                  cave   Broken                  quiesce   Rest     Inside       After
//!   one byte differs                                                                              that byte
//!   WholeInstruction, Jump5Kept           INT3                              others                first byte
//!   Jump5Trapped                          INT3, and boundaries              others                first byte
//!   ShortJump                      jump   INT3                              second                first byte
//!   Jump5, Jump14                         INT3                    yes       others                first byte
//!   Breakpoint                                                                                    that byte
//!   detach of Jump5Trapped                INT3                              others   boundaries   first byte
//!   every other detach, a retarget        INT3                              others                first byte
//! ```
//!
//! The quiesce is left out where no change of the set overwrites an interior boundary, and detaching never quiesces: a
//! jump has no inside. Each `sync_cores` serves all changes of the set. The order of the steps is that of Linux's own
//! `text_poke_bp` (arch/x86/kernel/alternative.c); the quiesce between is what its callers, such as optimised
//! kprobes, add for windows of more than one instruction.

use super::change::Stage;
use super::{Change, CommitError, at_fault, caves, verify, write};
use crate::host::{BreakpointHook, Quiesce};

/// Writes all changes, or none. The host's breakpoint hook must already answer every breakpoint that may be met: the
/// first byte of every window, the interior boundaries of a [`Jump5Trapped`](kdetour_plan::Shape::Jump5Trapped), and
/// where a patch that is led elsewhere has its jump. `boundaries` are those of [`boundaries`](super::boundaries).
///
/// May sleep in the quiesce; the rest does not.
///
/// # Errors
/// What the comparison of expected bytes, a write or the quiesce found; everything written has then been taken back.
pub fn live<H>(
    host: &H,
    text: &mut H::Text,
    changes: &[Change],
    boundaries: &[u64],
) -> Result<(), CommitError>
where
    H: BreakpointHook + Quiesce,
{
    host.lock_text();
    let outcome = verify(host, text, changes).and_then(|()| steps(host, text, changes, boundaries));
    host.unlock_text();
    outcome
}

fn steps<H>(host: &H, text: &mut H::Text, changes: &[Change], boundaries: &[u64]) -> Result<(), CommitError>
where
    H: BreakpointHook + Quiesce,
{
    if caves::fill(text, changes)? {
        host.sync_cores();
    }
    for stage in Stage::UP {
        match write::stage(text, changes, stage.previous(), stage) {
            Ok(true) => host.sync_cores(),
            Ok(false) => {}
            Err(failed) => {
                undo(host, text, changes, boundaries, stage, failed.end);
                return Err(failed.into());
            }
        }
        if stage == Stage::Broken && changes.iter().any(Change::needs_quiesce) {
            host.quiesce(boundaries).map_err(|error| {
                undo(host, text, changes, boundaries, stage, changes.len());
                CommitError { index: at_fault(error, changes), error, written: true }
            })?;
        }
    }
    Ok(())
}

/// Takes back whatever was written: the changes before `end` may have come to `stage`, the others to the one before.
///
/// If that fails for one of them too, each is taken back by itself, as far as it can be; one that cannot stays at a
/// stage at which its breakpoints are answered, which is a working detour.
fn undo<H>(host: &H, text: &mut H::Text, changes: &[Change], boundaries: &[u64], stage: Stage, end: usize)
where
    H: BreakpointHook + Quiesce,
{
    let previous = stage.previous();
    let (reached, others) = changes.split_at_checked(end).unwrap_or((changes, &[]));
    let alone = |text: &mut H::Text, changes: &[Change], stage| {
        for change in changes {
            let _ = down(host, text, core::slice::from_ref(change), boundaries, stage, Stage::Before);
        }
    };
    if let Err(stage) = down(host, text, reached, boundaries, stage, previous) {
        alone(text, reached, stage);
        alone(text, others, previous);
    } else if let Err(stage) = down(host, text, changes, boundaries, previous, Stage::Before) {
        alone(text, changes, stage);
    }
}

/// Takes changes down from one stage to another, or says at which stage that failed: all of them are then there or one
/// below.
fn down<H>(
    host: &H,
    text: &mut H::Text,
    changes: &[Change],
    boundaries: &[u64],
    from: Stage,
    to: Stage,
) -> Result<(), Stage>
where
    H: BreakpointHook + Quiesce,
{
    let mut stage = from;
    while stage > to {
        let wrote = write::stage(text, changes, stage, stage.previous());
        // Of what failed, some may have been written.
        if !matches!(wrote, Ok(false)) {
            host.sync_cores();
        }
        wrote.map_err(|_| stage)?;
        // Where the original could be entered again (a detach that failed at its end), it had an inside again.
        if stage == Stage::After && changes.iter().any(Change::needs_quiesce_back) {
            host.quiesce(boundaries).map_err(|_| stage)?;
        }
        stage = stage.previous();
    }
    Ok(())
}
