//! Executable memory near a target: pages mapped into gaps between what is mapped already.
//!
//! They are mapped readable and executable, and filled through `/proc/self/mem`: at no time is a page writable and
//! executable.

use super::maps::Mappings;
use super::memory::Memory;
use super::{PAGE, file};
use crate::host::Span;
use crate::slots::GRANULE;
use core::ptr;
use kdetour_plan::Reach;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::vec;
use std::vec::Vec;

/// One past the last address that the kernel gives out without being asked for more (Documentation/arch/x86/x86_64/
/// mm.rst: 47 bits, less a guard page).
const TOP: u64 = (1 << 47) - PAGE;
/// Below this nothing may be mapped, unless the kernel says otherwise.
const LOWEST: u64 = 0x1_0000;
/// How many gaps are tried: others may map there meanwhile, or a security module may refuse.
const TRIES: usize = 64;

/// Maps pages in which a slot of `len` bytes within reach can be had, and fills them with INT3.
pub(super) fn map(memory: &Memory, len: usize, reach: Reach) -> Option<Span> {
    let mappings = Mappings::read().ok()?;
    let mut places = places(&mappings, lowest(), len as u64, reach)?;
    places.sort_unstable_by_key(|place| (place.hinders_growth, place.distance));
    places.iter().take(TRIES).find_map(|place| {
        let span = map_at(place)?;
        if memory.write(span.address, &vec![0xcc; span.len]).is_ok() {
            return Some(span);
        }
        unmap(span);
        None
    })
}

/// Pages that could be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    base: u64,
    size: u64,
    /// How far it is from the middle of what can be reached, which is where the target is.
    distance: u64,
    /// Whether it lies where the heap or the stack wants to grow to.
    hinders_growth: bool,
}

/// The best place in each gap.
fn places(mappings: &Mappings, lowest: u64, len: u64, reach: Reach) -> Option<Vec<Place>> {
    let mut places = Vec::new();
    let mut start = lowest;
    let mut behind_heap = false;
    for mapping in mappings.iter() {
        let end = mapping.start.min(TOP);
        if let Some(place) = place(start, end, len, reach) {
            places.try_reserve(1).ok()?;
            places.push(Place { hinders_growth: behind_heap || mapping.path == b"[stack]", ..place });
        }
        start = start.max(mapping.end);
        behind_heap = mapping.path == b"[heap]";
    }
    if let Some(place) = place(start, TOP, len, reach) {
        places.try_reserve(1).ok()?;
        places.push(place);
    }
    Some(places)
}

/// The place in the gap from `start` to `end` that is nearest to the middle of the reach.
fn place(start: u64, end: u64, len: u64, reach: Reach) -> Option<Place> {
    let middle = reach.first.midpoint(reach.last);
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

const fn page_down(address: u64) -> u64 {
    address & !(PAGE - 1)
}

/// The lowest address that may be mapped.
fn lowest() -> u64 {
    let text = file::contents(c"/proc/sys/vm/mmap_min_addr").unwrap_or_default();
    let lowest = core::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
    // Nothing is ever mapped at null, even where the kernel would do it.
    lowest.unwrap_or(LOWEST).max(LOWEST).next_multiple_of(PAGE)
}

fn map_at(place: &Place) -> Option<Span> {
    let len = usize::try_from(place.size).ok()?;
    let wanted = ptr::without_provenance_mut(usize::try_from(place.base).ok()?);
    let protection = ProtFlags::READ | ProtFlags::EXEC;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE replaces no mapping, so no memory that anybody uses changes.
    let found = unsafe { mmap_anonymous(wanted, len, protection, flags) }.ok()?;
    let span = Span { address: found.addr() as u64, len };
    if found == wanted {
        return Some(span);
    }
    // Before Linux 4.17 the address is only a hint.
    unmap(span);
    None
}

/// Takes back what `map_at` has mapped, before anybody knows of it.
fn unmap(span: Span) {
    if let Ok(address) = usize::try_from(span.address) {
        // SAFETY: the span was mapped by `map_at` a moment ago, and nobody else knows its address.
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

    #[test]
    fn pages_are_mapped_in_reach_and_trap() {
        let here = (page_down as fn(u64) -> u64 as *const ()).addr() as u64;
        let reach = Reach { first: here - (1 << 30), last: here + (1 << 30) };
        let memory = Memory::open().unwrap();
        let span = map(&memory, 4097, reach).unwrap();
        assert!(reach.contains(span.address) && span.len == 8192);
        let mut bytes = [0; 8192];
        memory.read(span.address, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0xcc));
        let mappings = Mappings::read().unwrap();
        assert!(mappings.of(span.address).unwrap().executable);
        unmap(span);
    }
}
