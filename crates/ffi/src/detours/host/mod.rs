//! What the system does for these calls: the last error of each thread, threads by their handles, protection of memory.

#[cfg(not(windows))]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(not(windows))]
pub use linux::{kdetour_get_last_error, kdetour_set_last_error, kdetour_thread};

#[cfg(not(windows))]
pub(super) use linux::{is_thread, last_error, protect, set_last_error, start_of_the_program, unmap};
#[cfg(windows)]
pub(super) use windows::{
    is_accessible, is_thread, last_error, protect, set_last_error, start_of_the_program,
};

/// What a region is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    Writing,
    Executing,
}
