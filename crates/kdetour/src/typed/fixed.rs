//! Detours declared as statics.

use super::process::{self, By};
use super::{Alone, Function};
use crate::{AtomicAddress, Error, Handle, Method, Protocol};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// In place of a handle: somebody is attaching or detaching right now.
const CHANGING: u64 = u64::MAX;

/// Declares a static for a detour: its type, the target, and the detour that can call the original through it.
///
/// ```
/// use std::ffi::{CStr, c_char};
///
/// unsafe extern "C" {
///     fn getenv(name: *const c_char) -> *const c_char;
/// }
///
/// kdetour::detour! {
///     /// What this program believes about its environment.
///     static GETENV: unsafe extern "C" fn(*const c_char) -> *const c_char = getenv => no_place_like_home;
/// }
///
/// unsafe extern "C" fn no_place_like_home(name: *const c_char) -> *const c_char {
///     // SAFETY: the caller of `getenv` gives a string.
///     if unsafe { CStr::from_ptr(name) } == c"HOME" {
///         return c"Kansas".as_ptr();
///     }
///     // SAFETY: as the caller called us.
///     unsafe { GETENV.original()(name) }
/// }
///
/// // SAFETY: both are functions of this program and libc, and this program has no other thread.
/// unsafe { GETENV.attach() }?;
/// // SAFETY: a string is given and returned.
/// assert_eq!(unsafe { CStr::from_ptr(getenv(c"HOME".as_ptr())) }, c"Kansas");
/// GETENV.detach()?;
/// # Ok::<(), kdetour::Error>(())
/// ```
///
/// Several of one form may be declared at once. A target that is only known at run time is given to
/// [`attach_to`](crate::typed::StaticDetour::attach_to); the one that is declared stands for it until then.
///
/// Without `=> detour`, and with names for the arguments, the body is a closure that is given when it is attached: see
/// [`ClosureDetour`](crate::typed::ClosureDetour).
#[macro_export]
macro_rules! detour {
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: $function:ty = $target:expr => $detour:expr;)+) => {
        $(
            $(#[$attribute])*
            $visibility static $name: $crate::typed::StaticDetour<$function> =
                $crate::typed::StaticDetour::new($target, $detour);
        )+
    };
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: $(extern $abi:literal)?
        fn($($argument:ident: $type:ty),* $(,)?) $(-> $return:ty)? = $target:expr;)+) => {
        $(
            $(#[$attribute])*
            $visibility static $name: $crate::typed::ClosureDetour<
                $(extern $abi)? fn($($type),*) $(-> $return)?,
                dyn Fn($($type),*) $(-> $return)? + Send + Sync,
            > = {
                $(extern $abi)? fn thunk($($argument: $type),*) $(-> $return)? {
                    $name.enter(|closure| closure($($argument),*))
                }
                $crate::typed::ClosureDetour::new($target, thunk)
            };
        )+
    };
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: unsafe $(extern $abi:literal)?
        fn($($argument:ident: $type:ty),* $(,)?) $(-> $return:ty)? = $target:expr;)+) => {
        $(
            $(#[$attribute])*
            $visibility static $name: $crate::typed::ClosureDetour<
                unsafe $(extern $abi)? fn($($type),*) $(-> $return)?,
                dyn Fn($($type),*) $(-> $return)? + Send + Sync,
            > = {
                unsafe $(extern $abi)? fn thunk($($argument: $type),*) $(-> $return)? {
                    $name.enter(|closure| closure($($argument),*))
                }
                $crate::typed::ClosureDetour::new($target, thunk)
            };
        )+
    };
}

/// A detour that is declared as a static, by [`detour!`](crate::detour!): its detour can name it.
pub struct StaticDetour<F> {
    target: F,
    detour: F,
    /// The original; 0 before there is one.
    original: AtomicAddress,
    /// The handle; 0 while it is not attached.
    handle: AtomicU64,
}

impl<F: Function> StaticDetour<F> {
    /// Not attached.
    pub const fn new(target: F, detour: F) -> Self {
        Self { target, detour, original: AtomicAddress::new(0), handle: AtomicU64::new(0) }
    }

    /// Detours the target, by [`Protocol::Exchange`]: whatever other threads do.
    ///
    /// # Errors
    /// Why the target cannot be detoured. Nothing has been written then.
    ///
    /// # Safety
    /// As for [`Detour::attach`](super::Detour::attach).
    pub unsafe fn attach(&'static self) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.attach_by(Protocol::Exchange, self.target) }
    }

    /// As [`attach`](Self::attach), with a target that was not known before.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    ///
    /// # Safety
    /// As for [`Detour::attach`](super::Detour::attach).
    pub unsafe fn attach_to(&'static self, target: F) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.attach_by(Protocol::Exchange, target) }
    }

    /// As [`attach_to`](Self::attach_to), by a protocol of one's choice.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach), and what the protocol needs and does not find.
    ///
    /// # Safety
    /// As for [`Detour::attach`](super::Detour::attach).
    pub unsafe fn attach_by(&'static self, protocol: Protocol, target: F) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.attach_any(By::Protocol(protocol), Method::Jump, target) }
    }

    /// As [`attach`](Self::attach), by a method of one's choice.
    ///
    /// # Errors
    /// As for [`Detour::attach_as`](super::Detour::attach_as).
    ///
    /// # Safety
    /// As for [`Detour::attach`](super::Detour::attach).
    pub unsafe fn attach_as(&'static self, method: Method) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.attach_any(By::Protocol(Protocol::Exchange), method, self.target) }
    }

    /// As [`attach_to`](Self::attach_to), by [`Protocol::Local`], where other threads stay away from the target.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    ///
    /// # Safety
    /// As for [`Detour::attach`](super::Detour::attach).
    pub unsafe fn attach_with(&'static self, alone: &Alone, target: F) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.attach_any(By::Alone(alone), Method::Jump, target) }
    }

    unsafe fn attach_any(&'static self, by: By<'_>, method: Method, target: F) -> Result<(), Error> {
        let (target, detour) = (target.address(), self.detour.address());
        // Nobody else attaches or detaches it from here on.
        if self.handle.compare_exchange(0, CHANGING, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return Err(Error::AlreadyDetoured { target });
        }
        let before = self.original.load(Ordering::Acquire);
        let cell = Some(&self.original);
        // SAFETY: the caller's promise; both have the same type.
        let attached = unsafe { process::attach(by, method, target, detour, cell, &mut None) };
        match attached {
            Ok((handle, _)) => {
                self.handle.store(handle.as_raw(), Ordering::Release);
                Ok(())
            }
            Err(error) => {
                self.original.store(before, Ordering::Release);
                self.handle.store(0, Ordering::Release);
                Err(error)
            }
        }
    }

    /// The original function. It does what the target does without this detour, whether attached or not: before the
    /// first attach it is the declared target itself.
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

    /// Gives the target back what it was before, whatever other threads do.
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

impl<F: Function> fmt::Debug for StaticDetour<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticDetour")
            .field("target", &format_args!("{:#x}", self.target.address()))
            .field("attached", &self.is_attached())
            .finish_non_exhaustive()
    }
}
