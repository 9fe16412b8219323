//! Exchanging pages of text beside threads that run there.
//!
//! A page that is to change is made anew elsewhere, of the same file, gets the bytes that are there now with the change,
//! and is moved over the old one by one `mremap`. A thread that runs there meanwhile faults and waits in the kernel until
//! the new page is in place: it sees all old bytes or all new ones, across page borders, too. Nobody is interrupted, no
//! breakpoint is met, and the list of mappings still names the file.
//!
//! The new pages lie in a *scratch* mapping, which has the protection of the text from the start and is filled through
//! `/proc/self/mem`. Pages that are to become what the file has are left as they are, so that the last change that is taken
//! back leaves no copy behind.
//!
//! Every move waits until the threads that run there have gone into the kernel, and may leave a mapping of its own behind: the
//! kernel joins mappings only if they come from one `open` of the file, and the loader's is not ours. So pages that change
//! and lie near each other are moved at once, together with those between: these are the file's own in the scratch
//! mapping, too, and are copied only where the process has a copy of its own, which `/proc/self/pagemap` tells. A
//! thousand scattered pages are then three mappings and one move, instead of two thousand mappings and a thousand moves.
//!
//! What `mremap` finds at the destination it unmaps first. So everything for which it could fail afterwards is looked for
//! before: the number of mappings, seals, the kind of mapping; and if it fails nevertheless it is tried again. Only the
//! pages concerned are asked for: all mappings are counted where several moves follow one another, and the last could
//! fail when the first is made.

mod foresee;
mod scratch;

use super::maps::{Mapping, Mappings};
use super::memory::{Memory, overlay};
use super::near::page_down;
use super::{PAGE, query};
use crate::Error;
use core::ops::Range;
use core::time::Duration;
use foresee::{has_room, is_unsealed, kind, same_file};
use rustix::fd::OwnedFd;
use rustix::mm::ProtFlags;
use scratch::{Scratch, copies, copy_page, opened, read_file};
use std::vec::Vec;

/// How many mappings a process may have, where the kernel does not tell.
const MAX_MAPPINGS: usize = 65_530;
/// So many more are kept free: those that others make meanwhile.
const SPARE_MAPPINGS: usize = 64;
/// So long a number of mappings counts as known: to make half of [`MAX_MAPPINGS`] takes longer.
const FRESH: Duration = Duration::from_millis(5);
/// How often a page that is missing is put in place again.
const TRIES: usize = 10_000;
/// Pages that stay as they are, but are moved, too, where they lie between two that change. Whoever runs there has to fault
/// them in again, sixteen at a time, which costs less than another move.
const MAX_BETWEEN: u64 = 64 * PAGE;

/// Bytes to be written, and where.
pub(super) type Write<'a> = (u64, &'a [u8]);

/// Why pages were not exchanged. What was exchanged already has been exchanged back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) error: Error,
    /// Whether anything was new for a while: a thread may have run there.
    pub(super) written: bool,
}

/// Writes all or nothing by exchanging the pages.
///
/// # Errors
/// As [`Exchange::prepare`] and [`Exchange::commit`].
pub(super) fn exchange(memory: &Memory, writes: &[Write<'_>]) -> Result<(), Failed> {
    let before = |error| Failed { error, written: false };
    Exchange::prepare(memory, writes).map_err(before)?.commit()
}

/// Pages that are ready to take the place of what is mapped.
#[derive(Debug)]
pub struct Exchange<'a> {
    memory: &'a Memory,
    /// In the order of their addresses.
    writes: Vec<Write<'a>>,
    runs: Vec<Run>,
    groups: Vec<Group>,
    /// Which pages are the process's own copies; none if nobody tells, or nobody has to know.
    pagemap: Option<OwnedFd>,
    /// What the pages of all runs become, one after the other.
    after: Vec<u8>,
    /// What was under the writes, one after the other.
    before: Vec<u8>,
    /// Room for the longest run.
    present: Vec<u8>,
    /// Memory that is given up if the kernel has none left for moving a page that was writable.
    reserve: Option<Scratch>,
}

/// What is moved at once.
#[derive(Debug)]
struct Group {
    /// Its runs. What lies between them is the file's.
    runs: Range<usize>,
    end: u64,
    scratch: Option<Scratch>,
}

/// Adjacent pages that are copied, changed or not.
#[derive(Clone, Debug)]
struct Run {
    start: u64,
    len: usize,
    protection: ProtFlags,
    /// Position among the mappings of one that has its file; none if the pages become anonymous memory.
    file: Option<usize>,
    /// Its writes.
    writes: Range<usize>,
    /// Where in `after` it begins.
    offset: usize,
}

impl Run {
    const fn end(&self) -> u64 {
        self.start.wrapping_add(self.len as u64)
    }
}

impl<'a> Exchange<'a> {
    /// Makes the new pages. Nothing that is in use changes.
    ///
    /// # Errors
    /// [`Error::NotExchangeable`], [`Error::Unreadable`], [`Error::OutOfMemory`] (which may be the number of mappings,
    /// too) or [`Error::Host`].
    pub(super) fn prepare(memory: &'a Memory, writes: &[Write<'a>]) -> Result<Self, Error> {
        let mut exchange = Self {
            memory,
            writes: Vec::new(),
            runs: Vec::new(),
            groups: Vec::new(),
            pagemap: None,
            after: Vec::new(),
            before: Vec::new(),
            present: Vec::new(),
            reserve: None,
        };
        exchange.writes.try_reserve_exact(writes.len())?;
        exchange.writes.extend(writes.iter().filter(|(_, bytes)| !bytes.is_empty()));
        // Of two that overlap the later one counts.
        exchange.writes.sort_by_key(|&(address, _)| address);
        let (mappings, complete) = query::within(exchange.spans())?;
        exchange.find_runs(&mappings)?;
        exchange.find_groups(&mappings)?;
        exchange.foresee(&mappings, complete)?;
        exchange.read()?;
        exchange.map(&mappings)?;
        Ok(exchange)
    }

    /// Where the pages lie that change, and those between that may be moved with them.
    fn spans(&self) -> impl Iterator<Item = (u64, u64)> {
        self.writes.iter().enumerate().map(|(index, &(address, bytes))| {
            let end = page_down(address.saturating_add(bytes.len() as u64 - 1)).saturating_add(PAGE);
            let next = self.writes.get(index + 1).map(|&(next, _)| page_down(next));
            let near = next.filter(|next| next.saturating_sub(end) <= MAX_BETWEEN);
            (page_down(address), near.unwrap_or(end).max(end))
        })
    }

    /// Which pages are exchanged together.
    fn find_runs(&mut self, mappings: &Mappings) -> Result<(), Error> {
        self.runs.try_reserve(self.writes.len())?;
        for (index, &(address, bytes)) in self.writes.iter().enumerate() {
            let last = address.checked_add(bytes.len() as u64 - 1).ok_or(Error::Unreadable { address })?;
            let (start, end) = (page_down(address), page_down(last).saturating_add(PAGE));
            let (protection, file) = kind(mappings, start, end)?;
            let one = |start: u64, file| Run {
                start,
                len: usize::try_from(end.wrapping_sub(start)).unwrap_or_default(),
                protection,
                file,
                writes: index..index + 1,
                offset: 0,
            };
            let Some(run) = self.runs.last_mut().filter(|run| start <= run.end()) else {
                self.runs.push(one(start, file));
                continue;
            };
            let alike = run.protection == protection && same_file(mappings, run.file, file);
            if start == run.end() && !alike {
                self.runs.push(one(start, file));
                continue;
            }
            // A page is exchanged once.
            if run.protection != protection {
                return Err(Error::NotExchangeable { address });
            }
            let joined = one(run.start, if alike { run.file } else { None });
            *run = Run { writes: run.writes.start..index + 1, len: joined.len.max(run.len), ..joined };
        }
        Ok(())
    }

    /// Which runs are moved together, and what is copied between them.
    fn find_groups(&mut self, mappings: &Mappings) -> Result<(), Error> {
        let runs = core::mem::take(&mut self.runs);
        self.groups.try_reserve(runs.len())?;
        self.runs.try_reserve(runs.len())?;
        let mut rest = runs.as_slice();
        while let Some(first) = rest.first() {
            let mut count = 1;
            if first.file.is_some() {
                let pairs = rest.iter().zip(rest.iter().skip(1));
                count += pairs.take_while(|(one, next)| self.can_join(mappings, one, next)).count();
            }
            let (group, behind) = rest.split_at(count);
            let begin = self.runs.len();
            let end = group.last().map_or(first.end(), Run::end);
            self.add_group(group)?;
            self.groups.push(Group { runs: begin..self.runs.len(), end, scratch: None });
            rest = behind;
        }
        Ok(())
    }

    /// Whether two runs and what lies between them are of one mapping of a file, or of parts of one.
    fn can_join(&mut self, mappings: &Mappings, one: &Run, next: &Run) -> bool {
        if next.start.wrapping_sub(one.end()) > MAX_BETWEEN
            || one.protection != next.protection
            || !same_file(mappings, one.file, next.file)
        {
            return false;
        }
        if one.end() == next.start {
            return true;
        }
        let between = kind(mappings, one.end(), next.start);
        let alike = between.is_ok_and(|(protection, file)| {
            protection == one.protection && same_file(mappings, file, one.file)
        });
        if alike && self.pagemap.is_none() {
            self.pagemap = opened(c"/proc/thread-self/pagemap").map(|(file, _)| file);
        }
        alike && self.pagemap.is_some()
    }

    /// Adds the runs of a group, and the copies between them as runs without writes.
    fn add_group(&mut self, group: &[Run]) -> Result<(), Error> {
        let Some(first) = group.first() else { return Ok(()) };
        let mut at = first.start;
        for run in group {
            let mut outcome = Ok(());
            let runs = &mut self.runs;
            copies(self.pagemap.as_ref(), at, run.start, &mut |page| {
                outcome = outcome.and(runs.try_reserve(1).map_err(Error::from));
                if outcome.is_ok() {
                    runs.push(Run { start: page, len: PAGE as usize, writes: 0..0, ..first.clone() });
                }
                outcome
            })?;
            self.runs.try_reserve(1)?;
            self.runs.push(run.clone());
            at = run.end();
        }
        Ok(())
    }

    /// Looks for everything that would make the kernel refuse in the middle.
    fn foresee(&self, mappings: &Mappings, complete: bool) -> Result<(), Error> {
        let count = if complete { Some(mappings.iter().count()) } else { None };
        // Where there are too many mappings a single move fails before anything is unmapped: mremap(2) looks for that
        // itself, in every kernel that answers queries.
        if complete || self.groups.len() > 1 {
            has_room(count, self.groups.len())?;
        }
        let mut checked = 0;
        for (start, end) in self.groups.iter().filter_map(|group| self.bounds(group)) {
            for mapping in mappings.within(start, end) {
                if mapping.end > checked {
                    is_unsealed(mapping, start, end)?;
                    checked = mapping.end;
                }
            }
        }
        Ok(())
    }

    /// Reads what is there, and puts the writes into the copy.
    fn read(&mut self) -> Result<(), Error> {
        let all = self.runs.iter().map(|run| run.len).sum();
        self.after.try_reserve_exact(all)?;
        self.after.resize(all, 0);
        let longest = self.runs.iter().map(|run| run.len).max().unwrap_or_default();
        self.present.try_reserve_exact(longest)?;
        self.present.resize(longest, 0);
        self.before.try_reserve_exact(self.writes.iter().map(|(_, bytes)| bytes.len()).sum())?;
        let mut offset = 0;
        for run in &mut self.runs {
            run.offset = offset;
            offset += run.len;
            let after = self.after.get_mut(run.offset..offset).unwrap_or_default();
            self.memory.read(run.start, after)?;
            let writes = self.writes.get(run.writes.clone()).unwrap_or_default();
            for &(address, bytes) in writes {
                let from = usize::try_from(address.wrapping_sub(run.start)).unwrap_or(usize::MAX);
                self.before.extend(after.iter().skip(from).take(bytes.len()));
            }
            overlay(run.start, after, writes);
        }
        Ok(())
    }

    /// Where a group begins and ends.
    fn bounds(&self, group: &Group) -> Option<(u64, u64)> {
        Some((self.runs.get(group.runs.start)?.start, group.end))
    }

    /// Maps the scratch mappings, and fills them.
    fn map(&mut self, mappings: &Mappings) -> Result<(), Error> {
        for index in 0..self.groups.len() {
            let Some(group) = self.groups.get(index) else { break };
            let Some(first) = self.runs.get(group.runs.start) else { break };
            let (start, end, protection) = (first.start, group.end, first.protection);
            let mapping = first.file.and_then(|file| mappings.get(file));
            let of_file = match mapping {
                Some(mapping) => Scratch::of_file(mapping, start, end, protection)?,
                None => None,
            };
            let len = usize::try_from(end.wrapping_sub(start)).unwrap_or_default();
            let (scratch, file) = match of_file {
                Some((scratch, file)) => (scratch, Some(file)),
                None => (Scratch::anonymous(start, len, protection)?, None),
            };
            if let (None, Some(_)) = (&file, mapping) {
                // Of a file that is not to be had any more. What lies between the runs has to be copied, too.
                self.copy_all_between(index, &scratch)?;
            }
            if !self.memory.can_write() && self.reserve.as_ref().is_none_or(|reserve| reserve.len < len) {
                self.reserve = Some(Scratch::anonymous(0, len, ProtFlags::READ | ProtFlags::WRITE)?);
            }
            for run in self.groups.get(index).map_or(0..0, |group| group.runs.clone()) {
                self.fill(run, &scratch, file.as_ref().zip(mapping))?;
            }
            if let Some(group) = self.groups.get_mut(index) {
                group.scratch = Some(scratch);
            }
        }
        Ok(())
    }

    /// Fills the place of a run, unless it is there already because the file has the same.
    fn fill(
        &mut self,
        run: usize,
        scratch: &Scratch,
        file: Option<(&OwnedFd, &Mapping)>,
    ) -> Result<(), Error> {
        let Some(run) = self.runs.get(run) else { return Ok(()) };
        let after = self.after.get(run.offset..run.offset + run.len).unwrap_or_default();
        if let Some((file, mapping)) = file {
            let bytes = self.present.get_mut(..run.len).unwrap_or_default();
            let offset = run.start.wrapping_sub(mapping.start).wrapping_add(mapping.offset);
            if read_file(file, offset, bytes).is_some() && bytes == after {
                return Ok(());
            }
        }
        scratch.fill(self.memory, run.start, run.protection, after)
    }

    /// Fills everything between the runs of a group with what is there.
    fn copy_all_between(&mut self, group: usize, scratch: &Scratch) -> Result<(), Error> {
        let runs =
            self.groups.get(group).and_then(|group| self.runs.get(group.runs.clone())).unwrap_or_default();
        for (one, next) in runs.iter().zip(runs.iter().skip(1)) {
            let mut page = one.end();
            while page < next.start {
                copy_page(self.memory, scratch, page, one.protection, &mut self.present)?;
                page += PAGE;
            }
        }
        Ok(())
    }

    /// Puts the new pages in place, group by group. Allocates nothing, unless it fails in the middle.
    ///
    /// # Errors
    /// [`Failed`], with any error of [`prepare`](Self::prepare): the mappings may have changed meanwhile.
    pub(super) fn commit(mut self) -> Result<(), Failed> {
        for index in 0..self.groups.len() {
            if let Err(error) = self.exchange(index) {
                self.undo(index);
                return Err(Failed { error, written: index > 0 });
            }
        }
        Ok(())
    }

    fn exchange(&mut self, index: usize) -> Result<(), Error> {
        let Some(group) = self.groups.get_mut(index) else { return Ok(()) };
        let Some(scratch) = group.scratch.as_mut() else { return Ok(()) };
        let runs = self.runs.get(group.runs.clone()).unwrap_or_default();
        let mut at = scratch.text;
        for run in runs {
            // Somebody else may have written beside it, or between, since.
            let (memory, present, protection) = (self.memory, &mut self.present, run.protection);
            copies(self.pagemap.as_ref(), at, run.start, &mut |page| {
                copy_page(memory, scratch, page, protection, present)
            })?;
            let present = self.present.get_mut(..run.len).unwrap_or_default();
            self.memory.read(run.start, present)?;
            overlay(run.start, present, self.writes.get(run.writes.clone()).unwrap_or_default());
            if self.after.get(run.offset..run.offset + run.len) != Some(&*present) {
                scratch.fill(self.memory, run.start, run.protection, present)?;
            }
            at = run.end();
        }
        scratch.take_the_place(self.memory, &mut self.reserve)
    }

    /// Exchanges the first groups back.
    fn undo(&self, groups: usize) {
        let runs =
            groups.checked_sub(1).and_then(|last| self.groups.get(last)).map_or(0, |last| last.runs.end);
        let count = self.runs.iter().take(runs).map(|run| run.writes.end).max().unwrap_or_default();
        let mut writes = Vec::new();
        if writes.try_reserve_exact(count).is_err() {
            return;
        }
        let mut rest = self.before.as_slice();
        for &(address, bytes) in self.writes.iter().take(count) {
            let (before, behind) = rest.split_at_checked(bytes.len()).unwrap_or_default();
            writes.push((address, before));
            rest = behind;
        }
        if let Ok(exchange) = Exchange::prepare(self.memory, &writes) {
            // If this fails there is nothing left to be done.
            let _ = exchange.commit_or_leave();
        }
    }

    /// As [`commit`](Self::commit), but goes on where it fails.
    fn commit_or_leave(mut self) -> Result<(), Error> {
        (0..self.groups.len()).map(|index| self.exchange(index)).fold(Ok(()), Result::and)
    }
}

#[cfg(test)]
mod tests;
