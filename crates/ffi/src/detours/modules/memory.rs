//! This process's memory, read so that a bad address is an error and no fault, in copies that are aligned for every table.

#[cfg(windows)]
use crate::detours::host::is_accessible;
use crate::detours::windows::{Long, number};
use alloc::vec::Vec;
use kdetour::Error;
use kdetour::host::Host as _;
use kdetour::typed::with_process;
#[cfg(not(windows))]
use object::pod::{Pod, slice_from_bytes};
use object::pod::{bytes_of_slice, bytes_of_slice_mut};

/// The smallest page.
pub(super) const PAGE: u64 = 4096;
/// No table of an image is longer: what says that it is says something wrong.
const MOST: u64 = 1 << 30;
/// So much is read at a time.
const STEP: u64 = 64 << 10;

/// Reads all of `bytes`, from where the program itself could read them.
pub(in crate::detours) fn read(address: u64, bytes: &mut [u8]) -> Result<(), Error> {
    with_process(|kdetour| kdetour.host().read(address, bytes))?;
    let last = address.saturating_add((bytes.len() as u64).saturating_sub(1));
    let mut pages = (address / PAGE..=last / PAGE).map(|page| page * PAGE);
    match pages.find(|&page| !is_accessible(page)) {
        // The host reads what is mapped, whatever its protection is.
        Some(page) => Err(Error::Unreadable { address: page.max(address) }),
        None => Ok(()),
    }
}

/// Whether the kernel may read eight bytes for the program: it is given them for a set of signals, and something that it does not know
/// to do with it.
#[cfg(not(windows))]
fn is_accessible(page: u64) -> bool {
    const NOTHING: libc::c_int = -1;
    let set = core::ptr::with_exposed_provenance::<u64>(usize::try_from(page).unwrap_or(usize::MAX));
    let none = core::ptr::null_mut::<u64>();
    // SAFETY: rt_sigprocmask(2) reads the set, or says EFAULT; then it says EINVAL, and has changed nothing.
    let outcome = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, NOTHING, set, none, size_of::<u64>()) };
    // SAFETY: it is this thread's own.
    outcome == 0 || unsafe { *libc::__errno_location() } != libc::EFAULT
}

/// Whether a byte can be read.
#[cfg(not(windows))]
pub(super) fn is_readable(address: u64) -> bool {
    read(address, &mut [0]).is_ok()
}

/// The pointer that is at an address.
pub(in crate::detours) fn pointer(address: u64) -> Result<u64, Error> {
    let mut bytes = [0; size_of::<usize>()];
    read(address, &mut bytes)?;
    Ok(usize::from_le_bytes(bytes) as u64)
}

/// A word of this machine, in 64 bits.
#[cfg(not(windows))]
pub(in crate::detours) fn wide(word: impl Into<u64>) -> u64 {
    word.into()
}

/// The sum of two addresses, in which it begins anew where addresses end.
pub(in crate::detours) const fn add(one: u64, other: u64) -> u64 {
    (one as usize).wrapping_add(other as usize) as u64
}

/// Their difference, in the same way.
#[cfg(not(windows))]
pub(super) const fn subtract(one: u64, other: u64) -> u64 {
    (one as usize).wrapping_sub(other as usize) as u64
}

/// What to answer where an image cannot be read: `unreadable`, unless it is for another reason.
pub(super) fn unless(unreadable: Long) -> impl Fn(Error) -> Long {
    move |error| match error {
        Error::Unreadable { .. } => unreadable,
        other => number(&other),
    }
}

/// A copy of some memory.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// So it is aligned.
    words: Vec<u64>,
    len: usize,
}

impl Snapshot {
    /// Of so many bytes.
    #[cfg(not(windows))]
    pub(super) fn all(address: u64, len: u64) -> Result<Self, Error> {
        let copy = Self::readable(address, len)?;
        match copy.len as u64 == len {
            true => Ok(copy),
            false => Err(Error::Unreadable { address: address.wrapping_add(copy.len as u64) }),
        }
    }

    /// Of as many bytes as can be read, but no more than these.
    pub(super) fn readable(address: u64, most: u64) -> Result<Self, Error> {
        let mut copy = Self::default();
        let most = most.min(MOST).min(u64::MAX - address);
        let mut step = STEP;
        while (copy.len as u64) < most {
            let from = address + copy.len as u64;
            let border = (from | (step - 1)).saturating_add(1);
            let len = usize::try_from((border - from).min(most - copy.len as u64)).unwrap_or(usize::MAX);
            match copy.read_on(from, len) {
                Ok(()) => {}
                Err(Error::Unreadable { .. }) if step > PAGE => step = PAGE,
                Err(Error::Unreadable { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(copy)
    }

    /// Appends so many bytes.
    fn read_on(&mut self, from: u64, len: usize) -> Result<(), Error> {
        let end = self.len + len;
        let words = end.div_ceil(size_of::<u64>());
        if words > self.words.len() {
            self.words.try_reserve(words - self.words.len())?;
            self.words.resize(words, 0);
        }
        let place = bytes_of_slice_mut(&mut self.words).get_mut(self.len..end).unwrap_or_default();
        read(from, place)?;
        self.len = end;
        Ok(())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        bytes_of_slice(&self.words).get(..self.len).unwrap_or_default()
    }

    /// As a table; what is left over at its end is no entry.
    #[cfg(not(windows))]
    pub(super) fn table<T: Pod>(&self) -> &[T] {
        let count = self.len.checked_div(size_of::<T>()).unwrap_or(0);
        slice_from_bytes(self.bytes(), count).map(|(table, _)| table).unwrap_or_default()
    }
}

#[cfg(not(windows))]
#[cfg(test)]
mod tests {
    use super::*;
    use core::ptr;

    /// Two pages of ones, and nothing mapped behind.
    fn pages() -> u64 {
        let len = 3 * PAGE as usize;
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: the kernel chooses the place.
        let place = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        assert_ne!(place, libc::MAP_FAILED);
        // SAFETY: these are pages that were mapped a moment ago.
        unsafe {
            place.cast::<u8>().write_bytes(1, len);
            assert_eq!(libc::munmap(place.byte_add(len - PAGE as usize), PAGE as usize), 0);
        }
        place.expose_provenance() as u64
    }

    #[test]
    fn a_copy_ends_where_memory_does() {
        let base = pages();
        for (at, most, len) in
            [(0, 100_000, 8192), (1, u64::MAX, 8191), (8190, 2, 2), (8192, 5, 0), (5, 0, 0)]
        {
            assert_eq!(Snapshot::readable(base + at, most).unwrap().bytes().len(), len);
        }
        assert!(Snapshot::readable(base, 8192).unwrap().bytes().iter().all(|&byte| byte == 1));
        assert_eq!(Snapshot::all(base, 8192).unwrap().bytes().len(), 8192);
        let behind = Error::Unreadable { address: base + 2 * PAGE };
        assert_eq!(Snapshot::all(base + 9, 8192).unwrap_err(), behind);
        assert_eq!(Snapshot::all(u64::MAX - 3, 9).unwrap_err(), Error::Unreadable { address: u64::MAX - 3 });
    }

    #[test]
    fn what_the_program_cannot_read_is_not_read() {
        let base = pages();
        let second = core::ptr::with_exposed_provenance_mut((base + PAGE) as usize);
        // SAFETY: this is a page that was mapped a moment ago.
        assert_eq!(unsafe { libc::mprotect(second, PAGE as usize, libc::PROT_NONE) }, 0);
        assert_eq!(read(base + PAGE - 4, &mut [0; 4]), Ok(()));
        assert_eq!(read(base + PAGE - 4, &mut [0; 5]), Err(Error::Unreadable { address: base + PAGE }));
        assert_eq!(Snapshot::readable(base, 9000).unwrap().bytes().len(), PAGE as usize);
        assert!(is_readable(base) && !is_readable(base + PAGE) && !is_readable(0));
    }

    #[test]
    fn sums_are_addresses() {
        let last = usize::MAX as u64;
        assert_eq!((add(last, 2), subtract(1, 2), add(7, subtract(0, 4))), (1, last, 3));
    }

    #[test]
    fn a_misaligned_table_is_aligned_in_its_copy() {
        let copy = Snapshot::all(pages() + 3, 20).unwrap();
        assert_eq!(copy.table::<u64>(), [0x0101_0101_0101_0101; 2]);
        assert_eq!(copy.table::<u8>().len(), 20);
    }
}
