//! The process's memory as a file: `/proc/self/mem`.
//!
//! The kernel writes there whatever the page's protection says, and makes a private copy of the page: the mapping
//! stays `r-xp`. The descriptor means the memory of the process that opened it. In a child made by `fork` it still
//! writes into the *parent*, and a daemon that closes all descriptors may have given its number to something else.
//! So each time before it is used it is proven to be this process's memory, by reading a random value there that was drawn
//! this very moment.

use super::{PAGE, lock, refused};
use crate::Error;
use crate::host::{Span, Text};
use alloc::sync::Arc;
use core::hint::black_box;
use core::mem::ManuallyDrop;
use core::ptr;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};
use rustix::rand::{GetRandomFlags, getrandom};
use std::sync::Mutex;
use std::vec::Vec;

/// `/proc/self/mem`, open.
#[derive(Debug)]
pub(super) struct Memory(ManuallyDrop<OwnedFd>);

impl Memory {
    pub(super) fn open() -> Result<Self, Error> {
        let open = || rustix::fs::open(c"/proc/self/mem", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        retry_on_intr(open).map(ManuallyDrop::new).map(Self).map_err(refused)
    }

    /// Whether the descriptor still is this process's memory.
    fn is_ours(&self) -> bool {
        let (mut fresh, mut found) = ([0_u8; 16], [0_u8; 16]);
        if retry_on_intr(|| getrandom(&mut fresh, GetRandomFlags::NONBLOCK)) != Ok(fresh.len()) {
            return false;
        }
        let address = ptr::from_ref(black_box(&fresh)).expose_provenance() as u64;
        self.read(address, &mut found).is_ok() && fresh == found
    }

    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let mut address = address;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let count = retry_on_intr(|| pread(&*self.0, &mut *bytes, address));
            let count = count.map_err(|error| not_there(error, address))?;
            bytes = bytes.get_mut(count..).filter(|_| count > 0).ok_or(Error::Unreadable { address })?;
            address = address.wrapping_add(count as u64);
        }
        Ok(())
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut address = address;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            // What can be read but not written is refused by the kernel, with the same error.
            let count = retry_on_intr(|| pwrite(&*self.0, bytes, address)).map_err(refused)?;
            bytes = bytes.get(count..).filter(|_| count > 0).ok_or(refused(Errno::IO))?;
            address = address.wrapping_add(count as u64);
        }
        Ok(())
    }
}

/// The kernel answers EIO for memory that is not mapped, and EINVAL for the upper half of the address space.
fn not_there(error: Errno, address: u64) -> Error {
    if matches!(error, Errno::IO | Errno::INVAL) { Error::Unreadable { address } } else { refused(error) }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // A number that may have become somebody else's is not closed.
        if self.is_ours() {
            // SAFETY: the descriptor is dropped only here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

/// The memory of whichever process this is by now.
#[derive(Debug)]
pub(super) struct SharedMemory(Mutex<Arc<Memory>>);

impl SharedMemory {
    pub(super) fn new(memory: Memory) -> Self {
        Self(Mutex::new(Arc::new(memory)))
    }

    /// The memory, opened again if this is a child, or if somebody closed the descriptor.
    pub(super) fn get(&self) -> Result<Arc<Memory>, Error> {
        let mut memory = lock(&self.0);
        if !memory.is_ours() {
            *memory = Arc::new(Memory::open()?);
        }
        Ok(Arc::clone(&memory))
    }
}

/// Text of this process, opened for writing.
#[derive(Debug)]
pub struct ProcessText {
    memory: Arc<Memory>,
    /// Sorted; of those that begin together the longest is the last.
    spans: Vec<Span>,
}

impl ProcessText {
    pub(super) fn open(memory: Arc<Memory>, spans: &[Span]) -> Result<Self, Error> {
        let mut sorted = Vec::new();
        sorted.try_reserve_exact(spans.len())?;
        sorted.extend_from_slice(spans);
        sorted.sort_unstable_by_key(|span| (span.address, span.len));
        for span in &sorted {
            readable(&memory, *span)?;
        }
        Ok(Self { memory, spans: sorted })
    }

    fn is_open(&self, address: u64, len: usize) -> bool {
        let behind = self.spans.partition_point(|span| span.address <= address);
        behind.checked_sub(1).and_then(|index| self.spans.get(index)).is_some_and(|span| {
            let offset = usize::try_from(address.wrapping_sub(span.address)).unwrap_or(usize::MAX);
            offset.checked_add(len).is_some_and(|end| end <= span.len)
        })
    }
}

impl Text for ProcessText {
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        if self.is_open(address, bytes.len()) {
            self.memory.write(address, bytes)
        } else {
            Err(Error::Unreadable { address })
        }
    }
}

/// Reads a byte of every page of a span.
fn readable(memory: &Memory, span: Span) -> Result<(), Error> {
    let end = span.address.wrapping_add(span.len as u64);
    let mut at = span.address;
    while at < end {
        memory.read(at, &mut [0])?;
        at = (at | (PAGE - 1)).wrapping_add(1).max(at.wrapping_add(1));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU8;

    #[test]
    fn only_open_spans_are_written() {
        let bytes = [1, 2, 3, 4].map(AtomicU8::new);
        let address = ptr::from_ref(black_box(&bytes)).expose_provenance() as u64;
        let memory = Arc::new(Memory::open().unwrap());
        assert!(memory.is_ours());
        let mut text = ProcessText::open(memory, &[Span { address, len: 3 }]).unwrap();
        text.write(address + 1, &[7, 8]).unwrap();
        assert_eq!(text.write(address + 2, &[9, 9]), Err(Error::Unreadable { address: address + 2 }));
        assert_eq!(text.write(address - 1, &[9]), Err(Error::Unreadable { address: address - 1 }));
        assert_eq!(bytes.map(AtomicU8::into_inner), [1, 7, 8, 4]);
    }

    #[test]
    fn a_bad_address_is_an_error() {
        let memory = Memory::open().unwrap();
        for address in [0, 0x10, u64::MAX - 3, 1 << 63] {
            assert_eq!(memory.read(address, &mut [0; 2]), Err(Error::Unreadable { address }));
        }
        let span = Span { address: 16, len: 1 };
        let error = ProcessText::open(Arc::new(memory), &[span]).err();
        assert_eq!(error, Some(Error::Unreadable { address: 16 }));
    }
}
