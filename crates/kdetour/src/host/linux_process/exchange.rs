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

use super::maps::{Mapping, Mappings};
use super::memory::{Memory, overlay};
use super::near::page_down;
use super::{PAGE, file, query, refused};
use crate::Error;
use core::ffi::c_void;
use core::ops::Range;
use core::ptr;
use core::time::Duration;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, major, minor, stat};
use rustix::io::{Errno, pread, retry_on_intr};
use rustix::mm::{
    MapFlags, MprotectFlags, MremapFlags, ProtFlags, mmap, mmap_anonymous, mprotect, mremap_fixed, munmap,
};
use rustix::path::Arg;
use rustix::thread::sched_yield;
use std::format;
use std::sync::Mutex;
use std::time::Instant;
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

/// The protection of pages, and which mapping has their file: none if it is not one file.
fn kind(mappings: &Mappings, start: u64, end: u64) -> Result<(ProtFlags, Option<usize>), Error> {
    let position = mappings.position(start).ok_or(Error::Unreadable { address: start })?;
    let mut found: Option<ProtFlags> = None;
    let mut file = Some(position);
    let mut at = start;
    for (index, mapping) in mappings.within(start, end).enumerate() {
        if mapping.start > at {
            break;
        }
        let protection = protection(mapping).ok_or(Error::NotExchangeable { address: at })?;
        if found.is_some_and(|found| found != protection) {
            return Err(Error::NotExchangeable { address: at });
        }
        found = Some(protection);
        if !same_file(mappings, file, Some(position + index)) {
            file = None;
        }
        at = mapping.end;
    }
    if at < end {
        return Err(Error::Unreadable { address: at });
    }
    Ok((found.unwrap_or(ProtFlags::empty()), file))
}

/// Whether two mappings, given by their positions, show one file with the same distance between address and offset.
fn same_file(mappings: &Mappings, one: Option<usize>, other: Option<usize>) -> bool {
    let get = |position: Option<usize>| position.and_then(|position| mappings.get(position));
    let (Some(one), Some(other)) = (get(one), get(other)) else { return one == other };
    let bias = |mapping: &Mapping| mapping.start.wrapping_sub(mapping.offset);
    one.inode != 0 && one.is_of_the_same_file(other) && bias(one) == bias(other)
}

/// The protection of a mapping that can be exchanged; none if it cannot.
fn protection(mapping: &Mapping) -> Option<ProtFlags> {
    // Names in brackets are the kernel's own pages and stacks; but anonymous memory may have been given one by its owner.
    let named = [&b"["[..], b"anon_inode:", b"/anon_hugepage"];
    let named = named.iter().any(|name| mapping.path.starts_with(name));
    let anonymous = mapping.path.starts_with(b"[anon:") || mapping.path == b"[heap]";
    // What is written there while the page is copied would be lost.
    if mapping.shared || mapping.writable || named && !anonymous {
        return None;
    }
    let mut protection = ProtFlags::empty();
    protection.set(ProtFlags::READ, mapping.readable);
    protection.set(ProtFlags::EXEC, mapping.executable);
    Some(protection)
}

/// A sealed mapping (mseal(2)) refuses even to be given the protection that it has. Only what lies between `start` and `end`
/// is asked for: who gets what it has is not split.
fn is_unsealed(mapping: &Mapping, start: u64, end: u64) -> Result<(), Error> {
    let mut protection = MprotectFlags::empty();
    protection.set(MprotectFlags::READ, mapping.readable);
    protection.set(MprotectFlags::EXEC, mapping.executable);
    let start = start.max(mapping.start);
    let len = usize::try_from(end.min(mapping.end).wrapping_sub(start)).unwrap_or_default();
    // SAFETY: this is the protection that it has, so nothing changes; if it was unmapped meanwhile it is an error.
    unsafe { mprotect(pointer(start), len, protection) }.map_err(|error| failure(error, start))
}

/// How many mappings there were, and when.
#[derive(Clone, Copy, Debug)]
struct Counted {
    mappings: usize,
    at: Instant,
}

/// Nobody waits for the lock: in the child of a `fork` its holder may be missing.
static COUNTED: Mutex<Option<Counted>> = Mutex::new(None);

/// Whether so many groups may become mappings of their own, and so what follows each. The mappings are counted, unless
/// that was done a moment ago, and only half of what is allowed was there: nobody makes so many so soon.
fn has_room(count: Option<usize>, groups: usize) -> Result<(), Error> {
    let most = file::contents(c"/proc/sys/vm/max_map_count").ok();
    let most = most.as_deref().and_then(|text| core::str::from_utf8(text).ok()?.trim().parse().ok());
    let most = most.unwrap_or(MAX_MAPPINGS);
    let needed = groups.saturating_mul(2).saturating_add(SPARE_MAPPINGS);
    let mut counted = COUNTED.try_lock().ok();
    if count.is_none()
        && let Some(Some(counted)) = counted.as_deref_mut()
        && counted.at.elapsed() < FRESH
        && counted.mappings.saturating_add(needed) <= most / 2
    {
        counted.mappings = counted.mappings.saturating_add(groups.saturating_mul(2));
        return Ok(());
    }
    let at = Instant::now();
    let mappings = match count {
        Some(count) => count,
        None => Mappings::read()?.iter().count(),
    };
    if let Some(counted) = &mut counted {
        **counted = Some(Counted { mappings: mappings.saturating_add(groups.saturating_mul(2)), at });
    }
    if mappings.saturating_add(needed) > most { Err(Error::OutOfMemory) } else { Ok(()) }
}

/// What the kernel's error means for the page at `address`.
fn failure(error: Errno, address: u64) -> Error {
    match error {
        Errno::NOMEM | Errno::AGAIN => Error::OutOfMemory,
        Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::FAULT => Error::NotExchangeable { address },
        _ => refused(error),
    }
}

fn pointer(address: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or_default())
}

/// Calls `copy` with every page from `start` up to `end` that the process has a copy of its own of, as `/proc/self/pagemap`
/// tells (proc_pid_pagemap(5)). Calls nothing if there is no such file.
fn copies(
    pagemap: Option<&OwnedFd>,
    start: u64,
    end: u64,
    copy: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<(), Error> {
    const ENTRY: u64 = size_of::<u64>() as u64;
    const SWAPPED: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 63;
    const OF_FILE: u64 = 1 << 61;
    let Some(pagemap) = pagemap else { return Ok(()) };
    let mut page = start;
    let mut entries = [0_u8; 64 * ENTRY as usize];
    while page < end {
        let wanted = usize::try_from((end - page) / PAGE * ENTRY).unwrap_or(usize::MAX).min(entries.len());
        let entries = entries.get_mut(..wanted).unwrap_or_default();
        let count = retry_on_intr(|| pread(pagemap, &mut *entries, page / PAGE * ENTRY)).map_err(refused)?;
        let (entries, _) = entries.get(..count).unwrap_or_default().as_chunks();
        if entries.is_empty() {
            return Err(Error::Unreadable { address: page });
        }
        for entry in entries {
            let entry = u64::from_le_bytes(*entry);
            if entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT {
                copy(page)?;
            }
            page += PAGE;
        }
    }
    Ok(())
}

/// Copies a page as it is.
fn copy_page(
    memory: &Memory,
    scratch: &Scratch,
    page: u64,
    protection: ProtFlags,
    room: &mut [u8],
) -> Result<(), Error> {
    let bytes = room.get_mut(..PAGE as usize).ok_or(Error::OutOfMemory)?;
    memory.read(page, bytes)?;
    scratch.fill(memory, page, protection, bytes)
}

/// Pages elsewhere that will be moved over others.
#[derive(Debug)]
struct Scratch {
    /// The address that its first byte will have.
    text: u64,
    base: u64,
    /// 0 if it has been moved.
    len: usize,
}

impl Scratch {
    fn new(text: u64, base: *mut c_void, len: usize) -> Self {
        Self { text, base: base.expose_provenance() as u64, len }
    }

    fn anonymous(text: u64, len: usize, protection: ProtFlags) -> Result<Self, Error> {
        // SAFETY: the kernel chooses the place, so no memory that anybody uses changes.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE) };
        base.map(|base| Self::new(text, base, len)).map_err(|error| failure(error, text))
    }

    /// The file's pages that are mapped from `start` to `end`, once more; none if the file is not to be had.
    fn of_file(
        mapping: &Mapping,
        start: u64,
        end: u64,
        protection: ProtFlags,
    ) -> Result<Option<(Self, OwnedFd)>, Error> {
        let Some((file, certain)) = open(mapping) else { return Ok(None) };
        let len = usize::try_from(end.wrapping_sub(start)).unwrap_or_default();
        let offset = start.wrapping_sub(mapping.start).wrapping_add(mapping.offset);
        // SAFETY: the kernel chooses the place, so no memory that anybody uses changes.
        let base = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::PRIVATE, &file, offset) };
        let base = match base {
            Ok(base) => base,
            Err(Errno::NOMEM) => return Err(Error::OutOfMemory),
            // The file system may have become `noexec`, the file shorter.
            Err(_) => return Ok(None),
        };
        let scratch = Self::new(start, base, len);
        if !certain {
            let (mappings, _) = query::within(core::iter::once((scratch.base, scratch.base + PAGE)))?;
            if !mappings.of(scratch.base).is_some_and(|new| new.is_of_the_same_file(mapping)) {
                return Ok(None);
            }
        }
        Ok(Some((scratch, file)))
    }

    /// Writes the pages that will be at `text`. At no time are they writable and executable.
    fn fill(&self, memory: &Memory, text: u64, protection: ProtFlags, bytes: &[u8]) -> Result<(), Error> {
        let offset = usize::try_from(text.wrapping_sub(self.text)).unwrap_or(usize::MAX);
        if offset.checked_add(bytes.len()).is_none_or(|end| end > self.len) {
            return Err(Error::Unreadable { address: text });
        }
        let address = self.base.wrapping_add(offset as u64);
        if memory.can_write() {
            return memory.write(address, bytes);
        }
        let protect = |protection| {
            // All of it, so that it stays one mapping: before Linux 6.17 `mremap` moves no more than one, and says so
            // only after it has unmapped what was to be replaced.
            // SAFETY: these pages are ours, and nobody else knows their address.
            let outcome = unsafe { mprotect(pointer(self.base), self.len, protection) };
            outcome.map_err(|error| failure(error, text))
        };
        protect(MprotectFlags::READ | MprotectFlags::WRITE)?;
        // SAFETY: so many bytes are ours from there on, writable since a moment ago; nobody refers to them.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), pointer(address).cast(), bytes.len()) };
        let mut own = MprotectFlags::empty();
        own.set(MprotectFlags::READ, protection.contains(ProtFlags::READ));
        own.set(MprotectFlags::EXEC, protection.contains(ProtFlags::EXEC));
        protect(own)
    }

    /// Moves it over what it replaces.
    fn take_the_place(&mut self, memory: &Memory, reserve: &mut Option<Self>) -> Result<(), Error> {
        let (from, to) = (pointer(self.base), pointer(self.text));
        let mut outcome = Ok(());
        for _ in 0..TRIES {
            // SAFETY: the scratch mapping is ours; what it replaces is text that has the same bytes, but for those that
            // the caller wants changed.
            let moved = unsafe { mremap_fixed(from, self.len, self.len, MremapFlags::MAYMOVE, to) };
            let Err(error) = moved else {
                self.len = 0;
                return Ok(());
            };
            outcome = Err(failure(error, self.text));
            if memory.read(self.text, &mut [0]).is_ok() {
                break;
            }
            // The old pages are gone, and the new ones are not there: whatever is missing, it has to come.
            *reserve = None;
            sched_yield();
        }
        outcome
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping is ours, and nobody else knows its address.
            let _ = unsafe { munmap(pointer(self.base), self.len) };
        }
    }
}

/// Opens the file of a mapping, and says whether it certainly is that one.
fn open(mapping: &Mapping) -> Option<(OwnedFd, bool)> {
    if mapping.inode == 0 {
        return None;
    }
    let regular = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let same = |stat: &Stat| (major(stat.st_dev), minor(stat.st_dev)) == mapping.device;
    // To open something else than a file might do something.
    let path =
        stat(mapping.path.as_slice()).ok().filter(|stat| regular(stat) && stat.st_ino == mapping.inode);
    let by_path = path.and_then(|_| opened(mapping.path.as_slice()));
    let by_path = by_path.filter(|(_, stat)| regular(stat) && stat.st_ino == mapping.inode);
    let uncertain = match by_path {
        Some((file, stat)) if same(&stat) => return Some((file, true)),
        other => other,
    };
    // This names a file that was deleted, too, but not everybody may follow it.
    let link = format!("/proc/self/map_files/{:x}-{:x}", mapping.start, mapping.end);
    let by_link = opened(link.as_str()).filter(|(_, stat)| regular(stat) && stat.st_ino == mapping.inode);
    // Some file systems have other devices for their files than for their mappings.
    by_link.or(uncertain).map(|(file, _)| (file, false))
}

fn opened(path: impl Arg + Copy) -> Option<(OwnedFd, Stat)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty())).ok()?;
    let stat = fstat(&file).ok()?;
    Some((file, stat))
}

/// Reads what a mapping of the file shows: nothing but zeros behind its end.
fn read_file(file: &OwnedFd, offset: u64, bytes: &mut [u8]) -> Option<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match retry_on_intr(|| pread(file, &mut *rest, offset.wrapping_add(done as u64))).ok()? {
            0 => {
                rest.fill(0);
                break;
            }
            count => done += count,
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::linux_process::fork::tests::in_child;
    use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
    use std::io::Write as _;
    use std::vec;

    const LEN: usize = PAGE as usize;

    core::arch::global_asm!(
        ".pushsection .text.exchanged, \"ax\", @progbits",
        ".balign 4096",
        ".skip 4093, 0xcc",
        "kdetour_test_exchanged: mov eax, 0x11111111",
        "ret",
        ".balign 4096, 0xcc",
        ".popsection",
    );

    /// Pages of code, as a program's text is mapped.
    struct Text {
        base: u64,
        pages: usize,
        path: Option<std::path::PathBuf>,
    }

    impl Text {
        /// Of a file, which has 0xc3 (`ret`) everywhere but for what `code` says.
        fn of_file(pages: usize, code: &[(usize, &[u8])]) -> Self {
            static NUMBER: AtomicU64 = AtomicU64::new(0);
            let name = format!("kdetour-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
            let path = std::env::temp_dir().join(name);
            let mut bytes = vec![0xc3; pages * LEN];
            for &(at, code) in code {
                bytes[at..at + code.len()].copy_from_slice(code);
            }
            std::fs::File::create_new(&path).unwrap().write_all(&bytes).unwrap();
            let file = opened(path.to_str().unwrap()).unwrap().0;
            let protection = ProtFlags::READ | ProtFlags::EXEC;
            let (len, flags) = (bytes.len(), MapFlags::PRIVATE);
            // SAFETY: the kernel chooses the place.
            let base = unsafe { mmap(ptr::null_mut(), len, protection, flags, &file, 0) }.unwrap();
            Self { base: base.expose_provenance() as u64, pages, path: Some(path) }
        }

        fn anonymous(pages: usize) -> Self {
            Self::with(pages, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE)
        }

        fn with(pages: usize, protection: ProtFlags, flags: MapFlags) -> Self {
            // SAFETY: the kernel chooses the place.
            let base = unsafe { mmap_anonymous(ptr::null_mut(), pages * LEN, protection, flags) }.unwrap();
            Self { base: base.expose_provenance() as u64, pages, path: None }
        }

        fn at(&self, offset: usize) -> u64 {
            self.base + offset as u64
        }

        fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            Memory::open().unwrap().read(self.at(offset), &mut bytes).unwrap();
            bytes
        }

        fn remove_file(&mut self) {
            std::fs::remove_file(self.path.take().unwrap()).unwrap();
        }

        /// How many mappings it consists of, which all must be `r-xp`, and whether all are of its file.
        fn mappings(&self) -> (usize, bool) {
            let mappings = Mappings::read().unwrap();
            let end = self.base + (self.pages * LEN) as u64;
            let all: Vec<_> = mappings.within(self.base, end).collect();
            assert!(all.iter().all(|one| one.readable && one.executable && !one.writable && !one.shared));
            // The kernel may have joined it with what lies beside it.
            let covered: u64 = all.iter().map(|one| one.end.min(end) - one.start.max(self.base)).sum();
            assert_eq!(covered, end - self.base, "pages are missing");
            let path = self.path.as_ref().map(|path| path.to_str().unwrap().as_bytes());
            let named = |one: &&Mapping| path.is_some_and(|path| one.path == path);
            (all.len(), all.iter().all(named))
        }
    }

    impl Drop for Text {
        fn drop(&mut self) {
            // SAFETY: it was mapped for this, and the threads that ran there have ended.
            let _ = unsafe { munmap(pointer(self.base), self.pages * LEN) };
            if self.path.is_some() {
                self.remove_file();
            }
        }
    }

    /// Both ways in which pages are filled.
    fn both() -> [Memory; 2] {
        let memory = Memory::open().unwrap();
        assert!(memory.can_write());
        [memory, Memory::without_file()]
    }

    #[test]
    fn bytes_change_and_the_mapping_stays() {
        for memory in both() {
            let text = Text::of_file(5, &[]);
            let at = LEN - 2;
            exchange(&memory, &[(text.at(3 * LEN + 7), &[9]), (text.at(at), &[1, 2, 3, 4])]).unwrap();
            assert_eq!(text.bytes(at - 1, 6), [0xc3, 1, 2, 3, 4, 0xc3]);
            assert_eq!(text.bytes(3 * LEN + 6, 3), [0xc3, 9, 0xc3]);
            assert!(text.mappings().1);
            // Back again, also where the new bytes were written by other means.
            let back = [0xc3; 4];
            exchange(&memory, &[(text.at(at), &back), (text.at(3 * LEN + 7), &back)]).unwrap();
            assert_eq!(text.bytes(0, 5 * LEN), vec![0xc3; 5 * LEN]);
            assert!(text.mappings().1);
        }
    }

    #[test]
    fn what_others_wrote_stays() {
        for memory in both() {
            let text = Text::of_file(1, &[]);
            let writer = Memory::open().unwrap();
            writer.write(text.at(100), &[7]).unwrap();
            let bytes = [1];
            let writes = [(text.at(0), &bytes[..])];
            let exchange = Exchange::prepare(&memory, &writes).unwrap();
            writer.write(text.at(200), &[8]).unwrap();
            exchange.commit().unwrap();
            assert_eq!([0, 100, 200, 300].map(|at| text.bytes(at, 1)[0]), [1, 7, 8, 0xc3]);
        }
    }

    #[test]
    fn nothing_is_written_before_the_commit() {
        for memory in both() {
            let text = Text::of_file(2, &[]);
            let lines = Mappings::read().unwrap().within(text.base, text.at(2 * LEN)).count();
            drop(Exchange::prepare(&memory, &[(text.at(5), &[1][..])]).unwrap());
            assert_eq!(text.bytes(0, 2 * LEN), vec![0xc3; 2 * LEN]);
            assert_eq!(text.mappings(), (lines, true));
        }
    }

    #[test]
    fn scattered_pages_are_moved_at_once() {
        let memory = Memory::open().unwrap();
        let text = Text::of_file(400, &[]);
        // A copy in between is kept.
        memory.write(text.at(6 * LEN), &[7]).unwrap();
        let writes: Vec<Write<'_>> =
            (0..400).step_by(4).map(|page| (text.at(page * LEN + 5), &[1][..])).collect();
        let exchange = Exchange::prepare(&memory, &writes).unwrap();
        assert_eq!(exchange.groups.len(), 1);
        // And one that comes later, too.
        memory.write(text.at(7 * LEN), &[8]).unwrap();
        exchange.commit().unwrap();
        let (count, named) = text.mappings();
        assert!(count <= 3 && named, "{count} mappings");
        for page in 0..400 {
            let expected = match page {
                6 => [7, 0xc3],
                7 => [8, 0xc3],
                _ if page % 4 == 0 => [0xc3, 1],
                _ => [0xc3, 0xc3],
            };
            assert_eq!([0, 5].map(|at| text.bytes(page * LEN + at, 1)[0]), expected, "page {page}");
        }
    }

    #[test]
    fn what_is_moved_is_one_mapping() {
        for memory in both() {
            for text in [Text::of_file(40, &[]), Text::anonymous(40)] {
                let writes = [1, 2, 9, 10, 30].map(|page| (text.at(page * LEN + 5), &[1][..]));
                let exchange = Exchange::prepare(&memory, &writes).unwrap();
                let mappings = Mappings::read().unwrap();
                for group in &exchange.groups {
                    let scratch = group.scratch.as_ref().unwrap();
                    let mapping = mappings.of(scratch.base).unwrap();
                    assert!(mapping.executable && !mapping.writable);
                    assert!(scratch.base + scratch.len as u64 <= mapping.end);
                }
                exchange.commit().unwrap();
                assert!([1, 2, 9, 10, 30].iter().all(|page| text.bytes(page * LEN + 5, 1) == [1]));
            }
        }
    }

    #[test]
    fn pages_that_are_as_in_the_file_are_no_copies() {
        for memory in both() {
            let text = Text::of_file(3, &[]);
            let count = || {
                let (pagemap, _) = opened(c"/proc/thread-self/pagemap").unwrap();
                let mut count = 0;
                let mut copy = |_| {
                    count += 1;
                    Ok(())
                };
                copies(Some(&pagemap), text.base, text.at(3 * LEN), &mut copy).unwrap();
                count
            };
            exchange(&memory, &[(text.at(LEN - 1), &[1, 2])]).unwrap();
            assert_eq!(count(), 2);
            exchange(&memory, &[(text.at(LEN - 1), &[0xc3, 0xc3])]).unwrap();
            assert_eq!((count(), text.bytes(0, 3 * LEN)), (0, vec![0xc3; 3 * LEN]));
        }
    }

    #[test]
    fn scratch_mappings_are_given_back() {
        let memory = Memory::open().unwrap();
        let text = Text::of_file(64, &[]);
        let of_file = || {
            let path = text.path.as_ref().unwrap().to_str().unwrap().as_bytes().to_vec();
            let mappings = Mappings::read().unwrap();
            let of_file = mappings.iter().filter(|one| one.path == path);
            of_file.map(|one| one.end - one.start).sum::<u64>()
        };
        assert_eq!(of_file(), 64 * PAGE);
        exchange(&memory, &[(text.at(1), &[1]), (text.at(50 * LEN), &[2])]).unwrap();
        assert_eq!(of_file(), 64 * PAGE);
    }

    #[test]
    fn a_deleted_file_and_no_file() {
        for memory in both() {
            let mut deleted = Text::of_file(3, &[]);
            deleted.remove_file();
            for text in [deleted, Text::anonymous(3)] {
                let before = text.bytes(0, 1)[0];
                // Twice: the second one straddles what may have become two kinds of memory.
                exchange(&memory, &[(text.at(LEN + 1), &[1])]).unwrap();
                exchange(&memory, &[(text.at(LEN - 1), &[2, 3])]).unwrap();
                exchange(&memory, &[(text.at(0), &[4])]).unwrap();
                assert_eq!(text.bytes(LEN - 2, 5), [before, 2, 3, 1, before]);
                assert_eq!(text.bytes(0, 2), [4, before]);
                text.mappings();
            }
        }
    }

    #[test]
    fn a_replaced_file_is_not_taken() {
        let memory = Memory::open().unwrap();
        let text = Text::of_file(2, &[]);
        let path = text.path.as_ref().unwrap();
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, vec![0; 2 * LEN]).unwrap();
        exchange(&memory, &[(text.at(9), &[1])]).unwrap();
        // Where the new file's page was mapped, giving the bytes back would show its zeros.
        exchange(&memory, &[(text.at(9), &[0xc3])]).unwrap();
        assert_eq!(text.bytes(0, 2 * LEN), vec![0xc3; 2 * LEN]);
    }

    #[test]
    fn what_cannot_be_exchanged_is_refused() {
        let read = ProtFlags::READ | ProtFlags::EXEC;
        let shared = Text::with(1, read, MapFlags::SHARED);
        let writable = Text::with(1, read | ProtFlags::WRITE, MapFlags::PRIVATE);
        let mappings = Mappings::read().unwrap();
        let vdso = mappings.iter().find(|mapping| mapping.path == b"[vdso]").unwrap().start;
        let good = Text::of_file(1, &[]);
        for address in [shared.at(0), writable.at(0), vdso] {
            for memory in both() {
                let failed = exchange(&memory, &[(good.at(0), &[1]), (address, &[1])]);
                assert_eq!(failed, Err(Failed { error: Error::NotExchangeable { address }, written: false }));
            }
        }
        let failed = exchange(&Memory::open().unwrap(), &[(good.at(LEN - 1), &[1]), (16, &[1])]);
        assert_eq!(failed.unwrap_err().error, Error::Unreadable { address: 0 });
        assert_eq!(good.bytes(0, LEN), vec![0xc3; LEN]);
    }

    #[test]
    fn sealed_pages_are_refused_before_anything_is_written() {
        const MSEAL: libc::c_long = 462;
        // Two mappings, the higher one sealed.
        let text = Text::anonymous(3);
        let sealed = text.at(2 * LEN);
        // SAFETY: this is the middle of what was mapped for this test.
        unsafe { munmap(pointer(text.at(LEN)), LEN) }.unwrap();
        // SAFETY: this forbids changes of what was mapped for this test.
        if unsafe { libc::syscall(MSEAL, sealed, LEN, 0_usize) } != 0 {
            // Before Linux 6.10 nothing is sealed.
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOSYS));
            return;
        }
        for memory in both() {
            let failed = exchange(&memory, &[(text.at(0), &[1]), (sealed, &[1])]);
            let error = Error::NotExchangeable { address: sealed };
            assert_eq!(failed, Err(Failed { error, written: false }));
        }
        assert_eq!((text.bytes(0, 1), text.bytes(2 * LEN, 1)), (vec![0], vec![0]));
    }

    #[test]
    fn what_fails_in_the_middle_is_taken_back() {
        for memory in both() {
            let first = Text::of_file(3, &[]);
            let second = Text::of_file(1, &[]);
            let mut writes = [(first.at(LEN), &[1][..]), (second.at(0), &[2][..])];
            writes.sort_unstable();
            let exchange = Exchange::prepare(&memory, &writes).unwrap();
            let (lower, higher) =
                if first.base < second.base { (&first, &second) } else { (&second, &first) };
            // SAFETY: it was mapped for this test, and nothing runs there.
            unsafe { munmap(pointer(higher.base), higher.pages * LEN) }.unwrap();
            let failed = exchange.commit().unwrap_err();
            assert!(
                matches!(failed, Failed { error: Error::Unreadable { .. }, written: true }),
                "{failed:?}"
            );
            assert_eq!(lower.bytes(0, lower.pages * LEN), vec![0xc3; lower.pages * LEN]);
            assert!(lower.mappings().1);
        }
    }

    #[test]
    fn too_many_mappings_are_found_before() {
        let text = Text::anonymous(12);
        let memory = Memory::open().unwrap();
        // In a child, since all others would starve.
        assert!(in_child(|| {
            let memory = Memory::open().unwrap();
            let protections = [ProtFlags::READ, ProtFlags::empty()].into_iter().cycle();
            let place = |protection| {
                // SAFETY: the kernel chooses the place.
                unsafe { mmap_anonymous(ptr::null_mut(), LEN, protection, MapFlags::PRIVATE) }
            };
            let mapped: Vec<_> = protections.take(1 << 20).map_while(|one| place(one).ok()).collect();
            // With little room the first exchange would succeed, and the second one not.
            (1000..1 << 20).contains(&mapped.len())
                && mapped.iter().rev().take(12).all(|&place| {
                    let failed = exchange(&memory, &[(text.at(LEN), &[1]), (text.at(9 * LEN), &[1])]);
                    // SAFETY: it was mapped above.
                    unsafe { munmap(place, LEN) }.unwrap();
                    // A single one succeeds or changes nothing, too.
                    let single = exchange(&memory, &[(text.at(LEN), &[0])]);
                    let out_of_memory = Err(Failed { error: Error::OutOfMemory, written: false });
                    failed == out_of_memory
                        && (single == out_of_memory || single.is_ok())
                        && memory.read(text.at(0), &mut [0; 12 * LEN]).is_ok()
                })
        }));
        exchange(&memory, &[(text.at(LEN), &[1])]).unwrap();
    }

    /// `mov eax, value; ret`.
    fn returning(value: u32) -> [u8; 6] {
        let [a, b, c, d] = value.to_le_bytes();
        [0xb8, a, b, c, d, 0xc3]
    }

    /// Threads call functions, one of them across a page border, while the pages are exchanged.
    fn stress(memory: &Memory, text: &Text, places: &[usize], threads: usize, time: Duration) {
        const OLD: u32 = 0x1111_1111;
        const NEW: u32 = 0xeeee_eeee;
        let stop = AtomicBool::new(false);
        let calls = AtomicU64::new(0);
        let seen_new = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for number in 0..threads {
                let (stop, calls, seen_new) = (&stop, &calls, &seen_new);
                let place = text.at(places[number % places.len()]);
                scope.spawn(move || {
                    let code = ptr::with_exposed_provenance::<()>(place as usize);
                    // SAFETY: there are the instructions of such a function, whatever number it returns.
                    let function: extern "C" fn() -> u32 = unsafe { core::mem::transmute(code) };
                    while !stop.load(Relaxed) {
                        for _ in 0..1000 {
                            match function() {
                                OLD => {}
                                NEW => _ = seen_new.fetch_add(1, Relaxed),
                                other => panic!("{other:#x} is neither old nor new"),
                            }
                        }
                        calls.fetch_add(1000, Relaxed);
                    }
                });
            }
            let begin = Instant::now();
            let mut exchanges = 0_u64;
            while begin.elapsed() < time || seen_new.load(Relaxed) == 0 {
                assert!(begin.elapsed() < time + Duration::from_secs(60), "nobody ran the new code");
                for value in [NEW, OLD] {
                    let code = returning(value);
                    let writes: Vec<Write<'_>> = places.iter().map(|&at| (text.at(at), &code[..])).collect();
                    exchange(memory, &writes).unwrap();
                    exchanges += 1;
                    std::thread::sleep(Duration::from_micros(3));
                }
            }
            stop.store(true, Relaxed);
            std::println!("{threads} threads, {exchanges} exchanges, {} calls", calls.load(Relaxed));
            assert!(exchanges > 2);
        });
    }

    #[test]
    fn running_threads_see_old_or_new_bytes() {
        let seconds = std::env::var("KDETOUR_STRESS_SECONDS").ok().and_then(|text| text.parse().ok());
        let time = seconds.map_or(Duration::from_millis(150), Duration::from_secs);
        let code = returning(0x1111_1111);
        let places = [64, LEN - 3, 2 * LEN - 1, 4 * LEN - 5];
        for memory in both() {
            for threads in [2, 8] {
                let text = Text::of_file(6, &places.map(|at| (at, &code[..])));
                stress(&memory, &text, &places, threads, time);
                assert!(text.mappings().1);
                let text = Text::anonymous(6);
                exchange(&memory, &places.map(|at| (text.at(at), &code[..]))).unwrap();
                stress(&memory, &text, &places, threads, time / 2);
            }
        }
    }

    #[test]
    fn a_programs_own_text() {
        unsafe extern "C" {
            fn kdetour_test_exchanged() -> u32;
        }
        let address = (kdetour_test_exchanged as unsafe extern "C" fn() -> u32 as *const ()).addr() as u64;
        assert_eq!(address % PAGE, 4093);
        let memory = Memory::open().unwrap();
        let path = |memory: &Mappings| memory.of(address).unwrap().path.clone();
        let before = path(&Mappings::read().unwrap());
        exchange(&memory, &[(address, &returning(5))]).unwrap();
        // SAFETY: it returns a number, and does nothing else.
        assert_eq!(unsafe { kdetour_test_exchanged() }, 5);
        assert_eq!(path(&Mappings::read().unwrap()), before);
        exchange(&memory, &[(address, &returning(0x1111_1111))]).unwrap();
        // SAFETY: it returns a number, and does nothing else.
        assert_eq!(unsafe { kdetour_test_exchanged() }, 0x1111_1111);
    }

    #[test]
    #[ignore = "measures"]
    fn speed() {
        let lines = || Mappings::read().unwrap().iter().count();
        for memory in both() {
            let text = Text::of_file(4000, &[]);
            let mut byte = [0; 1];
            (0..4000).for_each(|page| memory.read(text.at(page * LEN), &mut byte).unwrap());
            std::println!("can_write {}: {} mappings", memory.can_write(), lines());
            for value in [[1; 5], [0xc3; 5]] {
                let one = (0..1000_u64).map(|_| {
                    let begin = Instant::now();
                    exchange(&memory, &[(text.at(9), &value)]).unwrap();
                    begin.elapsed()
                });
                let mut one: Vec<_> = one.collect();
                one.sort_unstable();
                std::println!("one page, again and again: median {:?}, {} mappings", one[500], lines());
            }
            for step in [1, 4, 100] {
                for value in [[1; 5], [0xc3; 5]] {
                    let at = (0..1000).map(|number| number * step * LEN + 9).filter(|&at| at < 4000 * LEN);
                    let writes: Vec<Write<'_>> = at.map(|at| (text.at(at), &value[..])).collect();
                    let begin = Instant::now();
                    let prepared = Exchange::prepare(&memory, &writes).unwrap();
                    let between = begin.elapsed();
                    prepared.commit().unwrap();
                    let (count, all) = (writes.len() as u32, begin.elapsed());
                    let lines = lines();
                    std::println!(
                        "{count} pages of {step} each: prepare {:?}, commit {:?} a page, {lines} mappings",
                        between / count,
                        (all - between) / count
                    );
                }
            }
        }
    }
}
