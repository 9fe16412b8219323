//! What the calls of a transaction have in common: whose it is, what is queued, which stubs there are.
//!
//! It is locked for moments only, in which nothing of anybody else's runs but the allocator: no commit waits for a thread that
//! waits for it.

use super::region::{Bounds, Region};
use super::windows::{INVALID_BLOCK, INVALID_OPERATION, Long, NO_ERROR, POSSIBLE_DEADLOCK};
use alloc::vec::Vec;
use core::cell::Cell;
#[cfg(not(windows))]
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};
use kdetour::{AtomicAddress, Handle};
use std::collections::HashMap;
#[cfg(not(windows))]
use std::sync::Once;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A pointer of the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place(pub(super) *mut *mut c_void);

// SAFETY: it is read and written by calls of the thread that gave it, or by a thread that asks for the failed one's value only.
unsafe impl Send for Place {}

impl Place {
    pub(super) const NONE: Self = Self(ptr::null_mut());

    /// # Safety
    /// It is the caller's, as `detours.h` says: it lives until the transaction ends.
    pub(super) unsafe fn read(self) -> u64 {
        // SAFETY: by the caller's word.
        unsafe { self.0.read() }.expose_provenance() as u64
    }

    /// # Safety
    /// As for [`read`](Self::read).
    pub(super) unsafe fn write(self, address: u64) {
        let address = ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0));
        // SAFETY: by the caller's word.
        unsafe { self.0.write(address) };
    }
}

/// A detour, by its stub.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) target: u64,
    pub(super) detour: u64,
    pub(super) cell: &'static AtomicAddress,
    /// While it is attached.
    pub(super) handle: Option<Handle>,
    /// The one that it had last, while it is not.
    pub(super) last: Option<Handle>,
    /// Whether an attach of it is queued.
    pub(super) queued: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Attach { place: Place, stub: u64 },
    Detach { place: Place, stub: u64 },
}

#[derive(Default)]
pub(super) struct State {
    /// Whose transaction is open.
    pub(super) owner: Option<Token>,
    /// Whether it is being committed: its owner is inside of kdetour.
    pub(super) commits: bool,
    /// What went wrong first in it.
    pub(super) pending: Long,
    /// The pointer of what failed; kept until the next transaction begins.
    pub(super) failed: Option<Place>,
    pub(super) operations: Vec<Operation>,
    pub(super) ignore_too_small: bool,
    pub(super) retain_regions: bool,
    /// Where trampolines may not be.
    pub(super) bounds: Bounds,
    /// Memory for code that the program writes itself.
    pub(super) regions: Vec<Region>,
    /// Every stub that there is.
    pub(super) known: Option<HashMap<u64, Known>>,
    /// The stubs of a target and a detour.
    pub(super) by_detour: Option<HashMap<(u64, u64), Vec<u64>>>,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// Names a thread; no other one ever has its name.
pub(super) type Token = u64;

/// Ends the transaction of a thread that ends. It knows the thread's name by itself: that may be gone by then.
struct End(Cell<Token>);

impl Drop for End {
    fn drop(&mut self) {
        let (own, mut state) = (Some(self.0.get()), lock());
        if let Some(state) = state.as_mut().filter(|state| state.owner == own) {
            state.end();
        }
    }
}

std::thread_local! {
    static TOKEN: Cell<Token> = const { Cell::new(0) };
    static END: End = const { End(Cell::new(0)) };
}

/// The calling thread's. Destructors of libraries have one, too: they run when the thread's own variables are gone already.
pub(super) fn token() -> Option<Token> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let own = |token: &Cell<Token>| {
        if token.get() == 0 {
            token.set(LAST.fetch_add(1, Ordering::Relaxed) + 1);
        }
        token.get()
    };
    let token = TOKEN.try_with(own).ok()?;
    // In those destructors there is no end to come but the process's.
    let _ = END.try_with(|end| end.0.set(token));
    Some(token)
}

fn lock() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn with<R>(work: impl FnOnce(&mut State) -> R) -> R {
    work(lock().get_or_insert_default())
}

impl State {
    fn is_own(&self) -> bool {
        self.owner.is_some() && self.owner == token()
    }

    /// What the caller may not do now, if anything.
    pub(super) fn refuses(&self) -> Option<Long> {
        match self.is_own() {
            false => Some(INVALID_OPERATION),
            true if self.commits => Some(POSSIBLE_DEADLOCK),
            true => None,
        }
    }

    /// Forgets the transaction. Stubs stay: somebody may have been told of one.
    pub(super) fn end(&mut self) {
        self.owner = None;
        self.commits = false;
        self.pending = NO_ERROR;
        let operations = core::mem::take(&mut self.operations);
        self.dequeue(&operations);
    }

    pub(super) fn dequeue(&mut self, operations: &[Operation]) {
        for operation in operations {
            if let Operation::Attach { stub, .. } = operation
                && let Some(known) = self.known().get_mut(stub)
            {
                known.queued = false;
            }
        }
    }

    pub(super) fn known(&mut self) -> &mut HashMap<u64, Known> {
        self.known.get_or_insert_default()
    }

    /// What the detours had last for which `is_it` holds; none if one of them is attached, or is to be.
    #[cfg(not(windows))]
    pub(super) fn last_of(&mut self, is_it: impl Fn(u64) -> bool) -> Option<Vec<Handle>> {
        let known = self.known().values().filter(|known| is_it(known.detour));
        let gone = |known: &Known| known.handle.is_none() && !known.queued;
        let last = known.map(|known| gone(known).then_some(known.last));
        let last: Option<Vec<Option<Handle>>> = last.collect();
        last.map(|last| last.into_iter().flatten().collect())
    }

    /// What an attach or a detach gives that fails; the transaction fails with it, unless such failures are ignored.
    pub(super) fn fails(&mut self, error: Long, place: Place) -> Long {
        self.failed = Some(place);
        if !(self.ignore_too_small && error == INVALID_BLOCK) {
            self.pending = error;
        }
        error
    }
}

/// Nobody copies a process there.
#[cfg(windows)]
pub(super) const fn at_fork() {}

/// Keeps the state whole while the process is copied; in the copy a transaction of a thread that is not there is over.
#[cfg(not(windows))]
pub(super) fn at_fork() {
    static ONCE: Once = Once::new();
    /// Held while the process is copied, by the thread that does it.
    static HELD: Held = Held(UnsafeCell::new(None));
    struct Held(UnsafeCell<Option<MutexGuard<'static, Option<State>>>>);
    // SAFETY: only whoever holds the lock comes here.
    unsafe impl Sync for Held {}

    extern "C" fn before() {
        let guard = lock();
        // SAFETY: the lock is held.
        unsafe { *HELD.0.get() = Some(guard) };
    }
    extern "C" fn behind() {
        // SAFETY: the lock is held by this thread, since `before`.
        let guard = unsafe { (*HELD.0.get()).take() };
        drop(guard);
    }
    extern "C" fn behind_in_child() {
        // SAFETY: as in `behind`.
        let guard = unsafe { (*HELD.0.get()).take() };
        if let Some(mut guard) = guard
            && let Some(state) = guard.as_mut().filter(|state| !state.is_own())
        {
            state.end();
        }
    }
    ONCE.call_once(|| {
        // SAFETY: the handlers are functions of this library, which is never unloaded. Without memory there are none.
        unsafe { libc::pthread_atfork(Some(before), Some(behind), Some(behind_in_child)) };
    });
}
