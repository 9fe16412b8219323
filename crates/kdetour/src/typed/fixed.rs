//! Detours declared as statics.

use super::process::{self, with_process};
use super::{Alone, Function};
use crate::{Error, Handle};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

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
/// Several may be declared at once. A target that is only known at run time is given to
/// [`attach_to`](crate::typed::StaticDetour::attach_to); the one that is declared stands for it until then.
#[macro_export]
macro_rules! detour {
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: $function:ty = $target:expr => $detour:expr;)+) => {
        $(
            $(#[$attribute])*
            $visibility static $name: $crate::typed::StaticDetour<$function> =
                $crate::typed::StaticDetour::new($target, $detour);
        )+
    };
}

/// A detour that is declared as a static, by [`detour!`](crate::detour!): its detour can name it.
pub struct StaticDetour<F> {
    target: F,
    detour: F,
    /// The trampoline; 0 before there is one.
    original: AtomicU64,
    /// The handle; 0 while it is not attached.
    handle: AtomicU64,
}

impl<F: Function> StaticDetour<F> {
    /// Not attached.
    pub const fn new(target: F, detour: F) -> Self {
        Self { target, detour, original: AtomicU64::new(0), handle: AtomicU64::new(0) }
    }

    /// Detours the target, in a process that has no other thread.
    ///
    /// # Errors
    /// [`Error::OtherThreads`], or why the target cannot be detoured. Nothing has been written then.
    ///
    /// # Safety
    /// As for [`Detour::attach`](super::Detour::attach).
    pub unsafe fn attach(&self) -> Result<(), Error> {
        let alone = process::alone()?;
        // SAFETY: the caller's promise.
        unsafe { self.attach_with(&alone, self.target) }
    }

    /// As [`attach`](Self::attach), with a target that was not known before.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    ///
    /// # Safety
    /// As for [`Detour::attach`](super::Detour::attach).
    pub unsafe fn attach_to(&self, target: F) -> Result<(), Error> {
        let alone = process::alone()?;
        // SAFETY: the caller's promise.
        unsafe { self.attach_with(&alone, target) }
    }

    /// As [`attach_to`](Self::attach_to), where there are other threads that stay away from the target.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach), but for other threads.
    ///
    /// # Safety
    /// As for [`Detour::attach`](super::Detour::attach).
    pub unsafe fn attach_with(&self, alone: &Alone, target: F) -> Result<(), Error> {
        with_process(|kdetour| {
            if self.is_attached() {
                return Err(Error::AlreadyDetoured { target: target.address() });
            }
            let before = self.original.load(Ordering::Acquire);
            let mut announce = |trampoline| self.original.store(trampoline, Ordering::Release);
            let (target, detour) = (target.address(), self.detour.address());
            // SAFETY: the caller's promise; both have the same type.
            match unsafe { process::attach(kdetour, alone, target, detour, &mut announce) } {
                Ok(handle) => {
                    self.handle.store(handle.as_raw(), Ordering::Release);
                    Ok(())
                }
                Err(error) => {
                    self.original.store(before, Ordering::Release);
                    Err(error)
                }
            }
        })
    }

    /// The original function. It does what the target does without the detour, whether attached or not: before the
    /// first attach it is the declared target itself.
    pub fn original(&self) -> F {
        match self.original.load(Ordering::Acquire) {
            0 => self.target,
            // SAFETY: the trampoline of a target of this type, which is never freed.
            trampoline => unsafe { F::from_address(trampoline) },
        }
    }

    /// Whether the target is detoured.
    pub fn is_attached(&self) -> bool {
        self.handle.load(Ordering::Acquire) != 0
    }

    /// Gives the target its own bytes back, in a process that has no other thread.
    ///
    /// # Errors
    /// As for [`Detour::detach`](super::Detour::detach).
    pub fn detach(&self) -> Result<(), Error> {
        let alone = process::alone()?;
        self.detach_with(&alone)
    }

    /// As [`detach`](Self::detach), where there are other threads that stay away from the target.
    ///
    /// # Errors
    /// As for [`Detour::detach`](super::Detour::detach), but for other threads.
    pub fn detach_with(&self, alone: &Alone) -> Result<(), Error> {
        with_process(|kdetour| {
            // No handle is 0, so a detour that is not attached is refused there.
            process::detach(kdetour, alone, Handle::from_raw(self.handle.load(Ordering::Acquire)))?;
            self.handle.store(0, Ordering::Release);
            Ok(())
        })
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
