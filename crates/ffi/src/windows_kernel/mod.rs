//! `kdetour_nt.h` for Windows drivers: its functions, by their names in C.
//!
//! What a caller gets wrong is told by an `NTSTATUS`, a code and a text. The level is asked before anything else: a call at an IRQL at
//! which it must not be made does nothing.

mod detour;
mod turn;

pub use detour::Detour;

use crate::code::{self, code};
use crate::report::ErrorRecord;
use crate::text::put_text;
use alloc::vec::Vec;
use core::ffi::{CStr, c_char, c_void};
use core::slice;
use core::time::Duration;
use kdetour::commit::Preempted;
use kdetour::host::windows_kernel::{By, Ntoskrnl, WindowsKernel};
use kdetour::{Error, Handle, Kdetour, Session, SessionError};
use kdetour_nt::{PASSIVE_LEVEL, irql, status};
use turn::Turn;

/// The detours of this driver.
type Running = Kdetour<WindowsKernel<Ntoskrnl>>;

/// `KDETOUR_FOR_EVER`, `KDETOUR_NO_WAIT`.
const FOR_EVER: u32 = 0;
const NO_WAIT: u32 = u32::MAX;
/// `KDETOUR_ACCEPT_PREEMPTED`.
const ACCEPT: u32 = 1;
/// How long a drain has the library for itself, before others have their turn.
const SLICE: Duration = Duration::from_millis(100);

/// What failed.
enum Failure {
    /// An argument that means nothing.
    Argument { index: usize, text: &'static str },
    /// All else.
    Session(SessionError),
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Session(SessionError { index: 0, error })
    }
}

/// Tells the story, if somebody wants to know, and gives the `NTSTATUS`.
///
/// # Safety
/// `record` is null or a writable `struct kdetour_error`.
#[inline(never)]
unsafe fn answer(record: *mut ErrorRecord, outcome: Result<(), Failure>) -> i32 {
    let Err(failure) = outcome else { return 0 };
    let (number, status) = match &failure {
        // As a null pointer: STATUS_INVALID_PARAMETER.
        Failure::Argument { .. } => (code::ARGUMENT, status(&Error::Null)),
        Failure::Session(failure) => (code(&failure.error), status(&failure.error)),
    };
    // SAFETY: by the caller's word.
    if let Some(record) = unsafe { record.as_mut() } {
        match &failure {
            Failure::Argument { index, text } => {
                record.index = u32::try_from(*index).unwrap_or(u32::MAX);
                record.address = 0;
                put_text(&mut record.text, text);
            }
            Failure::Session(failure) => record.tell(failure),
        }
        record.code = number;
    }
    status
}

/// Refuses a call above `PASSIVE_LEVEL`.
fn passive() -> Result<(), Error> {
    match irql() {
        PASSIVE_LEVEL => Ok(()),
        now => Err(Error::Irql { now, most: PASSIVE_LEVEL }),
    }
}

fn by(protocol: u32) -> Result<By, Failure> {
    match protocol {
        0 => Ok(By::Ipi),
        1 => Ok(By::Dpc),
        2 => Ok(By::Local),
        _ => Err(Failure::Argument { index: 0, text: "there is no such protocol" }),
    }
}

/// The detours of a set.
///
/// # Safety
/// `detours` is null, or points to `count` pointers, each null or to a `struct kdetour` that nobody else uses meanwhile.
#[inline(never)]
unsafe fn members<'a>(detours: *const *mut Detour, count: u32) -> Result<Vec<&'a mut Detour>, Failure> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut members: Vec<&mut Detour> = Vec::new();
    if count == 0 {
        return Ok(members);
    }
    if detours.is_null() {
        return Err(Error::Null.into());
    }
    members.try_reserve_exact(count).map_err(Error::from)?;
    // SAFETY: by the caller's word.
    let pointers = unsafe { slice::from_raw_parts(detours, count) };
    for (index, &pointer) in pointers.iter().enumerate() {
        if pointer.is_null() || !pointer.is_aligned() {
            return Err(SessionError { index, error: Error::Null }.into());
        }
        if pointers.iter().take(index).any(|&before| before == pointer) {
            return Err(Failure::Argument { index, text: "this struct kdetour is in the set twice" });
        }
        // SAFETY: by the caller's word; no other of the set is the same.
        members.push(unsafe { &mut *pointer });
    }
    Ok(members)
}

/// Commits by a protocol; who stays is told his original by his cell.
#[inline(never)]
fn commit(
    session: Session<'_, WindowsKernel<Ntoskrnl>>,
    by: By,
    accept: bool,
) -> Result<Vec<Handle>, SessionError> {
    // SAFETY: the caller of `kdetour_attach_all` has said that it is accepted, or else it is not used.
    let accepted = unsafe { Preempted::accept() };
    session.commit_parked(by, accept.then_some(&accepted), &mut |_, _| ())
}

/// Attaches a set of detours, all or none. `PASSIVE_LEVEL`.
///
/// # Safety
/// As `kdetour_nt.h` has it: `detours` is null or points to `count` pointers, each null or to a `struct kdetour` that stays where it is
/// until it has been drained, with a detour of its target's signature; `error` is null or a `struct kdetour_error`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn kdetour_attach_all(
    detours: *const *mut Detour,
    count: u32,
    protocol: u32,
    risk: u32,
    error: *mut ErrorRecord,
) -> i32 {
    let attach = || -> Result<(), Failure> {
        passive()?;
        let by = by(protocol)?;
        if risk > ACCEPT {
            return Err(Failure::Argument { index: 0, text: "there is no such risk to accept" });
        }
        // SAFETY: by the caller's word.
        let mut members = unsafe { members(detours, count) }?;
        if members.is_empty() {
            return Ok(());
        }
        let turn = Turn::take()?;
        let running = turn.running()?;
        let mut requests = Vec::new();
        requests.try_reserve_exact(members.len()).map_err(Error::from)?;
        for (index, member) in members.iter().enumerate() {
            // SAFETY: by the caller's word.
            requests.push(unsafe { member.request(running) }.map_err(|error| SessionError { index, error })?);
        }
        for request in &requests {
            // SAFETY: by the caller's word the places stay until it was drained; nobody is inside.
            let placed = unsafe { request.place(running) };
            placed.inspect_err(|_| requests.iter().for_each(|request| request.take_back(running)))?;
        }
        let session = requests.iter().fold(running.session(), |session, request| {
            // SAFETY: by the caller's word: the detour has its target's signature, and the driver stays until it was drained.
            unsafe { request.add_to(session) }
        });
        let outcome = commit(session, by, risk == ACCEPT);
        if outcome.is_err() {
            requests.iter().for_each(|request| request.take_back(running));
        }
        let handles = outcome?;
        for ((member, request), handle) in members.iter_mut().zip(&requests).zip(handles) {
            member.is_attached(request.target(), handle);
        }
        Ok(())
    };
    // SAFETY: by the caller's word.
    unsafe { answer(error, attach()) }
}

/// Detaches a set of detours, all or none, then waits until no call is inside any of them. `PASSIVE_LEVEL`.
///
/// # Safety
/// As for [`kdetour_attach_all`].
#[unsafe(no_mangle)]
pub unsafe extern "system" fn kdetour_detach_all(
    detours: *const *mut Detour,
    count: u32,
    protocol: u32,
    timeout_ms: u32,
    error: *mut ErrorRecord,
) -> i32 {
    let detach = || -> Result<(), Failure> {
        passive()?;
        let by = by(protocol)?;
        // SAFETY: by the caller's word.
        let members = unsafe { members(detours, count) }?;
        let mut handles = Vec::new();
        handles.try_reserve_exact(members.len()).map_err(Error::from)?;
        if members.is_empty() {
            return Ok(());
        }
        {
            let turn = Turn::take()?;
            let running = turn.running()?;
            for (index, member) in members.iter().enumerate() {
                let known = member.handle().filter(|&handle| running.record(handle).is_some());
                handles.push(known.ok_or(SessionError { index, error: Error::NotAttached })?);
            }
            // What drains already is not in the session: its numbers are those of the others.
            running.detach_or_forget(&handles, by)?;
        }
        if timeout_ms == NO_WAIT {
            return Ok(());
        }
        drain(&handles, timeout_ms, &mut { timeout_ms }).map_err(Failure::from)
    };
    // SAFETY: by the caller's word.
    unsafe { answer(error, detach()) }
}

/// Waits until no call is inside these. Others have their turn meanwhile: a call that is inside may attach something. `left` is what is left
/// of the time.
#[inline(never)]
fn drain(handles: &[Handle], timeout_ms: u32, left: &mut u32) -> Result<(), Error> {
    loop {
        let slice =
            if timeout_ms == FOR_EVER { SLICE } else { SLICE.min(Duration::from_millis((*left).into())) };
        let outcome = {
            let turn = Turn::take()?;
            turn.running()?.drain(handles, slice)
        };
        match outcome {
            Err(Error::Busy { .. }) if timeout_ms == FOR_EVER => {}
            Err(Error::Busy { .. }) if *left > 0 => {}
            other => return other,
        }
        *left = left.saturating_sub(u32::try_from(slice.as_millis()).unwrap_or(u32::MAX).max(1));
        turn::sleep();
    }
}

/// For `DriverUnload`: detaches what is attached, waits until no call is inside any detour or trampoline, and gives back all memory. If that
/// fails, the driver must stay. `PASSIVE_LEVEL`.
///
/// # Safety
/// Nothing of kdetour is called afterwards. `error` is null or a `struct kdetour_error`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn kdetour_stop(protocol: u32, timeout_ms: u32, error: *mut ErrorRecord) -> i32 {
    let stop = || -> Result<(), Failure> {
        passive()?;
        let by = by(protocol)?;
        if timeout_ms == NO_WAIT {
            return Err(Failure::Argument { index: 0, text: "whoever unloads has to wait" });
        }
        let mut left = timeout_ms;
        loop {
            let mut handles: Vec<Handle> = Vec::new();
            {
                let turn = Turn::take()?;
                let Some(running) = turn.running_already() else { return Ok(()) };
                handles.try_reserve_exact(running.len()).map_err(Error::from)?;
                handles.extend(running.records().map(|record| record.handle));
                running.detach_or_forget(&handles, by)?;
            }
            match drain(&handles, timeout_ms, &mut left) {
                // Somebody has attached one of them again: it has another handle now.
                Ok(()) | Err(Error::NotAttached) => {}
                Err(other) => return Err(other.into()),
            }
            let turn = Turn::take()?;
            let Some(running) = turn.running_already() else { return Ok(()) };
            // A call that was inside may have attached something since: then all of it once more.
            if running.are_all_detached(&handles) {
                running.empty_caves()?;
                turn.end();
                return Ok(());
            }
            if timeout_ms != FOR_EVER {
                left = left.checked_sub(1).ok_or(Error::Busy { calls: 0 })?;
            }
        }
    };
    let outcome = stop();
    if outcome.is_ok() {
        // SAFETY: all detours are gone, and by the caller's word nothing is called any more.
        unsafe { kdetour_nt::free_all() };
    }
    // SAFETY: by the caller's word.
    unsafe { answer(error, outcome) }
}

/// The address of an exported function of `ntoskrnl.exe` or `hal.dll`, null if there is none of that name. `PASSIVE_LEVEL`; null above.
///
/// # Safety
/// `name` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn kdetour_find(name: *const c_char) -> *mut c_void {
    if name.is_null() || passive().is_err() {
        return core::ptr::null_mut();
    }
    // SAFETY: by the caller's word.
    detour::find(unsafe { CStr::from_ptr(name) })
}
