//! Imports of libraries: the pointers through which they call what others have, however the loader binds them.

use crate::pointers::LONG;
use crate::support::{in_a_process_of_its_own, permissions, text, turn};
use kdetour::typed::pointer::{Image, imports, imports_of};
use kdetour::typed::{PointerDetour, reclaim};
use kdetour::{AtomicAddress, Error};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::{MaybeUninit, transmute};
use std::path::PathBuf;
use std::process::Command;
use std::ptr;
use std::sync::atomic::Ordering::SeqCst;
use std::{env, fs, process};

/// `atoi` of libc, called through a pointer of the library's own: `one` and `other` through the table that is bound when it
/// is called first, or at the start, or without a table; `kept` is data that leads to it.
const SOURCE: &str = "
extern int atoi(const char *);
int (*kept)(const char *) = atoi;
int one(const char *text) { return atoi(text) + 1000; }
int other(const char *text) { return kept(text) + 2000; }
";

/// What the compiler is told of the processor.
pub(crate) const MACHINE: &str = if cfg!(target_arch = "x86") { "-m32" } else { "-m64" };

type Atoi = extern "C" fn(*const c_char) -> c_int;

/// A library that is built now, by some flags, and loaded.
pub(crate) struct Library {
    folder: PathBuf,
    handle: *mut c_void,
}

impl Library {
    pub(crate) fn build(name: &str, flags: &[&str], mode: c_int) -> Self {
        let folder = env::temp_dir().join(format!("kdetour-pointers-{}-{name}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (source, library) = (folder.join("source.c"), folder.join(format!("libpointers-{name}.so")));
        fs::write(&source, SOURCE).unwrap();
        let mut build = Command::new("cc");
        build.args([MACHINE, "-O1", "-fPIC", "-shared"]).args(flags).arg("-o").arg(&library).arg(&source);
        assert!(build.status().unwrap().success());
        let path = CString::new(library.to_str().unwrap()).unwrap();
        // SAFETY: a string is given; the library does nothing when it is loaded.
        let handle = unsafe { libc::dlopen(path.as_ptr(), mode) };
        assert!(!handle.is_null());
        Self { folder, handle }
    }

    pub(crate) fn symbol(&self, name: &CStr) -> u64 {
        // SAFETY: a string is given, and the library is loaded.
        let found = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        assert!(!found.is_null());
        found.expose_provenance() as u64
    }

    fn call(&self, name: &CStr, text: &CStr) -> c_int {
        // SAFETY: the library's functions are of this type.
        let function = unsafe { transmute::<usize, Atoi>(self.symbol(name) as usize) };
        function(text.as_ptr())
    }

    /// What is added to the addresses of its file.
    fn base(&self) -> u64 {
        let mut info = MaybeUninit::<libc::Dl_info>::uninit();
        let one = ptr::with_exposed_provenance::<c_void>(self.symbol(c"one") as usize);
        // SAFETY: there is room for the answer.
        assert_ne!(unsafe { libc::dladdr(one, info.as_mut_ptr()) }, 0);
        // SAFETY: the call has succeeded.
        unsafe { info.assume_init() }.dli_fbase.addr() as u64
    }

    fn pointers(&self) -> Vec<*const Atoi> {
        imports::<Atoi>(Image::Holding(self.symbol(c"one")), "atoi").unwrap()
    }

    pub(crate) fn close(&self) {
        // SAFETY: it was opened above, and is not used by this test afterwards.
        unsafe { libc::dlclose(self.handle) };
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn libc_atoi() -> u64 {
    (libc::atoi as unsafe extern "C" fn(*const c_char) -> c_int as *const ()).addr() as u64
}

extern "C" fn five(_: *const c_char) -> c_int {
    5
}

static ATOI: AtomicAddress = AtomicAddress::new(0);

/// Calls the original each time: what the loader would do then must not undo the detour.
extern "C" fn ten_more(text: *const c_char) -> c_int {
    // SAFETY: the test has put a function of this type there.
    let function = unsafe { transmute::<usize, Atoi>(ATOI.load(SeqCst) as usize) };
    function(text) + 10
}

fn read(place: *const Atoi) -> u64 {
    let bytes = text(place.addr() as u64, size_of::<usize>());
    usize::from_ne_bytes(bytes.try_into().unwrap()) as u64
}

#[test]
fn imports_are_found_however_they_are_bound() {
    if !in_a_process_of_its_own("imports::imports_are_found_however_they_are_bound") {
        return;
    }
    let _turn = turn();
    let ways: [(&str, &[&str], &str); 3] = [
        ("lazy", &["-Wl,-z,lazy"], "rw-p"),
        ("now", &["-Wl,-z,now", "-Wl,-z,relro"], "r--p"),
        ("without", &["-fno-plt", "-Wl,-z,now", "-Wl,-z,relro"], "r--p"),
    ];
    for (name, flags, protection) in ways {
        let library = Library::build(name, flags, libc::RTLD_LAZY);
        let places = library.pointers();
        assert_eq!(places.len(), 1, "{name}");
        assert_eq!(permissions(places[0].addr() as u64), protection, "{name}");
        assert_eq!(read(places[0]), libc_atoi(), "{name}: it is bound");
        // SAFETY: atoi is of this type, and the library's pointer stays with it.
        let mut detour = unsafe { PointerDetour::attach(places[0], ten_more) }.unwrap();
        ATOI.store(detour.original() as *const () as u64, SeqCst);
        for _ in 0..3 {
            // The data that leads to it is another pointer, and so are other images'.
            assert_eq!((library.call(c"one", c"7"), library.call(c"other", c"7")), (1017, 2007), "{name}");
        }
        assert_eq!(permissions(places[0].addr() as u64), protection, "{name}");
        // SAFETY: it is the function of libc.
        assert_eq!(unsafe { libc::atoi(c"7".as_ptr()) }, 7);
        detour.detach().unwrap();
        assert_eq!((library.call(c"one", c"7"), read(places[0])), (1007, libc_atoi()), "{name}");

        // The other one is data of the library.
        let kept = ptr::with_exposed_provenance::<Atoi>(library.symbol(c"kept") as usize);
        // SAFETY: as above.
        let other = unsafe { PointerDetour::attach(kept, five) }.unwrap();
        assert_eq!((library.call(c"one", c"7"), library.call(c"other", c"7")), (1007, 2005), "{name}");
        drop((other, detour));
        reclaim(LONG).unwrap();
        library.close();
    }
}

/// One that the loader has not bound yet leads to its stub, which would write over the detour.
#[test]
fn what_is_not_bound_is_refused_and_bound_on_demand() {
    if !in_a_process_of_its_own("imports::what_is_not_bound_is_refused_and_bound_on_demand") {
        return;
    }
    let _turn = turn();
    let first = Library::build("first", &["-Wl,-z,lazy"], libc::RTLD_LAZY);
    let offset = first.pointers()[0].addr() as u64 - first.base();
    // The same again, in which nothing has been called yet.
    let second = Library::build("second", &["-Wl,-z,lazy"], libc::RTLD_LAZY);
    let unbound = ptr::with_exposed_provenance::<Atoi>((second.base() + offset) as usize);
    let stub = read(unbound);
    assert_ne!(stub, libc_atoi());
    // SAFETY: it is refused.
    let error = unsafe { PointerDetour::attach(unbound, five) }.unwrap_err();
    assert_eq!(error, Error::Unbound { address: unbound.addr() as u64 });
    assert_eq!(read(unbound), stub, "nothing was written");
    assert_eq!(second.pointers(), [unbound]);
    assert_eq!(read(unbound), libc_atoi());
    // SAFETY: as above.
    let detour = unsafe { PointerDetour::attach(unbound, five) }.unwrap();
    assert_eq!((second.call(c"one", c"7"), first.call(c"one", c"7")), (1005, 1007));
    drop(detour);
    // Bound by a call.
    let third = Library::build("third", &["-Wl,-z,lazy"], libc::RTLD_LAZY);
    assert_eq!(third.call(c"one", c"7"), 1007);
    let bound = ptr::with_exposed_provenance::<Atoi>((third.base() + offset) as usize);
    // SAFETY: as above.
    let detour = unsafe { PointerDetour::attach(bound, five) }.unwrap();
    assert_eq!(third.call(c"one", c"7"), 1005);
    drop(detour);
    reclaim(LONG).unwrap();
    let missing = imports_of(Image::Holding(first.symbol(c"one")), "atol");
    assert_eq!(missing, Err(Error::UnknownSymbol));
    [first, second, third].iter().for_each(Library::close);
}

#[test]
fn a_library_stays_as_long_as_its_pointer_is_detoured() {
    if !in_a_process_of_its_own("imports::a_library_stays_as_long_as_its_pointer_is_detoured") {
        return;
    }
    let _turn = turn();
    let library = Library::build("closed", &["-Wl,-z,now"], libc::RTLD_NOW);
    let is_mapped = || fs::read_to_string("/proc/self/maps").unwrap().contains("libpointers-closed.so");
    // SAFETY: atoi is of this type.
    let mut detour = unsafe { PointerDetour::attach(library.pointers()[0], five) }.unwrap();
    library.close();
    assert!(is_mapped() && library.call(c"one", c"7") == 1005);
    detour.detach().unwrap();
    assert!(is_mapped(), "it drains");
    drop(detour);
    reclaim(LONG).unwrap();
    assert!(!is_mapped());
}
