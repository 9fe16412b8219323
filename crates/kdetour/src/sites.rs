//! The targets that are, or were, patched: what is in their text, and which detours share the slot.

use crate::Error;
use crate::Method;
use crate::host::Span;
use crate::records::Handle;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::ops::RangeInclusive;
use hashbrown::HashMap;
use kdetour_plan::{Patch, Shape};

/// Displaced instructions are looked up by the block of so many bytes that they lie in.
const BLOCK: u64 = 16;
/// How many sites one block may touch.
const NEIGHBOURS: usize = 8;

/// A target with its slot. Each detour of the target is a user of it; the patch leads to the youngest that is
/// attached.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// The target's entry.
    pub(crate) target: u64,
    /// The patch, leading where its jump leads now.
    pub(crate) patch: Patch,
    pub(crate) slot: Span,
    /// Whether the patch is in the text, or a debug register is set.
    pub(crate) live: bool,
    /// Whether the target is inside a function: the detours are no functions then.
    pub(crate) inside: bool,
    /// By what calls reach the detours. What is found by a debug register has its patch only in name: no byte of it is written.
    pub(crate) method: Method,
    /// Whether the slot is somebody's own memory, lent for one detour: nobody else uses it.
    pub(crate) lent: bool,
    /// Whether its patch is kept by somebody who may write it at any time, and has not said so yet. Nobody else uses its slot,
    /// nor frees it unasked.
    pub(crate) planned: bool,
    /// Whether breakpoints of this site may be met: then the hook has to know it.
    pub(crate) traps: bool,
    /// The greater, the younger.
    pub(crate) rank: u64,
    /// The slot of the next site of the same target, if it has several: one that is, or was, patched otherwise.
    pub(crate) next: Option<u64>,
    /// Whether the target has, or has had, another site.
    pub(crate) has_others: bool,
    /// Everybody who has a record of the site, oldest first.
    pub(crate) users: Vec<Handle>,
}

/// All sites, by their slots.
#[derive(Debug, Default)]
pub(crate) struct Sites {
    by_slot: HashMap<u64, Site>,
    /// The first site of each target: the one that is patched, else the youngest. The others follow it.
    by_target: HashMap<u64, u64>,
    /// The sites whose patch is in the text, by the blocks of their displaced instructions.
    patched: HashMap<u64, ArrayVec<u64, NEIGHBOURS>>,
    /// How many sites trap.
    trapping: usize,
    last_rank: u64,
}

impl Sites {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn get(&self, slot: u64) -> Option<&Site> {
        self.by_slot.get(&slot)
    }

    pub(crate) fn get_mut(&mut self, slot: u64) -> Option<&mut Site> {
        self.by_slot.get_mut(&slot)
    }

    /// The site of a target that is patched; if there is none, the one that was last.
    pub(crate) fn of_target(&self, target: u64) -> Option<&Site> {
        self.by_slot.get(self.by_target.get(&target)?)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Site> {
        self.by_slot.values()
    }

    /// Whether any breakpoint may be met.
    pub(crate) const fn any_traps(&self) -> bool {
        self.trapping > 0
    }

    /// Makes room for so many more.
    pub(crate) fn reserve(&mut self, count: usize) -> Result<(), Error> {
        let blocks = count.saturating_mul(3);
        self.by_slot.try_reserve(count).map_err(|_| Error::OutOfMemory)?;
        self.by_target.try_reserve(count).map_err(|_| Error::OutOfMemory)?;
        self.patched.try_reserve(blocks).map_err(|_| Error::OutOfMemory)
    }

    /// Adds a site, in room that was made. It is not patched yet.
    pub(crate) fn insert(&mut self, mut site: Site) {
        self.last_rank += 1;
        site.rank = self.last_rank;
        site.next = self.by_target.insert(site.target, site.slot.address);
        if let Some(before) = site.next.and_then(|next| self.by_slot.get_mut(&next)) {
            before.has_others = true;
            site.has_others = true;
        }
        self.by_slot.insert(site.slot.address, site);
    }

    /// Takes a site out of the list of its target's.
    fn unlink(&mut self, target: u64, slot: u64, next: Option<u64>) {
        if self.by_target.get(&target) == Some(&slot) {
            match next {
                Some(next) => drop(self.by_target.insert(target, next)),
                None => drop(self.by_target.remove(&target)),
            }
            return;
        }
        let mut at = self.by_target.get(&target).copied();
        while let Some(site) = at.and_then(|at| self.by_slot.get_mut(&at)) {
            if site.next == Some(slot) {
                site.next = next;
                return;
            }
            at = site.next;
        }
    }

    /// Forgets a site that is not patched.
    pub(crate) fn remove(&mut self, slot: u64) -> Option<Site> {
        self.set_live(slot, false);
        let site = self.by_slot.remove(&slot)?;
        self.trapping -= usize::from(site.traps);
        self.unlink(site.target, slot, site.next);
        Some(site)
    }

    /// From now on breakpoints of the site may be met, until it is removed.
    pub(crate) fn set_traps(&mut self, slot: u64) {
        if let Some(site) = self.by_slot.get_mut(&slot)
            && !site.traps
        {
            site.traps = true;
            self.trapping += 1;
        }
    }

    /// The patch is in the text now, or is not any more.
    pub(crate) fn set_live(&mut self, slot: u64, live: bool) {
        let Some(site) = self.by_slot.get_mut(&slot).filter(|site| site.live != live) else { return };
        site.live = live;
        let (target, next, lies) = (site.target, site.next, span(&site.patch));
        // Nearly every target has one site.
        let may_be_behind = site.has_others;
        if live && may_be_behind && self.by_target.get(&target) != Some(&slot) {
            self.unlink(target, slot, next);
            let first = self.by_target.insert(target, slot);
            if let Some(site) = self.by_slot.get_mut(&slot) {
                site.next = first;
            }
        }
        for block in blocks(lies) {
            if live {
                // More neighbours than fit were refused when the site was planned.
                let _ = self.patched.entry(block).or_default().try_push(slot);
            } else if let Some(neighbours) = self.patched.get_mut(&block) {
                neighbours.retain(|&mut other| other != slot);
                if neighbours.is_empty() {
                    self.patched.remove(&block);
                }
            }
        }
    }

    /// Whether a site whose patch is in the text shares a byte with `span`, or is too near to tell.
    pub(crate) fn overlaps(&self, wanted: Span) -> bool {
        blocks(wanted).any(|block| {
            self.patched.get(&block).is_some_and(|neighbours| {
                let touches =
                    |slot: &u64| self.get(*slot).is_some_and(|site| meet(span(&site.patch), wanted));
                neighbours.is_full() || neighbours.iter().any(touches)
            })
        })
    }

    /// Puts back what patches have overwritten, in bytes that were read at an address: what was displaced still runs, in
    /// its slot, and branches where it did. Caves stay taken.
    pub(crate) fn restore(&self, address: u64, bytes: &mut [u8]) {
        let range = blocks(Span { address, len: bytes.len() });
        let mut put_back = |neighbours: &ArrayVec<u64, NEIGHBOURS>| {
            for site in neighbours.iter().filter_map(|&slot| self.get(slot)) {
                site.restore(address, bytes);
            }
        };
        if ((range.end() - range.start()) as usize) < self.patched.len() {
            range.filter_map(|block| self.patched.get(&block)).for_each(put_back);
        } else {
            let within = self.patched.iter().filter(|(block, _)| range.contains(block));
            within.for_each(|(_, neighbours)| put_back(neighbours));
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Site {
    /// Whether a patch of this shape can be met by a thread that has to be answered for as long as the site exists.
    pub(crate) fn is_trapping(shape: Shape) -> bool {
        matches!(shape, Shape::Jump5Trapped | Shape::Breakpoint)
    }

    fn restore(&self, address: u64, bytes: &mut [u8]) {
        if !self.method.writes() {
            return;
        }
        let window = self.patch.window_bytes();
        let start = self.patch.address();
        for (at, &original) in (0_u64..).map(|index| start.wrapping_add(index)).zip(window) {
            let place = usize::try_from(at.wrapping_sub(address)).ok();
            if let Some(byte) = place.and_then(|place| bytes.get_mut(place)) {
                *byte = original;
            }
        }
    }
}

/// Detours that are about to be forgotten.
#[derive(Debug, Default)]
pub(crate) struct Gone(Vec<Handle>);

impl Gone {
    pub(crate) const fn nobody() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn new(handles: &[Handle]) -> Result<Self, Error> {
        let mut gone = Vec::new();
        gone.try_reserve_exact(handles.len())?;
        gone.extend_from_slice(handles);
        gone.sort_unstable();
        gone.dedup();
        Ok(Self(gone))
    }

    pub(crate) fn handles(&self) -> &[Handle] {
        &self.0
    }

    /// Whether all users of a site are among them, so that the site goes, too.
    pub(crate) fn takes(&self, site: &Site) -> bool {
        site.users.iter().all(|user| self.0.binary_search(user).is_ok())
    }
}

/// The displaced instructions.
pub(crate) fn span(patch: &Patch) -> Span {
    Span { address: patch.address(), len: patch.original_bytes().len() }
}

fn blocks(span: Span) -> RangeInclusive<u64> {
    let last = span.address.saturating_add((span.len as u64).saturating_sub(1));
    span.address / BLOCK..=last / BLOCK
}

/// Whether two spans share a byte.
pub(crate) const fn meet(one: Span, other: Span) -> bool {
    one.address < other.address.wrapping_add(other.len as u64)
        && other.address < one.address.wrapping_add(one.len as u64)
}
