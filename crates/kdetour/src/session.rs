//! A set of changes that commits as one or not at all.
//!
//! ```text
//!   attach, detach    remembered
//!   commit            validate all, plan all, take slots for all      nothing is written until here
//!                     fill the slots, publish the breakpoints' answers
//!                     commit all windows by the protocol              or take everything back
//! ```

use crate::commit::{self, Alone, Change, CommitError, Direction, Protocol};
use crate::host::{BreakpointHook, Host, Quiesce, Rendezvous, Span, Text};
use crate::kdetour::{Handle, Kdetour, Record, State};
use crate::{Error, SessionError};
use alloc::vec::Vec;
use kdetour_plan::{Code, Context, Options, Plan, Refusal, Slot, Survey};

/// The longest function whose branches are looked at.
const MAX_FUNCTION: usize = 1 << 20;
/// Bytes that are read of a function whose length is unknown.
const UNKNOWN_LENGTH: usize = 64;

/// A detour to attach.
#[derive(Clone, Copy, Debug)]
pub struct Attach {
    /// The target's entry.
    pub target: u64,
    /// The replacement function.
    pub detour: u64,
    /// The host's counter of calls in flight, which the detour keeps; 0 for none.
    pub in_flight: u64,
    /// Whoever attaches, in the host's own terms; 0 for nobody in particular.
    pub owner: u64,
    /// What `announce` is told together with the trampoline's address, before the first call can reach the detour:
    /// the caller's own word for where the original is to be put.
    pub original: u64,
}

enum Request {
    Attach(Attach),
    Reattach { handle: Handle, original: u64 },
    Detach(Handle),
}

/// What a change does to its record, and what its failure undoes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// The record is new.
    New,
    /// It was draining.
    Again,
    /// It was attached.
    Out,
}

/// A set of attaches and detaches. Nothing happens until one of the `commit_` calls.
pub struct Session<'a, H> {
    kdetour: &'a mut Kdetour<H>,
    requests: Vec<Request>,
    failed: Option<Error>,
}

/// A validated change, with the record that it belongs to.
struct Prepared {
    handle: Handle,
    effect: Effect,
    change: Change,
    original: u64,
}

/// Everything that a commit needs.
struct Ready<T> {
    text: T,
    changes: Vec<Change>,
    handles: Vec<Handle>,
}

impl<H> core::fmt::Debug for Session<'_, H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Session").field("changes", &self.requests.len()).finish_non_exhaustive()
    }
}

impl<'a, H> Session<'a, H> {
    pub(crate) const fn new(kdetour: &'a mut Kdetour<H>) -> Self {
        Self { kdetour, requests: Vec::new(), failed: None }
    }

    /// Adds a detour to attach.
    ///
    /// # Safety
    /// The detour is a function of the target's signature and calling convention, and stays in memory until it
    /// has been drained.
    #[must_use]
    pub unsafe fn attach(self, attach: Attach) -> Self {
        self.add(Request::Attach(attach))
    }

    /// Adds a detour that was detached and not yet reclaimed, to attach it again as it was: same slot, same
    /// trampoline. It gets a new handle, so that whoever is draining the old one does not free what is in use.
    ///
    /// # Safety
    /// As for [`attach`](Self::attach), still.
    #[must_use]
    pub unsafe fn reattach(self, handle: Handle, original: u64) -> Self {
        self.add(Request::Reattach { handle, original })
    }

    /// Adds a detour to detach.
    #[must_use]
    pub fn detach(self, handle: Handle) -> Self {
        self.add(Request::Detach(handle))
    }

    fn add(mut self, request: Request) -> Self {
        match self.requests.try_reserve(1) {
            Ok(()) => self.requests.push(request),
            Err(_) => self.failed = Some(Error::OutOfMemory),
        }
        self
    }
}

impl<H: Host> Session<'_, H> {
    /// Commits by [`Protocol::Local`], under the promise that nobody else runs.
    ///
    /// `announce` is called for every attach, after all validation and before the first write, with the attach's
    /// `original` and the trampoline's address.
    ///
    /// # Errors
    /// The first change that failed; nothing has changed.
    pub fn commit_local(
        mut self,
        alone: &Alone,
        announce: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<Handle>, SessionError> {
        self.run(Protocol::Local, announce, |kdetour, text, changes| {
            commit::local(kdetour.host(), text, changes, alone)
        })
    }
}

impl<H: BreakpointHook + Quiesce> Session<'_, H> {
    /// Commits by [`Protocol::Live`]. `announce` as in [`commit_local`](Session::commit_local).
    ///
    /// # Errors
    /// The first change that failed; nothing has changed.
    pub fn commit_live(mut self, announce: &mut dyn FnMut(u64, u64)) -> Result<Vec<Handle>, SessionError> {
        let outcome = self.run(Protocol::Live, announce, |kdetour, text, changes| {
            kdetour.publish().map_err(CommitError::before)?;
            commit::live(kdetour.host(), text, changes)
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
    pub fn commit_rendezvous(
        mut self,
        announce: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<Handle>, SessionError> {
        let outcome = self.run(Protocol::Rendezvous, announce, |kdetour, text, changes| {
            let boundaries = interior_boundaries(changes)?;
            // A live commit may follow: the answers must be true from now on.
            kdetour.publish().map_err(CommitError::before)?;
            commit::rendezvous(kdetour.host(), text, changes, &boundaries)
        });
        self.answer_as_before(outcome)
    }
}

impl<H: Host> Session<'_, H> {
    fn run(
        &mut self,
        protocol: Protocol,
        announce: &mut dyn FnMut(u64, u64),
        commit: impl FnOnce(&mut Kdetour<H>, &mut H::Text, &[Change]) -> Result<(), CommitError>,
    ) -> Result<Vec<Handle>, SessionError> {
        if let Some(error) = self.failed {
            return Err(SessionError { index: self.requests.len(), error });
        }
        let mut prepared = Vec::new();
        let outcome = self.prepare(protocol, &mut prepared);
        let outcome = outcome.and_then(|Ready { mut text, changes, mut handles }| {
            for one in prepared.iter().filter(|one| one.change.direction == Direction::Attach) {
                let trampoline = self.kdetour.record(one.handle).map_or(0, |record| record.slot.address);
                announce(one.original, trampoline);
            }
            commit(self.kdetour, &mut text, &changes)?;
            for (handle, _) in
                handles.iter_mut().zip(&prepared).filter(|(_, one)| one.effect == Effect::Again)
            {
                *handle = self.kdetour.renew(*handle);
            }
            Ok(handles)
        });
        outcome.map_err(|failure| {
            self.take_back(&prepared, failure.written);
            SessionError { index: failure.index, error: failure.error }
        })
    }

    /// Validates and plans everything, takes and fills the slots. On failure `prepared` says what to take back.
    fn prepare(
        &mut self,
        protocol: Protocol,
        prepared: &mut Vec<Prepared>,
    ) -> Result<Ready<H::Text>, CommitError> {
        let all = CommitError::before(Error::OutOfMemory);
        let count = self.requests.len();
        let (mut changes, mut handles, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        let mut plans: Vec<Plan> = Vec::new();
        prepared.try_reserve_exact(count).map_err(|_| all)?;
        changes.try_reserve_exact(count).map_err(|_| all)?;
        handles.try_reserve_exact(count).map_err(|_| all)?;
        plans.try_reserve_exact(count).map_err(|_| all)?;
        spans.try_reserve_exact(2 * count).map_err(|_| all)?;
        self.kdetour.reserve(count).map_err(CommitError::before)?;

        let mut body = Vec::new();
        for (index, request) in self.requests.iter().enumerate() {
            let failed = |error| CommitError { index, error, written: false };
            let one = match *request {
                Request::Detach(handle) => begin_detach(self.kdetour, handle).map_err(failed)?,
                Request::Reattach { handle, original } => {
                    begin_reattach(self.kdetour, handle, original, prepared).map_err(failed)?
                }
                Request::Attach(attach) => {
                    begin_attach(self.kdetour, &attach, protocol, prepared, &mut body, &mut plans)
                        .map_err(failed)?
                }
            };
            if let Some(record) = self.kdetour.record(one.handle) {
                spans
                    .push(Span { address: record.patch.address(), len: record.patch.original_bytes().len() });
                if one.change.direction == Direction::Attach {
                    spans.push(record.slot);
                }
            }
            changes.push(one.change);
            handles.push(one.handle);
            prepared.push(one);
        }
        let mut text = self.kdetour.host().open_text(&spans).map_err(CommitError::before)?;
        for plan in &plans {
            text.write(plan.slot(), plan.slot_bytes()).map_err(CommitError::before)?;
        }
        Ok(Ready { text, changes, handles })
    }

    /// Leaves the records as they were before the session. A slot that a thread may already have been sent to is
    /// kept, in a record that drains.
    fn take_back(&mut self, prepared: &[Prepared], written: bool) {
        for one in prepared {
            match one.effect {
                Effect::New if !written => self.kdetour.remove(one.handle),
                Effect::New | Effect::Again => self.kdetour.set_state(one.handle, State::Draining),
                Effect::Out => self.kdetour.set_state(one.handle, State::Attached),
            }
        }
    }
}

/// The interior boundaries that the changes overwrite, sorted.
fn interior_boundaries(changes: &[Change]) -> Result<Vec<u64>, CommitError> {
    let failed = |error: alloc::collections::TryReserveError| CommitError::before(error.into());
    let mut boundaries = Vec::new();
    for change in changes.iter().filter(|change| change.needs_quiesce()) {
        let interior = change.patch.boundaries().skip(1);
        boundaries.try_reserve(change.patch.new_bytes().len()).map_err(failed)?;
        boundaries.extend(interior.map(|one| change.patch.address().wrapping_add(u64::from(one.offset))));
    }
    boundaries.sort_unstable();
    Ok(boundaries)
}

fn begin_detach<H: Host>(kdetour: &mut Kdetour<H>, handle: Handle) -> Result<Prepared, Error> {
    let record = kdetour.record_mut(handle).filter(|record| record.state == State::Attached);
    let record = record.ok_or(Error::NotAttached)?;
    record.state = State::Draining;
    let change = Change { patch: record.patch, direction: Direction::Detach };
    Ok(Prepared { handle, effect: Effect::Out, change, original: 0 })
}

fn begin_reattach<H: Host>(
    kdetour: &mut Kdetour<H>,
    handle: Handle,
    original: u64,
    earlier: &[Prepared],
) -> Result<Prepared, Error> {
    let record = kdetour.record(handle).filter(|record| record.state == State::Draining);
    let Record { patch, target, .. } = *record.ok_or(Error::NotAttached)?;
    let span = Span { address: patch.address(), len: patch.original_bytes().len() };
    if patched(kdetour, earlier).any(|record| overlap(record, span)) {
        return Err(Error::AlreadyDetoured { target });
    }
    kdetour.set_state(handle, State::Attached);
    let change = Change { patch, direction: Direction::Attach };
    Ok(Prepared { handle, effect: Effect::Again, change, original })
}

/// The detours whose jump is in the text as long as this session has not committed: attached ones, and those that
/// the session is about to detach.
fn patched<'a, H: Host>(
    kdetour: &'a Kdetour<H>,
    earlier: &'a [Prepared],
) -> impl Iterator<Item = &'a Record> {
    kdetour.records().iter().filter(|record| {
        record.state == State::Attached || earlier.iter().any(|one| one.handle == record.handle)
    })
}

/// Whether the displaced instructions of a detour share a byte with a span.
fn overlap(record: &Record, span: Span) -> bool {
    let start = record.patch.address();
    let end = start.wrapping_add(record.patch.original_bytes().len() as u64);
    start < span.address.wrapping_add(span.len as u64) && span.address < end
}

/// The plan is added to `plans`, which has room for it. On its own, so that what it has on the stack is gone when the
/// set is committed: a kernel's stack is small.
#[inline(never)]
fn begin_attach<H: Host>(
    kdetour: &mut Kdetour<H>,
    attach: &Attach,
    protocol: Protocol,
    earlier: &[Prepared],
    body: &mut Vec<u8>,
    plans: &mut Vec<Plan>,
) -> Result<Prepared, Error> {
    if attach.target == 0 || attach.detour == 0 {
        return Err(Error::Null);
    }
    if patched(kdetour, earlier).any(|record| record.target == attach.target) {
        return Err(Error::AlreadyDetoured { target: attach.target });
    }
    kdetour.host().detour(attach.detour)?;
    let survey = survey(kdetour.host(), attach.target, body)?;
    let options = accepted(kdetour.host());
    let offer = survey.best(&options)?;
    let span = Span { address: survey.window(), len: offer.displaced_len() };
    if patched(kdetour, earlier).any(|record| overlap(record, span)) {
        return Err(Error::AlreadyDetoured { target: attach.target });
    }

    let needed = offer.need();
    let no_slot = Error::NoSlot { target: survey.window(), needed };
    let slot = kdetour.take_slot(needed, offer.reach()).ok_or(no_slot)?;
    let place = Slot { address: slot.address, capacity: slot.len };
    let plan = match Plan::in_shape(&survey, offer.shape(), place, attach.detour, options) {
        Ok(plan) => plan,
        Err(refusal) => {
            kdetour.slots.free(slot);
            return Err(refusal.into());
        }
    };
    let handle = kdetour.insert(Record {
        handle: Handle::from_raw(0),
        target: attach.target,
        patch: *plan.patch(),
        slot,
        protocol,
        state: State::Attached,
        in_flight: attach.in_flight,
        owner: attach.owner,
    });
    let change = Change { patch: *plan.patch(), direction: Direction::Attach };
    plans.push(plan);
    Ok(Prepared { handle, effect: Effect::New, change, original: attach.original })
}

/// How trampolines have to look for this host, in the shapes that can be committed.
pub fn accepted<H: Host>(host: &H) -> Options {
    let options = host.options();
    Options { shapes: options.shapes.and(commit::SHAPES), ..options }
}

/// Surveys the function at `target` as the host sees it. `body` is scratch space that a caller keeps for the next
/// one.
///
/// # Errors
/// What the host says about the target, or the survey's refusal.
pub fn survey<H: Host>(host: &H, target: u64, body: &mut Vec<u8>) -> Result<Survey, Error> {
    let function = host.function(target)?;
    let wanted = function.length.unwrap_or(UNKNOWN_LENGTH).clamp(UNKNOWN_LENGTH, MAX_FUNCTION);
    body.clear();
    let others = function.parts.iter().map(|part| part.len.min(MAX_FUNCTION)).sum();
    body.try_reserve(wanted)?;
    body.resize(wanted, 0);
    let mut elsewhere = Vec::new();
    elsewhere.try_reserve_exact(others)?;
    let readable = read_prefix(host, target, body)?;
    let bytes = body.get(..readable).unwrap_or(body);
    let mut code = Code::new(target, bytes);
    if let Some(length) = function.length {
        code = code.with_length(length);
    }
    for part in &function.parts {
        let start = elsewhere.len();
        elsewhere.resize(start + part.len.min(MAX_FUNCTION), 0);
        host.read(part.address, elsewhere.get_mut(start..).unwrap_or_default())?;
    }
    let mut parts = Vec::new();
    parts.try_reserve_exact(function.parts.len())?;
    let mut rest = elsewhere.as_slice();
    for part in &function.parts {
        let (bytes, next) = rest.split_at_checked(part.len.min(MAX_FUNCTION)).unwrap_or((rest, &[]));
        parts.push(Code::new(part.address, bytes));
        rest = next;
    }
    let context = Context {
        fentry: function.fentry,
        next_symbol: function.next_symbol,
        image: function.image,
        parts: &parts,
        branch_targets: &function.branch_targets,
        reserved: &function.reserved,
        ..Context::default()
    };
    Survey::of(&code, &context).map_err(|refusal| match refusal {
        Refusal::Truncated { address, have: 0 } => Error::Unreadable { address },
        other => other.into(),
    })
}

/// Reads as much as can be read of `bytes`: all of it, or up to the first page that cannot.
fn read_prefix<H: Host>(host: &H, target: u64, bytes: &mut [u8]) -> Result<usize, Error> {
    const PAGE: u64 = 4096;
    if host.read(target, bytes).is_ok() {
        return Ok(bytes.len());
    }
    let mut done = 0;
    while done < bytes.len() {
        let at = target.wrapping_add(done as u64);
        let len = usize::try_from(PAGE - at % PAGE).unwrap_or(1).min(bytes.len() - done);
        let part = bytes.get_mut(done..done + len).unwrap_or_default();
        match host.read(at, part) {
            Ok(()) => done += len,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}
