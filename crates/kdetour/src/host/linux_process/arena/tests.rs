//! Slots taken and given back, in mappings of this process.

use super::*;
use crate::host::linux_process::arch::MODE;
use crate::host::linux_process::maps::Mappings;
use crate::host::linux_process::memory::Memory;
use crate::host::process::relay::tests::relays_in;
use std::vec::Vec;

/// A region of the address space where nothing is mapped.
pub(super) fn empty_region(len: u64) -> u64 {
    // Where programs and their libraries are not, and how far regions lie from each other.
    const FIRST: u64 = if cfg!(target_pointer_width = "32") { 0x8800_0000 } else { 1 << 33 };
    const DISTANCE: u64 = if cfg!(target_pointer_width = "32") { 1 << 26 } else { 1 << 34 };
    // Tests that run beside this one have other regions.
    static NEXT: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
    let number = NEXT.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    let base = FIRST + (number + 1) * DISTANCE;
    let (start, end) = Gaps::read().unwrap().at_or_behind(base).unwrap();
    assert!(start <= base && end - base > len.min(DISTANCE / 2));
    base
}

pub(super) fn around(middle: u64) -> Reach {
    Reach { first: middle - (1 << 30), last: middle + (1 << 30) }
}

/// The relays for which the displacement of the jump at `target` has `value` where `mask` is set.
pub(super) fn relays(target: u64, mask: u32, value: u32) -> Relays {
    relays_in(MODE, target, mask, value)
}

/// The relay of a displacement.
pub(super) fn exactly(address: u64) -> Relays {
    relays(address + 0x1234_5678 - 5, u32::MAX, 0x1234_5678_u32.wrapping_neg())
}

fn bytes(span: Span) -> Vec<u8> {
    let mut bytes = std::vec![0; span.len];
    Memory::open().unwrap().read(span.address, &mut bytes).unwrap();
    bytes
}

pub(super) fn is_mapped(address: u64) -> bool {
    Mappings::read().unwrap().of(address).is_some()
}

const ANYWHERE: Reach = Reach { first: 0, last: u64::MAX };

#[test]
fn exact_slots_may_touch_but_not_overlap() {
    let mut arena = Arena::new();
    let base = empty_region(1 << 20);
    for (offset, len, fits) in
        [(101, 16, true), (117, 16, true), (85, 16, true), (84, 2, false), (132, 1, false), (133, 20, true)]
    {
        let slot = arena.at(len, exactly(base + offset), ANYWHERE);
        assert_eq!(slot, fits.then_some(Span { address: base + offset, len }), "{offset}");
    }
    assert_eq!((arena.pages(), arena.mappings(), arena.bytes()), (1, 1, 68));
    assert_eq!(arena.at(9, exactly(base + 200), Reach { first: base + 201, last: u64::MAX }), None);
    assert!(arena.is_slot(base) && arena.is_slot(base + 4095) && !arena.is_slot(base + 4096));
    arena.free(Span { address: base + 117, len: 16 });
    assert!(arena.at(17, exactly(base + 117), ANYWHERE).is_none());
    assert!(arena.at(16, exactly(base + 117), ANYWHERE).is_some());
}

#[test]
fn memory_is_given_back() {
    let mut arena = Arena::new();
    let base = empty_region(1 << 20);
    let border = arena.at(50, exactly(base + 4090), ANYWHERE).unwrap();
    let far = arena.at(50, exactly(base + 0x1_0000), ANYWHERE).unwrap();
    let near = arena.near(100, Reach { first: base, last: base + 4095 }).unwrap();
    assert_eq!((near.address, arena.pages(), arena.mappings()), (base, 3, 2));
    let trap = |byte: &u8| *byte == 0xcc;
    assert!([border, far, near].iter().all(|&slot| bytes(slot).iter().all(trap)));
    let mapping = Mappings::read().unwrap().of(base).cloned().unwrap();
    assert!(mapping.executable && mapping.readable && !mapping.writable && !mapping.shared);
    // What is behind the border goes with the end of the slot.
    assert_eq!(arena.trim(border, 6), Span { len: 6, ..border });
    assert!(!is_mapped(base + 4096) && is_mapped(base));
    arena.free(Span { len: 6, ..border });
    assert!(is_mapped(base));
    arena.free(near);
    arena.free(far);
    assert!(!is_mapped(base) && !is_mapped(base + 0x1_0000));
    assert_eq!((arena.pages(), arena.mappings(), arena.bytes()), (0, 0, 0));
}

#[test]
fn slots_near_a_target_are_packed() {
    let mut arena = Arena::new();
    let reach = around(empty_region(1 << 30));
    let mut slots = Vec::new();
    for number in 0..2000 {
        let slot = arena.near(112, reach).unwrap();
        let len = 20 + number % 41;
        slots.push(arena.trim(slot, len));
        assert_eq!(slots[number].len, len);
    }
    slots.sort_unstable_by_key(|slot| slot.address);
    assert!(slots.windows(2).all(|two| two[0].address + two[0].len as u64 <= two[1].address));
    assert!(slots.iter().all(|slot| reach.contains(slot.address) && slot.address % ALIGN == 0));
    assert!(arena.pages() * 4096 <= 2000 * 64, "{} pages", arena.pages());
    assert!(arena.mappings() <= 2);
    // What was given back is used again.
    let pages = arena.pages();
    for slot in slots.iter().skip(1).step_by(2) {
        arena.free(*slot);
    }
    for _ in 0..1000 {
        arena.near(20, reach).unwrap();
    }
    assert!(arena.pages() <= pages);
    assert!(arena.near(5000, reach).is_some());
    assert_eq!(arena.near(8, Reach { first: 5, last: 4 }), None);
}

#[test]
fn of_many_addresses_one_in_a_known_page_is_taken() {
    let mut arena = Arena::new();
    let base = empty_region(1 << 30);
    // The highest byte is given: 16 MiB in one piece. Then all but the highest: pieces of one address.
    for (mask, value) in [(0xff00_0000, 0x0100_0000), (0x00ff_ffff, 0x0012_3456)] {
        let relays = relays(base, mask, value);
        let first = arena.at(40, relays, ANYWHERE).unwrap();
        assert!(relays.contains(first.address));
    }
    let pages = arena.pages();
    let relays = relays(base + 300, 0xff00_0000, 0x0100_0000);
    for _ in 0..90 {
        let slot = arena.at(40, relays, ANYWHERE).unwrap();
        assert!(relays.contains(slot.address));
    }
    assert_eq!(arena.pages(), pages);
    let reach = Reach { first: base + 0x180_0000, last: base + 0x180_0fff };
    let slot = arena.at(40, relays, reach).unwrap();
    assert!(reach.contains(slot.address) && relays.contains(slot.address));
    // Backward ones serve, too.
    let negative = relays.after - 0x7f00_0000;
    let reach = Reach { first: negative, last: base };
    let mut relays = relays;
    (relays.mask, relays.value) = (0xff00_0000, 0xfe00_0000);
    assert!(relays.contains(arena.at(40, relays, reach).unwrap().address));
}

#[test]
fn what_others_map_is_let_alone() {
    let mut arena = Arena::new();
    let base = empty_region(1 << 30);
    let first = arena.at(40, relays(base, 0xff00_0000, 0x0100_0000), ANYWHERE).unwrap();
    // Somebody maps the next pages, which the arena does not know.
    let next = page_down(first.address) + PAGE;
    let theirs = ptr::with_exposed_provenance_mut(next as usize);
    let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
    // SAFETY: nothing is replaced.
    unsafe { mmap_anonymous(theirs, 1 << 16, ProtFlags::READ, flags) }.unwrap();
    assert_eq!(arena.at(40, exactly(next + 8), ANYWHERE), None);
    let behind = Reach { first: next, last: u64::MAX };
    let slot = arena.at(40, relays(base, 0xff00_0000, 0x0100_0000), behind).unwrap();
    assert_eq!(slot.address, next + (1 << 16));
    // A slot whose second page is theirs leaves no first page behind.
    let edge = next + (1 << 16);
    arena.free(slot);
    assert!(!is_mapped(edge));
    assert_eq!(arena.at(40, exactly(next - 8), ANYWHERE), None);
    arena.free(first);
    assert_eq!(arena.at(40, exactly(next - 8), ANYWHERE), None);
    assert_eq!(arena.pages(), 0);
    assert!(!is_mapped(next - 1));
    unmap(Span { address: next, len: 1 << 16 });
}

#[test]
fn where_the_stack_grows_nothing_is_mapped() {
    let mappings = Mappings::read().unwrap();
    let stack = mappings.iter().find(|mapping| mapping.path == b"[stack]").unwrap().start;
    let mut arena = Arena::new();
    assert_eq!(arena.at(40, exactly(stack - (1 << 20)), ANYWHERE), None);
    assert_eq!(arena.at(40, exactly(100), ANYWHERE), None);
    assert_eq!(arena.pages(), 0);
}

#[test]
#[ignore = "measures"]
fn speed() {
    use std::time::Instant;
    let mut arena = Arena::new();
    let base = empty_region(1 << 30);
    let lap = |name: &str, begin: Instant, count: u64, arena: &Arena| {
        let each = begin.elapsed().as_nanos() as u64 / count;
        std::println!("{name}: {each} ns, {} pages, {} bytes", arena.pages(), arena.bytes());
    };
    let begin = Instant::now();
    for number in 0..10_000 {
        arena.at(40, exactly(base + number * 12_345), ANYWHERE).unwrap();
    }
    lap("exact, new pages", begin, 10_000, &arena);
    let begin = Instant::now();
    for number in 0..10_000 {
        let page = page_down(base + number * 12_345);
        arena
            .at(20, exactly(page + if number * 12_345 % 4096 < 2048 { 3000 } else { 1000 }), ANYWHERE)
            .unwrap();
    }
    lap("exact, known pages", begin, 10_000, &arena);
    let begin = Instant::now();
    for slot in arena.taken.all() {
        arena.free(slot);
    }
    lap("free", begin, 20_000, &arena);
    let begin = Instant::now();
    for number in 0..10_000 {
        let slot = arena.near(112, around(base + number)).unwrap();
        arena.trim(slot, 48);
    }
    lap("near and trim", begin, 10_000, &arena);
    let begin = Instant::now();
    for number in 0..10_000 {
        arena.at(40, relays(base + number * 100, 0xff00_0000, 0x0100_0000), ANYWHERE).unwrap();
    }
    lap("16 MiB ranges (and a survey)", begin, 10_000, &arena);
    let begin = Instant::now();
    for number in 0..10_000 {
        relays(base + number * 100, 0xff00_0000, 0x0100_0000);
    }
    lap("the survey alone", begin, 10_000, &arena);
    let begin = Instant::now();
    for number in 0..10_000 {
        arena.at(40, relays(base + number * 100, 0x0000_ff00, 0x0000_cc00), ANYWHERE).unwrap();
    }
    lap("ranges of 256 (and a survey)", begin, 10_000, &arena);
}
