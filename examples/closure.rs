//! A closure with state as the detour: counts what this program writes, while it writes it.
//!
//! ```text
//! cargo run -p kdetour-examples --example closure
//! ```

use std::ffi::c_void;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

kdetour::detour! {
    static WRITE: unsafe extern "C" fn(to: i32, bytes: *const c_void, count: usize) -> isize = libc::write;
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bytes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&bytes);
    let closure = move |to, from, count| {
        counted.fetch_add(count, Relaxed);
        // SAFETY: called as the closure was called.
        unsafe { WRITE.original()(to, from, count) }
    };
    // SAFETY: the closure has the signature of `write`, and does what its callers rely on.
    unsafe { WRITE.attach(Box::new(closure)) }?;
    println!("twelve bytes");
    std::io::stdout().flush()?;
    WRITE.detach()?;
    // Nobody is in the closure any more: it is dropped, and its state with it.
    let freed = kdetour::typed::reclaim(Duration::from_secs(1))?;
    println!("{} bytes written while it was attached, {freed} detour freed", bytes.load(Relaxed));
    let as_it_should = bytes.load(Relaxed) == 13 && Arc::strong_count(&bytes) == 1;
    if as_it_should { Ok(()) } else { Err("the detour did not do what it should".into()) }
}
