//! What the hosts of processes have in common: nothing of it asks the operating system.
//!
//! * [`avoided`]: addresses that slots keep out of;
//! * [`caller`]: from where on the stack of whoever waits counts;
//! * [`inside`]: who is in a trap handler that may have read something old;
//! * [`relay`]: at which addresses a relay may be;
//! * [`taken`]: what is taken of the memory for slots; [`slots`]: how detours come to it.

pub(crate) mod avoided;
pub(crate) mod caller;
pub(crate) mod inside;
pub(crate) mod relay;
pub(crate) mod slots;
pub(crate) mod taken;

#[cfg(feature = "linux-process")]
pub(crate) use super::linux_process::{Arena, LinuxProcess as Process};
#[cfg(all(windows, feature = "windows-process"))]
pub(crate) use super::windows_process::{Arena, WindowsProcess as Process};
