//! A function of a library that is loaded at run time, as a value: dropping it detaches.
//!
//! ```text
//! cargo run -p kdetour-examples --example library
//! ```

use kdetour::typed::Detour;
use std::mem::transmute;

type Cosine = extern "C" fn(f64) -> f64;

extern "C" fn always_half(_: f64) -> f64 {
    0.5
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // SAFETY: strings are given. The C library's mathematics may be loaded at any time.
    let found = unsafe { libc::dlsym(libc::dlopen(c"libm.so.6".as_ptr(), libc::RTLD_NOW), c"cos".as_ptr()) };
    if found.is_null() {
        return Err("there is no cos".into());
    }
    // SAFETY: that is its type.
    let cos = unsafe { transmute::<*mut std::ffi::c_void, Cosine>(found) };
    let before = cos(0.0);
    // SAFETY: both have one signature; nobody calls the original once it has been freed.
    let mut detour = unsafe { Detour::attach(cos, always_half) }?;
    let (during, original) = (cos(0.0), detour.original()(0.0));
    detour.detach()?;
    let between = cos(0.0);
    // SAFETY: as above, and the function is what it was.
    unsafe { detour.reattach() }?;
    let again = cos(0.0);
    drop(detour);
    let after = cos(0.0);
    println!("{before} | {during}, and {original} by the original | {between} | {again} | {after}");
    let as_it_should = [before, during, original, between, again, after] == [1.0, 0.5, 1.0, 1.0, 0.5, 1.0];
    if as_it_should { Ok(()) } else { Err("the detour did not do what it should".into()) }
}
