//! Closures as detours.

use super::process::{self, By, Closure};
use super::{Alone, Function};
use crate::{AtomicAddress, Error, Handle, Method, Protocol};
use core::fmt;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use core::{mem, ptr};
use std::boxed::Box;

/// A detour whose body is a closure with state, declared as a static by [`detour!`](crate::detour!):
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU32, Ordering};
///
/// #[inline(never)]
/// fn price(of: u32) -> u32 {
///     std::hint::black_box(of) * 3
/// }
///
/// kdetour::detour! {
///     static PRICE: fn(of: u32) -> u32 = price;
/// }
///
/// let asked = Arc::new(AtomicU32::new(0));
/// let seen = Arc::clone(&asked);
/// // SAFETY: the closure may be called in place of `price`.
/// unsafe {
///     PRICE.attach(Box::new(move |of| {
///         seen.fetch_add(1, Ordering::Relaxed);
///         PRICE.original()(of) + 1
///     }))
/// }?;
/// assert_eq!((price(5), asked.load(Ordering::Relaxed)), (16, 1));
/// PRICE.detach()?;
/// assert_eq!(price(5), 15);
/// kdetour::typed::reclaim(std::time::Duration::from_secs(1))?; // drops the closure
/// assert_eq!(Arc::strong_count(&asked), 1);
/// # Ok::<(), kdetour::Error>(())
/// ```
///
/// Each call counts itself while it is inside, which the plain detours do not. One that is left by `longjmp`, or with its
/// thread, is counted for ever: that closure is then never dropped.
pub struct ClosureDetour<F, C: ?Sized> {
    target: F,
    /// Calls the closure.
    thunk: F,
    /// A box with a box of the closure; null before the first attach. What it pointed to before is kept by the process
    /// until the detour has been drained.
    closure: AtomicPtr<Box<C>>,
    in_flight: AtomicU64,
    original: AtomicAddress,
    handle: AtomicU64,
}

/// In place of a handle: somebody is attaching or detaching right now.
const CHANGING: u64 = u64::MAX;

/// Takes a call off the count, when it returns and when it unwinds.
struct Inside<'a>(&'a AtomicU64);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// The pointer of a closure that nobody calls any more, to be freed.
struct Held<C: ?Sized>(*mut Box<C>);

// SAFETY: it is the only owner of the closure, which may be dropped by any thread.
unsafe impl<C: ?Sized + Send> Send for Held<C> {}

impl<C: ?Sized> Drop for Held<C> {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw` in `attach_any`, owned by this value alone; it is dropped when the attach has
        // failed, or when the detour has been drained.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

impl<F: Function, C: ?Sized + Send + Sync + 'static> ClosureDetour<F, C> {
    /// Not attached. For [`detour!`](crate::detour!), whose `thunk` calls [`enter`](Self::enter) on the same static.
    #[doc(hidden)]
    pub const fn new(target: F, thunk: F) -> Self {
        Self {
            target,
            thunk,
            closure: AtomicPtr::new(ptr::null_mut()),
            in_flight: AtomicU64::new(0),
            original: AtomicAddress::new(0),
            handle: AtomicU64::new(0),
        }
    }

    /// Calls `call` with the closure. For the thunk, which is only reached when there is one.
    #[doc(hidden)]
    #[inline(always)]
    pub fn enter<R>(&self, call: impl FnOnce(&C) -> R) -> R {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        let inside = Inside(&self.in_flight);
        // SAFETY: the thunk is reached through the target, after `attach_any` has stored the pointer. The closure is
        // dropped after a drain: when this call is not counted any more, and no thread is inside the thunk.
        let closure = unsafe { &**self.closure.load(Ordering::Acquire) };
        let outcome = call(closure);
        drop(inside);
        outcome
    }

    /// Detours the target to `closure`, by [`Protocol::Exchange`]: whatever other threads do.
    ///
    /// # Errors
    /// Why the target cannot be detoured. Nothing has been written then.
    ///
    /// # Safety
    /// As for [`Detour::attach`](super::Detour::attach). A closure that panics unwinds into the callers of the target
    /// if the function's ABI can (Rust's own, `C-unwind`), else it aborts.
    pub unsafe fn attach(&'static self, closure: Box<C>) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.attach_by(Protocol::Exchange, self.target, closure) }
    }

    /// As [`attach`](Self::attach), with a target that was not known before.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn attach_to(&'static self, target: F, closure: Box<C>) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.attach_by(Protocol::Exchange, target, closure) }
    }

    /// As [`attach`](Self::attach), by a protocol of one's choice, with a target that was perhaps not known before.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach), and what the protocol needs and does not find.
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn attach_by(
        &'static self,
        protocol: Protocol,
        target: F,
        closure: Box<C>,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.attach_any(By::Protocol(protocol), Method::Jump, target, closure) }
    }

    /// As [`attach`](Self::attach), by a method of one's choice.
    ///
    /// # Errors
    /// As for [`Detour::attach_as`](super::Detour::attach_as).
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn attach_as(&'static self, method: Method, closure: Box<C>) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.attach_any(By::Protocol(Protocol::Exchange), method, self.target, closure) }
    }

    /// As [`attach`](Self::attach), by [`Protocol::Local`], where other threads stay away from the target.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn attach_with(&'static self, alone: &Alone, target: F, closure: Box<C>) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.attach_any(By::Alone(alone), Method::Jump, target, closure) }
    }

    unsafe fn attach_any(
        &'static self,
        by: By<'_>,
        method: Method,
        target: F,
        closure: Box<C>,
    ) -> Result<(), Error> {
        let (target, detour) = (target.address(), self.thunk.address());
        if self.handle.compare_exchange(0, CHANGING, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return Err(Error::AlreadyDetoured { target });
        }
        let fresh = Box::into_raw(Box::new(closure));
        // Calls that were on their way in when the detour was last detached may take the old one or this one.
        let before = (self.closure.swap(fresh, Ordering::AcqRel), self.original.load(Ordering::Acquire));
        let mut closure = Some(Closure { state: Box::new(Held(fresh)), in_flight: &self.in_flight });
        // SAFETY: the caller's promise; both have the same type.
        match unsafe { process::attach(by, method, target, detour, Some(&self.original), &mut closure) } {
            Ok((handle, _)) => {
                self.handle.store(handle.as_raw(), Ordering::Release);
                Ok(())
            }
            Err(error) => {
                self.closure.store(before.0, Ordering::Release);
                if !before.0.is_null() {
                    // Such a call may be in the new one now. It is never freed, which harms less than the opposite.
                    mem::forget(closure);
                }
                self.original.store(before.1, Ordering::Release);
                self.handle.store(0, Ordering::Release);
                Err(error)
            }
        }
    }

    /// The original function. It does what the target does without this detour, whether attached or not.
    pub fn original(&self) -> F {
        match self.original.load(Ordering::Acquire) {
            0 => self.target,
            // SAFETY: a function that does what the target of this type does: an older detour, the trampoline, or the
            // target; whoever calls it is seen inside by a drain.
            original => unsafe { F::from_address(original) },
        }
    }

    /// Whether the target is detoured.
    pub fn is_attached(&self) -> bool {
        !matches!(self.handle.load(Ordering::Acquire), 0 | CHANGING)
    }

    /// How many calls are inside.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Gives the target back what it was before. The closure is dropped by [`reclaim`](super::reclaim).
    ///
    /// # Errors
    /// As for [`Detour::detach`](super::Detour::detach).
    pub fn detach(&self) -> Result<(), Error> {
        self.detach_any(By::Protocol(Protocol::Exchange))
    }

    /// As [`detach`](Self::detach), by a protocol of one's choice.
    ///
    /// # Errors
    /// As for [`detach`](Self::detach), and what the protocol needs and does not find.
    pub fn detach_by(&self, protocol: Protocol) -> Result<(), Error> {
        self.detach_any(By::Protocol(protocol))
    }

    /// As [`detach`](Self::detach), by [`Protocol::Local`], where other threads stay away from the target.
    ///
    /// # Errors
    /// As for [`detach`](Self::detach).
    pub fn detach_with(&self, alone: &Alone) -> Result<(), Error> {
        self.detach_any(By::Alone(alone))
    }

    fn detach_any(&self, by: By<'_>) -> Result<(), Error> {
        let handle = self.handle.load(Ordering::Acquire);
        if matches!(handle, 0 | CHANGING)
            || self.handle.compare_exchange(handle, CHANGING, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return Err(Error::NotAttached);
        }
        let outcome = process::detach(by, Handle::from_raw(handle));
        self.handle.store(if outcome.is_ok() { 0 } else { handle }, Ordering::Release);
        outcome
    }
}

impl<F: Function, C: ?Sized + Send + Sync + 'static> fmt::Debug for ClosureDetour<F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClosureDetour")
            .field("target", &format_args!("{:#x}", self.target.address()))
            .field("attached", &self.is_attached())
            .finish_non_exhaustive()
    }
}
