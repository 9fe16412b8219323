//! What is asked of the system: memory, what is mapped, and the time that a thread had the processor.

#[cfg(not(windows))]
#[path = "linux.rs"]
mod here;
#[cfg(windows)]
#[path = "windows.rs"]
mod here;

pub(crate) use here::{cpu_time, most_mappings, pages, pages_anywhere, protect};

/// What may be done with pages that were there to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    Executable,
    ReadOnly,
}

/// Executable memory that no file is behind, and mappings altogether.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) executable_pages: u64,
    pub(crate) executable_mappings: u64,
    pub(crate) mappings: u64,
}

impl Mapped {
    pub(crate) fn now() -> anyhow::Result<Self> {
        here::mapped()
    }
}
