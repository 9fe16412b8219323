//! Who branches to the bytes that a patch may overwrite: the rest of the function, its other parts, its jump tables,
//! and other code that the environment knows of.

use crate::arch::x86::scan::{self, Found};
use crate::arch::x86::sieve::Sieve;
use crate::arch::x86::tables::Tables;
use crate::code::{Code, Context, Mode};
use crate::hazard::Hazard;
use crate::patch::MAX_WINDOW;
use arrayvec::ArrayVec;
use core::num::NonZeroU64;

/// For each byte of the longest window, an instruction outside the sequence that leads there; equal to the byte's
/// own address where only the target is known. What leads to a landing pad in front of the window leads to its first
/// byte.
#[derive(Clone, Debug, Default)]
pub(super) struct Landings([Option<NonZeroU64>; MAX_WINDOW]);

impl Landings {
    pub(super) const fn none() -> Self {
        Self([None; MAX_WINDOW])
    }

    /// The first landing at one of these distances from the window's start, with its distance.
    pub(super) fn first_in(&self, mut distances: core::ops::Range<usize>) -> Option<(usize, u64)> {
        distances.find_map(|at| Some((at, (*self.0.get(at)?)?.get().wrapping_sub(1))))
    }

    fn add(&mut self, distance: usize, from: u64) {
        // Kept one higher, so that no address is 0.
        let from = NonZeroU64::new(from.saturating_add(1));
        if let Some(place) = self.0.get_mut(distance) {
            *place = place.or(from);
        }
    }
}

/// The function, as the search for landings sees it.
pub(super) struct Function<'a> {
    /// Bytes from the window's start on.
    pub(super) bytes: &'a [u8],
    pub(super) mode: Mode,
    pub(super) entry: u64,
    pub(super) window: u64,
    /// From the window's start to the function's end, if known.
    pub(super) length: Option<usize>,
    /// Bytes of the sequence, whose own branches are looked at by each offer.
    pub(super) sequence: usize,
}

impl Function<'_> {
    /// How far behind the window's start `target` is; none for addresses outside the longest window. Whatever stands
    /// in front of the window leads to its start.
    pub(super) fn distance(&self, target: u64) -> Option<usize> {
        distance(self.mode, self.entry, self.window, target)
    }

    /// Looks through everything.
    #[inline(never)]
    pub(super) fn landings(&self, context: &Context<'_>, hazards: &mut impl FnMut(Hazard)) -> Landings {
        let mut landings = Landings::default();
        // Another symbol's start is there to be jumped to, or called.
        for &target in context.branch_targets.iter().chain(&context.next_symbol) {
            if let Some(distance) = self.distance(target) {
                landings.add(distance, target);
            }
        }
        let len = self.length.unwrap_or(self.bytes.len());
        let end = len.min(self.bytes.len());
        match self.length {
            None => hazards(Hazard::LengthUnknown),
            Some(_) if len > end => {
                hazards(Hazard::NotWhollyRead { address: self.window.wrapping_add(end as u64) });
            }
            Some(_) => {}
        }
        let mut tables = Tables {
            mode: self.mode,
            context,
            function: (self.entry, self.window.saturating_add(len as u64)),
            read: 0,
            found: 0,
            places: ArrayVec::new(),
        };
        let skip = u32::try_from(self.window.wrapping_sub(self.entry)).unwrap_or(0);
        let len = skip + MAX_WINDOW as u32;
        let sieve = Sieve { start: self.entry, len, starts: skip + 1, mode: self.mode };
        let in_sequence = |at: u64| self.mode.wrap(at.wrapping_sub(self.window)) < self.sequence as u64;
        let mut jumps = 0;
        let mut computed = None;
        let own = Code::in_mode(self.mode, self.window, self.bytes.get(..end).unwrap_or(self.bytes));
        let parts = context.parts.iter().map(|part| (part, false));
        for (part, is_own) in parts.chain([(&own, true)]) {
            scan::branches(part.bytes(), part.address(), sieve, &mut tables, |found| match found {
                Found::Branch { from, .. } if is_own && in_sequence(from) => {}
                Found::Branch { from, into } => landings.add(self.distance(into).unwrap_or(0), from),
                Found::TableEntry { into } => landings.add(self.distance(into).unwrap_or(0), into),
                Found::Undecodable { address } => hazards(Hazard::Undecodable { address }),
                Found::IndirectJump { address } => {
                    jumps += 1;
                    computed.get_or_insert(address);
                }
            });
        }
        // As many tables as computed jumps: each is taken to have its own.
        if let Some(address) = computed.filter(|_| jumps > tables.found || tables.exhausted()) {
            hazards(Hazard::IndirectJump { address });
        }
        landings
    }
}

/// How far behind the window's start `target` is; 0 for what stands in front of it from the entry on, none for
/// addresses outside the longest window.
pub(super) fn distance(mode: Mode, entry: u64, window: u64, target: u64) -> Option<usize> {
    let behind = mode.wrap(target.wrapping_sub(window));
    if behind < MAX_WINDOW as u64 {
        return usize::try_from(behind).ok();
    }
    (mode.wrap(target.wrapping_sub(entry)) < window.wrapping_sub(entry)).then_some(0)
}
