//! The process's memory as a file: `/proc/self/mem`.
//!
//! The kernel writes there whatever the page's protection says, and makes a private copy of the page: the mapping
//! stays `r-xp`. The descriptor means the memory of the process that opened it. In a child made by `fork` it still
//! writes into the *parent*, and a daemon that closes all descriptors may have given its number to something else.
//! So each time before it is used it is proven to be this process's memory, by reading a random value there that was drawn
//! this very moment.
//!
//! Where the file cannot be opened (a process that must not be dumped, no `/proc`), memory is read by
//! `process_vm_readv`, which a process may always do to itself, and not written; nor is it where the kernel was told to heed
//! protections here, too (`proc_mem.force_override`).

use super::threads::raw;
use super::{PAGE, arch, exchange, lock, refused};
use crate::Error;
use crate::host::process::seen::Seen;
use crate::host::{Span, Text};
use alloc::boxed::Box;
use core::hint::black_box;
use core::mem::ManuallyDrop;
use core::ptr;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{Pid, getpid};
use rustix::rand::{GetRandomFlags, getrandom};
use std::sync::Mutex;
use std::vec::Vec;

/// `/proc/self/mem`, open; or none, and memory is only read.
#[derive(Debug)]
pub(super) struct Memory {
    file: Option<ManuallyDrop<OwnedFd>>,
    writable: bool,
    /// Whose memory it is. A child that was made in the middle of a commit goes on with it, and must not write into its
    /// parent.
    process: Pid,
}

impl Memory {
    pub(super) fn open() -> Result<Self, Error> {
        let open =
            || rustix::fs::open(c"/proc/thread-self/mem", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        match retry_on_intr(open) {
            Ok(file) => {
                let mut memory =
                    Self { file: Some(ManuallyDrop::new(file)), writable: false, process: getpid() };
                memory.writable = memory.overrides_protection();
                Ok(memory)
            }
            Err(error) => {
                let memory = Self::without_file();
                if memory.is_ours() { Ok(memory) } else { Err(refused(error)) }
            }
        }
    }

    /// The memory of this process, only to be read.
    pub(super) fn without_file() -> Self {
        Self { file: None, writable: false, process: getpid() }
    }

    /// Whether [`write`](Self::write) can write text.
    pub(super) const fn can_write(&self) -> bool {
        self.writable
    }

    /// Whether a page that is not writable can be written: tried out on one of our own.
    fn overrides_protection(&self) -> bool {
        let len = PAGE as usize;
        let protection = ProtFlags::READ;
        // SAFETY: the kernel chooses the place, so no memory that anybody uses changes.
        let page = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE) };
        let Ok(page) = page else { return false };
        let written = self.pwrite(page.addr() as u64, &[1]) == Ok(1);
        // SAFETY: it was mapped above, and nobody else knows its address.
        let _ = unsafe { munmap(page, len) };
        written
    }

    /// Whether the descriptor still is this process's memory.
    pub(super) fn is_ours(&self) -> bool {
        let (mut fresh, mut found) = ([0_u8; 16], [0_u8; 16]);
        if retry_on_intr(|| getrandom(&mut fresh, GetRandomFlags::NONBLOCK)) != Ok(fresh.len()) {
            // A sandbox may forbid it. The time serves as well: a parent has not written the same there at that very cycle.
            let now = u128::from(arch::time_stamp());
            fresh = (now << 64 | now ^ getpid().as_raw_nonzero().get() as u128).to_ne_bytes();
        }
        let address = ptr::from_ref(black_box(&fresh)).expose_provenance() as u64;
        self.read(address, &mut found).is_ok() && fresh == found
    }

    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let mut address = address;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let count = match &self.file {
                Some(file) => retry_on_intr(|| pread(&**file, &mut *bytes, address)),
                // SAFETY: so many bytes are there.
                None => retry_on_intr(|| unsafe { raw::read_some(address, bytes.as_mut_ptr(), bytes.len()) }),
            };
            let count = count.map_err(|error| not_there(error, address))?;
            bytes = bytes.get_mut(count..).filter(|_| count > 0).ok_or(Error::Unreadable { address })?;
            address = address.wrapping_add(count as u64);
        }
        Ok(())
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        if getpid() != self.process {
            return Err(refused(Errno::SRCH));
        }
        let mut address = address;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            // What can be read but not written is refused by the kernel, with the same error.
            let count = retry_on_intr(|| self.pwrite(address, bytes)).map_err(refused)?;
            bytes = bytes.get(count..).filter(|_| count > 0).ok_or(refused(Errno::IO))?;
            address = address.wrapping_add(count as u64);
        }
        Ok(())
    }

    fn pwrite(&self, address: u64, bytes: &[u8]) -> rustix::io::Result<usize> {
        pwrite(&**self.file.as_ref().ok_or(Errno::ACCESS)?, bytes, address)
    }
}

/// The kernel answers EIO for memory that is not mapped, and EINVAL for the upper half of the address space;
/// process_vm_readv(2) answers EFAULT.
fn not_there(error: Errno, address: u64) -> Error {
    if matches!(error, Errno::IO | Errno::INVAL | Errno::FAULT) {
        Error::Unreadable { address }
    } else {
        refused(error)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // A number that may have become somebody else's is not closed.
        if self.file.is_some()
            && self.is_ours()
            && let Some(file) = &mut self.file
        {
            // SAFETY: the descriptor is dropped only here, and not used afterwards.
            unsafe { ManuallyDrop::drop(file) };
        }
    }
}

/// The memory of whichever process this is by now.
#[derive(Debug)]
pub(super) struct SharedMemory(Mutex<&'static Memory>);

impl SharedMemory {
    pub(super) fn new(memory: Memory) -> Self {
        Self(Mutex::new(Box::leak(Box::new(memory))))
    }

    /// The memory, opened again if this is a child, or if somebody closed the descriptor.
    pub(super) fn get(&self) -> Result<&'static Memory, Error> {
        let mut memory = lock(&self.0);
        if !memory.is_ours() {
            *memory = Box::leak(Box::new(Memory::open()?));
        }
        Ok(*memory)
    }
}

/// How many bytes are read, changed and written at a time where many writes lie close together.
const AT_A_TIME: usize = 16 * PAGE as usize;
/// So many writes that lie close together are worth reading and writing what lies between.
const WORTH: usize = 3;

/// Text of this process, opened for writing.
#[derive(Debug)]
pub struct ProcessText {
    memory: &'static Memory,
    /// Sorted; of those that begin together the longest is the last.
    spans: Vec<Span>,
    /// Room for what lies between writes; none where there are too few spans for that.
    buffer: Vec<u8>,
    /// As long as nothing has been written.
    seen: Seen,
}

impl ProcessText {
    pub(super) fn open(memory: &'static Memory, spans: &[Span]) -> Result<Self, Error> {
        let mut sorted = Vec::new();
        sorted.try_reserve_exact(spans.len())?;
        sorted.extend_from_slice(spans);
        sorted.sort_unstable_by_key(|span| (span.address, span.len));
        let mut buffer = Vec::new();
        if sorted.len() >= WORTH {
            buffer.try_reserve_exact(AT_A_TIME)?;
            buffer.resize(AT_A_TIME, 0);
        }
        Ok(Self { memory, spans: sorted, buffer, seen: Seen::new() })
    }

    /// Writes many bytes at once, best in the order of their addresses: where three or more writes lie close together, what
    /// lies between them is read and written, too. Nobody else may write there meanwhile. Allocates nothing.
    ///
    /// # Errors
    /// [`Error::Unreadable`] if a span was not opened, and nothing is written; [`Error::Host`] if the environment refuses.
    fn write_batches(&mut self, writes: &[(u64, &[u8])]) -> Result<(), Error> {
        self.seen.forget();
        let mut hint = 0;
        for &(address, bytes) in writes {
            let next = [hint, hint + 1]
                .into_iter()
                .find(|&index| self.spans.get(index).is_some_and(|span| holds(span, address, bytes.len())));
            hint =
                next.or_else(|| self.span_of(address, bytes.len())).ok_or(Error::Unreadable { address })?;
        }
        if !self.memory.can_write() {
            return exchange::exchange(self.memory, writes).map_err(|failed| failed.error);
        }
        let mut rest = writes;
        while !rest.is_empty() {
            let (batch, behind) = rest.split_at(close_together(rest, self.buffer.len()));
            if batch.len() < WORTH {
                batch.iter().try_for_each(|&(address, bytes)| self.memory.write(address, bytes))?;
            } else {
                self.write_batch(batch)?;
            }
            rest = behind;
        }
        Ok(())
    }

    fn write_batch(&mut self, batch: &[(u64, &[u8])]) -> Result<(), Error> {
        let (Some(&(start, _)), Some(end)) = (batch.first(), batch.iter().map(end_of).max()) else {
            return Ok(());
        };
        let len = usize::try_from(end.wrapping_sub(start)).unwrap_or(usize::MAX);
        let bytes = self.buffer.get_mut(..len).ok_or(Error::Unreadable { address: start })?;
        self.memory.read(start, bytes)?;
        overlay(start, bytes, batch);
        self.memory.write(start, bytes)
    }

    /// The position of an open span that holds the bytes.
    fn span_of(&self, address: u64, len: usize) -> Option<usize> {
        let index = self.spans.partition_point(|span| span.address <= address).checked_sub(1)?;
        self.spans.get(index).is_some_and(|span| holds(span, address, len)).then_some(index)
    }
}

fn holds(span: &Span, address: u64, len: usize) -> bool {
    let offset = usize::try_from(address.wrapping_sub(span.address)).unwrap_or(usize::MAX);
    offset.checked_add(len).is_some_and(|end| end <= span.len)
}

fn end_of(&(address, bytes): &(u64, &[u8])) -> u64 {
    address.wrapping_add(bytes.len() as u64)
}

/// How many of the writes, the first one at least, lie so close together that no whole page is between two, and in so
/// many bytes.
fn close_together(writes: &[(u64, &[u8])], room: usize) -> usize {
    let Some(first) = writes.first() else { return 0 };
    let mut end = end_of(first);
    let fits = |write: &&(u64, &[u8])| {
        let near = first.0 <= write.0 && write.0 < end.saturating_add(PAGE);
        end = end.max(end_of(write));
        near && end.wrapping_sub(first.0) <= room as u64
    };
    1 + writes.iter().skip(1).take_while(fits).count()
}

/// Puts writes into a copy of the memory at `start`. What of them lies outside is left out.
pub(super) fn overlay(start: u64, copy: &mut [u8], writes: &[(u64, &[u8])]) {
    for &(address, bytes) in writes {
        let skipped = usize::try_from(start.saturating_sub(address)).unwrap_or(usize::MAX);
        let offset = usize::try_from(address.saturating_sub(start)).unwrap_or(usize::MAX);
        let to = copy.get_mut(offset..).unwrap_or_default();
        for (to, from) in to.iter_mut().zip(bytes.iter().skip(skipped)) {
            *to = *from;
        }
    }
}

impl Text for ProcessText {
    /// Whole pages are read: the next one who asks is often a neighbour.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        // For a few it is not worth it.
        if self.spans.len() < WORTH {
            return self.memory.read(address, bytes);
        }
        self.seen.read(address, bytes, |address, bytes| self.memory.read(address, bytes))
    }

    fn write_many(&mut self, writes: &[(u64, &[u8])]) -> Result<(), (usize, Error)> {
        self.write_batches(writes).map_err(|error| (0, error))
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.write_batches(&[(address, bytes)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::linux_process::exchange::exchange;
    use crate::host::linux_process::fork::tests::in_child;
    use core::sync::atomic::AtomicU8;

    #[test]
    fn only_open_spans_are_written() {
        let bytes = [1, 2, 3, 4].map(AtomicU8::new);
        let address = ptr::from_ref(black_box(&bytes)).expose_provenance() as u64;
        let memory = Box::leak(Box::new(Memory::open().unwrap()));
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
        for memory in [&memory, &Memory::without_file()] {
            for address in [0, 0x10, u64::MAX - 3, 1 << 63] {
                assert_eq!(memory.read(address, &mut [0; 2]), Err(Error::Unreadable { address }));
            }
        }
        let span = Span { address: 16, len: 1 };
        let mut text = ProcessText::open(Box::leak(Box::new(memory)), &[span]).unwrap();
        assert_eq!(text.read(16, &mut [0]), Err(Error::Unreadable { address: 16 }));
        assert!(matches!(text.write(16, &[0]), Err(Error::Host(_))));
    }

    #[test]
    fn a_child_does_not_write_into_its_parent() {
        let byte = AtomicU8::new(1);
        let address = ptr::from_ref(black_box(&byte)).expose_provenance() as u64;
        let memory = Memory::open().unwrap();
        assert!(in_child(|| memory.write(address, &[2]) == Err(refused(Errno::SRCH))));
        assert_eq!(byte.load(core::sync::atomic::Ordering::SeqCst), 1);
        memory.write(address, &[3]).unwrap();
        assert_eq!(byte.load(core::sync::atomic::Ordering::SeqCst), 3);
    }

    /// Pages that are only readable, all 0; the page behind them is not mapped.
    fn pages(count: usize) -> u64 {
        let len = count * PAGE as usize;
        let all = len + PAGE as usize;
        // SAFETY: the kernel chooses the place.
        let place =
            unsafe { mmap_anonymous(ptr::null_mut(), all, ProtFlags::READ, MapFlags::PRIVATE) }.unwrap();
        // SAFETY: this is the last page of what was mapped.
        unsafe { munmap(place.byte_add(len), PAGE as usize) }.unwrap();
        place.addr() as u64
    }

    #[test]
    fn without_the_file_memory_is_read_but_not_written() {
        let base = pages(2);
        let memory = Memory::without_file();
        let (address, mut bytes) = (base + 2 * PAGE - 3, [1; 5]);
        assert_eq!(memory.read(address, &mut bytes), Err(Error::Unreadable { address: base + 2 * PAGE }));
        Memory::open().unwrap().write(address, &[7, 8, 9]).unwrap();
        let mut bytes = [0; 3];
        memory.read(address, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 8, 9]);
        assert!(memory.is_ours() && !memory.can_write());
        assert!(matches!(memory.write(address, &[1]), Err(Error::Host(_))));
    }

    #[test]
    fn a_process_that_must_not_be_dumped_reads_its_memory() {
        let base = pages(1);
        Memory::open().unwrap().write(base, &[5]).unwrap();
        assert!(in_child(|| {
            // SAFETY: these change nothing but what the child may do. Nobody: what root may do, it may not any more.
            unsafe {
                libc::setuid(65534);
                libc::prctl(libc::PR_SET_DUMPABLE, 0);
            }
            let file = rustix::fs::open(c"/proc/self/mem", OFlags::RDWR, Mode::empty());
            let mut bytes = [0; 1];
            file.is_err()
                && Memory::open().is_ok_and(|memory| {
                    !memory.can_write()
                        && memory.read(base, &mut bytes).is_ok()
                        && bytes == [5]
                        && memory.read(base + PAGE, &mut bytes).is_err()
                        && exchange(&memory, &[(base, &[6])]).is_ok()
                        && memory.read(base, &mut bytes).is_ok()
                        && bytes == [6]
                })
        }));
    }

    #[test]
    fn many_writes_are_as_good_as_one_by_one() {
        const LEN: usize = 40 * PAGE as usize;
        let memory = Box::leak(Box::new(Memory::open().unwrap()));
        // Dense, sparse, across borders, longer than the buffer in sum; in any order.
        let dense = (0..4000).map(|number| number * 37);
        let sparse = [148_100, 152_000, 156_500, 159_990, 163_830];
        let mut at: Vec<usize> = dense.chain(sparse).collect();
        for order in 0..3 {
            match order {
                1 => at.reverse(),
                2 => at.sort_unstable_by_key(|at| at % 101),
                _ => {}
            }
            let base = pages(40);
            let texts: Vec<Vec<u8>> =
                at.iter().map(|at| std::vec![1 + (at % 200) as u8; 1 + at % 9]).collect();
            let writes = at.iter().map(|&at| base + at as u64).zip(texts.iter().map(Vec::as_slice));
            let writes: Vec<(u64, &[u8])> = writes.collect();
            let spans: Vec<Span> =
                writes.iter().map(|&(address, bytes)| Span { address, len: bytes.len() }).collect();
            let mut text = ProcessText::open(memory, &spans).unwrap();
            let mut expected = std::vec![0_u8; LEN];
            for (&at, bytes) in at.iter().zip(&texts) {
                expected[at..at + bytes.len()].copy_from_slice(bytes);
            }
            text.write_batches(&writes).unwrap();
            let mut found = std::vec![0; LEN];
            memory.read(base, &mut found).unwrap();
            assert!(found == expected);
            // One that was not opened: nothing is written.
            let zeros = [(base, &[0; 1][..]), (base + 20, &[0]), (base + 37, &[0]), (base + 37 * 5, &[0])];
            assert_eq!(text.write_batches(&zeros), Err(Error::Unreadable { address: base + 20 }));
            memory.read(base, &mut found).unwrap();
            assert!(found == expected);
        }
    }

    #[test]
    fn what_is_close_together() {
        let bytes = [0; 5];
        let count = |addresses: &[u64], room| {
            let writes: Vec<(u64, &[u8])> = addresses.iter().map(|&address| (address, &bytes[..])).collect();
            close_together(&writes, room)
        };
        assert_eq!(count(&[0, 10, 4110, 8200, 12_301], AT_A_TIME), 4);
        assert_eq!(count(&[0, 10, 4110, 8200], 4114), 2);
        assert_eq!(count(&[10, 0], AT_A_TIME), 1);
        assert_eq!(count(&[10], 0), 1);
        assert_eq!(count(&[], 9), 0);
    }

    #[test]
    #[ignore = "measures"]
    fn speed() {
        let base = pages(300);
        let memory = Box::leak(Box::new(Memory::open().unwrap()));
        let bytes = [0xe9, 1, 2, 3, 4];
        let writes: Vec<(u64, &[u8])> = (0..10_000_u64).map(|at| (base + at * 122, &bytes[..])).collect();
        let spans: Vec<Span> = writes.iter().map(|&(address, _)| Span { address, len: 5 }).collect();
        let mut text = ProcessText::open(memory, &spans).unwrap();
        for _ in 0..3 {
            let begin = std::time::Instant::now();
            text.write_batches(&writes).unwrap();
            std::println!("{} ns each", begin.elapsed().as_nanos() / 10_000);
        }
        let begin = std::time::Instant::now();
        for &(address, bytes) in &writes {
            text.write(address, bytes).unwrap();
        }
        std::println!("{} ns each, one by one", begin.elapsed().as_nanos() / 10_000);
    }
}
