//! The detours of this process.

use crate::commit::Alone;
use crate::host::linux_process::LinuxProcess;
use crate::{Attach, Error, Handle, Kdetour, Record, State};
use std::sync::{Mutex, TryLockError};

static PROCESS: Mutex<Option<Kdetour<LinuxProcess>>> = Mutex::new(None);

/// Works with the detours of this process: all typed detours are among them. For sessions of several changes, and
/// to look at what is attached.
///
/// # Errors
/// [`Error::TextBusy`] if somebody else does so right now, be it a caller further up the stack: nobody waits here,
/// so nothing can deadlock. [`Error::Host`] if the process cannot be opened, or what `work` returns.
pub fn with_process<R>(
    work: impl FnOnce(&mut Kdetour<LinuxProcess>) -> Result<R, Error>,
) -> Result<R, Error> {
    let mut process = match PROCESS.try_lock() {
        Ok(process) => process,
        // `work` panicked; the records are valid after every single statement.
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return Err(Error::TextBusy),
    };
    if process.is_none() {
        *process = Some(Kdetour::new(LinuxProcess::new()?));
    }
    process.as_mut().map_or(Err(Error::OutOfMemory), work)
}

/// The proof that there is no other thread. It must not outlive the call that it is made for.
pub(super) fn alone() -> Result<Alone, Error> {
    if with_process(|kdetour| kdetour.host().is_single_threaded())? {
        // SAFETY: the caller is the only thread, and starts none before it has used the promise.
        Ok(unsafe { Alone::promise() })
    } else {
        Err(Error::OtherThreads)
    }
}

/// Attaches one detour; the second time one that was detached is put back as it was. `announce` is given the trampoline before the first call can reach the detour.
///
/// # Safety
/// As for [`Session::attach`](crate::Session::attach).
pub(super) unsafe fn attach(
    kdetour: &mut Kdetour<LinuxProcess>,
    alone: &Alone,
    target: u64,
    detour: u64,
    announce: &mut dyn FnMut(u64),
) -> Result<Handle, Error> {
    let attach = Attach { target, detour, in_flight: 0, owner: 0, original: 0 };
    let before = |record: &&Record| {
        record.state == State::Draining && record.target == target && record.patch.detour() == detour
    };
    let before = kdetour.records().iter().find(before).map(|record| record.handle);
    // SAFETY: the caller's promise.
    let session = unsafe {
        match before {
            Some(handle) => kdetour.session().reattach(handle, 0),
            None => kdetour.session().attach(attach),
        }
    };
    let handles = session.commit_local(alone, &mut |_, trampoline| announce(trampoline));
    let handles = handles.map_err(|failure| failure.error)?;
    handles.first().copied().ok_or(Error::NotAttached)
}

/// Detaches one detour.
pub(super) fn detach(
    kdetour: &mut Kdetour<LinuxProcess>,
    alone: &Alone,
    handle: Handle,
) -> Result<(), Error> {
    let session = kdetour.session().detach(handle);
    session.commit_local(alone, &mut |_, _| ()).map(drop).map_err(|failure| failure.error)
}
