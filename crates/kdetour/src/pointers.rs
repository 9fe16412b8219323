//! The pointers that lead, or led, to detours: what was found there, and which detours share the place.
//!
//! A pointer has no slot and no patch. Its detours are users of it as those of a target are of a site: the youngest that is
//! attached is where it leads, each one's original is the next older one, and the oldest one's the function that was found.

use crate::commit::CommitError;
use crate::host::Host;
use crate::records::{Handle, Record, Records, State};
use crate::{Error, Kdetour};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use hashbrown::HashMap;

/// How many bytes a pointer has.
pub(crate) const SIZE: usize = size_of::<usize>();

/// A place with its detours.
#[derive(Debug)]
pub(crate) struct Pointer {
    /// Where it led before the first of those came that are attached; with none of them, before the last ones came.
    pub(crate) found: u64,
    /// Everybody who has a record of it, oldest first.
    pub(crate) users: Vec<Handle>,
}

impl Pointer {
    /// The detour that it leads to.
    pub(crate) fn youngest<'a>(&self, records: &'a Records) -> Option<&'a Record> {
        let mut users = self.users.iter().rev().filter_map(|&user| records.get(user));
        users.find(|record| record.state == State::Attached)
    }

    /// Where it leads, unless somebody else has written it.
    pub(crate) fn leads_to(&self, records: &Records) -> u64 {
        self.youngest(records).map_or(self.found, |record| record.detour)
    }

    /// Whether a detour of it that is attached is this function.
    pub(crate) fn has(&self, records: &Records, detour: u64) -> bool {
        let mut users = self.users.iter().filter_map(|&user| records.get(user));
        users.any(|record| record.state == State::Attached && record.detour == detour)
    }
}

/// All of them, by where they are.
#[derive(Debug, Default)]
pub(crate) struct Pointers {
    by_place: HashMap<u64, Pointer>,
}

impl Pointers {
    pub(crate) fn get(&self, place: u64) -> Option<&Pointer> {
        self.by_place.get(&place)
    }

    pub(crate) fn get_mut(&mut self, place: u64) -> Option<&mut Pointer> {
        self.by_place.get_mut(&place)
    }

    /// Makes room for so many more.
    pub(crate) fn reserve(&mut self, count: usize) -> Result<(), Error> {
        self.by_place.try_reserve(count).map_err(|_| Error::OutOfMemory)
    }

    /// The pointer at a place, which may be new: there is room for it. It has room for one more user then.
    pub(crate) fn find_or_add(&mut self, place: u64, found: u64) -> Result<&mut Pointer, Error> {
        let mut fresh = Vec::new();
        fresh.try_reserve_exact(1)?;
        let pointer = self.by_place.entry(place).or_insert(Pointer { found, users: fresh });
        pointer.users.try_reserve(1)?;
        Ok(pointer)
    }

    /// Forgets a user; with the last one the pointer.
    fn forget(&mut self, place: u64, handle: Handle) {
        let Some(pointer) = self.by_place.get_mut(&place) else { return };
        pointer.users.retain(|&user| user != handle);
        if pointer.users.is_empty() {
            self.by_place.remove(&place);
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl<H: Host> Kdetour<H> {
    /// Where the pointer that a detour is a detour of led before its detours came; none for other methods.
    pub fn pointer_found(&self, record: &Record) -> Option<u64> {
        if record.patch.is_some() {
            return None;
        }
        self.pointers.get(record.target).map(|pointer| pointer.found)
    }

    /// As [`announce`](Self::announce), for the detours of a pointer.
    pub(crate) fn announce_pointer(&self, place: u64, announce: &mut dyn FnMut(&Record, u64)) {
        let Some(pointer) = self.pointers.get(place) else { return };
        let mut original = pointer.found;
        for record in pointer.users.iter().filter_map(|&user| self.records.get(user)) {
            // Somebody has put a former detour back by himself: its calls go on with what they had.
            if original != record.detour {
                if let Some(cell) = self.records.cell(record) {
                    cell.store(original, Ordering::Release);
                }
                announce(record, original);
            }
            if record.state == State::Attached {
                original = record.detour;
            }
        }
    }

    /// Gives a user of a pointer a new handle.
    pub(crate) fn renew_pointer(&mut self, place: u64, handle: Handle) -> Handle {
        let Some(renewed) = self.records.renew(handle) else { return handle };
        let users = self.pointers.get_mut(place).map(|pointer| &mut pointer.users);
        for user in users.into_iter().flatten().filter(|user| **user == handle) {
            *user = renewed;
        }
        renewed
    }

    /// Removes a record of a pointer.
    pub(crate) fn forget_pointer(&mut self, place: u64, handle: Handle) {
        self.records.remove(handle);
        self.pointers.forget(place, handle);
    }

    /// All detours of a pointer drain, without a write.
    pub(crate) fn let_pointer_go(&mut self, place: u64, announce: &mut dyn FnMut(&Record, u64)) {
        let users = self.pointers.get(place).map_or(&[][..], |pointer| &pointer.users);
        for &user in users {
            self.records.set_state(user, State::Draining);
        }
        self.announce_pointer(place, announce);
    }

    /// Whether a pointer leads again where it did before, or is not there any more.
    pub(crate) fn is_pointer_away(&self, place: u64) -> bool {
        let mut bytes = [0; SIZE];
        match self.host.read(place, &mut bytes) {
            Ok(()) => self.pointers.get(place).is_some_and(|pointer| pointer.found == value(bytes)),
            Err(error) => matches!(error, Error::Unreadable { .. }),
        }
    }
}

/// A pointer from its bytes.
pub(crate) const fn value(bytes: [u8; SIZE]) -> u64 {
    usize::from_ne_bytes(bytes) as u64
}

/// One pointer that is to lead elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Swap {
    pub(crate) place: u64,
    /// The request that it comes from.
    pub(crate) request: usize,
    pub(crate) expected: u64,
    pub(crate) new: u64,
    /// Whether it has been.
    pub(crate) done: bool,
}

impl Swap {
    /// Whether it is what is expected. One that leads there already needs not be swapped.
    fn check(&self, found: u64) -> Result<(), Error> {
        if found == self.expected || found == self.new {
            return Ok(());
        }
        Err(Error::PointerChanged { address: self.place, expected: self.expected, found })
    }

    fn make<H: Host>(&mut self, host: &H) -> Result<(), Error> {
        let found = host.swap(self.place, self.expected, self.new)?;
        self.done = found == self.expected;
        self.check(found)
    }
}

/// Swaps all, or none. Whether there was one.
///
/// # Errors
/// The first that is not what is expected. Those before it have been swapped back: each one that is still what was put there.
pub(crate) fn swap<H: Host>(host: &H, swaps: &mut [Swap]) -> Result<bool, CommitError> {
    let mut bytes = [0; SIZE];
    // All are looked at before the first is written: whoever comes to a detour that is taken back has to be waited for.
    for one in &*swaps {
        let looked = host.read(one.place, &mut bytes).and_then(|()| one.check(value(bytes)));
        looked.map_err(|error| CommitError { index: one.request, error, written: false })?;
    }
    let mut outcome = Ok(());
    for one in &mut *swaps {
        outcome = one.make(host).map_err(|error| CommitError { index: one.request, error, written: false });
        if outcome.is_err() {
            break;
        }
    }
    let any = swaps.iter().any(|one| one.done);
    if outcome.is_err() {
        swap_back(host, swaps);
    }
    outcome.map(|()| any).map_err(|failed| CommitError { written: any, ..failed })
}

/// Swaps back what was swapped. What somebody else has written meanwhile stays as it is.
pub(crate) fn swap_back<H: Host>(host: &H, swaps: &mut [Swap]) {
    for one in swaps.iter_mut().rev().filter(|one| one.done) {
        let _ = host.swap(one.place, one.new, one.expected);
        one.done = false;
    }
}
