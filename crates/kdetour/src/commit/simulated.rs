//! A machine that a commit can be watched on: memory, and a list of everything that was done to it.

use super::breakpoints::Breakpoints;
use super::{Alone, Change, CommitError, Exchange, Move, Preempted, Protocol};
use super::{boundaries, exchange, live, local, moves, parked, rendezvous};
use crate::Error;
use crate::host::{BreakpointHook, Function, Host, Park, Quiesce, Rendezvous, Span, Text, View};
use crate::slots::SlotMemory;
use kdetour_plan::{Mode, Reach};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Lock,
    Unlock,
    /// These bytes were written; each by itself, if there are several.
    Write {
        address: u64,
        bytes: Vec<u8>,
    },
    /// Made ready to be exchanged.
    Prepare,
    /// Replaced at one moment.
    Exchange(Vec<(u64, Vec<u8>)>),
    Sync,
    Quiesce(Vec<u64>),
    /// Everybody stands still; who stood at one of these places is moved on.
    Park(Vec<Move>),
    /// Everybody goes on, with a fresh look at the memory.
    Release,
}

/// How much of a write that fails is written nevertheless.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Written {
    #[default]
    Nothing,
    Half,
    All,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// The write that fails, counted from 0.
    pub(super) write: Option<usize>,
    /// Whether all later ones fail, too: those at this address and up to 4096 bytes behind it.
    pub(super) lasting: Option<u64>,
    pub(super) written: Written,
    pub(super) quiesce: bool,
    pub(super) prepare: bool,
    pub(super) exchange: bool,
    /// A thread that a rendezvous finds at this place and cannot move.
    pub(super) stands: Option<u64>,
}

/// Memory, and the log of what was done.
pub(super) struct Machine(Rc<RefCell<Inside>>);

struct Inside {
    memory: BTreeMap<u64, u8>,
    log: Vec<Event>,
    writes: usize,
    faults: Faults,
}

impl Machine {
    /// These runs of bytes, and nothing else.
    pub(super) fn new(memory: &[(u64, Vec<u8>)]) -> Self {
        let bytes = memory.iter().flat_map(|(address, bytes)| (*address..).zip(bytes.iter().copied()));
        let inside =
            Inside { memory: bytes.collect(), log: Vec::new(), writes: 0, faults: Faults::default() };
        Self(Rc::new(RefCell::new(inside)))
    }

    /// From now on this goes wrong.
    pub(super) fn fail(&self, faults: Faults) {
        let mut inside = self.0.borrow_mut();
        inside.faults = faults;
        inside.writes = 0;
    }

    pub(super) fn memory(&self) -> BTreeMap<u64, u8> {
        self.0.borrow().memory.clone()
    }

    pub(super) fn poke(&self, address: u64, byte: u8) {
        self.0.borrow_mut().memory.insert(address, byte);
    }

    /// What was done since the last time.
    pub(super) fn take_log(&self) -> Vec<Event> {
        core::mem::take(&mut self.0.borrow_mut().log)
    }

    /// Text open for writing.
    pub(super) fn text(&self) -> SimulatedText {
        SimulatedText(Rc::clone(&self.0))
    }

    /// Commits by a protocol, as a session does. What was done, and what came of it.
    pub(super) fn commit(
        &self,
        protocol: Protocol,
        changes: &[Change],
    ) -> (Vec<Event>, Result<(), CommitError>) {
        self.take_log();
        let mut text = self.text();
        let outcome = match protocol {
            Protocol::Live => live(self, &mut text, changes, &boundaries(changes).unwrap()),
            Protocol::Rendezvous => rendezvous(self, &mut text, changes, &moves(changes).unwrap()),
            Protocol::Exchange => exchange(self, &mut text, changes),
            // SAFETY: the simulated machine runs nothing.
            Protocol::Local => local(self, &mut text, changes, &unsafe { Alone::promise() }),
        };
        (self.take_log(), outcome)
    }

    /// Commits where nobody can tell where threads stand.
    pub(super) fn commit_parked(
        &self,
        changes: &[Change],
        accepted: Option<&Preempted>,
    ) -> (Vec<Event>, Result<(), CommitError>) {
        self.take_log();
        let outcome = parked(self, &mut self.text(), changes, (), accepted);
        (self.take_log(), outcome)
    }

    fn note(&self, event: Event) {
        self.0.borrow_mut().log.push(event);
    }
}

pub(super) struct SimulatedText(Rc<RefCell<Inside>>);

impl Text for SimulatedText {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        Host::read(&Machine(Rc::clone(&self.0)), address, bytes)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut inside = self.0.borrow_mut();
        let number = inside.writes;
        inside.writes += 1;
        let Faults { write, lasting, written, .. } = inside.faults;
        let fails = write.is_some_and(|from| match lasting {
            Some(place) => number >= from && address.wrapping_sub(place) < 4096,
            None => number == from,
        });
        let len = match written {
            _ if !fails => bytes.len(),
            Written::Nothing => 0,
            Written::Half => bytes.len() / 2,
            Written::All => bytes.len(),
        };
        let written = &bytes[..len];
        for (at, byte) in (address..).zip(written) {
            assert!(inside.memory.insert(at, *byte).is_some(), "nothing is at {at:#x}");
        }
        if len > 0 {
            inside.log.push(Event::Write { address, bytes: written.to_vec() });
        }
        if fails { Err(Error::Host(5)) } else { Ok(()) }
    }
}

impl View for &Machine {
    fn mode(&self) -> Mode {
        Mode::Bits64
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        Host::read(*self, address, bytes)
    }

    fn function(&self, _: u64) -> Result<Function, Error> {
        Ok(Function::default())
    }
}

/// The machine has no memory for slots: patches are planned elsewhere.
pub(crate) struct NoSlots;

impl SlotMemory for NoSlots {
    fn near(&mut self, _: usize, _: Reach) -> Option<Span> {
        None
    }

    fn trim(&mut self, slot: Span, _: usize) -> Span {
        slot
    }

    fn free(&mut self, _: Span) {}
}

impl Host for Machine {
    type View<'a> = &'a Self;
    type Slots = NoSlots;

    fn view(&self) -> Result<&Self, Error> {
        Ok(self)
    }

    fn slots(&self) -> NoSlots {
        NoSlots
    }

    type Text = SimulatedText;

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let inside = self.0.borrow();
        for (at, byte) in (address..).zip(bytes) {
            *byte = *inside.memory.get(&at).ok_or(Error::Unreadable { address })?;
        }
        Ok(())
    }

    fn open_text(&self, _: &[Span]) -> Result<SimulatedText, Error> {
        Ok(self.text())
    }

    fn sync_cores(&self) {
        self.note(Event::Sync);
    }

    fn lock_text(&self) {
        self.note(Event::Lock);
    }

    fn unlock_text(&self) {
        self.note(Event::Unlock);
    }
}

impl BreakpointHook for Machine {
    fn breakpoints(&self) -> &'static Breakpoints {
        static NONE: Breakpoints = Breakpoints::new();
        &NONE
    }
}

// SAFETY: the machine has no threads and no trap handlers.
unsafe impl Quiesce for Machine {
    fn quiesce(&self, boundaries: &[u64]) -> Result<(), Error> {
        if self.0.borrow().faults.quiesce {
            return Err(Error::ThreadNotReached { thread: 1 });
        }
        self.note(Event::Quiesce(boundaries.to_vec()));
        Ok(())
    }
}

impl Rendezvous for Machine {
    fn rendezvous(&self, moves: &[Move], work: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error> {
        let stands = self.0.borrow().faults.stands;
        if let Some(address) = stands.filter(|place| moves.iter().any(|one| one.at == *place)) {
            return Err(Error::ThreadInWindow { address });
        }
        self.note(Event::Park(moves.to_vec()));
        let outcome = work();
        self.note(Event::Release);
        outcome
    }
}

impl Park for Machine {
    type By = ();

    fn protocol((): ()) -> Protocol {
        Protocol::Rendezvous
    }

    fn park(&self, (): (), work: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error> {
        if self.0.borrow().faults.stands.is_some() {
            return Err(Error::ProcessorNotReached { missing: 1 });
        }
        self.note(Event::Park(Vec::new()));
        let outcome = work();
        self.note(Event::Release);
        outcome
    }
}

impl Exchange for Machine {
    /// The pages concerned as they were, and the bytes to replace.
    type Prepared<'a> = (BTreeMap<u64, u8>, Vec<(u64, Vec<u8>)>);

    fn prepare<'a>(&self, writes: &'a [(u64, &'a [u8])]) -> Result<Self::Prepared<'a>, Error> {
        let mut inside = self.0.borrow_mut();
        if inside.faults.prepare {
            return Err(Error::NotExchangeable { address: writes[0].0 });
        }
        let touched: Vec<u64> = writes
            .iter()
            .flat_map(|(address, bytes)| (*address..).take(bytes.len()).map(|at| at / Self::GRANULE))
            .collect();
        let in_them = |at: &u64| touched.contains(&(at / Self::GRANULE));
        let pages =
            inside.memory.iter().filter(|(at, _)| in_them(at)).map(|(at, byte)| (*at, *byte)).collect();
        inside.log.push(Event::Prepare);
        Ok((pages, writes.iter().map(|(address, bytes)| (*address, bytes.to_vec())).collect()))
    }

    fn exchange(&self, (mut pages, writes): Self::Prepared<'_>) -> Result<(), Error> {
        let mut inside = self.0.borrow_mut();
        if inside.faults.exchange {
            return Err(Error::Host(12));
        }
        for (address, bytes) in &writes {
            pages.extend((*address..).zip(bytes.iter().copied()));
        }
        inside.memory.extend(pages);
        inside.log.push(Event::Exchange(writes));
        Ok(())
    }
}
