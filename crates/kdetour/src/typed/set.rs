//! Sets of detours by their addresses: attached as one, detached as one, waited for.
//!
//! ```
//! use kdetour::{AtomicAddress, Protocol};
//! use kdetour::typed::set::{self, Member};
//! use std::mem::transmute;
//! use std::sync::atomic::Ordering;
//! use std::time::Duration;
//!
//! type Priced = extern "C" fn(u64) -> u64;
//!
//! #[inline(never)]
//! extern "C" fn price(of: u64) -> u64 {
//!     of * 3
//! }
//!
//! static ORIGINAL: AtomicAddress = AtomicAddress::new(0);
//!
//! extern "C" fn doubled(of: u64) -> u64 {
//!     // SAFETY: a function of this type is stored there before the first call gets here.
//!     let original = unsafe { transmute::<usize, Priced>(ORIGINAL.load(Ordering::Acquire) as usize) };
//!     2 * original(of)
//! }
//!
//! let address = |function: Priced| function as *const () as u64;
//! let one = Member { target: address(price), detour: address(doubled), cell: Some(&ORIGINAL), ..Member::default() };
//! // SAFETY: both are functions of this type, of this program.
//! let handles = unsafe { set::attach(Protocol::Exchange, &[one]) }?;
//! assert_eq!(price(7), 42);
//! set::detach(Protocol::Exchange, &handles)?;
//! set::drain(&handles, Duration::from_secs(10))?;
//! assert_eq!(price(7), 21);
//! # Ok::<(), kdetour::Error>(())
//! ```

use super::process::{By, Process, again_until, commit, with};
use crate::host::process::caller::{stack_pointer, with_return};
use crate::host::process::{Pin, arch};
use crate::host::{Host as _, Text as _};
use crate::slots::SlotMemory as _;
use crate::{AtomicAddress, Attach, Error, Handle, Method, Protocol, SessionError, State};
use core::time::Duration;
use core::{mem, ptr};
use kdetour_plan::{Reach, Refusal};
use std::vec::Vec;

/// One detour of a set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Member {
    /// How calls are led to it. A set may have members of each kind.
    pub method: Method,
    /// The target's entry; for [`Method::Pointer`] the address of the pointer.
    pub target: u64,
    /// The function that is called instead.
    pub detour: u64,
    /// Where the address of the original is kept for the detour to read: written before the first call can reach it, and
    /// whenever the original becomes another one, until it has been [drained](drain).
    pub cell: Option<&'static AtomicAddress>,
    /// The handle that it had, if it was attached before, or [planned](plan), and has not been drained: it is attached as it
    /// was, if the target is still the same.
    pub again: Option<Handle>,
    /// Whether the detour's library is kept loaded by whoever attaches, and not for him: a library that detours by functions of its own could not be
    /// unloaded otherwise, before it has detached.
    pub loose: bool,
}

impl Member {
    const fn attach(&self) -> Attach {
        Attach {
            method: self.method,
            target: self.target,
            detour: self.detour,
            cell: self.cell,
            chain: true,
            in_flight: 0,
            owner: 0,
            original: 0,
            shapes: None,
            inside: false,
            slot: None,
        }
    }

    /// Whether the record that it had says the same as it does.
    fn is_that_of(&self, process: &Process) -> bool {
        let record = self.again.and_then(|handle| process.kdetour.record(handle));
        record.is_some_and(|record| {
            record.method == self.method
                && record.target == self.target
                && record.detour == self.detour
                && record.cell.map(ptr::from_ref) == self.cell.map(ptr::from_ref)
        })
    }

    fn pins(&self) -> Vec<Pin> {
        let detour = Some(self.detour).filter(|_| !self.loose);
        [Some(self.target), detour].into_iter().flatten().filter_map(Pin::of).collect()
    }
}

/// Attaches all members, or none. Of several detours of one target the last one is called first.
///
/// # Errors
/// The first that cannot be attached, and why; nothing has been written then.
///
/// # Safety
/// As for [`Detour::attach`](super::Detour::attach), for each member: the detour may be called in place of the target, both stay
/// until the detour has been [drained](drain), and what the cell says is not called after that.
pub unsafe fn attach(protocol: Protocol, set: &[Member]) -> Result<Vec<Handle>, SessionError> {
    let changes: Vec<Change> = set.iter().copied().map(Change::Attach).collect();
    // SAFETY: the caller's promise.
    unsafe { change(protocol, &changes) }
}

/// Detaches all, or none. Calls may still be inside: nothing is freed.
///
/// # Errors
/// The first that cannot be detached, and why. One whose target is unmapped, or has its original bytes back, is detached.
pub fn detach(protocol: Protocol, handles: &[Handle]) -> Result<(), SessionError> {
    let changes: Vec<Change> = handles.iter().copied().map(Change::Detach).collect();
    // SAFETY: nothing is attached.
    unsafe { change(protocol, &changes) }?;
    // What is busy now is tried again later.
    let _ = trim();
    Ok(())
}

/// One change of a set.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// A detour to attach.
    Attach(Member),
    /// One to detach.
    Detach(Handle),
}

/// Makes all changes at once, or none; for each its handle.
///
/// # Errors
/// As for [`attach`] and [`detach`].
///
/// # Safety
/// As for [`attach`].
pub unsafe fn change(protocol: Protocol, changes: &[Change]) -> Result<Vec<Handle>, SessionError> {
    // The loader's lock is never waited for with the turn taken.
    let mut pins: Vec<Vec<Pin>> = changes.iter().map(Change::pins).collect();
    let mut how: Vec<How> = changes.iter().map(Change::how).collect();
    locked(|process| {
        for (change, how) in changes.iter().zip(&mut how) {
            if let Change::Attach(member) = change
                && *how == How::Again
                && !member.is_that_of(process)
            {
                *how = How::Anew;
            }
        }
        let handles = loop {
            let wanted = changes.iter().zip(&how).filter(|(_, how)| **how != How::Done);
            let session = wanted.fold(process.kdetour.session(), |session, (change, how)| match change {
                Change::Detach(handle) => session.detach(*handle),
                Change::Attach(member) => match member.again.filter(|_| *how == How::Again) {
                    // SAFETY: the caller's promise.
                    Some(handle) => unsafe { session.renew(handle, 0) },
                    // SAFETY: the caller's promise.
                    None => unsafe { session.attach(member.attach()) },
                },
            });
            let failed = match commit(session, By::Protocol(protocol), &mut |_, _| ()) {
                Ok(handles) => break handles,
                Err(failed) => failed,
            };
            if let Err(failed) = may_be_tried_again(process, changes, &mut how, failed) {
                keep_left(process, changes, &mut pins);
                return Err(failed);
            }
        };
        let mut given = handles.into_iter();
        let mut all = Vec::new();
        for ((change, how), pins) in changes.iter().zip(&how).zip(&mut pins) {
            match change {
                Change::Detach(handle) if *how == How::Done => all.push(*handle),
                Change::Detach(_) => all.extend(given.next()),
                Change::Attach(member) => {
                    let Some(handle) = given.next() else { continue };
                    let again = member.again.filter(|_| *how == How::Again);
                    let before = again.and_then(|before| process.kept.remove(&before));
                    let kept = process.kept.entry(handle).or_insert_with(|| before.unwrap_or_default());
                    mem::swap(&mut kept.pins, pins);
                    all.push(handle);
                }
            }
        }
        Ok(all)
    })
}

/// Whether another attempt may succeed, made otherwise; else which change has failed.
fn may_be_tried_again(
    process: &mut Process,
    changes: &[Change],
    how: &mut [How],
    failed: SessionError,
) -> Result<(), SessionError> {
    let mut positions = how.iter().enumerate().filter(|(_, how)| **how != How::Done);
    let (index, _) = positions.nth(failed.index).ok_or(failed)?;
    let failed = SessionError { index, ..failed };
    let (change, how) = changes.get(index).zip(how.get_mut(index)).ok_or(failed)?;
    match change {
        // What it was is not what it would be now.
        Change::Attach(_) if *how == How::Again && is_stale(&failed.error) => *how = How::Anew,
        Change::Detach(handle) if is_away(&failed.error) && process.kdetour.has_vanished(*handle) => {
            // SAFETY: it has vanished: the patch is not in the text any more.
            let forgotten = unsafe { process.kdetour.forget(*handle, &mut |_, _| ()) };
            forgotten.map_err(|error| SessionError { index, error })?;
            *how = How::Done;
        }
        _ => return Err(failed),
    }
    Ok(())
}

/// A commit that failed after it had written has left detours that drain: their libraries stay until they have been freed.
fn keep_left(process: &mut Process, changes: &[Change], pins: &mut [Vec<Pin>]) {
    let Process { kdetour, kept, .. } = process;
    for record in kdetour.left_behind().iter().filter_map(|&handle| kdetour.record(handle)) {
        let is_its = |(change, _): &(&Change, &mut Vec<Pin>)| match change {
            Change::Attach(member) => member.target == record.target && member.detour == record.detour,
            Change::Detach(_) => false,
        };
        if let Some((_, pins)) = changes.iter().zip(&mut *pins).find(is_its) {
            kept.entry(record.handle).or_default().pins.append(pins);
        }
    }
}

/// How a change is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// As it was before.
    Again,
    /// As if it had never been there.
    Anew,
    /// It needs not be made any more.
    Done,
}

impl Change {
    fn pins(&self) -> Vec<Pin> {
        match self {
            Self::Attach(member) => member.pins(),
            Self::Detach(_) => Vec::new(),
        }
    }

    const fn how(&self) -> How {
        match self {
            Self::Attach(Member { again: Some(_), .. }) => How::Again,
            _ => How::Anew,
        }
    }
}

const fn is_stale(error: &Error) -> bool {
    matches!(error, Error::NotAttached | Error::Changed { .. } | Error::Refused(Refusal::NoShape { .. }))
}

const fn is_away(error: &Error) -> bool {
    matches!(error, Error::Changed { .. } | Error::PointerChanged { .. } | Error::Unreadable { .. })
}

/// Plans all members, takes and fills their slots, and writes no target; see [`Session::plan`](crate::Session::plan). By `protocol` they are to be written.
/// They are attached by [`attach`], with the handles as [`again`](Member::again), or by the caller's own write and [`assume`];
/// [`drain`] gives back what was taken; nothing else does.
///
/// # Errors
/// The first that cannot be planned, and why; nothing has been taken then.
///
/// # Safety
/// As for [`attach`].
pub unsafe fn plan(protocol: Protocol, set: &[Member]) -> Result<Vec<Handle>, SessionError> {
    let mut pins: Vec<Vec<Pin>> = set.iter().map(Member::pins).collect();
    locked(|process| {
        let session = set.iter().fold(process.kdetour.session(), |session, member| {
            // SAFETY: the caller's promise.
            unsafe { session.attach(member.attach()) }
        });
        let handles = session.plan(protocol, &mut |_, _| ())?;
        for (handle, pins) in handles.iter().zip(&mut pins) {
            mem::swap(&mut process.kept.entry(*handle).or_default().pins, pins);
        }
        Ok(handles)
    })
}

/// Takes a planned member as attached whose patch the caller has written itself.
///
/// # Errors
/// As for [`Kdetour::assume`](crate::Kdetour::assume).
///
/// # Safety
/// As for [`Kdetour::assume`](crate::Kdetour::assume).
pub unsafe fn assume(handle: Handle) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    with(|process| unsafe { process.kdetour.assume(handle, &mut |_, _| ()) })
}

/// Waits until no call is inside any of these, which were detached, nor in their trampolines, and frees them. What has been freed
/// already is not waited for.
///
/// # Errors
/// [`Error::NotAttached`] if one is attached; [`Error::AlreadyDetoured`] if one was planned and its patch is in the text;
/// [`Error::Inside`] if the calling thread itself is inside; [`Error::Busy`] or [`Error::ThreadNotReached`] when the time is up: nothing has
/// changed then.
#[inline(always)]
pub fn drain(handles: &[Handle], timeout: Duration) -> Result<(), Error> {
    with_return(|sp| drain_above(sp, handles, timeout).map(|()| 0)).map(drop)
}

/// The same for a caller who knows from where on its own stack counts: where a return address is, its caller's frame above it.
///
/// # Errors
/// As for [`drain`].
#[inline(never)]
pub fn drain_above(sp: u64, handles: &[Handle], timeout: Duration) -> Result<(), Error> {
    again_until(timeout, |process, end, _| {
        let known = |handle: &&Handle| process.kdetour.record(**handle).is_some();
        let left: Vec<Handle> = handles.iter().filter(known).copied().collect();
        process.free_others(sp, &left, end)
    })
}

/// What a handle names: none if nothing.
///
/// # Errors
/// As for [`with_process`](super::with_process).
pub fn state(handle: Handle) -> Result<Option<State>, Error> {
    with(|process| Ok(process.kdetour.record(handle).map(|record| record.state)))
}

/// Whether a member that is to be attached [again](Member::again) is what it was; one that is new is.
///
/// # Errors
/// As for [`with_process`](super::with_process).
pub fn says_the_same(member: &Member) -> Result<bool, Error> {
    if member.again.is_none() {
        return Ok(true);
    }
    with(|process| Ok(member.is_that_of(process)))
}

/// Frees what detached detours have left behind, if many have gathered.
///
/// # Errors
/// As for [`with_process`](super::with_process).
#[inline(never)]
pub fn trim() -> Result<(), Error> {
    let sp = stack_pointer();
    with(|process| {
        process.reclaim_if_many(sp);
        Ok(())
    })
}

/// Code that goes where `cell` says, within reach of `near`: an address for an original that stays the same when the original
/// becomes another one. It costs a load and an indirect jump, and changes no register but, on x86-64, R11, which no function expects anything
/// in. It is never freed.
///
/// # Errors
/// [`Error::NoSlot`]; what the host says.
pub fn stub(near: u64, cell: &'static AtomicAddress) -> Result<u64, Error> {
    const NEAR: u64 = 0x7000_0000;
    let code = arch::jump_by(ptr::from_ref(cell).expose_provenance() as u64);
    with(|process| {
        let reach = Reach { first: near.saturating_sub(NEAR), last: near.saturating_add(NEAR) };
        let slot = process.kdetour.slots.near(arch::JUMP_BY, reach);
        let slot = slot.ok_or(Error::NoSlot { target: near, needed: arch::JUMP_BY })?;
        let written =
            process.kdetour.host().open_text(&[slot]).and_then(|mut text| text.write(slot.address, &code));
        if let Err(error) = written {
            process.kdetour.slots.free(slot);
            return Err(error);
        }
        Ok(slot.address)
    })
}

/// Works with the detours of this process, and says which change failed.
fn locked<R>(mut work: impl FnMut(&mut Process) -> Result<R, SessionError>) -> Result<R, SessionError> {
    with(|process| Ok(work(process))).unwrap_or_else(|error| Err(SessionError { index: 0, error }))
}
