//! A set of changes that commits as one or not at all.
//!
//! ```text
//!   attach, detach    remembered
//!   commit            validate all, plan all, take slots for all      nothing is written until here
//!                     what changes at each site
//!                     fill the slots, announce the originals, publish the breakpoints' answers
//!                     swap the pointers, set debug registers
//!                     commit all changes by the protocol              or take everything back
//!                     clear the debug registers of what goes
//! ```

mod inside;
mod place;
mod pointing;
mod prepare;
mod registers;
mod restored;
mod survey;

pub use survey::{Surveyor, accepted, survey};

use crate::commit::{self, Alone, Change, CommitError, Exchange, Preempted, Protocol};
use crate::host::{BreakpointHook, Host, Park, Quiesce, Rendezvous, Solo, Span, Text};
use crate::kdetour::Kdetour;
use crate::records::{Handle, Record};
use crate::{AtomicAddress, Error, Method, SessionError};
use alloc::vec::Vec;
use kdetour_plan::Shapes;
use prepare::{Fill, Preparation};
pub(crate) use registers::{Register, Turns};

/// A detour to attach.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attach {
    /// By what calls reach the detour. All but a jump choose their own shape.
    pub method: Method,
    /// The target's entry; for [`Method::Pointer`] the address of the pointer.
    pub target: u64,
    /// The replacement function.
    pub detour: u64,
    /// The host's counter of calls in flight, which the detour keeps; 0 for none. In a process the address of an `AtomicU64`
    /// that lives until the detour has been freed.
    pub in_flight: u64,
    /// Whoever attaches, in the host's own terms; 0 for nobody in particular.
    pub owner: u64,
    /// What `announce` is told together with the address of the original, before the first call can reach the
    /// detour: the caller's own word for where the original is to be put.
    pub original: u64,
    /// Where the address of the original is kept for the detour to read: written before the first call can reach it,
    /// and whenever the original becomes another one, for as long as the detour exists.
    pub cell: Option<&'static AtomicAddress>,
    /// The shapes to choose from, of those that the protocol writes; none for the host's own choice.
    pub shapes: Option<Shapes>,
    /// Whether the target may be detoured already: then the new detour is called first, and its original is the one
    /// that was there before.
    pub chain: bool,
    /// Whether the target is no entry, but any instruction of a function: the detour is entered each time when that is
    /// reached. Not of a pointer.
    pub inside: bool,
    /// Executable memory that the attacher lends for the slot, instead of the environment's own; none for that. Nothing runs in
    /// it and nobody else writes it until the detour has been freed; then it is full of INT3. No other detour of the target
    /// can share it, so there is no chain.
    pub slot: Option<Span>,
}

#[derive(Clone, Copy)]
enum Request {
    Attach(Attach),
    Reattach { handle: Handle, original: u64, checked: bool },
    Detach(Handle),
}

/// A set of attaches and detaches. Nothing happens until one of the `commit_` calls.
///
/// Where one of them fails, nothing has changed. If it had begun already, and a call may have come to a detour in between, that detour drains:
/// [`Kdetour::left_behind`].
///
/// ```
/// use kdetour::typed::with_process;
/// use kdetour::{AtomicAddress, Attach, Error};
/// use std::mem::transmute;
/// use std::sync::atomic::Ordering;
///
/// type Priced = extern "C" fn(u64) -> u64;
///
/// #[inline(never)]
/// extern "C" fn price(of: u64) -> u64 {
///     of * 3
/// }
///
/// /// Where a session puts the original's address.
/// static ORIGINAL: AtomicAddress = AtomicAddress::new(0);
///
/// extern "C" fn doubled(of: u64) -> u64 {
///     // SAFETY: the session has stored a function of this type there before the first call gets here.
///     let original = unsafe { transmute::<usize, Priced>(ORIGINAL.load(Ordering::Acquire) as usize) };
///     2 * original(of)
/// }
///
/// let address = |function: Priced| function as *const () as u64;
/// let one = Attach { target: address(price), detour: address(doubled), cell: Some(&ORIGINAL), ..Attach::default() };
/// let handles = with_process(|kdetour| {
///     // SAFETY: both are functions of this type, of this program.
///     let session = unsafe { kdetour.session().attach(one) };
///     // `?` keeps why, and leaves out which change it was: that is in the `SessionError`.
///     Ok(session.commit_exchange(&mut |_record, _original| ())?)
/// })?;
/// assert_eq!(price(7), 42);
///
/// // One of two cannot be: nothing happens.
/// let failed = with_process(|kdetour| {
///     let session = kdetour.session().detach(handles[0]);
///     // SAFETY: it is refused.
///     let session = unsafe { session.attach(Attach { target: 16, detour: address(doubled), ..Attach::default() }) };
///     Ok(session.commit_exchange(&mut |_, _| ()))
/// })?;
/// assert_eq!(failed.unwrap_err().to_string(), "change 1: nothing can be read at 0x10");
/// assert_eq!(price(7), 42);
/// # Ok::<(), Error>(())
/// ```
pub struct Session<'a, H: Host> {
    kdetour: &'a mut Kdetour<H>,
    requests: Vec<Request>,
    failed: Option<Error>,
}

impl<H: Host> core::fmt::Debug for Session<'_, H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Session").field("changes", &self.requests.len()).finish_non_exhaustive()
    }
}

/// Told a detour, and the address of its original.
type Announce<'a> = &'a mut dyn FnMut(&Record, u64);

impl<'a, H: Host> Session<'a, H> {
    pub(crate) const fn new(kdetour: &'a mut Kdetour<H>) -> Self {
        Self { kdetour, requests: Vec::new(), failed: None }
    }

    /// Adds a detour to attach.
    ///
    /// # Safety
    /// The detour is a function of the target's signature and calling convention, and it and the target stay in memory
    /// until it has been drained; [`Attach::in_flight`] is 0 or such a counter, [`Attach::slot`] such memory. Nobody calls what it was told to be the original
    /// after that. A pointer ([`Method::Pointer`]) leads to functions of the detour's signature, stays where it is until then, and
    /// what was read of it before is not called long after. [Inside](Attach::inside) a function it is no function, but code that keeps every register, the
    /// flags and the red zone as they should be behind it, and goes on at the original or elsewhere in the function.
    #[must_use]
    pub unsafe fn attach(self, attach: Attach) -> Self {
        self.add(Request::Attach(attach))
    }

    /// Adds a detour that was detached and not yet reclaimed, to attach it again as it was: same slot, same
    /// trampoline. It gets a new handle, so that whoever is draining the old one does not free what is in use.
    ///
    /// # Safety
    /// As for [`attach`](Self::attach), still; and the target's code is what it was when it was attached first.
    #[must_use]
    pub unsafe fn reattach(self, handle: Handle, original: u64) -> Self {
        self.add(Request::Reattach { handle, original, checked: false })
    }

    /// As [`reattach`](Self::reattach), if the function has not become another one since: else it is refused with
    /// [`NoShape`](kdetour_plan::Refusal::NoShape), and has to be attached anew.
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    #[must_use]
    pub unsafe fn renew(self, handle: Handle, original: u64) -> Self {
        self.add(Request::Reattach { handle, original, checked: true })
    }

    /// Adds a detour to detach.
    #[must_use]
    pub fn detach(self, handle: Handle) -> Self {
        self.add(Request::Detach(handle))
    }

    /// The environment.
    pub const fn host(&self) -> &H {
        self.kdetour.host()
    }

    fn add(mut self, request: Request) -> Self {
        match self.requests.try_reserve(1) {
            Ok(()) => self.requests.push(request),
            Err(_) => self.failed = Some(Error::OutOfMemory),
        }
        self
    }

    /// Commits by [`Protocol::Local`], under the promise that nobody else runs.
    ///
    /// `announce` is called for every detour of every target that the session changes, those that drain included, after
    /// all validation and before the first write, with the detour's record and the address of what it has to call as
    /// the original from now on.
    ///
    /// Pointers are swapped one by one, whatever the protocol, before the code is written.
    ///
    /// # Errors
    /// The first change that failed; nothing has changed.
    pub fn commit_local(
        mut self,
        alone: &Alone,
        announce: Announce<'_>,
    ) -> Result<Vec<Handle>, SessionError> {
        self.run(Protocol::Local, announce, registers::refuse, |kdetour, text, changes| {
            commit::local(kdetour.host(), text, changes, alone)
        })
    }
}

impl<H: Park> Session<'_, H> {
    /// Commits where all others are parked and nobody can tell where they stand: patches that keep every interior boundary, and
    /// others if that was `accepted`. `announce` as in [`commit_local`](Session::commit_local).
    ///
    /// # Errors
    /// The first change that failed; nothing has changed.
    pub fn commit_parked(
        mut self,
        by: H::By,
        accepted: Option<&Preempted>,
        announce: Announce<'_>,
    ) -> Result<Vec<Handle>, SessionError> {
        self.run(H::protocol(by), announce, registers::refuse, |kdetour, text, changes| {
            commit::parked(kdetour.host(), text, changes, by, accepted)
        })
    }
}

impl<H: Exchange + BreakpointHook + Quiesce> Session<'_, H> {
    /// Commits by [`Protocol::Exchange`]. `announce` as in [`commit_local`](Session::commit_local).
    ///
    /// # Errors
    /// The first change that failed; nothing has changed.
    pub fn commit_exchange(mut self, announce: Announce<'_>) -> Result<Vec<Handle>, SessionError> {
        let outcome =
            self.run(Protocol::Exchange, announce, Kdetour::answer_registers, |kdetour, text, changes| {
                kdetour.answer(changes, Protocol::Exchange)?;
                commit::exchange(kdetour.host(), text, changes)
            });
        self.answer_as_before(outcome)
    }
}

impl<H: BreakpointHook + Quiesce> Session<'_, H> {
    /// Commits by [`Protocol::Live`]. `announce` as in [`commit_local`](Session::commit_local).
    ///
    /// # Errors
    /// The first change that failed; nothing has changed.
    pub fn commit_live(mut self, announce: Announce<'_>) -> Result<Vec<Handle>, SessionError> {
        let outcome =
            self.run(Protocol::Live, announce, Kdetour::answer_registers, |kdetour, text, changes| {
                let boundaries = commit::boundaries(changes).map_err(CommitError::before)?;
                kdetour.answer(changes, Protocol::Live)?;
                commit::live(kdetour.host(), text, changes, &boundaries)
            });
        self.answer_as_before(outcome)
    }

    /// After a failure the breakpoints' answers follow the records back.
    fn answer_as_before<T>(&mut self, outcome: Result<T, SessionError>) -> Result<T, SessionError> {
        if outcome.is_err() {
            // Without memory the answers of the failed session stay: they name slots that are still there.
            let _ = self.kdetour.publish();
        }
        outcome
    }
}

impl<H: Rendezvous + BreakpointHook + Quiesce> Session<'_, H> {
    /// Commits by [`Protocol::Rendezvous`]. `announce` as in [`commit_local`](Session::commit_local).
    ///
    /// # Errors
    /// The first change that failed; nothing has changed.
    pub fn commit_rendezvous(mut self, announce: Announce<'_>) -> Result<Vec<Handle>, SessionError> {
        let outcome =
            self.run(Protocol::Rendezvous, announce, Kdetour::answer_registers, |kdetour, text, changes| {
                let moves = commit::moves(changes).map_err(CommitError::before)?;
                // A live commit may follow: the answers must be true from now on.
                kdetour.answer(changes, Protocol::Rendezvous)?;
                commit::rendezvous(kdetour.host(), text, changes, &moves)
            });
        self.answer_as_before(outcome)
    }
}

impl<H: Solo + BreakpointHook + Quiesce> Session<'_, H> {
    /// Commits by [`Protocol::Local`] if the host can tell that nobody else runs: no promise is needed. `announce` as in
    /// [`commit_local`](Session::commit_local).
    ///
    /// # Errors
    /// The first change that failed; nothing has changed.
    pub fn commit_solo(mut self, announce: Announce<'_>) -> Result<Vec<Handle>, SessionError> {
        let outcome =
            self.run(Protocol::Local, announce, Kdetour::answer_registers, |kdetour, text, changes| {
                let moves = commit::moves(changes).map_err(CommitError::before)?;
                // A live commit may follow, when there are more.
                kdetour.answer(changes, Protocol::Local)?;
                commit::solo(kdetour.host(), text, changes, &moves)
            });
        self.answer_as_before(outcome)
    }
}

impl<H: Host> Session<'_, H> {
    /// Plans all attaches, takes their slots and fills them, and writes no target. What is planned is in the same state as
    /// what was detached and drains. It becomes attached by [`reattach`](Session::reattach), without planning anything anew, or by
    /// the caller's own write of its [patch](Record::patch) and [`Kdetour::assume`]. `protocol` is by whom it is to be written,
    /// which decides the shape; `announce` as in [`commit_local`](Session::commit_local).
    ///
    /// # Errors
    /// The first attach that failed; nothing has changed. [`Error::AlreadyDetoured`] if the target is; [`Error::NotAttached`] for what
    /// is no attach.
    pub fn plan(mut self, protocol: Protocol, announce: Announce<'_>) -> Result<Vec<Handle>, SessionError> {
        self.kdetour.host().ready().map_err(|error| SessionError { index: 0, error })?;
        let other = self.requests.iter().position(|request| !matches!(request, Request::Attach(_)));
        if let Some(index) = other {
            return Err(SessionError { index, error: Error::NotAttached });
        }
        for request in &mut self.requests {
            if let Request::Attach(attach) = request {
                attach.chain = false;
            }
        }
        if let Some(error) = self.failed {
            return Err(SessionError { index: self.requests.len(), error });
        }
        // Whoever is on a relay that drains may not be led elsewhere by a plain write.
        let preparation = Preparation::of_plans();
        let mut guard = Guard { kdetour: &mut *self.kdetour, preparation: Some(preparation) };
        let outcome = guard.plan(&self.requests, protocol, announce);
        let Some(preparation) = guard.preparation.take() else { return Ok(Vec::new()) };
        // What was planned stays, as if it had been written and taken back.
        let handles = preparation.take_back(guard.kdetour, announce, outcome.is_ok());
        outcome
            .map(|()| handles)
            .map_err(|failure| SessionError { index: failure.index, error: failure.error })
    }

    fn run(
        &mut self,
        protocol: Protocol,
        announce: Announce<'_>,
        answer: impl FnOnce(&mut Kdetour<H>, &[Register]) -> Result<(), CommitError>,
        mut commit: impl FnMut(&mut Kdetour<H>, &mut H::Text, &[Change]) -> Result<(), CommitError>,
    ) -> Result<Vec<Handle>, SessionError> {
        self.kdetour.left_behind = Vec::new();
        self.kdetour.host().ready().map_err(|error| SessionError { index: 0, error })?;
        if let Some(error) = self.failed {
            return Err(SessionError { index: self.requests.len(), error });
        }
        let mut guard = Guard { kdetour: &mut *self.kdetour, preparation: Some(Preparation::default()) };
        let outcome = guard.run(&self.requests, protocol, announce, answer, &mut commit);
        let Some(preparation) = guard.preparation.take() else { return Ok(Vec::new()) };
        match outcome {
            Ok(()) => Ok(preparation.finish(guard.kdetour)),
            Err(failure) => {
                let left = preparation.take_back(guard.kdetour, announce, failure.written);
                guard.kdetour.left_behind = left;
                Err(SessionError { index: failure.index, error: failure.error })
            }
        }
    }
}

/// Takes back what a session has prepared, should what it calls unwind: somebody's `announce`, before anything is written.
struct Guard<'a, H: Host> {
    kdetour: &'a mut Kdetour<H>,
    preparation: Option<Preparation>,
}

impl<H: Host> Drop for Guard<'_, H> {
    fn drop(&mut self) {
        if let Some(preparation) = self.preparation.take() {
            preparation.take_back(self.kdetour, &mut |_, _| (), false);
        }
    }
}

impl<H: Host> Guard<'_, H> {
    fn plan(
        &mut self,
        requests: &[Request],
        protocol: Protocol,
        announce: Announce<'_>,
    ) -> Result<(), CommitError> {
        let Some(preparation) = &mut self.preparation else { return Ok(()) };
        preparation.prepare(self.kdetour, requests, protocol)?;
        open(self.kdetour, preparation)?;
        preparation.announce(self.kdetour, announce);
        Ok(())
    }

    fn run(
        &mut self,
        requests: &[Request],
        protocol: Protocol,
        announce: Announce<'_>,
        answer: impl FnOnce(&mut Kdetour<H>, &[Register]) -> Result<(), CommitError>,
        commit: &mut impl FnMut(&mut Kdetour<H>, &mut H::Text, &[Change]) -> Result<(), CommitError>,
    ) -> Result<(), CommitError> {
        let Some(preparation) = &mut self.preparation else { return Ok(()) };
        preparation.prepare(self.kdetour, requests, protocol)?;
        let mut text = open(self.kdetour, preparation)?;
        preparation.announce(self.kdetour, announce);
        let swapped = preparation.pointing.swap(self.kdetour.host())?;
        write(self.kdetour, preparation, &mut text, answer, commit).map_err(|failure| {
            preparation.pointing.swap_back(self.kdetour.host());
            // A call may have come to a detour that is taken back.
            CommitError { written: failure.written || swapped, ..failure }
        })
    }
}

/// Sets the debug registers of what comes, writes what changes in the code, and clears those of what goes.
#[inline(never)]
fn write<H: Host>(
    kdetour: &mut Kdetour<H>,
    preparation: &mut Preparation,
    text: &mut H::Text,
    answer: impl FnOnce(&mut Kdetour<H>, &[Register]) -> Result<(), CommitError>,
    commit: &mut impl FnMut(&mut Kdetour<H>, &mut H::Text, &[Change]) -> Result<(), CommitError>,
) -> Result<(), CommitError> {
    if preparation.registers.is_empty() {
        return write_code(kdetour, preparation, text, commit);
    }
    answer(kdetour, &preparation.registers)?;
    registers::set(kdetour.host(), &preparation.registers)?;
    let outcome = write_code(kdetour, preparation, text, commit);
    let gone = if outcome.is_ok() { Turns::Off } else { Turns::On };
    registers::clear(kdetour.host(), &preparation.registers, gone);
    // Somebody may have come to a detour by a register that was set for a moment.
    outcome.map_err(|failure| CommitError { written: true, ..failure })
}

/// Writes what changes in the code, or nothing.
fn write_code<H: Host>(
    kdetour: &mut Kdetour<H>,
    preparation: &mut Preparation,
    text: &mut H::Text,
    commit: &mut impl FnMut(&mut Kdetour<H>, &mut H::Text, &[Change]) -> Result<(), CommitError>,
) -> Result<(), CommitError> {
    let leads = !preparation.leads.is_empty();
    if leads {
        commit(kdetour, text, &preparation.leads)?;
        preparation.leads_are_written(kdetour);
    }
    // What pointers and debug registers do alone needs no commit.
    let is_any = preparation.pointing.is_any() || !preparation.registers.is_empty();
    if preparation.changes.is_empty() && is_any {
        return Ok(());
    }
    commit(kdetour, text, &preparation.changes).map_err(|failure| CommitError {
        index: preparation.request_of(failure.index),
        // A thread may be on a relay that leads to a detour of this session.
        written: failure.written || leads,
        ..failure
    })
}

/// Opens all text that is written, and fills the slots, of which nobody knows yet.
#[inline(never)]
fn open<H: Host>(kdetour: &Kdetour<H>, preparation: &mut Preparation) -> Result<H::Text, CommitError> {
    let spans = preparation.spans(kdetour).map_err(CommitError::before)?;
    let mut text = kdetour.host().open_text(&spans).map_err(CommitError::before)?;
    preparation.fills.sort_unstable_by_key(|fill| fill.at);
    let mut writes: Vec<(u64, &[u8])> = Vec::new();
    let reserved = writes.try_reserve_exact(preparation.fills.len());
    reserved.map_err(|error| CommitError::before(error.into()))?;
    writes.extend(preparation.fills.iter().map(|Fill { at, bytes }| (*at, bytes.as_slice())));
    text.write_many(&writes).map_err(|(_, error)| CommitError::before(error))?;
    Ok(text)
}
