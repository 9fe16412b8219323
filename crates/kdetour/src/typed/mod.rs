//! Detours typed by the function's signature, in one's own process.
//!
//! ```
//! use kdetour::typed::Detour;
//!
//! #[inline(never)]
//! fn price(of: u32) -> u32 {
//!     std::hint::black_box(of) * 3
//! }
//!
//! fn cheaper(of: u32) -> u32 {
//!     of + 1
//! }
//!
//! // SAFETY: both are functions of this program, which has no other thread.
//! let mut detour = unsafe { Detour::attach(price as fn(u32) -> u32, cheaper) }?;
//! assert_eq!(price(5), 6);
//! assert_eq!(detour.original()(5), 15);
//! detour.detach()?;
//! assert_eq!(price(5), 15);
//! # Ok::<(), kdetour::Error>(())
//! ```
//!
//! A detour that has to call the original from inside is best written with [`detour!`](crate::detour!), which
//! declares a static for it.
//!
//! # Alone
//! There is no commit beside running threads here yet: to attach and to detach the process must have one thread
//! only, or the caller promises by [`Alone`] that the others stay away. While a detour is attached any thread may
//! call the target.
//!
//! # Memory
//! Nobody can tell when the last call has left a trampoline: a thread may sleep in it, or in what it calls, for
//! ever. So a slot (about 50 bytes) is kept when its detour is detached, and used again when the same detour of the
//! same target is attached again. A function from [`original`](Detour::original) thus stays good for as long as the
//! process lives.
//!
//! # Functions that the compiler can see
//! A call that was inlined, or whose result was worked out by the compiler, does not reach the target. Functions of
//! the same program should be `#[inline(never)]`.

mod fixed;
mod function;
mod process;

pub use crate::commit::Alone;
pub use fixed::StaticDetour;
pub use function::Function;
pub use process::with_process;

use crate::{Error, Handle};
use core::fmt;

/// A function that is detoured. Dropping it detaches.
///
/// If that is not possible (there are other threads, or somebody else wrote the target's bytes) the detour stays
/// attached for ever: call [`detach`](Detour::detach) to know.
#[must_use = "dropping it detaches"]
pub struct Detour<F: Function> {
    original: F,
    /// None once it is detached.
    handle: Option<Handle>,
}

impl<F: Function> Detour<F> {
    /// Detours `target` to `detour`, in a process that has no other thread.
    ///
    /// # Errors
    /// [`Error::OtherThreads`], or why the target cannot be detoured. Nothing has been written then.
    ///
    /// # Safety
    /// * `detour` may be called in place of `target`: it keeps what callers of `target`, in Rust or not, rely on.
    /// * Both stay in memory: a library that holds one of them is not unloaded while the detour is attached, and not
    ///   while a call is inside.
    /// * This is not called from a signal handler, and no process shares this one's memory without being a thread of
    ///   it (`vfork`).
    pub unsafe fn attach(target: F, detour: F) -> Result<Self, Error> {
        let alone = process::alone()?;
        // SAFETY: the caller's promise.
        unsafe { Self::attach_with(&alone, target, detour) }
    }

    /// As [`attach`](Self::attach), where there are other threads that stay away from the target.
    ///
    /// # Errors
    /// Why the target cannot be detoured. Nothing has been written then.
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn attach_with(alone: &Alone, target: F, detour: F) -> Result<Self, Error> {
        let mut trampoline = 0;
        let mut announce = |address| trampoline = address;
        let attached = with_process(|kdetour| {
            // SAFETY: the caller's promise; both have the same type.
            unsafe { process::attach(kdetour, alone, target.address(), detour.address(), &mut announce) }
        });
        let handle = attached?;
        // SAFETY: the trampoline does what the target does, and is never freed.
        let original = unsafe { F::from_address(trampoline) };
        Ok(Self { original, handle: Some(handle) })
    }

    /// The original function: attached or not, it does what the target did before.
    pub const fn original(&self) -> F {
        self.original
    }

    /// Whether the target is detoured.
    pub const fn is_attached(&self) -> bool {
        self.handle.is_some()
    }

    /// Gives the target its own bytes back, in a process that has no other thread.
    ///
    /// # Errors
    /// [`Error::OtherThreads`]; [`Error::Changed`] if the bytes are not what was written; [`Error::NotAttached`].
    /// The detour stays as it was.
    pub fn detach(&mut self) -> Result<(), Error> {
        self.handle.ok_or(Error::NotAttached)?;
        let alone = process::alone()?;
        self.detach_with(&alone)
    }

    /// As [`detach`](Self::detach), where there are other threads that stay away from the target.
    ///
    /// # Errors
    /// As for [`detach`](Self::detach), but for other threads.
    pub fn detach_with(&mut self, alone: &Alone) -> Result<(), Error> {
        let handle = self.handle.ok_or(Error::NotAttached)?;
        with_process(|kdetour| process::detach(kdetour, alone, handle))?;
        self.handle = None;
        Ok(())
    }

    /// Leaves the target detoured for ever, and gives the original.
    pub fn leak(mut self) -> F {
        self.handle = None;
        self.original
    }
}

impl<F: Function> Drop for Detour<F> {
    fn drop(&mut self) {
        if self.is_attached() {
            // What cannot be detached stays attached, which harms nobody.
            let _ = self.detach();
        }
    }
}

impl<F: Function> fmt::Debug for Detour<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detour")
            .field("original", &format_args!("{:#x}", self.original.address()))
            .field("attached", &self.is_attached())
            .finish()
    }
}
