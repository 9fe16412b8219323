//! `kdetour.h` for a program: its functions, by their names in C.
//!
//! What a caller gets wrong is told by a code and a text; nothing is followed that is null or misaligned.

mod detour;
mod find;
mod import;
#[cfg(not(windows))]
#[cfg(test)]
mod layout;
mod patch;
mod pe;

pub use crate::arch::kdetour_detach_all;
pub use detour::Detour;
pub use find::kdetour_find;
pub use import::kdetour_import;
pub use pe::{kdetour_pe_export, kdetour_pe_import, kdetour_pe_restore};

use crate::code::{self, code, errno};
use crate::patch::PatchRecord;
use crate::report::ErrorRecord;
use crate::survey::write_survey;
use crate::text::{Text, put_text};
use alloc::vec::Vec;
use core::ffi::{c_char, c_int, c_uint, c_void};
use core::slice;
use core::time::Duration;
use kdetour::host::Host as _;
use kdetour::typed::{set, with_process};
use kdetour::{Error, Handle, Method, Protocol, SessionError, State};

/// `KDETOUR_FOR_EVER`, `KDETOUR_NO_WAIT`.
const FOR_EVER: c_uint = 0;
const NO_WAIT: c_uint = c_uint::MAX;

/// What failed, before anything was asked of the library.
pub(crate) struct Misuse {
    code: i32,
    index: usize,
    address: u64,
    text: &'static str,
}

/// Why a call failed.
pub(crate) enum Failure {
    Misuse(Misuse),
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

fn misuse(code: i32, index: usize, address: u64, text: &'static str) -> Failure {
    Failure::Misuse(Misuse { code, index, address, text })
}

/// Tells the story, if somebody wants to know, and gives the errno.
///
/// # Safety
/// `record` is null or a writable `struct kdetour_error`.
unsafe fn answer(record: *mut ErrorRecord, outcome: Result<(), Failure>) -> c_int {
    let Err(failure) = outcome else { return 0 };
    let number = match &failure {
        Failure::Misuse(misuse) => misuse.code,
        // This very thread is at it already, further up its stack.
        Failure::Session(SessionError { error: Error::TextBusy, .. }) => code::INSIDE,
        Failure::Session(failure) => code(&failure.error),
    };
    // SAFETY: by the caller's word.
    if let Some(record) = unsafe { record.as_mut() } {
        match &failure {
            Failure::Misuse(misuse) => {
                record.index = u32::try_from(misuse.index).unwrap_or(u32::MAX);
                record.address = misuse.address;
                put_text(&mut record.text, misuse.text);
            }
            Failure::Session(failure) => record.tell(failure),
        }
        record.code = number;
    }
    -errno(number)
}

fn protocol(number: c_int) -> Result<Protocol, Failure> {
    match number {
        0 => Ok(Protocol::Live),
        1 => Ok(Protocol::Rendezvous),
        2 => Ok(Protocol::Local),
        3 => Ok(Protocol::Exchange),
        _ => Err(misuse(code::ARGUMENT, 0, 0, "there is no such protocol")),
    }
}

/// The detours of a set.
///
/// # Safety
/// `detours` is null, or points to `count` pointers, each null or to a `struct kdetour` that nobody else uses meanwhile.
unsafe fn members<'a>(detours: *const *mut Detour, count: c_uint) -> Result<Vec<&'a mut Detour>, Failure> {
    let count = count as usize;
    if count == 0 {
        return Ok(Vec::new());
    }
    if detours.is_null() {
        return Err(misuse(code::NULL, 0, 0, "the set of detours is null"));
    }
    let mut seen = Vec::new();
    let mut members = Vec::new();
    seen.try_reserve_exact(count).and_then(|()| members.try_reserve_exact(count)).map_err(Error::from)?;
    // SAFETY: by the caller's word.
    let pointers = unsafe { slice::from_raw_parts(detours, count) };
    for (index, &pointer) in pointers.iter().enumerate() {
        if pointer.is_null() || !pointer.is_aligned() {
            return Err(misuse(
                code::NULL,
                index,
                pointer.addr() as u64,
                "this struct kdetour is null, or not aligned",
            ));
        }
        seen.push((pointer, index));
    }
    seen.sort_unstable();
    if let Some([_, (again, index)]) = seen.array_windows().find(|[(one, _), (other, _)]| one == other) {
        let address = again.addr() as u64;
        return Err(misuse(
            code::ALREADY_DETOURED,
            *index,
            address,
            "this struct kdetour is in the set twice",
        ));
    }
    // SAFETY: by the caller's word; they are different ones.
    members.extend(pointers.iter().map(|&pointer| unsafe { &mut *pointer }));
    Ok(members)
}

/// Attaches a set of detours, all or none.
///
/// # Safety
/// As `kdetour.h` says: `detours` points to `count` structs, which stay where they are until they have been detached with
/// waiting; `error` is null or a record. Each detour has its target's signature.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_attach_all(
    detours: *const *mut Detour,
    count: c_uint,
    protocol: c_int,
    error: *mut ErrorRecord,
) -> c_int {
    // SAFETY: by the caller's word.
    unsafe { answer(error, attach(detours, count, protocol)) }
}

/// # Safety
/// As for [`kdetour_attach_all`].
unsafe fn attach(detours: *const *mut Detour, count: c_uint, by: c_int) -> Result<(), Failure> {
    let by = protocol(by)?;
    // SAFETY: by the caller's word.
    let mut detours = unsafe { members(detours, count) }?;
    // SAFETY: by the caller's word.
    let set = unsafe { detour::members(&detours) }?;
    // SAFETY: by the caller's word.
    let handles = unsafe { set::attach(by, &set) }?;
    for ((detour, member), handle) in detours.iter_mut().zip(&set).zip(handles) {
        detour.is_attached(member.target, handle);
    }
    Ok(())
}

/// [`kdetour_detach_all`], for whom this thread's stack counts from `sp` on.
///
/// # Safety
/// As for [`kdetour_attach_all`].
pub(crate) unsafe fn detach_all(
    detours: *const *mut Detour,
    count: c_uint,
    protocol: c_int,
    timeout_ms: c_uint,
    error: *mut ErrorRecord,
    sp: u64,
) -> c_int {
    // SAFETY: by the caller's word.
    unsafe { answer(error, detach(detours, count, protocol, timeout_ms, sp)) }
}

/// # Safety
/// As for [`kdetour_attach_all`].
unsafe fn detach(
    detours: *const *mut Detour,
    count: c_uint,
    by: c_int,
    timeout_ms: c_uint,
    sp: u64,
) -> Result<(), Failure> {
    let by = protocol(by)?;
    // SAFETY: by the caller's word.
    let mut detours = unsafe { members(detours, count) }?;
    let all = take_back(&detours, by)?;
    let timeout = match timeout_ms {
        NO_WAIT => return Ok(()),
        FOR_EVER => Duration::MAX,
        some => Duration::from_millis(some.into()),
    };
    set::drain_above(sp, &all, timeout)?;
    detours.iter_mut().for_each(|detour| detour.is_gone());
    Ok(())
}

/// Detaches what is attached of a set, and gives the handles of all that have not been drained.
fn take_back(detours: &[&mut Detour], by: Protocol) -> Result<Vec<Handle>, Failure> {
    let mut all = Vec::new();
    all.try_reserve_exact(detours.len()).map_err(Error::from)?;
    all.extend(detours.iter().filter_map(|detour| detour.handle()));
    // Nearly always all of them are attached.
    if all.len() == detours.len() {
        match set::detach(by, &all) {
            Ok(_) => return Ok(all),
            Err(SessionError { error: Error::NotAttached, .. }) => {}
            Err(failed) => return Err(failed.into()),
        }
    }
    all.clear();
    let mut attached: Vec<(usize, Handle)> = Vec::new();
    attached.try_reserve_exact(detours.len()).map_err(Error::from)?;
    for (index, detour) in detours.iter().enumerate() {
        match detour.state()? {
            // Somebody else has drained it, as happens when many have gathered.
            None if detour.is_over()? => {}
            None => return Err(SessionError { index, error: Error::NotAttached }.into()),
            Some((handle, state)) => {
                all.push(handle);
                if state == State::Attached {
                    attached.push((index, handle));
                }
            }
        }
    }
    let handles: Vec<Handle> = attached.iter().map(|&(_, handle)| handle).collect();
    set::detach(by, &handles).map_err(|failed| SessionError {
        index: attached.get(failed.index).map_or(failed.index, |&(index, _)| index),
        ..failed
    })?;
    Ok(all)
}

/// What a survey of `target` finds, as lines of text; its length.
///
/// # Safety
/// `text` is null or writable for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_survey(target: *const c_void, text: *mut c_char, size: usize) -> usize {
    if text.is_null() || size == 0 {
        return 0;
    }
    // SAFETY: by the caller's word.
    let mut text = Text::new(unsafe { slice::from_raw_parts_mut(text.cast::<u8>(), size) });
    let target = target.addr() as u64;
    let written = with_process(|kdetour| {
        // A buffer that is full is no failure.
        let _ = write_survey(&mut text, kdetour, target, Protocol::Exchange);
        Ok(())
    });
    if let Err(error) = written {
        use core::fmt::Write as _;
        let _ = write!(text, "error {error}\nreason {}\nverdict no\n", error.name());
    }
    text.len()
}

/// Plans one detour: all but the write.
///
/// # Safety
/// As for [`kdetour_attach_all`]; `patch` is null or a writable `struct kdetour_patch`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_plan(
    detour: *mut Detour,
    protocol: c_int,
    patch: *mut PatchRecord,
    error: *mut ErrorRecord,
) -> c_int {
    // SAFETY: by the caller's word.
    unsafe { answer(error, plan(detour, protocol, patch)) }
}

/// # Safety
/// As for [`kdetour_plan`].
unsafe fn plan(detour: *mut Detour, by: c_int, patch: *mut PatchRecord) -> Result<(), Failure> {
    let by = protocol(by)?;
    if !patch.is_null() && by != Protocol::Local {
        return Err(misuse(
            code::ARGUMENT,
            0,
            0,
            "what a program writes itself is planned for KDETOUR_LOCAL",
        ));
    }
    // SAFETY: by the caller's word.
    let mut detours = unsafe { members(&raw const detour, 1) }?;
    // SAFETY: by the caller's word.
    let set = unsafe { detour::members(&detours) }?;
    if set.iter().any(|member| member.method != Method::Jump) {
        return Err(misuse(code::ARGUMENT, 0, 0, "only jumps are planned; attach it"));
    }
    if set.iter().any(|member| member.again.is_some()) {
        return Err(misuse(code::ALREADY_DETOURED, 0, 0, "this detour is planned already, or drains"));
    }
    // SAFETY: by the caller's word.
    let handles = unsafe { set::plan(by, &set) }?;
    for ((detour, member), handle) in detours.iter_mut().zip(&set).zip(handles) {
        detour.is_attached(member.target, handle);
        // SAFETY: by the caller's word.
        if let Some(patch) = unsafe { patch.as_mut() } {
            patch.fill(handle)?;
        }
    }
    Ok(())
}

/// Writes a planned patch, or what was there before, in plain stores: where nobody stands in the window or comes by.
///
/// # Safety
/// `patch` is null or a `struct kdetour_patch`; nobody runs, stands or returns inside of its window.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_patch_write(
    patch: *const PatchRecord,
    back: c_int,
    error: *mut ErrorRecord,
) -> c_int {
    // SAFETY: by the caller's word.
    let outcome = match unsafe { patch.as_ref() } {
        None => Err(misuse(code::NULL, 0, 0, "the patch is null")),
        Some(patch) => patch.write(back != 0).map_err(Failure::from),
    };
    // SAFETY: by the caller's word.
    unsafe { answer(error, outcome) }
}

/// Every processor that runs this program executes a serializing instruction before it returns.
///
/// # Safety
/// `error` is null or a writable record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_sync(error: *mut ErrorRecord) -> c_int {
    let synced = with_process(|kdetour| {
        kdetour.host().sync_cores();
        Ok(())
    });
    // SAFETY: by the caller's word.
    unsafe { answer(error, synced.map_err(Failure::from)) }
}

/// A planned detour's patch has been written by the caller: it is attached.
///
/// # Safety
/// As for [`kdetour_attach_all`]; the patch was written as [`kdetour_patch_write`] would have.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kdetour_written(detour: *mut Detour, error: *mut ErrorRecord) -> c_int {
    // SAFETY: by the caller's word.
    unsafe { answer(error, written(detour)) }
}

/// # Safety
/// As for [`kdetour_written`].
unsafe fn written(detour: *mut Detour) -> Result<(), Failure> {
    // SAFETY: by the caller's word.
    let detours = unsafe { members(&raw const detour, 1) }?;
    for detour in detours {
        match detour.state()? {
            // SAFETY: by the caller's word.
            Some((handle, State::Draining)) => unsafe { set::assume(handle) }?,
            Some((_, State::Attached)) => {
                return Err(Error::AlreadyDetoured { target: detour.target_address() }.into());
            }
            None => return Err(Error::NotAttached.into()),
        }
    }
    Ok(())
}
