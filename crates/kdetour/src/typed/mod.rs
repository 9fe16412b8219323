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
//! # Beside other threads
//! Detours come and go while every thread runs and calls the target: by
//! [`Protocol::Exchange`], which stops nobody and lets nobody trap. Other protocols are taken
//! by the `_by` calls; [`Alone`] is for code that no other thread comes near.
//!
//! # Memory
//! A call may still be inside a detour or its trampoline when it has been detached. So nothing is freed then: the slot
//! is used again when the same target is detoured again, and [`reclaim`] frees what nobody is inside any more, after a
//! look at every thread. When a thousand detours have gathered, detaching does so by itself.
//!
//! # Pointers
//! A [`PointerDetour`] exchanges one pointer to a function, and leaves the code alone: one of a table, or one through which an
//! image calls what it [imports](pointer::imports). What Windows' images import and export, on Windows or in a Linux process, is in tables: [`pe`].
//!
//! # Functions that the compiler can see
//! A call that was inlined, or whose result was worked out by the compiler, does not reach the target. Functions of
//! the same program should be `#[inline(never)]`.

mod cell;
mod closure;
mod fixed;
mod function;
mod mid;
pub mod pe;
pub mod pointer;
mod process;
pub mod set;
mod turn;

pub use crate::commit::Alone;
pub use closure::ClosureDetour;
pub use fixed::StaticDetour;
pub use function::Function;
pub use mid::{MidDetour, Registers};
pub use pointer::PointerDetour;
pub use process::{reclaim, with_process};

use crate::{Error, Handle, Method, Protocol};
use cell::Cell;
use core::fmt;
use core::sync::atomic::Ordering;
use process::By;

/// A function that is detoured. Dropping it detaches.
///
/// If that is not possible (somebody else wrote the target's bytes) the detour stays attached for ever: call
/// [`detach`](Detour::detach) to know.
#[must_use = "dropping it detaches"]
pub struct Detour<F: Function> {
    target: F,
    detour: F,
    cell: Cell,
    method: Method,
    handle: Handle,
    attached: bool,
    leaked: bool,
}

impl<F: Function> Detour<F> {
    /// Detours `target` to `detour`, by [`Protocol::Exchange`]: whatever other threads do.
    ///
    /// If the target is detoured already, this detour is called first, and its original is the one that was there
    /// before.
    ///
    /// # Errors
    /// Why the target cannot be detoured. Nothing has been written then.
    ///
    /// # Safety
    /// * `detour` may be called in place of `target`: it keeps what callers of `target`, in Rust or not, rely on.
    /// * Both stay in memory until [`reclaim`] has freed the detour. Shared objects do: they are kept loaded.
    /// * What [`original`](Self::original) gave is not called after the detour has been freed: by `reclaim`, or by a later
    ///   detach, when many have gathered. A call of it that is under way is waited for; a copy of it that is kept, on the heap,
    ///   in a variable of the thread that frees or in a register across a call that sleeps, is not seen. Asking `original` at
    ///   each call is always right.
    /// * This is not called from a signal handler.
    pub unsafe fn attach(target: F, detour: F) -> Result<Self, Error> {
        // SAFETY: the caller's promise.
        unsafe { Self::attach_by(Protocol::Exchange, target, detour) }
    }

    /// As [`attach`](Self::attach), by a protocol of one's choice.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach), and what the protocol needs and does not find.
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn attach_by(protocol: Protocol, target: F, detour: F) -> Result<Self, Error> {
        // SAFETY: the caller's promise.
        unsafe { Self::attach_any(By::Protocol(protocol), Method::Jump, target, detour) }
    }

    /// As [`attach`](Self::attach), by a method of one's choice: a breakpoint, or a debug register.
    ///
    /// ```
    /// use kdetour::Method;
    /// use kdetour::typed::Detour;
    ///
    /// #[inline(never)]
    /// fn price(of: u32) -> u32 {
    ///     std::hint::black_box(of) * 3
    /// }
    ///
    /// fn cheaper(of: u32) -> u32 {
    ///     of + 1
    /// }
    ///
    /// // SAFETY: both are functions of this program, which has no other thread.
    /// let detour = unsafe { Detour::attach_as(Method::Breakpoint, price as fn(u32) -> u32, cheaper) }?;
    /// assert_eq!((price(5), detour.original()(5)), (6, 15));
    /// # Ok::<(), kdetour::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`attach`](Self::attach), and what the method needs and does not find: [`Error::TrapBlocked`],
    /// [`Error::TrapHandler`]; [`Error::NoDebugRegister`], [`Error::DebugRegistersMissing`],
    /// [`Error::DebugRegistersForbidden`]. [`Error::AlreadyDetoured`] if the target is detoured by another method.
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn attach_as(method: Method, target: F, detour: F) -> Result<Self, Error> {
        // SAFETY: the caller's promise.
        unsafe { Self::attach_any(By::Protocol(Protocol::Exchange), method, target, detour) }
    }

    /// As [`attach`](Self::attach), by [`Protocol::Local`], where other threads stay away from the target.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn attach_with(alone: &Alone, target: F, detour: F) -> Result<Self, Error> {
        // SAFETY: the caller's promise.
        unsafe { Self::attach_any(By::Alone(alone), Method::Jump, target, detour) }
    }

    unsafe fn attach_any(by: By<'_>, method: Method, target: F, detour: F) -> Result<Self, Error> {
        // SAFETY: the caller's promise; both have the same type.
        let (handle, cell) =
            unsafe { process::attach(by, method, target.address(), detour.address(), None, &mut None) }?;
        Ok(Self { target, detour, cell, method, handle, attached: true, leaked: false })
    }

    /// The original function: attached or not, it does what the target did before. Ask for it at each call: it becomes
    /// another one when an older detour of the target goes.
    pub fn original(&self) -> F {
        // SAFETY: the cell holds the address of a function that does what the target does: an older detour, the
        // trampoline, or the target; whoever calls it is seen inside by a drain.
        unsafe { F::from_address(self.cell.load(Ordering::Acquire)) }
    }

    /// Whether the target is detoured by this detour.
    pub const fn is_attached(&self) -> bool {
        self.attached
    }

    /// Gives the target back what it was before, whatever other threads do. Its slot is kept, so that
    /// [`reattach`](Self::reattach) plans nothing anew.
    ///
    /// # Errors
    /// [`Error::Changed`] if the bytes are not what was written; [`Error::NotAttached`]. The detour stays as it was. Where the
    /// target is unmapped, or its original bytes are back by themselves, there is nothing left to be done, and it is
    /// detached.
    pub fn detach(&mut self) -> Result<(), Error> {
        self.detach_any(By::Protocol(Protocol::Exchange))
    }

    /// As [`detach`](Self::detach), by a protocol of one's choice.
    ///
    /// # Errors
    /// As for [`detach`](Self::detach), and what the protocol needs and does not find.
    pub fn detach_by(&mut self, protocol: Protocol) -> Result<(), Error> {
        self.detach_any(By::Protocol(protocol))
    }

    /// As [`detach`](Self::detach), by [`Protocol::Local`], where other threads stay away from the target.
    ///
    /// # Errors
    /// As for [`detach`](Self::detach).
    pub fn detach_with(&mut self, alone: &Alone) -> Result<(), Error> {
        self.detach_any(By::Alone(alone))
    }

    fn detach_any(&mut self, by: By<'_>) -> Result<(), Error> {
        if !self.attached {
            return Err(Error::NotAttached);
        }
        process::detach(by, self.handle)?;
        self.attached = false;
        Ok(())
    }

    /// Attaches it again, in front of whatever else has come to the target meanwhile.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach); [`Error::AlreadyDetoured`] if it is attached.
    ///
    /// # Safety
    /// As for [`attach`](Self::attach); and the target's code is what it was when it was attached first.
    pub unsafe fn reattach(&mut self) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.reattach_by(Protocol::Exchange) }
    }

    /// As [`reattach`](Self::reattach), by a protocol of one's choice.
    ///
    /// # Errors
    /// As for [`reattach`](Self::reattach), and what the protocol needs and does not find.
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn reattach_by(&mut self, protocol: Protocol) -> Result<(), Error> {
        let (target, by) = (self.target.address(), By::Protocol(protocol));
        if self.attached {
            return Err(Error::AlreadyDetoured { target });
        }
        // SAFETY: the caller's promise; the cell is this detour's own.
        self.handle = unsafe {
            process::attach_again(by, self.method, self.handle, target, self.detour.address(), self.cell)
        }?;
        self.attached = true;
        Ok(())
    }

    /// Leaves the target detoured for ever, and gives the original. Of a detour that is not attached that is the target
    /// itself, which is left as it is.
    pub fn leak(mut self) -> F {
        if !self.attached {
            return self.target;
        }
        self.leaked = true;
        self.original()
    }
}

impl<F: Function> Drop for Detour<F> {
    fn drop(&mut self) {
        if self.leaked {
            return;
        }
        // What cannot be detached stays attached, which harms nobody, and goes on reading its cell.
        if !self.attached || self.detach().is_ok() {
            process::abandon(self.handle, self.cell);
        }
    }
}

impl<F: Function> fmt::Debug for Detour<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detour")
            .field("target", &format_args!("{:#x}", self.target.address()))
            .field("detour", &format_args!("{:#x}", self.detour.address()))
            .field("attached", &self.attached)
            .finish_non_exhaustive()
    }
}
