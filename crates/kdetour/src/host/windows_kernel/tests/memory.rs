//! The memory of the simulated machine: a file in memory, mapped readable and executable, whose pages can be mapped once more.

use crate::host::Span;
use crate::host::windows_kernel::nt::Alias;
use core::ffi::c_void;
use core::ptr;
use std::sync::Mutex;
use std::vec::Vec;

const PAGE: usize = 4096;

/// What a page of the kernel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Always there.
    Resident,
    /// Brought back when it is needed, where that is possible.
    Paged,
    /// Thrown away.
    Gone,
    /// Of session space, and not there in this process.
    Elsewhere,
}

/// The memory.
pub(super) struct Memory {
    file: i32,
    base: *mut u8,
    len: usize,
    kinds: Mutex<Vec<Kind>>,
}

// SAFETY: the mapping is only read and executed; the file is written by system calls and mappings, as its text is meant to be.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// So many pages, all of them zero and there.
    pub(super) fn new(pages: usize) -> Self {
        let len = pages * PAGE;
        // SAFETY: a file of that length, and a mapping of it that nobody else has.
        unsafe {
            let file = libc::memfd_create(c"kdetour".as_ptr(), 0);
            assert!(file >= 0 && libc::ftruncate(file, i64::try_from(len).unwrap()) == 0);
            let rights = libc::PROT_READ | libc::PROT_EXEC;
            let base = libc::mmap(ptr::null_mut(), len, rights, libc::MAP_SHARED, file, 0);
            assert_ne!(base, libc::MAP_FAILED);
            Self { file, base: base.cast(), len, kinds: Mutex::new(std::vec![Kind::Resident; pages]) }
        }
    }

    /// Its first address.
    pub(super) fn base(&self) -> u64 {
        self.base.expose_provenance() as u64
    }

    fn offset(&self, address: u64) -> Option<usize> {
        let offset = usize::try_from(address.checked_sub(self.base())?).ok()?;
        (offset < self.len).then_some(offset)
    }

    /// What the page is that an address is in; none if there never was one.
    pub(super) fn kind(&self, address: u64) -> Option<Kind> {
        let page = self.offset(address)? / PAGE;
        super::simulated::lock(&self.kinds).get(page).copied()
    }

    pub(super) fn set_kind(&self, address: u64, pages: usize, kind: Kind) {
        let first = self.offset(address).unwrap() / PAGE;
        super::simulated::lock(&self.kinds)[first..first + pages].fill(kind);
    }

    /// Writes as somebody who is not the host: a loader, another hook.
    pub(super) fn poke(&self, address: u64, bytes: &[u8]) {
        let offset = i64::try_from(self.offset(address).unwrap()).unwrap();
        // SAFETY: so many bytes can be read.
        let written = unsafe { libc::pwrite(self.file, bytes.as_ptr().cast(), bytes.len(), offset) };
        assert_eq!(usize::try_from(written), Ok(bytes.len()));
    }

    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) {
        let offset = self.offset(address).unwrap();
        assert!(offset + bytes.len() <= self.len);
        // SAFETY: so many bytes are mapped; who writes them meanwhile does so byte by byte.
        unsafe { ptr::copy(self.base.add(offset), bytes.as_mut_ptr(), bytes.len()) };
    }

    /// All of it.
    pub(super) fn all(&self) -> Vec<u8> {
        let mut bytes = std::vec![0; self.len];
        self.read(self.base(), &mut bytes);
        bytes
    }

    /// A sum of all of it, by which a change is seen.
    pub(super) fn sum(&self) -> u64 {
        let words = self.len / 8;
        (0..words).fold(0xcbf2_9ce4_8422_2325, |sum: u64, index| {
            // SAFETY: it is mapped and aligned.
            let word = unsafe { self.base.cast::<u64>().add(index).read_volatile() };
            (sum ^ word).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// Maps pages once more.
    pub(super) fn alias(&self, span: Span) -> Alias {
        let offset = i64::try_from(self.offset(span.address).unwrap()).unwrap();
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping.
        let bytes =
            unsafe { libc::mmap(ptr::null_mut(), span.len, rights, libc::MAP_SHARED, self.file, offset) };
        assert_ne!(bytes, libc::MAP_FAILED);
        Alias { bytes: bytes.cast(), mdl: ptr::without_provenance_mut::<c_void>(span.len) }
    }

    pub(super) fn drop_alias(&self, alias: Alias) {
        // SAFETY: what `alias` has mapped.
        assert_eq!(unsafe { libc::munmap(alias.bytes.cast(), alias.mdl.addr()) }, 0);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe {
            libc::munmap(self.base.cast(), self.len);
            libc::close(self.file);
        }
    }
}
