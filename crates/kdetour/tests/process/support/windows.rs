//! What the tests ask of Windows.

use kdetour::host::Host;
pub(crate) use kdetour::host::windows_process::WindowsProcess as Process;
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::sync::OnceLock;
use std::{mem, ptr};
use windows_sys::Win32::System::Diagnostics::Debug::WriteProcessMemory;
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_DECOMMIT, MEM_RESERVE, MEMORY_BASIC_INFORMATION, PAGE_EXECUTE_READ,
    PAGE_EXECUTE_READWRITE, PAGE_EXECUTE_WRITECOPY, PAGE_NOACCESS, PAGE_READONLY, PAGE_READWRITE,
    PAGE_WRITECOPY, VirtualAlloc, VirtualFree, VirtualProtect, VirtualQuery,
};
use windows_sys::Win32::System::Threading::GetCurrentProcess;

/// Before a test's turn.
pub(crate) fn begin() {
    before();
}

/// The bytes at an address, as they are now.
pub(crate) fn text(address: u64, len: usize) -> Vec<u8> {
    static PROCESS: OnceLock<Process> = OnceLock::new();
    let mut bytes = vec![0; len];
    PROCESS.get_or_init(|| Process::new().unwrap()).read(address, &mut bytes).unwrap();
    bytes
}

fn place(address: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(address as usize)
}

/// Writes as somebody else would, who knows nothing of kdetour.
pub(crate) fn poke(address: u64, bytes: &[u8]) {
    let (page, mut old, mut written) = (place(address), 0, 0);
    let protection = region(address).unwrap().Protect;
    if protection == PAGE_READONLY {
        // SAFETY: no code is there.
        assert_ne!(unsafe { VirtualProtect(page, bytes.len(), PAGE_READWRITE, &raw mut old) }, 0);
    }
    // SAFETY: the bytes are there; where they go to is what the test is about.
    let done = unsafe {
        WriteProcessMemory(GetCurrentProcess(), page, bytes.as_ptr().cast(), bytes.len(), &raw mut written)
    };
    assert!(done != 0 && written == bytes.len(), "{address:#x}");
    if protection == PAGE_READONLY {
        // SAFETY: as above.
        assert_ne!(unsafe { VirtualProtect(page, bytes.len(), protection, &raw mut old) }, 0);
    }
}

/// The region that holds an address.
fn region(address: u64) -> Option<MEMORY_BASIC_INFORMATION> {
    // SAFETY: numbers and pointers.
    let mut region: MEMORY_BASIC_INFORMATION = unsafe { mem::zeroed() };
    let at = ptr::without_provenance(usize::try_from(address).ok()?);
    // SAFETY: fills the structure.
    let known = unsafe { VirtualQuery(at, &raw mut region, size_of_val(&region)) };
    (known != 0).then_some(region)
}

/// The pages that are writable and executable now.
fn writable_and_executable() -> BTreeSet<usize> {
    let (mut found, mut at) = (BTreeSet::new(), 0_u64);
    while let Some(region) = region(at) {
        let both = PAGE_EXECUTE_READWRITE | PAGE_EXECUTE_WRITECOPY;
        if region.State == MEM_COMMIT && region.Protect & both != 0 {
            found.extend((region.BaseAddress.addr()..).step_by(4096).take(region.RegionSize / 4096));
        }
        at = region.BaseAddress.addr() as u64 + region.RegionSize as u64;
    }
    found
}

/// Those that were so before the first test: some belong to the system's own loader.
fn before() -> &'static BTreeSet<usize> {
    static BEFORE: OnceLock<BTreeSet<usize>> = OnceLock::new();
    BEFORE.get_or_init(writable_and_executable)
}

/// No page can be written and executed.
pub(crate) fn assert_no_page_is_writable_and_executable() {
    let now = writable_and_executable();
    assert!(now.is_subset(before()), "{:x?}", now.difference(before()));
}

/// The permissions of the page at an address, as Linux writes them.
pub(crate) fn permissions(address: u64) -> String {
    match region(address).unwrap().Protect {
        PAGE_READONLY => "r--p",
        PAGE_READWRITE | PAGE_WRITECOPY => "rw-p",
        PAGE_EXECUTE_READ => "r-xp",
        PAGE_NOACCESS => "---p",
        other => panic!("{other:#x}"),
    }
    .to_owned()
}

/// Memory of so many bytes, readable and writable.
pub(crate) fn map(len: usize) -> u64 {
    // SAFETY: the system chooses the place.
    let at = unsafe { VirtualAlloc(ptr::null(), len, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE) };
    assert!(!at.is_null());
    at.expose_provenance() as u64
}

/// Gives so many bytes of such memory these permissions: some of `rwx`.
pub(crate) fn protect(address: u64, len: usize, permissions: &str) {
    let protection = match permissions {
        "r" => PAGE_READONLY,
        "rw" => PAGE_READWRITE,
        "rx" => PAGE_EXECUTE_READ,
        "" => PAGE_NOACCESS,
        other => panic!("{other}"),
    };
    let mut old = 0;
    // SAFETY: it was made for a test, which knows what it does.
    assert_ne!(unsafe { VirtualProtect(place(address), len, protection, &raw mut old) }, 0);
}

/// Takes all of such memory, or pages of it, away. Nothing else comes there.
pub(crate) fn unmap(address: u64, len: usize) {
    // SAFETY: it was made for a test, which uses it no more.
    assert_ne!(unsafe { VirtualFree(place(address), len, MEM_DECOMMIT) }, 0);
}

/// Where code is put that is to be far from this program, or at least not in it: first and last address. In a 64-bit process no jump
/// reaches from one to the other.
pub(crate) const AWAY: [u64; 2] = match usize::BITS {
    64 => [0x20_0000_0000, 0x20_7000_0000],
    _ => [0x1000_0000, 0x4000_0000],
};
