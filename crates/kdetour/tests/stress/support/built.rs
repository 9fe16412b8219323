//! A shared library that is compiled while the test runs, in a folder of its own.

use std::ffi::{CStr, CString, c_void};
use std::path::PathBuf;
use std::process::{Command, id};
use std::{env, fs};

/// What the compiler is told of the processor. The kernel's headers are the same for both, but Debian has them in the folder of one.
const MACHINE: &[&str] = if cfg!(target_arch = "x86") {
    &["-m32", "-idirafter", "/usr/include/x86_64-linux-gnu"]
} else {
    &["-m64"]
};

pub(crate) struct Built {
    folder: PathBuf,
    name: String,
    path: CString,
}

impl Built {
    /// Compiles `source` by `cc` or `g++` into `libNAME.so`.
    pub(crate) fn library(compiler: &str, name: &str, source: &str) -> Self {
        let folder = env::temp_dir().join(format!("kdetour-stress-{}-{name}", id()));
        fs::create_dir_all(&folder).expect("a folder");
        let name = format!("lib{name}.so");
        let (from, path) = (folder.join("source"), folder.join(&name));
        fs::write(&from, source).expect("the source");
        let language = if compiler == "cc" { "c" } else { "c++" };
        let mut build = Command::new(compiler);
        build.args(MACHINE).args(["-O1", "-shared", "-fPIC", "-x", language]).arg(&from).arg("-o").arg(&path);
        let built = build.status();
        assert!(built.is_ok_and(|status| status.success()), "{compiler} builds a library");
        let path = CString::new(path.to_str().expect("a name")).expect("a name");
        Self { folder, name, path }
    }

    pub(crate) fn open(&self, flags: i32) -> *mut c_void {
        // SAFETY: a string is given; the library does nothing when it is loaded.
        unsafe { libc::dlopen(self.path.as_ptr(), libc::RTLD_NOW | flags) }
    }

    pub(crate) fn is_mapped(&self) -> bool {
        fs::read_to_string("/proc/self/maps").expect("mappings").contains(&self.name)
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The address of a symbol of a library that was opened.
pub(crate) fn symbol(handle: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: a string is given.
    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
    assert!(!address.is_null(), "{name:?}");
    address
}
