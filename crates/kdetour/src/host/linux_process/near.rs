//! The gaps between what is mapped, and which page of them is nearest to a target.

use super::maps::Mappings;
use super::{PAGE, arch, file};
use crate::Error;
use crate::host::Span;
use crate::slots::GRANULE;
use core::ptr;
use kdetour_plan::Reach;
use rustix::mm::munmap;
use std::vec::Vec;

/// Below this nothing may be mapped, unless the kernel says otherwise.
const LOWEST: u64 = 0x1_0000;

/// So much above the end of the heap nothing is mapped, unless nothing else is in reach: the heap grows there. More would
/// forbid many relays of one byte, since a program and its heap lie close together; and where the heap cannot grow, an
/// allocator maps memory elsewhere.
const HEAP_ROOM: u64 = 32 << 20;
/// So much the stack may grow at least, whatever its limit is now.
const STACK_ROOM: u64 = 8 << 20;
/// What the kernel keeps free below a stack.
const STACK_GUARD: u64 = 1 << 20;

/// What is not mapped, in the order of the addresses.
#[derive(Debug)]
pub(super) struct Gaps {
    all: Vec<Gap>,
    /// One past the last address that may be mapped.
    top: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    start: u64,
    end: u64,
    /// Whether it lies where the heap or the stack wants to grow to.
    hinders_growth: bool,
}

impl Gaps {
    /// As they are now.
    pub(super) fn read() -> Result<Self, Error> {
        let limits = file::contents(c"/proc/self/limits").unwrap_or_default();
        let mappings = Mappings::read()?;
        let top = arch::top(mappings.iter().map(|mapping| mapping.end).max().unwrap_or_default());
        Self::between(&mappings, lowest(), top, stack_limit(&limits))
    }

    fn between(mappings: &Mappings, lowest: u64, top: u64, stack_limit: u64) -> Result<Self, Error> {
        let mut gaps = Self { all: Vec::new(), top };
        let mut start = lowest;
        let mut heap_wants = 0;
        for mapping in mappings.iter() {
            let end = mapping.start.min(top);
            let mut stack_wants = end;
            if mapping.path == b"[stack]" {
                let most = stack_limit.max(STACK_ROOM).saturating_add(STACK_GUARD);
                stack_wants = page_down(mapping.end.saturating_sub(most)).min(end);
            }
            gaps.add(start, end, heap_wants, stack_wants)?;
            start = start.max(mapping.end);
            heap_wants = if mapping.path == b"[heap]" { mapping.end.saturating_add(HEAP_ROOM) } else { 0 };
        }
        gaps.add(start, top, heap_wants, top)?;
        Ok(gaps)
    }

    /// Adds a gap: below `heap_wants` and above `stack_wants` it hinders growth.
    fn add(&mut self, start: u64, end: u64, heap_wants: u64, stack_wants: u64) -> Result<(), Error> {
        self.all.try_reserve(3)?;
        let (low, high) = (heap_wants.clamp(start, end.max(start)), stack_wants.min(end));
        let parts = [(start, low, true), (low, high.max(low), false), (high.max(low), end, true)];
        let parts = parts.into_iter().filter(|(start, end, _)| start < end);
        self.all.extend(parts.map(|(start, end, hinders_growth)| Gap { start, end, hinders_growth }));
        Ok(())
    }

    /// The best place in each gap.
    fn places(&self, len: u64, reach: Reach) -> impl Iterator<Item = Place> {
        self.all.iter().filter_map(move |gap| {
            let place = place(gap.start, gap.end, len, reach)?;
            Some(Place { hinders_growth: gap.hinders_growth, ..place })
        })
    }

    /// The page where a slot within reach is best; where the heap or the stack wants to grow only if there is no other.
    pub(super) fn near(&self, len: u64, reach: Reach) -> Option<u64> {
        self.places(len, reach).min_by_key(Place::rank).map(|place| place.base)
    }

    /// The bounds of the first gap that reaches behind an address and hinders no growth.
    pub(super) fn at_or_behind(&self, address: u64) -> Option<(u64, u64)> {
        let position = self.all.partition_point(|gap| gap.end <= address);
        let gap = self.all.iter().skip(position).find(|gap| !gap.hinders_growth)?;
        Some((gap.start, gap.end))
    }

    /// Whether nothing speaks against mapping there, if there is room: it is where memory may be, and where neither heap nor
    /// stack wants to grow.
    pub(super) fn may_be_mapped(&self, address: u64, len: usize) -> bool {
        let Some(end) = address.checked_add(len as u64).filter(|&end| end <= self.top) else { return false };
        let position = self.all.partition_point(|gap| gap.end <= address);
        let mut within = self.all.iter().skip(position).take_while(|gap| gap.start < end);
        LOWEST <= address && !within.any(|gap| gap.hinders_growth)
    }

    /// Nothing from `start` up to `end` counts as a gap any more.
    pub(super) fn leave_out(&mut self, start: u64, end: u64) {
        let gaps = core::mem::take(&mut self.all);
        for gap in gaps {
            let below = Gap { end: gap.end.min(start), ..gap };
            let above = Gap { start: gap.start.max(end), ..gap };
            let parts = [below, above].into_iter().filter(|part| part.start < part.end);
            // Without memory for it a gap is not used.
            if self.all.try_reserve(2).is_ok() {
                self.all.extend(parts);
            }
        }
    }

    /// From `start` up to `end` it is mapped now.
    pub(super) fn take(&mut self, start: u64, end: u64) {
        let end = page_down(end.saturating_add(PAGE - 1));
        let position = self.all.partition_point(|gap| gap.end <= start);
        let Some(gap) = self.all.get_mut(position).filter(|gap| gap.start <= start && end <= gap.end) else {
            return;
        };
        let above = Gap { start: end, ..*gap };
        gap.end = start;
        // Without memory for that the rest is not used until the list is read again.
        if above.start < above.end && self.all.try_reserve(1).is_ok() {
            self.all.insert(position + 1, above);
        }
    }
}

/// How far the stack may grow: the line of proc_pid_limits(5); everywhere if it has no limit.
fn stack_limit(limits: &[u8]) -> u64 {
    let line = limits.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Max stack size"));
    let word = line.and_then(|line| core::str::from_utf8(line).ok()?.split_whitespace().next());
    match word {
        Some("unlimited") => u64::MAX,
        word => word.and_then(|word| word.parse().ok()).unwrap_or(STACK_ROOM),
    }
}

/// Pages that could be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    base: u64,
    size: u64,
    /// How far it is from the middle of what can be reached, which is where the target is.
    distance: u64,
    hinders_growth: bool,
}

impl Place {
    /// The best has the lowest.
    const fn rank(&self) -> (bool, u64) {
        (self.hinders_growth, self.distance)
    }
}

/// The place in the gap from `start` to `end` that is nearest to the middle of the reach.
fn place(start: u64, end: u64, len: u64, reach: Reach) -> Option<Place> {
    let middle = middle(reach);
    // The slot may begin in the middle of the lowest page that is in reach.
    let lowest = start.max(page_down(reach.first));
    let highest = page_down(end.checked_sub(len)?).min(page_down(reach.last));
    let mut base = page_down(middle).min(highest).max(lowest);
    loop {
        let slot = base.max(reach.first).checked_next_multiple_of(GRANULE as u64)?;
        let size = page_down((slot - base).checked_add(len)?.checked_add(PAGE - 1)?);
        if base < lowest || slot > reach.last {
            return None;
        }
        if base.checked_add(size)? <= end {
            return Some(Place { base, size, distance: base.abs_diff(middle), hinders_growth: false });
        }
        base = base.checked_sub(PAGE)?;
    }
}

/// Where a slot is best: in the middle of the reach, which is where the target is. If the reach begins with the first address there is,
/// as in 32-bit mode, it does not tell. Then that is here, beside a program or its libraries: a page in the middle of nothing
/// would part the largest piece of free addresses, and its own would be numbers that are found on many stacks (`1 << 31`).
fn middle(reach: Reach) -> u64 {
    let here = (middle as fn(Reach) -> u64 as *const ()).addr() as u64;
    if reach.first == 0 && reach.contains(here) { here } else { reach.first.midpoint(reach.last) }
}

/// The start of the page that holds an address.
pub(super) const fn page_down(address: u64) -> u64 {
    address & !(PAGE - 1)
}

/// The lowest address that may be mapped.
fn lowest() -> u64 {
    let text = file::contents(c"/proc/sys/vm/mmap_min_addr").unwrap_or_default();
    let lowest = core::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
    // Nothing is ever mapped at null, even where the kernel would do it.
    lowest.unwrap_or(LOWEST).max(LOWEST).next_multiple_of(PAGE)
}

/// Takes back what was mapped for slots, before anybody knows of it, or when nobody uses it any more.
pub(super) fn unmap(span: Span) {
    if let Ok(address) = usize::try_from(span.address) {
        // SAFETY: the span was mapped for slots, and nobody runs there: it was not given out yet, or was given back.
        let _ = unsafe { munmap(ptr::without_provenance_mut(address), span.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACH: Reach = Reach { first: 0x10_0000, last: 0x1f_ffff };

    fn found(start: u64, end: u64, len: u64, reach: Reach) -> Option<(u64, u64)> {
        place(start, end, len, reach).map(|place| (place.base, place.size))
    }

    #[test]
    fn the_nearest_page_of_a_gap_is_taken() {
        // The middle is at 0x17f000.
        assert_eq!(found(0x1_0000, 0x100_0000, 48, REACH), Some((0x17_f000, 0x1000)));
        assert_eq!(found(0x1_0000, 0x12_0000, 48, REACH), Some((0x11_f000, 0x1000)));
        assert_eq!(found(0x1a_0000, 0x100_0000, 48, REACH), Some((0x1a_0000, 0x1000)));
        assert_eq!(found(0x1_0000, 0x12_0000, 0x1001, REACH), Some((0x11_e000, 0x2000)));
    }

    #[test]
    fn a_gap_out_of_reach_or_too_small_is_none() {
        assert_eq!(found(0x1_0000, 0x10_0000, 48, REACH), None);
        assert_eq!(found(0x20_0000, 0x100_0000, 48, REACH), None);
        assert_eq!(found(0x11_0000, 0x11_0000, 48, REACH), None);
        assert_eq!(found(0x11_0000, 0x11_1000, 0x1001, REACH), None);
        assert_eq!(found(0x1_0000, 0x100_0000, 48, Reach { first: 2, last: 1 }), None);
    }

    #[test]
    fn a_slot_may_begin_in_the_middle_of_a_page() {
        let narrow = Reach { first: 0x10_0ff1, last: 0x10_1000 };
        assert_eq!(found(0x1_0000, 0x100_0000, 48, narrow), Some((0x10_0000, 0x2000)));
        let one = Reach { first: 0x10_0010, last: 0x10_001f };
        assert_eq!(found(0x1_0000, 0x100_0000, 48, one), Some((0x10_0000, 0x1000)));
        let none = Reach { first: 0x10_0011, last: 0x10_001f };
        assert_eq!(found(0x1_0000, 0x100_0000, 48, none), None);
    }

    const TOP: u64 = 0x7fff_ffff_f000;
    const MAPS: &[u8] = b"\
00400000-00403000 r-xp 00000000 fe:0a 77 /a\n\
01000000-01021000 rw-p 00000000 00:00 0 [heap]\n\
7f0000000000-7f0000001000 r-xp 00000000 fe:0a 78 /b\n\
7ffff0000000-7ffff0021000 rw-p 00000000 00:00 0 [stack]\n\
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n";

    #[test]
    fn heap_and_stack_keep_room_to_grow() {
        let mut gaps = Gaps::between(&Mappings::parse(MAPS).unwrap(), 0x1_0000, TOP, 16 << 20).unwrap();
        let gap = |start, end, hinders_growth| Gap { start, end, hinders_growth };
        let stack_wants = 0x7fff_eff2_1000 - (16 << 20);
        assert_eq!(
            gaps.all,
            [
                gap(0x1_0000, 0x40_0000, false),
                gap(0x40_3000, 0x100_0000, false),
                gap(0x102_1000, 0x102_1000 + HEAP_ROOM, true),
                gap(0x102_1000 + HEAP_ROOM, 0x7f00_0000_0000, false),
                gap(0x7f00_0000_1000, stack_wants, false),
                gap(stack_wants, 0x7fff_f000_0000, true),
                gap(0x7fff_f002_1000, TOP, false),
            ]
        );
        assert!(gaps.may_be_mapped(0x102_0fff, 1) && !gaps.may_be_mapped(0x102_0fff, 2));
        assert!(!gaps.may_be_mapped(0x7fff_efff_f000, 8) && !gaps.may_be_mapped(TOP - 7, 8));
        assert!(gaps.may_be_mapped(TOP - 8, 8) && !gaps.may_be_mapped(0x1000, 8));
        assert_eq!(gaps.at_or_behind(0x102_1000), Some((0x102_1000 + HEAP_ROOM, 0x7f00_0000_0000)));
        assert_eq!(gaps.near(64, Reach { first: 0x101_0000, last: 0x200_0000 }), Some(0x180_8000));
        gaps.take(0x20_0010, 0x20_0020);
        assert_eq!(gaps.all[..2], [gap(0x1_0000, 0x20_0010, false), gap(0x20_1000, 0x40_0000, false)]);
        let unlimited = Gaps::between(&Mappings::parse(MAPS).unwrap(), 0x1_0000, TOP, u64::MAX).unwrap();
        assert_eq!(unlimited.all[4], gap(0x7f00_0000_1000, 0x7fff_f000_0000, true));
    }

    #[test]
    fn what_is_left_out_is_no_gap() {
        let gap = |start, end| Gap { start, end, hinders_growth: false };
        let gaps = || Gaps { all: [gap(0x1000, 0x5000), gap(0x6000, 0x9000)].into(), top: 0x9000 };
        let left = |start, end| {
            let mut gaps = gaps();
            gaps.leave_out(start, end);
            gaps.all
        };
        assert_eq!(left(0x2000, 0x3000), [gap(0x1000, 0x2000), gap(0x3000, 0x5000), gap(0x6000, 0x9000)]);
        assert_eq!(left(0x4000, 0x7000), [gap(0x1000, 0x4000), gap(0x7000, 0x9000)]);
        assert_eq!(left(0x5000, 0x6000), gaps().all);
        assert_eq!(left(0, u64::MAX), []);
    }

    #[test]
    fn the_stacks_limit_is_read() {
        let limits =
            |size| std::format!("Max data size  unlimited\nMax stack size   {size}   unlimited   bytes\n");
        assert_eq!(stack_limit(limits("1234567").as_bytes()), 1_234_567);
        assert_eq!(stack_limit(limits("unlimited").as_bytes()), u64::MAX);
        assert_eq!(stack_limit(b"what?"), STACK_ROOM);
    }
}
