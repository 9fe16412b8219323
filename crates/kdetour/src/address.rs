//! Addresses as the processor has them, in cells that code reads as pointers.
//!
//! Everywhere else an address is a `u64`, whatever the processor: a plan is made of bytes, and does not know on what machine.

use core::sync::atomic::{AtomicUsize, Ordering};

/// Where an address is kept, as a pointer in memory: 8 bytes of a 64-bit process, 4 of a 32-bit one.
///
/// What is kept of an address is what a pointer has room for: no more is needed of one of this very process.
///
/// ```
/// use kdetour::AtomicAddress;
/// use std::sync::atomic::Ordering;
///
/// static ORIGINAL: AtomicAddress = AtomicAddress::new(0);
/// ORIGINAL.store(0x40_1000, Ordering::Release);
/// assert_eq!(ORIGINAL.load(Ordering::Acquire), 0x40_1000);
/// assert_eq!(size_of_val(&ORIGINAL), size_of::<fn()>());
/// ```
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct AtomicAddress(AtomicUsize);

impl AtomicAddress {
    /// A cell with this address.
    pub const fn new(address: u64) -> Self {
        Self(AtomicUsize::new(narrow(address)))
    }

    /// The cell that a pointer in memory is.
    ///
    /// # Safety
    /// As for [`AtomicUsize::from_ptr`]: it is aligned, lives as long as is said here, and whoever else reads or writes it meanwhile does
    /// so atomically.
    pub const unsafe fn from_ptr<'a>(pointer: *mut usize) -> &'a Self {
        // SAFETY: this is the same in memory (`repr(transparent)`), as is an `AtomicUsize` and what it is made of; the rest is the
        // caller's promise.
        unsafe { &*pointer.cast::<Self>() }
    }

    /// The address.
    pub fn load(&self, order: Ordering) -> u64 {
        widen(self.0.load(order))
    }

    /// Puts an address there.
    pub fn store(&self, address: u64, order: Ordering) {
        self.0.store(narrow(address), order);
    }

    /// Puts an address there, and gives the one that was there.
    pub fn swap(&self, address: u64, order: Ordering) -> u64 {
        widen(self.0.swap(narrow(address), order))
    }
}

/// What a pointer has room for.
pub(crate) const fn narrow(address: u64) -> usize {
    address as usize
}

/// A pointer's value as an address.
pub(crate) const fn widen(pointer: usize) -> u64 {
    pointer as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_a_pointer() {
        let cell = AtomicAddress::new(5);
        assert_eq!(size_of_val(&cell), size_of::<*const ()>());
        assert_eq!((cell.swap(7, Ordering::SeqCst), cell.load(Ordering::SeqCst)), (5, 7));
        let mut pointer = 9;
        // SAFETY: it is there, and nobody else has it.
        let cell = unsafe { AtomicAddress::from_ptr(&raw mut pointer) };
        cell.store(widen(usize::MAX), Ordering::SeqCst);
        assert_eq!(pointer, usize::MAX);
    }
}
