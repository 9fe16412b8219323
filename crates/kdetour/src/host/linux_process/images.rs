//! Keeping the library of a target or of a detour loaded.
//!
//! While a detour is attached, neither the code that was patched nor the code that it leads to may be unloaded. So the
//! library is opened once more by its name: `dlclose` then only counts.

use super::arch::ProgramHeader;
use crate::address::widen;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::MaybeUninit;
use core::ops::Range;
use core::ptr::{self, NonNull};
use std::ffi::CString;
use std::vec::Vec;

/// dlopen(3): the same for every libc on x86 Linux.
const RTLD_LAZY: c_int = 1;
const RTLD_NOW: c_int = 2;
const RTLD_NOLOAD: c_int = 4;
/// dlinfo(3).
const RTLD_DI_LINKMAP: c_int = 2;

/// `struct dl_phdr_info`, as far as every libc has it.
#[repr(C)]
struct Object {
    base: usize,
    name: *const c_char,
    headers: *const ProgramHeader,
    count: u16,
}

/// A segment that is mapped.
const PT_LOAD: u32 = 1;

/// `struct link_map`, as far as it is documented and needed.
#[repr(C)]
struct LinkMap {
    base: usize,
}

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlclose(handle: *mut c_void) -> c_int;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    #[cfg(target_env = "gnu")]
    fn dlvsym(handle: *mut c_void, name: *const c_char, version: *const c_char) -> *mut c_void;
    fn dlinfo(handle: *mut c_void, request: c_int, answer: *mut c_void) -> c_int;
    fn dl_iterate_phdr(
        callback: unsafe extern "C" fn(*const Object, usize, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
}

/// Where a shared object lies, and what its name is.
#[derive(Debug)]
struct Found {
    /// What is added to the addresses of the file.
    base: u64,
    name: CString,
}

/// Where a segment is mapped.
fn part(object: &Object, header: &ProgramHeader) -> Range<u64> {
    let first = widen(object.base.wrapping_add(header.address));
    first..first.saturating_add(widen(header.size))
}

/// What is looked for, and what was found of it.
struct Search {
    address: u64,
    /// How many objects were seen.
    seen: usize,
    found: Option<Found>,
}

/// Looks at one object; stops where the address is.
unsafe extern "C" fn look(object: *const Object, _size: usize, search: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr passes a valid description, and what `find` gave it: its own `Search`.
    let (object, search) = unsafe { (&*object, &mut *search.cast::<Search>()) };
    search.seen += 1;
    let headers = if object.headers.is_null() {
        &[]
    } else {
        // SAFETY: the loader says that there are so many, and they stay while it calls.
        unsafe { core::slice::from_raw_parts(object.headers, object.count.into()) }
    };
    let mut loaded = headers.iter().filter(|header| header.kind == PT_LOAD);
    let inside = loaded.any(|header| {
        let part = part(object, header);
        search.address.wrapping_sub(part.start) < part.end.wrapping_sub(part.start)
    });
    // The first object is the program itself, which is never unloaded.
    if inside && search.seen > 1 && !object.name.is_null() {
        // SAFETY: the name is a string of the loader's, and stays while it calls.
        let name = CString::from(unsafe { CStr::from_ptr(object.name) });
        search.found = Some(Found { base: widen(object.base), name });
    }
    inside.into()
}

fn find(address: u64) -> Option<Found> {
    let mut search = Search { address, seen: 0, found: None };
    // SAFETY: `look` is called with `search` only while this call lasts.
    unsafe { dl_iterate_phdr(look, ptr::from_mut(&mut search).cast()) };
    search.found.filter(|found| !found.name.is_empty())
}

/// The program, or a shared object.
#[derive(Debug)]
pub(super) struct Loaded {
    /// What is added to the addresses of the file.
    pub(super) base: u64,
    /// Empty for the program.
    pub(super) name: CString,
    /// What is mapped of it.
    pub(super) parts: Vec<Range<u64>>,
}

/// Adds one object to the list.
unsafe extern "C" fn add(object: *const Object, _size: usize, all: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr passes a valid description, and what `loaded` gave it: its own list.
    let (object, all) = unsafe { (&*object, &mut *all.cast::<Vec<Loaded>>()) };
    if object.headers.is_null() || object.name.is_null() {
        return 0;
    }
    // SAFETY: the loader says that there are so many, and they stay while it calls.
    let headers = unsafe { core::slice::from_raw_parts(object.headers, object.count.into()) };
    let parts = headers.iter().filter(|header| header.kind == PT_LOAD).map(|header| part(object, header));
    // SAFETY: the name is a string of the loader's, and stays while it calls.
    let name = CString::from(unsafe { CStr::from_ptr(object.name) });
    all.push(Loaded { base: widen(object.base), name, parts: parts.collect() });
    0
}

/// Everything that is loaded; the program is the first.
pub(super) fn loaded() -> Vec<Loaded> {
    let mut all = Vec::new();
    // SAFETY: `add` is called with `all` only while this call lasts.
    unsafe { dl_iterate_phdr(add, ptr::from_mut(&mut all).cast()) };
    all
}

impl Loaded {
    /// The function that a name means in this object, as the loader would bind it: what the program and its libraries have is
    /// found before what this one's own have.
    pub(super) fn bind(&self, name: &CStr, version: Option<&CStr>) -> Option<u64> {
        let own = || look_up_in(Some(&self.name), name, version);
        let is_program = self.name.is_empty();
        look_up_in(None, name, version).or_else(|| if is_program { None } else { own() })
    }
}

/// The function of that name in an object and those that it needs; with none in the program and all that everybody sees.
fn look_up_in(object: Option<&CStr>, name: &CStr, version: Option<&CStr>) -> Option<u64> {
    let object = object.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: it is a string, or null, which means the program. RTLD_NOLOAD loads nothing.
    let handle = NonNull::new(unsafe { dlopen(object, RTLD_LAZY | RTLD_NOLOAD) })?;
    let found = look_up(handle, name, version);
    // SAFETY: it was opened above.
    unsafe { dlclose(handle.as_ptr()) };
    found
}

fn look_up(handle: NonNull<c_void>, name: &CStr, version: Option<&CStr>) -> Option<u64> {
    #[cfg(target_env = "gnu")]
    let found = match version {
        // SAFETY: the handle is open, and these are strings.
        Some(version) => unsafe { dlvsym(handle.as_ptr(), name.as_ptr(), version.as_ptr()) },
        // SAFETY: the handle is open, and this is a string.
        None => unsafe { dlsym(handle.as_ptr(), name.as_ptr()) },
    };
    // Others have no versions.
    #[cfg(not(target_env = "gnu"))]
    let found = {
        let _ = version;
        // SAFETY: the handle is open, and this is a string.
        unsafe { dlsym(handle.as_ptr(), name.as_ptr()) }
    };
    (!found.is_null()).then(|| found.expose_provenance() as u64)
}

/// A shared object that stays loaded until this is dropped. Dropping it may run the object's destructors: not while a
/// lock is held.
#[derive(Debug)]
pub struct Pin {
    handle: NonNull<c_void>,
}

// SAFETY: the handle may be closed by any thread.
unsafe impl Send for Pin {}
// SAFETY: a reference to it allows nothing but to read two numbers.
unsafe impl Sync for Pin {}

impl Pin {
    /// Keeps the object loaded that holds `address`. None if it is never unloaded: the program itself, memory of no
    /// object; or if the loader cannot tell, as in a static program.
    pub fn of(address: u64) -> Option<Self> {
        let found = find(address)?;
        // SAFETY: the name is a string. RTLD_NOLOAD loads nothing, so no code of the object runs.
        let handle = NonNull::new(unsafe { dlopen(found.name.as_ptr(), RTLD_NOW | RTLD_NOLOAD) })?;
        let pin = Self { handle };
        // Another object may have the same name: in another namespace, or since this one was unloaded.
        (pin.base() == Some(found.base)).then_some(pin)
    }

    /// What the loader adds to the addresses of the object's file.
    fn base(&self) -> Option<u64> {
        let mut map = MaybeUninit::<*const LinkMap>::uninit();
        // SAFETY: the handle is open, and for this request the answer is a pointer.
        let outcome = unsafe { dlinfo(self.handle.as_ptr(), RTLD_DI_LINKMAP, map.as_mut_ptr().cast()) };
        if outcome != 0 {
            return None;
        }
        // SAFETY: the call has succeeded, so it has written a pointer to a link map, which stays as long as the handle.
        Some(widen(unsafe { (*map.assume_init()).base }))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // SAFETY: the handle was opened once and is closed once.
        unsafe { dlclose(self.handle.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::linux_process::maps::Mappings;

    /// Libraries of glibc that nothing else in this process needs; one for each test.
    const LIBRARY: &CStr = c"libanl.so.1";

    fn is_loaded(name: &CStr) -> bool {
        // SAFETY: the name is a string, and nothing is loaded.
        let handle = unsafe { dlopen(name.as_ptr(), RTLD_NOW | RTLD_NOLOAD) };
        if !handle.is_null() {
            // SAFETY: it was opened above.
            unsafe { dlclose(handle) };
        }
        !handle.is_null()
    }

    /// Loads one that is not loaded, and finds an address in its code.
    fn load(name: &CStr) -> (*mut c_void, u64) {
        // SAFETY: the name is a string, and the library does nothing when it is loaded.
        let handle = unsafe { dlopen(name.as_ptr(), RTLD_NOW) };
        assert!(!handle.is_null(), "{name:?}");
        let name = name.to_bytes();
        let mappings = Mappings::read().unwrap();
        let code =
            mappings.iter().find(|mapping| mapping.executable && mapping.path.ends_with(name)).unwrap();
        (handle, code.start)
    }

    #[test]
    fn a_pinned_library_stays() {
        let name = LIBRARY;
        assert!(!is_loaded(name));
        let (handle, code) = load(name);
        let pin = Pin::of(code).unwrap();
        // SAFETY: it was opened by `load`, and nothing of it is used.
        unsafe { dlclose(handle) };
        assert!(is_loaded(name));
        drop(pin);
        assert!(!is_loaded(name));
    }

    #[test]
    fn what_is_never_unloaded_is_not_pinned() {
        let here = (what_is_never_unloaded_is_not_pinned as fn() as *const ()).addr() as u64;
        let stack = ptr::from_ref(&here).addr() as u64;
        for address in [here, stack, 0, u64::MAX] {
            assert!(Pin::of(address).is_none(), "{address:#x}");
        }
        // And this could fail for want of a library: there is one.
        assert!(
            Pin::of((libc::getpid as unsafe extern "C" fn() -> i32 as *const ()).addr() as u64).is_some()
        );
    }
}
