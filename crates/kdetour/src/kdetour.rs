//! The detours of one environment.

use crate::commit::breakpoints::{self, Boundary, Retired};
use crate::commit::{Change, CommitError, Protocol, restore_caves};
use crate::host::{BreakpointHook, Host, Quiesce, Span, Text, View};
use crate::pointers::Pointers;
use crate::records::{Handle, Record, Records, State};
use crate::session::{Register, Turns};
use crate::sites::{Gone, Site, Sites};
use crate::slots::SlotMemory;
use crate::{Error, Session, Surveyor};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;
use kdetour_plan::{MAX_SLOT, MAX_WINDOW, PlanRoom};

/// The detours of one environment: its host, its slots, and what is attached.
pub struct Kdetour<H: Host> {
    pub(crate) host: H,
    pub(crate) slots: H::Slots,
    pub(crate) records: Records,
    pub(crate) sites: Sites,
    pub(crate) pointers: Pointers,
    pub(crate) surveyor: Surveyor,
    /// Where each attach is planned: neither belongs on a kernel's stack.
    pub(crate) room: PlanRoom,
    /// What the last commit has left, if it failed.
    pub(crate) left_behind: Vec<Handle>,
    retired: Vec<Retired>,
    /// How many of them may wait before they are freed.
    next_free: usize,
    /// Whether a table of breakpoints is in force that names anything.
    answers: bool,
}

impl<H: Host> fmt::Debug for Kdetour<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kdetour").field("records", &self.records.len()).finish_non_exhaustive()
    }
}

impl<H: Host> Kdetour<H> {
    /// No detours yet. Lets the decoder allocate its tables.
    pub fn new(host: H) -> Self {
        kdetour_plan::warm_up();
        let slots = host.slots();
        let (records, sites, pointers) = (Records::new(), Sites::new(), Pointers::default());
        Self {
            host,
            slots,
            records,
            sites,
            pointers,
            surveyor: Surveyor::new(),
            room: PlanRoom::new(),
            left_behind: Vec::new(),
            retired: Vec::new(),
            next_free: 32,
            answers: false,
        }
    }

    /// Begins a set of changes that commits as one or not at all.
    pub const fn session(&mut self) -> Session<'_, H> {
        Session::new(self)
    }

    /// The host.
    pub const fn host(&self) -> &H {
        &self.host
    }

    /// The memory that slots are taken from.
    pub const fn slots(&self) -> &H::Slots {
        &self.slots
    }

    /// Everything that is attached or being drained, in no particular order.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter()
    }

    /// The first of them at this place or behind it, and the place to go on from. So a long list is gone through in pieces
    /// between which it may change: whoever is there all the time is found once.
    pub fn next_record(&self, place: usize) -> Option<(usize, &Record)> {
        let (found, record) = self.records.iter_from(place).next()?;
        Some((found + 1, record))
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.records.len()
    }

    /// How many of them are being drained.
    pub const fn draining(&self) -> usize {
        self.records.draining()
    }

    /// What the last commit has left, if it failed after it had begun: the detours that it was to attach. All has been taken back,
    /// but a call may have come to one of them in between. They drain like any that were detached, and nobody has their
    /// handles yet: what their calls need is to stay until they have been reclaimed. Empty after any other commit.
    pub fn left_behind(&self) -> &[Handle] {
        &self.left_behind
    }

    /// Whether nothing is attached or being drained.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known about one detour; none if the handle names nothing.
    pub fn record(&self, handle: Handle) -> Option<&Record> {
        self.records.get(handle)
    }

    /// The detours of a target, or of the pointer there, attached or draining, oldest first.
    pub fn detours_of(&self, target: u64) -> impl Iterator<Item = &Record> {
        let users = self.sites.of_target(target).map(|site| &site.users);
        let users = users.or_else(|| self.pointers.get(target).map(|pointer| &pointer.users));
        users.map_or(&[][..], Vec::as_slice).iter().filter_map(|&user| self.records.get(user))
    }

    /// Gives a user of a site a new handle.
    pub(crate) fn renew(&mut self, slot: u64, handle: Handle) -> Handle {
        let Some(renewed) = self.records.renew(handle) else { return handle };
        let users = self.sites.get_mut(slot).map(|site| &mut site.users);
        for user in users.into_iter().flatten().filter(|user| **user == handle) {
            *user = renewed;
        }
        renewed
    }

    pub(crate) fn set_state(&mut self, handle: Handle, state: State) {
        self.records.set_state(handle, state);
    }

    /// Tells the detours of a site their originals: each one's is the next older one that is attached, and the oldest one's
    /// the trampoline. Calls that are still inside a detour that was detached go on with what is older than it: so nobody
    /// comes to a detour that is left out any more, not even through one that drains.
    pub(crate) fn announce(&self, slot: u64, announce: &mut dyn FnMut(&Record, u64)) {
        let Some(site) = self.sites.get(slot) else { return };
        let mut original = site.patch.trampoline();
        for record in site.users.iter().filter_map(|&user| self.records.get(user)) {
            if let Some(cell) = self.records.cell(record) {
                cell.store(original, Ordering::Release);
            }
            announce(record, original);
            if record.state == State::Attached {
                original = record.detour;
            }
        }
    }

    /// Removes a record. The last user takes its site along, and the slot, which nobody can be inside.
    pub(crate) fn forget_user(&mut self, slot: u64, handle: Handle) {
        self.records.remove(handle);
        let Some(site) = self.sites.get_mut(slot) else { return };
        site.users.retain(|&user| user != handle);
        if site.users.is_empty()
            && let Some(site) = self.sites.remove(slot)
        {
            self.host.withdraw(slot);
            self.slots.free(site.slot);
        }
    }
}

impl<H: BreakpointHook + Quiesce> Kdetour<H> {
    /// Forgets detours that were detached, and frees their slots, if they have some, which are filled with INT3 first.
    ///
    /// # Safety
    /// The detours have been drained: no thread is, or will come, inside their detours or trampolines, or to a
    /// breakpoint that stood in their windows.
    ///
    /// # Errors
    /// [`Error::NotAttached`] if a handle names nothing or something that is still attached; what
    /// [`may_be_given_up`](Self::may_be_given_up) says of one that was planned; [`Error::OutOfMemory`]. Nothing is freed then.
    pub unsafe fn reclaim(&mut self, handles: &[Handle]) -> Result<(), Error> {
        let gone = Gone::new(handles)?;
        let mut spans = Vec::new();
        spans.try_reserve_exact(2 * handles.len())?;
        let mut sites: Vec<Site> = Vec::new();
        sites.try_reserve_exact(handles.len())?;
        for &handle in gone.handles() {
            let record = self.record(handle).filter(|record| record.state == State::Draining);
            // A pointer has no site: nothing of it is in the text.
            let site = self.sites.get(record.ok_or(Error::NotAttached)?.slot.address);
            let first = |site: &&Site| gone.takes(site) && site.users.first() == Some(&handle);
            if let Some(site) = site.filter(first) {
                if site.planned && site.method.writes() {
                    self.check_unwritten(site)?;
                }
                spans.push(site.slot);
                spans.extend(site.patch.cave().map(|cave| Span { address: cave.cave.address, len: 5 }));
                sites.push(Site { users: Vec::new(), ..*site });
            }
        }
        let mut text = self.host.open_text(&spans)?;
        restore_caves(&mut text, sites.iter().map(|site| &site.patch))?;
        self.publish_without(&gone)?;
        // What cannot be filled is filled by whoever gets the slot next.
        let _ = poison(&mut text, sites.iter().map(|site| site.slot));
        for &handle in gone.handles() {
            match self.record(handle).map(|one| (one.patch.is_some(), one.slot.address, one.target)) {
                Some((true, slot, _)) => self.forget_user(slot, handle),
                Some((false, _, place)) => self.forget_pointer(place, handle),
                None => {}
            }
        }
        Ok(())
    }

    /// Makes sure that a planned patch is not in the text, though nobody has said that it is. Somebody else's bytes are no reason
    /// to keep it, but a breakpoint that stands on its first byte is.
    fn check_unwritten(&self, site: &Site) -> Result<(), Error> {
        let mut found = [0; MAX_WINDOW];
        let (address, new) = (site.patch.address(), site.patch.new_bytes());
        let found = found.get_mut(..new.len()).unwrap_or_default();
        let view = self.host.view()?;
        if view.read(address, found).is_err() || found == site.patch.window_bytes() {
            return Ok(());
        }
        if found == new {
            return Err(Error::AlreadyDetoured { target: site.target });
        }
        match (new.split_first(), found.split_first()) {
            (Some((&expected, tail)), Some((&found, behind))) if *tail == *behind => {
                Err(Error::Changed { address, expected, found })
            }
            _ => Ok(()),
        }
    }

    /// Whether a detour that is [planned](Session::plan) may be given up: its patch is not in the text. Of any other it says
    /// nothing.
    ///
    /// # Errors
    /// [`Error::AlreadyDetoured`] if it is: take that back, or [`assume`](Self::assume) it. [`Error::Changed`] if it is under
    /// somebody's breakpoint. What the host says.
    pub fn may_be_given_up(&self, handle: Handle) -> Result<(), Error> {
        let site = self.record(handle).and_then(|record| self.sites.get(record.slot.address));
        site.filter(|site| site.planned).map_or(Ok(()), |site| self.check_unwritten(site))
    }

    /// Makes sure that whoever meets a breakpoint at the first byte of a [planned](Session::plan) patch's window goes on at the
    /// trampoline: for somebody who writes it with one, where a non-maskable interrupt may still come by.
    ///
    /// # Errors
    /// [`Error::NotAttached`]; [`Error::OutOfMemory`]; what the host says. It stays planned.
    pub fn answer_plan(&mut self, handle: Handle) -> Result<(), Error> {
        let patch = self.record(handle).and_then(|record| record.patch).ok_or(Error::NotAttached)?;
        self.answer(&[Change::attach(patch)], Protocol::Local).map_err(|failed| failed.error)
    }

    /// Whether a detour is [planned](Session::plan): somebody else may write its patch at any time.
    pub fn is_planned(&self, record: &Record) -> bool {
        self.sites.get(record.slot.address).is_some_and(|site| site.planned)
    }

    /// Whether a handle was given out once, and names nothing any more.
    pub fn is_over(&self, handle: Handle) -> bool {
        self.record(handle).is_none() && self.records.was_given(handle)
    }

    /// Treats a detour as detached without writing its target, whose memory is about to go, or has gone. All detours of
    /// the target then drain, and `announce` is told that the original of each is the trampoline now: whoever is inside
    /// one of them comes to no other one. A detour that is [planned](Session::plan) drains already: from now on nobody asks whether
    /// its patch is in the text.
    ///
    /// # Safety
    /// The patch is not in the text any more, or nobody executes it from now on: its slot is freed as if it were not there.
    ///
    /// # Errors
    /// [`Error::NotAttached`]; [`Error::OutOfMemory`], and it stays attached.
    pub unsafe fn forget(
        &mut self,
        handle: Handle,
        announce: &mut dyn FnMut(&Record, u64),
    ) -> Result<(), Error> {
        let &Record { target, patch, state, slot: Span { address: slot, .. }, .. } =
            self.record(handle).ok_or(Error::NotAttached)?;
        if state == State::Draining {
            let planned = self.sites.get_mut(slot).filter(|site| site.planned);
            planned.ok_or(Error::NotAttached)?.planned = false;
            return Ok(());
        }
        if patch.is_none() {
            self.let_pointer_go(target, announce);
            return Ok(());
        }
        let mut users = Vec::new();
        let attached = |user: &&Handle| self.record(**user).is_some_and(|one| one.state == State::Attached);
        let all = self.sites.get(slot).map_or(&[][..], |site| &site.users);
        users.try_reserve_exact(all.len())?;
        users.extend(all.iter().filter(attached));
        users.iter().for_each(|&user| self.set_state(user, State::Draining));
        self.sites.set_live(slot, false);
        self.publish().inspect_err(|_| {
            users.iter().for_each(|&user| self.set_state(user, State::Attached));
            self.sites.set_live(slot, true);
        })?;
        self.announce(slot, announce);
        if let Some(site) = self.sites.get(slot).filter(|site| !site.method.writes()) {
            self.host.clear_register(site.patch.address());
        }
        Ok(())
    }

    /// Treats a detour that was [planned](Session::plan), or detached, as attached: the caller has written its
    /// [patch](Record::patch) itself. `announce` is told the originals. The way back is [`forget`](Self::forget), once the caller
    /// has written the original bytes again, or a session that detaches it.
    ///
    /// # Safety
    /// The patch was written where nobody stood inside the window, and every processor has fetched its bytes anew since.
    ///
    /// # Errors
    /// [`Error::NotAttached`] for anything that does not drain; [`Error::AlreadyDetoured`] if the target is patched already;
    /// [`Error::Changed`] if the bytes are not those of the patch; a refusal of a shape that traps. It is planned as before then.
    pub unsafe fn assume(
        &mut self,
        handle: Handle,
        announce: &mut dyn FnMut(&Record, u64),
    ) -> Result<(), Error> {
        let record = self.record(handle).filter(|record| record.state == State::Draining);
        let Record { target, patch, slot, .. } = *record.ok_or(Error::NotAttached)?;
        let patch = patch.ok_or(Error::NotAttached)?;
        let site = self.sites.get(slot.address).ok_or(Error::NotAttached)?;
        let leads_elsewhere = patch.relay().is_some() && site.patch.detour() != patch.detour();
        // Nobody answers those who meet its breakpoints.
        if Site::is_trapping(patch.shape()) {
            return Err(kdetour_plan::Refusal::NoShape { address: patch.address() }.into());
        }
        if site.live || leads_elsewhere || self.sites.overlaps(crate::sites::span(&patch)) {
            return Err(Error::AlreadyDetoured { target });
        }
        let (expected, len) = patch.patched_bytes();
        let mut found = [0; kdetour_plan::MAX_DISPLACED];
        let found = found.get_mut(..len).unwrap_or_default();
        self.host.read(patch.address(), found)?;
        let mut bytes = expected.iter().zip(found.iter()).enumerate();
        if let Some((at, (&expected, &found))) = bytes.find(|(_, (expected, found))| expected != found) {
            let address = patch.address().wrapping_add(at as u64);
            return Err(Error::Changed { address, expected, found });
        }
        self.records.reserve(1)?;
        self.sites.reserve(1)?;
        self.answer(&[Change::attach(patch)], Protocol::Exchange).map_err(|failed| failed.error)?;
        if let Some(site) = self.sites.get_mut(slot.address) {
            site.patch = patch;
            site.planned = false;
            site.users.retain(|&user| user != handle);
            // There is room: it was among them.
            site.users.push(handle);
        }
        self.sites.set_live(slot.address, true);
        self.set_state(handle, State::Attached);
        self.records.hold_cell(handle);
        self.announce(slot.address, announce);
        Ok(())
    }

    /// Whether the patch of an attached detour has gone by itself: nothing is mapped at the target any more, or its
    /// original bytes are there again, as when a page is given back to the file that it came from. So it is with a pointer.
    pub fn has_vanished(&self, handle: Handle) -> bool {
        let Some(&Record { target, patch, method, .. }) = self.record(handle) else { return false };
        let Some(patch) = patch else { return self.is_pointer_away(target) };
        let mut found = [0; MAX_WINDOW];
        let original = patch.window_bytes();
        let found = found.get_mut(..original.len()).unwrap_or_default();
        match self.host.read(patch.address(), found) {
            Ok(()) => found == original && method.writes(),
            Err(error) => matches!(error, Error::Unreadable { .. }),
        }
    }

    /// Forgets everything, breakpoint tables too. No handler answers any more, nothing is attached.
    pub fn stop(mut self) {
        self.records.clear();
        self.sites.clear();
        self.pointers.clear();
        if self.publish().is_ok() {
            self.free_tables();
        }
    }

    /// Makes sure that whoever meets a breakpoint of these changes, or later one that they leave behind, is answered.
    pub(crate) fn answer(&mut self, changes: &[Change], protocol: Protocol) -> Result<(), CommitError> {
        for change in changes {
            let patch = change.patch();
            if protocol != Protocol::Exchange || Site::is_trapping(patch.shape()) {
                self.sites.set_traps(patch.slot());
            }
        }
        if !self.sites.any_traps() {
            return Ok(());
        }
        // By exchange nobody traps who would not have trapped before, but for what is put in.
        let may_trap = |change: &Change| {
            protocol != Protocol::Exchange || change.is_attach() && Site::is_trapping(change.patch().shape())
        };
        if changes.iter().any(may_trap) {
            self.host.arm().map_err(CommitError::before)?;
        }
        self.publish().map_err(CommitError::before)
    }

    /// Makes sure that whoever traps by a debug register that is about to be set, or leads elsewhere now, is answered.
    pub(crate) fn answer_registers(&mut self, registers: &[Register]) -> Result<(), CommitError> {
        let coming = || registers.iter().filter(|register| register.turns == Turns::On);
        if let Some(Register { request: index, .. }) = coming().next().copied() {
            self.host.arm().map_err(|error| CommitError { index, ..CommitError::before(error) })?;
        }
        coming().for_each(|register| self.sites.set_traps(register.slot));
        self.publish().map_err(CommitError::before)
    }

    /// Publishes the breakpoints' answers for all sites: the detour where the patch is in the text, the trampoline
    /// where it is not any more. Lets old tables go when enough of them wait.
    pub(crate) fn publish(&mut self) -> Result<(), Error> {
        self.publish_without(&Gone::nobody())
    }

    pub(crate) fn publish_without(&mut self, gone: &Gone) -> Result<(), Error> {
        if !self.sites.any_traps() && !self.answers {
            return Ok(());
        }
        let mut boundaries = Vec::new();
        self.retired.try_reserve(1)?;
        for site in self.sites.iter().filter(|site| site.traps) {
            if gone.takes(site) {
                continue;
            }
            boundaries.try_reserve(1 + kdetour_plan::MAX_WINDOW)?;
            let records = || site.users.iter().filter_map(|&user| self.records.get(user));
            let youngest = records().rev().find(|record| record.state == State::Attached);
            let rank = site.rank;
            let attached = youngest.is_some();
            let patch = &site.patch;
            let detour = youngest.map_or(patch.detour(), |record| record.detour);
            let mut answer = |at, resume| boundaries.push(Boundary { at, resume, attached, rank });
            answer(patch.address(), if attached { detour } else { patch.trampoline() });
            if let Some(relay) = patch.relay() {
                answer(relay, detour);
            }
            if Site::is_trapping(patch.shape()) {
                for inside in patch.boundaries().skip(1) {
                    answer(patch.address().wrapping_add(u64::from(inside.offset)), inside.address);
                }
            }
        }
        self.answers = !boundaries.is_empty();
        match self.host.breakpoints().publish(boundaries)? {
            Some(old) => self.retired.push(old),
            None => return Ok(()),
        }
        if self.retired.len() >= self.next_free {
            self.free_tables();
            self.next_free = self.retired.len() + H::OLD_TABLES;
        }
        Ok(())
    }

    fn free_tables(&mut self) {
        // Those that somebody may still be reading are tried again with the next ones.
        let _ = breakpoints::free(&mut self.retired, &self.host);
    }
}

/// Fills slots with INT3: whoever still comes there is stopped at once instead of running something else.
pub(crate) fn poison<T: Text>(text: &mut T, slots: impl Iterator<Item = Span>) -> Result<(), Error> {
    const INT3: [u8; MAX_SLOT] = [0xcc; MAX_SLOT];
    let mut writes = Vec::new();
    for slot in slots {
        writes.try_reserve(1)?;
        // No slot is longer than the longest that a plan asks for.
        writes.push((slot.address, INT3.get(..slot.len).unwrap_or(&INT3)));
    }
    writes.sort_unstable_by_key(|(address, _)| *address);
    text.write_many(&writes).map_err(|(_, error)| error)
}
