//! The modules that the loader has.

use super::image::Segment;
use crate::detours::modules::memory::{PAGE, add, subtract, wide};
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::{CStr, c_int, c_void};
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use libc::{RTLD_LAZY, RTLD_NOLOAD};

/// A module.
#[derive(Clone, Debug)]
pub(super) struct Module {
    /// Where its ELF header is: its handle.
    pub(super) base: u64,
    /// What is added to the addresses of its file.
    pub(super) bias: u64,
    pub(super) segments: Vec<Segment>,
    /// By which the loader knows it; empty for the program.
    pub(super) path: CString,
    /// Where the loader has that path, as long as the module is loaded.
    pub(super) path_at: u64,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Program,
    Library,
    /// What the kernel maps into every process.
    Kernel,
}

impl Module {
    /// The segment that an address is in.
    pub(super) fn segment(&self, address: u64) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.holds(address))
    }

    /// The last part of its path; nothing for the program.
    pub(super) fn file_name(&self) -> &[u8] {
        self.path.to_bytes().rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }

    /// Keeps it loaded, and lets the loader look into it.
    pub(super) fn open(&self) -> Option<Handle> {
        let name = match self.kind {
            Kind::Program => ptr::null(),
            Kind::Library => self.path.as_ptr(),
            Kind::Kernel => return None,
        };
        // SAFETY: the name is null or a string. RTLD_NOLOAD loads nothing, so no code of the module runs.
        let handle = NonNull::new(unsafe { libc::dlopen(name, RTLD_LAZY | RTLD_NOLOAD) })?;
        let handle = Handle(handle);
        // Another one may have the same name: in another namespace, or since this one was unloaded.
        let is_it = handle.bias() == Some(self.bias);
        is_it.then_some(handle)
    }
}

/// A module that stays loaded until this is dropped. That may run its destructors.
#[derive(Debug)]
pub(in super::super) struct Handle(NonNull<c_void>);

impl Handle {
    /// Loads a module, or finds it loaded.
    pub(super) fn load(name: &CStr) -> Option<Self> {
        // SAFETY: the name is a string. The module's constructors run: that is what loading is.
        NonNull::new(unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) }).map(Self)
    }

    /// Keeps it loaded for ever.
    pub(super) fn keep(self) {
        core::mem::forget(self);
    }

    /// Counts one less of those who have loaded it.
    pub(super) fn release(&self) {
        // SAFETY: it is open, so it has been loaded at least once; who asks for this has loaded it once more.
        unsafe { libc::dlclose(self.0.as_ptr()) };
    }

    /// What the loader adds to the addresses of its file.
    fn bias(&self) -> Option<u64> {
        self.map().map(|(bias, _)| bias)
    }

    /// An address in it.
    pub(super) fn address(&self) -> Option<u64> {
        self.map().map(|(_, dynamic)| dynamic)
    }

    /// What `struct link_map` begins with: the bias, and where the dynamic table is.
    fn map(&self) -> Option<(u64, u64)> {
        #[repr(C)]
        struct LinkMap {
            bias: usize,
            _name: *const c_void,
            dynamic: *const c_void,
        }
        let mut map = MaybeUninit::<*const LinkMap>::uninit();
        // SAFETY: the handle is open, and for this request the answer is a pointer.
        let outcome =
            unsafe { libc::dlinfo(self.0.as_ptr(), libc::RTLD_DI_LINKMAP, map.as_mut_ptr().cast()) };
        if outcome != 0 {
            return None;
        }
        // SAFETY: the call has succeeded, so it has written a pointer to a link map, which stays as long as the handle.
        let map = unsafe { &*map.assume_init() };
        Some((map.bias as u64, map.dynamic.addr() as u64))
    }

    /// What the loader finds by a name, in this module first and then in those that it needs.
    pub(super) fn find(&self, name: &CStr, version: Option<&CStr>) -> Option<u64> {
        find(self.0.as_ptr(), name, version)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle was opened once and is closed once.
        unsafe { libc::dlclose(self.0.as_ptr()) };
    }
}

/// What the loader finds by a name, where it looks first: in the program, and in the libraries that were loaded with it.
pub(super) fn find_anywhere(name: &CStr, version: Option<&CStr>) -> Option<u64> {
    find(libc::RTLD_DEFAULT, name, version)
}

fn find(handle: *mut c_void, name: &CStr, version: Option<&CStr>) -> Option<u64> {
    let found = match version {
        // SAFETY: the handle is open, or a constant that is one; both names are strings.
        Some(version) => unsafe { libc::dlvsym(handle, name.as_ptr(), version.as_ptr()) },
        // SAFETY: as above.
        None => unsafe { libc::dlsym(handle, name.as_ptr()) },
    };
    (!found.is_null()).then(|| found.expose_provenance() as u64)
}

/// All modules, in the order in which they were loaded.
pub(super) fn modules() -> Vec<Module> {
    let mut list = List::default();
    // SAFETY: `look` is called with `list` only while this call lasts.
    unsafe { libc::dl_iterate_phdr(Some(look), ptr::from_mut(&mut list).cast()) };
    list.modules
}

#[derive(Default)]
struct List {
    /// How many objects were seen.
    seen: usize,
    modules: Vec<Module>,
}

/// The module that an address is in.
pub(super) fn containing(address: u64) -> Option<Module> {
    modules().into_iter().find(|module| module.segment(address).is_some())
}

/// The program itself.
pub(super) fn program() -> Option<Module> {
    modules().into_iter().find(|module| module.kind == Kind::Program)
}

/// Adds one module to the list.
unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _size: usize, list: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr passes a valid description, and what `modules` gave it: its own list.
    let (info, list) = unsafe { (&*info, &mut *list.cast::<List>()) };
    list.seen += 1;
    let headers = match info.dlpi_phdr.is_null() {
        true => &[],
        // SAFETY: the loader says that there are so many, and they stay while it calls.
        false => unsafe { core::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) },
    };
    let bias = wide(info.dlpi_addr);
    let mut loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD).peekable();
    // Where the header is not loaded there is no handle.
    let Some(first) = loaded.peek().filter(|first| wide(first.p_offset) < PAGE) else { return 0 };
    let base = subtract(add(bias, wide(first.p_vaddr)), wide(first.p_offset));
    let segments = loaded.map(|header| {
        let start = add(bias, wide(header.p_vaddr));
        let end = start.wrapping_add(wide(header.p_memsz));
        Segment { start, end, executable: header.p_flags & libc::PF_X != 0 }
    });
    let path = match info.dlpi_name.is_null() {
        true => CString::default(),
        // SAFETY: the name is a string of the loader's, and stays while it calls.
        false => CString::from(unsafe { CStr::from_ptr(info.dlpi_name) }),
    };
    // SAFETY: it asks for a number.
    let kernel = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    let kind = if base == wide(kernel) {
        Kind::Kernel
    } else if list.seen == 1 {
        Kind::Program
    } else {
        Kind::Library
    };
    let path_at = info.dlpi_name.expose_provenance() as u64;
    list.modules.push(Module { base, bias, segments: segments.collect(), path, path_at, kind });
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_the_first_and_libc_is_there() {
        let modules = modules();
        assert_eq!(modules.first().map(|module| module.kind), Some(Kind::Program));
        assert_eq!(modules.iter().filter(|module| module.kind == Kind::Program).count(), 1);
        let here = (the_program_is_the_first_and_libc_is_there as fn() as *const ()).addr() as u64;
        assert_eq!(containing(here).unwrap().base, program().unwrap().base);
        let libc =
            containing((libc::getpid as unsafe extern "C" fn() -> i32 as *const ()).addr() as u64).unwrap();
        assert!(libc.file_name().starts_with(b"libc.so"), "{libc:?}");
        assert!(libc.segments.iter().any(|segment| segment.executable));
        let handle = libc.open().unwrap();
        assert_eq!(containing(handle.address().unwrap()).unwrap().base, libc.base);
        let stack = ptr::from_ref(&handle).addr() as u64;
        assert!(containing(stack).is_none() && containing(0).is_none() && containing(u64::MAX).is_none());
    }
}
