//! What slots have to do with other memory: addresses that they keep out of, and memory near code that is not for slots.

use super::{Arena, BLOCK, MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_READWRITE, free, place};
use crate::Error;
use crate::address::widen;
use crate::host::Span;
use crate::host::process::avoided::Avoided;
use kdetour_plan::Reach;
use windows_sys::Win32::System::Memory::VirtualAlloc;

/// How often somebody else may be faster.
const TRIES: usize = 16;

impl Arena {
    /// Takes no slot any more that has one of the addresses from `first` to `last`. Those that are taken stay.
    pub(in super::super) fn keep_out_of(&mut self, first: u64, last: u64) {
        self.avoided = Avoided::new(first, last);
    }

    /// The bounds of what is avoided, if these bytes have some of it.
    pub(super) fn avoided_by(&self, address: u64, len: usize) -> Option<(u64, u64)> {
        self.avoided.filter(|avoided| avoided.meets(address, len)).map(|avoided| avoided.bounds())
    }

    /// Allocates memory within reach, writable and not executable, no more than a block of addresses. It is the caller's.
    pub(in super::super) fn lend(&mut self, len: usize, reach: Reach) -> Result<Span, Error> {
        let none = Error::NoSlot { target: reach.first.midpoint(reach.last), needed: len };
        if len == 0 || len as u64 > BLOCK || reach.first > reach.last {
            return Err(none);
        }
        for _ in 0..TRIES {
            // It begins where its block does: the lowest block may begin out of reach.
            let first = reach.first.checked_next_multiple_of(BLOCK).ok_or(none)?;
            let block = self.free_block(len, Reach { first, ..reach }).ok_or(none)?;
            // SAFETY: where something is already the system refuses: nothing that anybody uses changes.
            let found = unsafe { VirtualAlloc(place(block)?, len, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE) };
            match widen(found.addr()) {
                found if found == block => return Ok(Span { address: block, len }),
                // Somebody else was faster.
                0 => {}
                elsewhere => free(elsewhere, 0, MEM_RELEASE),
            }
        }
        Err(none)
    }
}

/// Gives back what was [lent](Arena::lend), and nobody uses.
pub(in super::super) fn give_back(lent: Span) {
    free(lent.address, 0, MEM_RELEASE);
}

#[cfg(test)]
mod tests {
    use super::super::Holds;
    use super::*;
    use crate::host::windows_process::nt::Nt;
    use crate::slots::SlotMemory as _;

    #[test]
    fn memory_is_lent_within_reach_and_slots_keep_out_of_what_is_avoided() {
        let mut arena = Arena::new(Nt::get().unwrap(), Holds::Slots);
        let here = widen((Avoided::new as fn(u64, u64) -> Option<Avoided> as *const ()).addr());
        let reach = Reach { first: here.saturating_sub(0x4000_0008), last: here + 0x4000_0000 };
        let lent = arena.lend(0x1_0000, reach).unwrap();
        assert!(reach.contains(lent.address) && lent.address.is_multiple_of(BLOCK) && lent.len == 0x1_0000);
        let bytes = core::ptr::with_exposed_provenance_mut::<u8>(lent.address as usize);
        // SAFETY: so many bytes were allocated a moment ago.
        unsafe { bytes.write_bytes(1, lent.len) };
        let second = arena.lend(0x1_0000, reach).unwrap();
        assert!(second.address.abs_diff(lent.address) >= BLOCK);
        assert!(matches!(arena.lend(0x1_0001, reach), Err(Error::NoSlot { needed: 0x1_0001, .. })));

        let slot = arena.near(64, reach).unwrap();
        assert!(slot.address.abs_diff(lent.address) >= BLOCK || slot.address < lent.address);
        arena.keep_out_of(slot.address.saturating_sub(0x1000_0000), slot.address + 0x1000_0000);
        let other = arena.near(64, reach).unwrap();
        assert!(other.address.abs_diff(slot.address) >= 0x1000_0000, "{slot:x?} {other:x?}");
        arena.keep_out_of(0, u64::MAX);
        assert_eq!(arena.near(64, reach), None);
        assert!(matches!(arena.lend(0x1000, reach), Err(Error::NoSlot { needed: 0x1000, .. })));
        arena.keep_out_of(1, 0);
        arena.free(other);
        arena.free(slot);
        [lent, second].into_iter().for_each(|lent| free(lent.address, 0, MEM_RELEASE));
    }
}
