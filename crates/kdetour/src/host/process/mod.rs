//! What the hosts of processes have in common: nothing of it asks the operating system.
//!
//! * [`caller`]: from where on the stack of whoever waits counts;
//! * [`inside`]: who is in a trap handler that may have read something old;
//! * [`relay`]: at which addresses a relay may be.

pub(crate) mod caller;
pub(crate) mod inside;
pub(crate) mod relay;

#[cfg(feature = "linux-process")]
pub(crate) use super::linux_process::LinuxProcess as Process;
#[cfg(all(windows, feature = "windows-process"))]
pub(crate) use super::windows_process::WindowsProcess as Process;
