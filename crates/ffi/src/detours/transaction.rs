//! Transactions: one at a time, of one thread; attach and detach are queued, and take effect at the commit, all or none.
//!
//! A program's pointer receives a stub that goes where the original is. So it is written once: it may be gone, or copied, when
//! a neighbour of the detour comes or leaves and the original becomes another one.

use super::host::{is_thread, start_of_the_program};
#[cfg(windows)]
use super::modules::is_of_the_program;
use super::pointer::code_of;
use super::region::{seal, unseal};
use super::state::{Known, Operation, Place, State, at_fork, token, with};
use super::windows::{
    ALREADY_EXISTS, Bool, INVALID_BLOCK, INVALID_HANDLE, INVALID_OPERATION, INVALID_PARAMETER, Long,
    NO_ERROR, number,
};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr;
use core::time::Duration;
#[cfg(windows)]
use kdetour::Handle;
use kdetour::typed::set::{self, Change, Member};
use kdetour::typed::with_process;
use kdetour::{AtomicAddress, Error, Protocol, Surveyor, accepted};

/// Begins a transaction.
#[unsafe(no_mangle)]
pub extern "system" fn DetourTransactionBegin() -> Long {
    at_fork();
    with(|state| {
        let Some(token) = token().filter(|_| state.owner.is_none()) else { return INVALID_OPERATION };
        state.end();
        state.failed = None;
        state.owner = Some(token);
        NO_ERROR
    })
}

/// Forgets what was queued.
#[unsafe(no_mangle)]
pub extern "system" fn DetourTransactionAbort() -> Long {
    with(|state| {
        if let Some(refused) = state.refuses() {
            return refused;
        }
        state.end();
        NO_ERROR
    })
}

/// Carries out what was queued, all or none.
///
/// # Safety
/// The pointers that were given to attach and detach are still there.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn DetourTransactionCommit() -> Long {
    // SAFETY: the caller's word.
    unsafe { DetourTransactionCommitEx(ptr::null_mut()) }
}

/// The same, and tells the pointer of what failed.
///
/// # Safety
/// As for [`DetourTransactionCommit`]; `failed` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn DetourTransactionCommitEx(failed: *mut *mut *mut c_void) -> Long {
    // SAFETY: the caller's word.
    let result = unsafe { commit() };
    let place = with(|state| state.failed);
    // SAFETY: the caller's word.
    if let Some(failed) = unsafe { failed.as_mut() } {
        *failed = place.unwrap_or(Place::NONE).0;
    }
    result
}

/// # Safety
/// As for [`DetourTransactionCommit`].
unsafe fn commit() -> Long {
    let begun = with(|state| {
        if let Some(refused) = state.refuses() {
            return Err(refused);
        }
        let prepared = match state.pending {
            NO_ERROR => state.changes(),
            pending => Err(pending),
        };
        match prepared {
            Ok(changes) => {
                state.commits = true;
                Ok((changes, core::mem::take(&mut state.operations)))
            }
            Err(error) => {
                state.end();
                Err(error)
            }
        }
    });
    let (changes, operations) = match begun {
        Ok(begun) => begun,
        Err(error) => return error,
    };
    let changes: Vec<Change> = changes.into_iter().map(out_of_the_system_region).collect();
    let sealed = seal(&detours_of(&changes));
    // A call may arrive as soon as the target is written, and wants its original.
    let mut before = Vec::new();
    for operation in &operations {
        if let Operation::Attach { place, stub } = *operation {
            // SAFETY: the caller's word.
            before.push((place, unsafe { place.read() }));
            // SAFETY: the caller's word.
            unsafe { place.write(stub) };
        }
    }
    // SAFETY: the caller of attach has promised that the detour may be called in place of the target.
    let outcome = unsafe { set::change(Protocol::Exchange, &changes) };
    if outcome.is_err() {
        // The first value of a place that is there twice comes last.
        for (place, value) in before.into_iter().rev() {
            // SAFETY: the caller's word.
            unsafe { place.write(value) };
        }
        unseal(&sealed);
    }
    let mut detached = Vec::new();
    #[cfg(windows)]
    let mut gone = Vec::new();
    let result = with(|state| {
        let result = match outcome {
            Ok(handles) => {
                for (operation, handle) in operations.iter().zip(handles) {
                    match *operation {
                        Operation::Attach { stub, .. } => {
                            if let Some(known) = state.known().get_mut(&stub) {
                                (known.handle, known.last) = (Some(handle), None);
                            }
                        }
                        Operation::Detach { place, stub } => {
                            if let Some(known) = state.known().get_mut(&stub) {
                                (known.handle, known.last) = (None, Some(handle));
                                detached.push((place, known.target));
                                #[cfg(windows)]
                                gone.push((known.detour, handle));
                            }
                        }
                    }
                }
                NO_ERROR
            }
            Err(failed) => {
                state.failed = operations.get(failed.index).map(|operation| match *operation {
                    Operation::Attach { place, .. } | Operation::Detach { place, .. } => place,
                });
                number(&failed.error)
            }
        };
        state.dequeue(&operations);
        state.end();
        result
    });
    for &(place, target) in &detached {
        // SAFETY: the caller's word.
        unsafe { place.write(target) };
    }
    #[cfg(windows)]
    {
        // Their code may be unloaded next: whoever is inside leaves first, if he does so soon. The program's own stays.
        gone.retain(|&(detour, _)| !is_of_the_program(detour));
        let gone: Vec<Handle> = gone.into_iter().map(|(_, handle)| handle).collect();
        if !gone.is_empty() {
            let _ = set::drain(&gone, PATIENCE);
        }
    }
    if !detached.is_empty() {
        // What is busy now is tried again later.
        let _ = set::trim();
    }
    result
}

/// How long those who are inside are waited for, where their code may be unloaded next.
#[cfg(windows)]
const PATIENCE: Duration = Duration::from_secs(2);

/// What is attached.
fn detours_of(changes: &[Change]) -> Vec<u64> {
    let detour = |change: &Change| match change {
        Change::Attach(member) => Some(member.detour),
        Change::Detach(_) => None,
    };
    changes.iter().filter_map(detour).collect()
}

/// The change without the memory that it had before, if that lies where no trampoline may be any more. As long as somebody is in
/// there it is used all the same.
fn out_of_the_system_region(change: Change) -> Change {
    const BRIEFLY: Duration = Duration::from_millis(20);
    let Change::Attach(Member { again: Some(last), .. }) = change else { return change };
    let bounds = with(|state| state.bounds);
    let slot = with_process(|kdetour| Ok(kdetour.record(last).map(|record| record.slot.address)));
    match (change, slot) {
        (Change::Attach(member), Ok(Some(slot))) if bounds.hold(slot) => {
            let _ = set::drain(&[last], BRIEFLY);
            Change::Attach(Member { again: None, ..member })
        }
        _ => change,
    }
}

impl State {
    /// What is to be done, in the library's terms.
    fn changes(&mut self) -> Result<Vec<Change>, Long> {
        let operations = self.operations.clone();
        let mut changes = Vec::new();
        for operation in operations {
            let (Operation::Attach { place, stub } | Operation::Detach { place, stub }) = operation;
            let known = self.known().get(&stub).copied();
            let change = known.and_then(|known| match operation {
                Operation::Attach { .. } => {
                    let Known { target, detour, cell, last, .. } = known;
                    // A DLL detaches when it is unloaded, and could not be if it were kept loaded. On Linux it is the process's end by then.
                    let loose = cfg!(windows);
                    let member =
                        Member { target, detour, cell: Some(cell), again: last, loose, ..Member::default() };
                    Some(Change::Attach(member))
                }
                Operation::Detach { .. } => known.handle.map(Change::Detach),
            });
            match change {
                Some(change) => changes.push(change),
                None => return Err(self.fails(INVALID_BLOCK, place)),
            }
        }
        Ok(changes)
    }

    /// Whether the target has this detour, or will have it, when what is queued has been carried out.
    fn is_there_already(&self, target: u64, detour: u64) -> bool {
        let leaves = |stub: u64| {
            let mut operations = self.operations.iter();
            operations.any(|operation| matches!(*operation, Operation::Detach { stub: it, .. } if it == stub))
        };
        let stubs = self.by_detour.as_ref().and_then(|stubs| stubs.get(&(target, detour)));
        let mut known =
            stubs.into_iter().flatten().filter_map(|stub| Some((*stub, self.known.as_ref()?.get(stub)?)));
        known.any(|(stub, known)| known.queued || known.handle.is_some() && !leaves(stub))
    }

    /// A stub of this detour that is not in use; it is from now on.
    fn unused(&mut self, target: u64, detour: u64) -> Option<u64> {
        let is_it = |known: &&mut Known| {
            known.target == target && known.detour == detour && known.handle.is_none() && !known.queued
        };
        let bounds = self.bounds;
        let mut stubs =
            self.by_detour.get_or_insert_default().get(&(target, detour)).cloned().unwrap_or_default();
        stubs.retain(|&stub| !bounds.hold(stub));
        let known = self.known.get_or_insert_default();
        let found = stubs.into_iter().find(|stub| known.get_mut(stub).as_ref().is_some_and(is_it))?;
        known.get_mut(&found)?.queued = true;
        Some(found)
    }
}

/// Names a thread that runs. Every thread is cared for, whether it was named or not, and none is stopped.
#[unsafe(no_mangle)]
pub extern "system" fn DetourUpdateThread(thread: *mut c_void) -> Long {
    let is_there = is_thread(thread);
    with(|state| {
        if let Some(refused) = state.refuses() {
            return refused;
        }
        if state.pending != NO_ERROR {
            return state.pending;
        }
        if is_there { NO_ERROR } else { state.fails(INVALID_HANDLE, Place::NONE) }
    })
}

/// Queues a detour of the function to which `*pointer` leads.
///
/// # Safety
/// `pointer` is null, or a place that lives until the transaction ends; the detour may be called in place of the target, and
/// stays as long as a call may reach it.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn DetourAttach(pointer: *mut *mut c_void, detour: *mut c_void) -> Long {
    // SAFETY: the caller's word.
    unsafe { DetourAttachEx(pointer, detour, ptr::null_mut(), ptr::null_mut(), ptr::null_mut()) }
}

/// The same, and tells the addresses behind the pointers.
///
/// # Safety
/// As for [`DetourAttach`]; the other places are null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn DetourAttachEx(
    pointer: *mut *mut c_void,
    detour: *mut c_void,
    real_trampoline: *mut *mut c_void,
    real_target: *mut *mut c_void,
    real_detour: *mut *mut c_void,
) -> Long {
    let tell = |place: *mut *mut c_void, address: u64| {
        if !place.is_null() {
            // SAFETY: the caller's word.
            unsafe { Place(place).write(address) };
        }
    };
    [real_trampoline, real_target, real_detour].into_iter().for_each(|place| tell(place, 0));
    if detour.is_null() {
        return INVALID_PARAMETER;
    }
    let refused = |state: &State| state.refuses().or((state.pending != NO_ERROR).then_some(state.pending));
    if let Some(refused) = with(|state| refused(state)) {
        return refused;
    }
    if pointer.is_null() {
        return INVALID_HANDLE;
    }
    let place = Place(pointer);
    // SAFETY: the caller's word.
    let value = unsafe { place.read() };
    if value == 0 {
        return with(|state| state.fails(INVALID_HANDLE, place));
    }
    let (target, detour) = (code_of(value), code_of(detour.expose_provenance() as u64));
    // Upstream answers with success and does nothing: then the program calls itself.
    if target == detour {
        return with(|state| state.fails(INVALID_BLOCK, place));
    }
    if Some(target) == start_of_the_program() {
        return with(|state| state.fails(INVALID_BLOCK, place));
    }
    if let Err(error) = can_be_detoured(target) {
        return with(|state| state.fails(number(&error), place));
    }
    // The detour has one pointer to its original: the second time, that would lead to itself.
    if with(|state| state.is_there_already(target, detour)) {
        return with(|state| state.fails(ALREADY_EXISTS, place));
    }
    with(|state| state.bounds).apply();
    let stub = match with(|state| state.unused(target, detour)) {
        Some(stub) => stub,
        None => match new_stub(target) {
            Err(error) => return with(|state| state.fails(number(&error), place)),
            Ok((stub, cell)) => {
                let known = Known { target, detour, cell, handle: None, last: None, queued: true };
                with(|state| {
                    state.known().insert(stub, known);
                    let stubs = state.by_detour.get_or_insert_default();
                    stubs.entry((target, detour)).or_default().push(stub);
                });
                stub
            }
        },
    };
    with(|state| state.operations.push(Operation::Attach { place, stub }));
    tell(real_trampoline, stub);
    tell(real_target, target);
    tell(real_detour, detour);
    NO_ERROR
}

/// Whether the function can be detoured.
fn can_be_detoured(target: u64) -> Result<(), Error> {
    with_process(|kdetour| {
        let mut surveyor = Surveyor::default();
        let survey = kdetour.survey(target, &mut surveyor)?;
        survey.best(&accepted(kdetour.host(), Protocol::Exchange))?;
        Ok(())
    })
}

/// The stub that the original will be called by. It stays for ever: whoever has a copy of the pointer may call it at any time.
fn new_stub(target: u64) -> Result<(u64, &'static AtomicAddress), Error> {
    let cell: &'static AtomicAddress = Box::leak(Box::new(AtomicAddress::new(target)));
    Ok((set::stub(target, cell)?, cell))
}

/// Queues the end of a detour. `*pointer` is what its attach has put there.
///
/// # Safety
/// As for [`DetourAttach`].
#[unsafe(no_mangle)]
pub unsafe extern "system" fn DetourDetach(pointer: *mut *mut c_void, detour: *mut c_void) -> Long {
    let code = code_of(detour.expose_provenance() as u64);
    with(|state| {
        if let Some(refused) = state.refuses() {
            return refused;
        }
        if state.pending != NO_ERROR {
            return state.pending;
        }
        if detour.is_null() {
            return INVALID_PARAMETER;
        }
        if pointer.is_null() {
            return INVALID_HANDLE;
        }
        let place = Place(pointer);
        // SAFETY: the caller's word.
        let stub = unsafe { place.read() };
        if stub == 0 {
            return state.fails(INVALID_HANDLE, place);
        }
        let is_it = |known: &&Known| known.handle.is_some() && known.detour == code;
        if state.known().get(&stub).filter(is_it).is_none() {
            return state.fails(INVALID_BLOCK, place);
        }
        state.operations.push(Operation::Detach { place, stub });
        NO_ERROR
    })
}

/// Whether functions that cannot be detoured make a commit fail; what was said before.
#[unsafe(no_mangle)]
pub extern "system" fn DetourSetIgnoreTooSmall(ignore: Bool) -> Bool {
    with(|state| Bool::from(core::mem::replace(&mut state.ignore_too_small, ignore != 0)))
}

/// Whether memory of detours that are gone is kept; what was said before. It is kept until many have gathered, whatever is said.
#[unsafe(no_mangle)]
pub extern "system" fn DetourSetRetainRegions(retain: Bool) -> Bool {
    with(|state| Bool::from(core::mem::replace(&mut state.retain_regions, retain != 0)))
}
