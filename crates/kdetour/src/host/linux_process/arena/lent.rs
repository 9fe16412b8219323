//! What slots have to do with other memory: addresses that they keep out of, and memory near code that is not for slots.

use super::{Arena, TRIES};
use crate::Error;
use crate::host::Span;
use crate::host::linux_process::near::unmap;
use crate::host::linux_process::{PAGE, refused};
use crate::host::process::avoided::Avoided;
use core::ptr;
use kdetour_plan::Reach;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

impl Arena {
    /// Takes no slot any more that has one of the addresses from `first` to `last`. Those that are taken stay.
    pub(in super::super) fn keep_out_of(&mut self, first: u64, last: u64) {
        let avoided = Avoided::new(first, last);
        if self.avoided != avoided {
            self.avoided = avoided;
            self.gaps = None;
        }
    }

    /// Maps memory within reach, writable and not executable. It is the caller's.
    pub(in super::super) fn lend(&mut self, len: usize, reach: Reach) -> Result<Span, Error> {
        let none = Error::NoSlot { target: reach.first.midpoint(reach.last), needed: len };
        for _ in 0..TRIES {
            let place = self.gaps().and_then(|gaps| gaps.near(len as u64, reach)).ok_or(none)?;
            // It begins where its page does: the lowest page may begin out of reach.
            let place = if place < reach.first { place.saturating_add(PAGE) } else { place };
            match map_at(place, len) {
                Ok(()) => {
                    if let Some(gaps) = &mut self.gaps {
                        gaps.take(place, place.saturating_add(len as u64));
                    }
                    return Ok(Span { address: place, len });
                }
                // Something was mapped there since.
                Err(_) => self.gaps = None,
            }
        }
        Err(none)
    }
}

fn map_at(address: u64, len: usize) -> Result<(), Error> {
    let wanted = ptr::with_exposed_provenance_mut(usize::try_from(address).map_err(|_| Error::OutOfMemory)?);
    let (protection, flags) =
        (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE);
    // SAFETY: MAP_FIXED_NOREPLACE replaces no mapping, so no memory that anybody uses changes.
    let found = unsafe { mmap_anonymous(wanted, len, protection, flags) }.map_err(refused)?;
    if found == wanted {
        return Ok(());
    }
    // Before Linux 4.17 the address is only a hint.
    unmap(Span { address: found.expose_provenance() as u64, len });
    Err(refused(Errno::EXIST))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{around, empty_region, exactly, is_mapped};
    use super::*;
    use crate::slots::SlotMemory as _;

    #[test]
    fn slots_keep_out_of_what_is_avoided() {
        let mut arena = Arena::new();
        let base = empty_region(1 << 20);
        let inside = arena.near(64, Reach { first: base, last: base + 0xfff }).unwrap();
        arena.keep_out_of(base, base + 0x1_ffff);
        // Neither in the page that is mapped already, nor in another one; the border is none.
        let reach = Reach { first: base, last: base + 0x1_fff0 };
        assert_eq!(arena.near(64, reach), None);
        assert_eq!(arena.at(64, exactly(base + 0x1000), reach), None);
        assert_eq!(arena.at(64, exactly(base + 0x1_ffff), around(base)), None);
        assert_eq!(arena.at(64, exactly(base + 0x2_0000), around(base)).unwrap().address, base + 0x2_0000);
        assert!(!arena.avoided.unwrap().meets(arena.near(64, around(base + 0x1_0000)).unwrap().address, 1));
        arena.keep_out_of(1, 0);
        assert_eq!(arena.near(64, Reach { first: base, last: base + 0xfff }).unwrap().address, base + 64);
        arena.free(inside);
    }

    #[test]
    fn memory_is_lent_within_reach() {
        let mut arena = Arena::new();
        let base = empty_region(1 << 20);
        let reach = Reach { first: base + 8, last: base + 0x1_0000 };
        let lent = arena.lend(0x1_0000, reach).unwrap();
        assert!(reach.contains(lent.address) && lent.address.is_multiple_of(PAGE) && lent.len == 0x1_0000);
        assert!(is_mapped(lent.address) && is_mapped(lent.address + 0xffff));
        // Slots do not come there.
        let slot = arena.near(64, Reach { first: lent.address, last: lent.address + 0xffff });
        assert_eq!(slot, None);
        let second = arena.lend(0x1_0000, around(base)).unwrap();
        assert!(second.address.abs_diff(lent.address) >= 0x1_0000);
        arena.keep_out_of(0, u64::MAX);
        assert!(matches!(arena.lend(0x1000, around(base)), Err(Error::NoSlot { needed: 0x1000, .. })));
        unmap(lent);
        unmap(second);
    }
}
