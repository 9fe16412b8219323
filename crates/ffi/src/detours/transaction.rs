//! Transactions: one at a time, of one thread; attach and detach are queued, and take effect at the commit, all or none.
//!
//! A program's pointer receives a stub that goes where the original is. So it is written once: it may be gone, or copied, when
//! a neighbour of the detour comes or leaves and the original becomes another one.

use super::pointer::code_of;
use super::windows::{
    Bool, INVALID_BLOCK, INVALID_HANDLE, INVALID_OPERATION, INVALID_PARAMETER, Long, NO_ERROR, number,
};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::AtomicU64;
use kdetour::typed::set::{self, Change, Member};
use kdetour::typed::with_process;
use kdetour::{Error, Handle, Protocol, accepted};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A pointer of the program.
#[derive(Clone, Copy, Debug)]
struct Place(*mut *mut c_void);

// SAFETY: it is read and written by calls of the thread that gave it, or by a thread that asks for the failed one's value only.
unsafe impl Send for Place {}

impl Place {
    const NONE: Self = Self(ptr::null_mut());

    /// # Safety
    /// It is the caller's, as `detours.h` says: it lives until the transaction ends.
    unsafe fn read(self) -> u64 {
        // SAFETY: by the caller's word.
        unsafe { self.0.read() }.expose_provenance() as u64
    }

    /// # Safety
    /// As for [`read`](Self::read).
    unsafe fn write(self, address: u64) {
        let address = ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0));
        // SAFETY: by the caller's word.
        unsafe { self.0.write(address) };
    }
}

/// A detour, by its stub.
#[derive(Clone, Copy, Debug)]
struct Known {
    target: u64,
    detour: u64,
    cell: &'static AtomicU64,
    handle: Option<Handle>,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Attach { place: Place, stub: u64, known: Known },
    Detach { place: Place, stub: u64 },
}

#[derive(Default)]
struct State {
    /// Whose transaction is open.
    owner: Option<Token>,
    /// What went wrong first in it.
    pending: Long,
    /// The pointer of what failed; kept until the next transaction begins.
    failed: Option<Place>,
    operations: Vec<Operation>,
    ignore_too_small: bool,
    retain_regions: bool,
    /// Every stub that there is.
    known: Option<HashMap<u64, Known>>,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// Names a thread, for as long as it lives.
type Token = usize;

/// Ends the transaction of a thread that ends.
struct Own(u8);

impl Drop for Own {
    fn drop(&mut self) {
        let token = ptr::from_ref(self).addr();
        let mut state = lock();
        if let Some(state) = state.as_mut().filter(|state| state.owner == Some(token)) {
            state.end();
        }
    }
}

std::thread_local! {
    static OWN: Own = const { Own(0) };
}

/// The calling thread's; none while it ends.
fn token() -> Option<Token> {
    OWN.try_with(|own| {
        let _ = own.0;
        ptr::from_ref(own).addr()
    })
    .ok()
}

fn lock() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with<R>(work: impl FnOnce(&mut State) -> R) -> R {
    work(lock().get_or_insert_default())
}

impl State {
    fn is_own(&self) -> bool {
        self.owner.is_some() && self.owner == token()
    }

    /// Forgets the transaction. Stubs stay: somebody may have been told of one.
    fn end(&mut self) {
        self.owner = None;
        self.pending = NO_ERROR;
        self.operations.clear();
    }

    fn known(&mut self) -> &mut HashMap<u64, Known> {
        self.known.get_or_insert_default()
    }

    /// What an attach or a detach gives that fails; the transaction fails with it, unless such failures are ignored.
    fn fails(&mut self, error: Long, place: Place) -> Long {
        self.failed = Some(place);
        if !(self.ignore_too_small && error == INVALID_BLOCK) {
            self.pending = error;
        }
        error
    }
}

/// Begins a transaction.
#[unsafe(no_mangle)]
pub extern "C" fn DetourTransactionBegin() -> Long {
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
pub extern "C" fn DetourTransactionAbort() -> Long {
    with(|state| {
        if !state.is_own() {
            return INVALID_OPERATION;
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
pub unsafe extern "C" fn DetourTransactionCommit() -> Long {
    // SAFETY: the caller's word.
    unsafe { DetourTransactionCommitEx(ptr::null_mut()) }
}

/// The same, and tells the pointer of what failed.
///
/// # Safety
/// As for [`DetourTransactionCommit`]; `failed` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn DetourTransactionCommitEx(failed: *mut *mut *mut c_void) -> Long {
    let (result, place) = with(|state| {
        if !state.is_own() {
            return (INVALID_OPERATION, state.failed);
        }
        let result = match state.pending {
            // SAFETY: the caller's word.
            NO_ERROR => unsafe { commit(state) },
            pending => pending,
        };
        state.end();
        (result, state.failed)
    });
    // SAFETY: the caller's word.
    if let Some(failed) = unsafe { failed.as_mut() } {
        *failed = place.unwrap_or(Place::NONE).0;
    }
    result
}

/// # Safety
/// As for [`DetourTransactionCommit`].
unsafe fn commit(state: &mut State) -> Long {
    let operations = core::mem::take(&mut state.operations);
    let mut changes = Vec::new();
    for operation in &operations {
        changes.push(match *operation {
            Operation::Attach { known: Known { target, detour, cell, .. }, .. } => {
                Change::Attach(Member { target, detour, cell: Some(cell), again: None })
            }
            Operation::Detach { place, stub } => {
                match state.known().get(&stub).and_then(|known| known.handle) {
                    Some(handle) => Change::Detach(handle),
                    None => return state.fails(INVALID_BLOCK, place),
                }
            }
        });
    }
    // A call may arrive as soon as the target is written, and wants its original.
    let mut before = Vec::new();
    for operation in &operations {
        if let Operation::Attach { place, stub, .. } = *operation {
            // SAFETY: the caller's word.
            before.push((place, unsafe { place.read() }));
            // SAFETY: the caller's word.
            unsafe { place.write(stub) };
        }
    }
    // SAFETY: the caller of attach has promised that the detour may be called in place of the target.
    let handles = match unsafe { set::change(Protocol::Exchange, &changes) } {
        Ok(handles) => handles,
        Err(failed) => {
            for (place, value) in before {
                // SAFETY: the caller's word.
                unsafe { place.write(value) };
            }
            let place = operations.get(failed.index).map(|operation| match *operation {
                Operation::Attach { place, .. } | Operation::Detach { place, .. } => place,
            });
            state.failed = place;
            return number(&failed.error);
        }
    };
    for (operation, handle) in operations.iter().zip(handles) {
        match *operation {
            Operation::Attach { stub, known, .. } => {
                state.known().insert(stub, Known { handle: Some(handle), ..known });
            }
            Operation::Detach { place, stub } => {
                if let Some(known) = state.known().get_mut(&stub) {
                    known.handle = None;
                    // SAFETY: the caller's word.
                    unsafe { place.write(known.target) };
                }
            }
        }
    }
    NO_ERROR
}

/// Names a thread that runs. Every thread is cared for, whether it was named or not, and none is stopped.
#[unsafe(no_mangle)]
pub extern "C" fn DetourUpdateThread(thread: *mut c_void) -> Long {
    /// `GetCurrentThread()`.
    const CURRENT: isize = -2;
    with(|state| {
        if !state.is_own() {
            return INVALID_OPERATION;
        }
        if state.pending != NO_ERROR {
            return state.pending;
        }
        let number = thread.addr().cast_signed();
        let is_there = number == CURRENT
            || number > 0 && std::path::Path::new(&std::format!("/proc/self/task/{number}")).exists();
        if is_there { NO_ERROR } else { state.fails(INVALID_HANDLE, Place::NONE) }
    })
}

/// Queues a detour of the function to which `*pointer` leads.
///
/// # Safety
/// `pointer` is null, or a place that lives until the transaction ends; the detour may be called in place of the target, and
/// stays as long as a call may reach it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn DetourAttach(pointer: *mut *mut c_void, detour: *mut c_void) -> Long {
    // SAFETY: the caller's word.
    unsafe { DetourAttachEx(pointer, detour, ptr::null_mut(), ptr::null_mut(), ptr::null_mut()) }
}

/// The same, and tells the addresses behind the pointers.
///
/// # Safety
/// As for [`DetourAttach`]; the other places are null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn DetourAttachEx(
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
    with(|state| {
        if !state.is_own() {
            return INVALID_OPERATION;
        }
        if state.pending != NO_ERROR {
            return state.pending;
        }
        if pointer.is_null() {
            return INVALID_HANDLE;
        }
        let place = Place(pointer);
        // SAFETY: the caller's word.
        let value = unsafe { place.read() };
        if value == 0 {
            return state.fails(INVALID_HANDLE, place);
        }
        let (target, detour) = (code_of(value), code_of(detour.expose_provenance() as u64));
        // Upstream answers with success and does nothing: then the program calls itself.
        if target == detour {
            return state.fails(INVALID_BLOCK, place);
        }
        match prepare(target) {
            Err(error) => state.fails(number(&error), place),
            Ok((stub, cell)) => {
                let known = Known { target, detour, cell, handle: None };
                state.operations.push(Operation::Attach { place, stub, known });
                tell(real_trampoline, stub);
                tell(real_target, target);
                tell(real_detour, detour);
                NO_ERROR
            }
        }
    })
}

/// Whether the function can be detoured; and the stub that its original will be called by.
fn prepare(target: u64) -> Result<(u64, &'static AtomicU64), Error> {
    with_process(|kdetour| {
        let survey = kdetour.survey(target, &mut Vec::new())?;
        survey.best(&accepted(kdetour.host(), Protocol::Exchange))?;
        Ok(())
    })?;
    // For ever: whoever has a copy of the pointer may call it at any time.
    let cell: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(target)));
    Ok((set::stub(target, cell)?, cell))
}

/// Queues the end of a detour. `*pointer` is what its attach has put there.
///
/// # Safety
/// As for [`DetourAttach`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn DetourDetach(pointer: *mut *mut c_void, detour: *mut c_void) -> Long {
    with(|state| {
        if !state.is_own() {
            return INVALID_OPERATION;
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
        let detour = code_of(detour.expose_provenance() as u64);
        let is_it = |known: &&Known| known.handle.is_some() && known.detour == detour;
        if state.known().get(&stub).filter(is_it).is_none() {
            return state.fails(INVALID_BLOCK, place);
        }
        state.operations.push(Operation::Detach { place, stub });
        NO_ERROR
    })
}

/// Whether functions that cannot be detoured make a commit fail; what was said before.
#[unsafe(no_mangle)]
pub extern "C" fn DetourSetIgnoreTooSmall(ignore: Bool) -> Bool {
    with(|state| Bool::from(core::mem::replace(&mut state.ignore_too_small, ignore != 0)))
}

/// Whether memory of detours that are gone is kept; what was said before. It is kept until many have gathered, whatever is said.
#[unsafe(no_mangle)]
pub extern "C" fn DetourSetRetainRegions(retain: Bool) -> Bool {
    with(|state| Bool::from(core::mem::replace(&mut state.retain_regions, retain != 0)))
}
