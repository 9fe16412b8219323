//! Detours libc's `getenv` in its own process: while the detour is attached, HOME is somewhere else.
//!
//! ```text
//! cargo run -p kdetour-examples --example getenv
//! ```

use kdetour::plan::Patch;
use kdetour::typed::with_process;
use std::env;
use std::ffi::{CStr, c_char};

kdetour::detour! {
    static GETENV: unsafe extern "C" fn(*const c_char) -> *mut c_char = libc::getenv => no_place_like_home;
}

unsafe extern "C" fn no_place_like_home(name: *const c_char) -> *mut c_char {
    // SAFETY: whoever calls `getenv` gives a string.
    if unsafe { CStr::from_ptr(name) } == c"HOME" {
        return c"/somewhere/over/the/rainbow".as_ptr().cast_mut();
    }
    // SAFETY: called as we were called.
    unsafe { GETENV.original()(name) }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let look = |when: &str| {
        let [home, package] = ["HOME", "CARGO_PKG_NAME"].map(|name| env::var(name).unwrap_or_default());
        println!("{when:<9} HOME={home}  CARGO_PKG_NAME={package}");
        (home, package)
    };

    let before = look("before");
    // SAFETY: both functions have one signature and stay in memory, and the detour returns strings that last.
    unsafe { GETENV.attach() }?;
    let during = look("attached");
    with_process(|kdetour| {
        kdetour.records().filter_map(|record| record.patch.as_ref()).for_each(show);
        Ok(())
    })?;
    GETENV.detach()?;
    let after = look("detached");

    let as_it_should = before == after && during.0 == "/somewhere/over/the/rainbow" && during.1 == before.1;
    if as_it_should { Ok(()) } else { Err("the detour did not do what it should".into()) }
}

/// The bytes that changed, and why calling the original still works.
fn show(patch: &Patch) {
    let (original, new) = (patch.window_bytes(), patch.new_bytes());
    println!("          {:#x}: {original:02x?} became {new:02x?}", patch.address());
    println!("          a jump to {:#x}; the original goes on at {:#x}", patch.detour(), patch.trampoline());
}
