//! What the hosts of processes have in common: nothing of it asks the operating system.
//!
//! * [`arch`]: what differs by processor, whatever the system;
//! * [`avoided`]: addresses that slots keep out of;
//! * [`caller`]: from where on the stack of whoever waits counts;
//! * `frames`: the bounds of functions, as their unwind information has them;
//! * [`inside`]: who is in a trap handler that may have read something old;
//! * [`relay`]: at which addresses a relay may be;
//! * [`pe`]: PE images in memory; [`exports`]: exports that lead to pointers of ours; [`image`]: which image is meant;
//! * [`seen`]: the page of memory that was read last;
//! * [`taken`]: what is taken of the memory for slots; [`slots`]: how detours come to it.
//!
//! What each of them has under the same names is here, too: the host is `Process`.
//!
//! | name | what |
//! |---|---|
//! | `Pin` | keeps the library of an address loaded |
//! | `Holder`, `wait`, `wake` | whose turn it is, and waiting for it, without anything that could be detoured |
//! | `at_fork`, `forked` | what happens around the making of a copy of the process |
//! | `imports` | where the pointers are by which an image calls what it imports |
//! | `memory`, `map_near`, `swap_offset`, `make_executable`, `unmap_near` of the host | what [`exports`] needs |
//! | `has_shadow_stack` | whether threads have shadow stacks |

pub(crate) mod arch;
pub(crate) mod avoided;
pub(crate) mod caller;
pub(crate) mod exports;
#[cfg(any(feature = "linux-process", target_arch = "x86"))]
pub(crate) mod frames;
pub(crate) mod image;
pub(crate) mod inside;
pub(crate) mod pe;
pub(crate) mod relay;
pub(crate) mod seen;
pub(crate) mod slots;
pub(crate) mod taken;

#[cfg(feature = "linux-process")]
pub(crate) use super::linux_process::{
    Arena, LinuxProcess as Process, NOT_SUPPORTED, Pin,
    arch::has_shadow_stack,
    imports::imports,
    turn::{Holder, wait, wake},
};
#[cfg(all(windows, feature = "windows-process"))]
pub(crate) use super::windows_process::{
    Arena, NOT_SUPPORTED, Pin, WindowsProcess as Process, has_shadow_stack,
    imports::imports,
    turn::{Holder, wait, wake},
};

/// Bytes of a page, whatever the system.
pub(crate) const PAGE: u64 = 4096;

/// Bytes of a detour that lies in the memory for slots itself: it leads to what a detour inside a function calls.
pub(crate) const STUB: usize = 32;
