//! Detours functions of running code.
//!
//! A *detour* redirects a function of running code (the *target*) to a function of yours and hands you a
//! *trampoline*, through which the original can still be called:
//!
//! ```text
//!   target:  E9 rel32        jmp detour          detour:      your code, calls the trampoline
//!            ...rest of the function  <--------  trampoline:  the displaced instructions, then a jump back
//! ```
//!
//! The crate [`kdetour_plan`] turns bytes into a [`Patch`](kdetour_plan::Patch); this crate turns patches into
//! running code:
//!
//! * [`host`]: the port to an environment, and the hosts that exist;
//! * [`commit`]: the protocols that write a set of patches: [`Exchange`](Protocol::Exchange),
//!   [`Live`](Protocol::Live), [`Rendezvous`](Protocol::Rendezvous), [`Local`](Protocol::Local);
//! * [`slots`]: executable memory for trampolines;
//! * [`Kdetour`] and [`Session`]: the detours of one environment, and sets of changes that commit as one;
//! * [`Method`]: by what calls reach a detour: a patch at a function's entry, a pointer that is exchanged, a breakpoint, a debug
//!   register;
//! * `typed` (features `linux-process`, `windows-process`): [`Detour<F>`](typed::Detour), for one's own process.
#![no_std]

extern crate alloc;
#[cfg(any(test, feature = "linux-process", all(windows, feature = "windows-process")))]
extern crate std;

mod address;
pub mod commit;
#[cfg(any(feature = "linux-process", all(windows, feature = "windows-process")))]
mod drain;
mod error;
pub mod host;
mod kdetour;
mod method;
mod pointers;
mod records;
mod session;
mod sites;
pub mod slots;
mod thunks;
#[cfg(any(feature = "linux-process", all(windows, feature = "windows-process")))]
pub mod typed;

pub use address::AtomicAddress;
pub use commit::Protocol;
pub use error::{Error, SessionError};
pub use kdetour::Kdetour;
pub use kdetour_plan as plan;
pub use method::Method;
pub use records::{Handle, Record, State};
pub use session::{Attach, Session, Surveyor, accepted, survey};
