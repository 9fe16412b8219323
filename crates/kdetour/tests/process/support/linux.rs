//! What the tests ask of Linux.

pub(crate) use kdetour::host::linux_process::LinuxProcess as Process;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::ptr;

/// Before a test's turn.
pub(crate) const fn begin() {}

/// The bytes at an address, as they are now.
pub(crate) fn text(address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, address).unwrap();
    bytes
}

/// Writes as somebody else would, who knows nothing of kdetour.
pub(crate) fn poke(address: u64, bytes: &[u8]) {
    File::options().write(true).open("/proc/self/mem").unwrap().write_all_at(bytes, address).unwrap();
}

/// No page can be written and executed.
pub(crate) fn assert_no_page_is_writable_and_executable() {
    for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let permissions = line.split_whitespace().nth(1).unwrap();
        assert!(!permissions.contains("wx"), "{line}");
    }
}

/// The permissions of the page at an address, as Linux writes them.
pub(crate) fn permissions(address: u64) -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        (number(start)..number(end)).contains(&address)
    });
    line.unwrap().split(' ').nth(1).unwrap().to_owned()
}

/// Memory of so many bytes, readable and writable.
pub(crate) fn map(len: usize) -> u64 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the kernel chooses the place.
    let at = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at.expose_provenance() as u64
}

/// Gives so many bytes of such memory these permissions: some of `rwx`.
pub(crate) fn protect(address: u64, len: usize, permissions: &str) {
    let each = [('r', libc::PROT_READ), ('w', libc::PROT_WRITE), ('x', libc::PROT_EXEC)];
    let all =
        each.into_iter().filter(|(name, _)| permissions.contains(*name)).fold(0, |all, one| all | one.1);
    // SAFETY: it was mapped for a test, which knows what it does.
    assert_eq!(unsafe { libc::mprotect(ptr::with_exposed_provenance_mut(address as usize), len, all) }, 0);
}

/// Takes all of such memory, or pages of it, away.
pub(crate) fn unmap(address: u64, len: usize) {
    // SAFETY: it was mapped for a test, which uses it no more.
    assert_eq!(unsafe { libc::munmap(ptr::with_exposed_provenance_mut(address as usize), len) }, 0);
}

/// Where code is put that is to be far from this program, or at least not in it: first and last address. In a 64-bit process no jump
/// reaches from one to the other.
pub(crate) const AWAY: [u64; 2] = match usize::BITS {
    64 => [0x1_0000_0000, 0x1_7000_0000],
    _ => [0x1000_0000, 0x4000_0000],
};
