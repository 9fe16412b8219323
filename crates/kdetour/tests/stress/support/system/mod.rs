//! What the system tells and does, for tests.

#[cfg(not(windows))]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(not(windows))]
pub(crate) use linux::*;
use std::thread;
use std::time::{Duration, Instant};
#[cfg(windows)]
pub(crate) use windows::*;

/// Memory that can be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) is_readable: bool,
    /// Whether it is of no file.
    pub(crate) is_anonymous: bool,
    /// All that the system says of it.
    pub(crate) name: String,
}

/// Waits until something is so, but not for ever.
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    // Kernels have been seen to let a thread that was ready wait for minutes behind others that spin.
    let limit = Instant::now() + Duration::from_secs(300);
    while !is_so() {
        if Instant::now() > limit {
            super::runner::fail(&format!("waited in vain for {what}"));
        }
        thread::sleep(Duration::from_micros(50));
    }
}
