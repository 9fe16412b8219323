//! A signal's handler of ours, before whatever handler was there.
//!
//! What is not for us is passed on, as the kernel would have done it: to a handler with or without `SA_SIGINFO`, with
//! the signals blocked that it wanted to be blocked. Nothing is swallowed.
//!
//! Somebody may install a handler over ours and pass on to us in turn. If ours is then installed once more, on top of
//! theirs, they would call each other for ever. So the links are kept, youngest first, and how far a signal has come
//! is marked in the unused end of its `siginfo`, which each handler hands to the next.

use super::super::{lock, refused};
use super::raw::{
    self, Action, Context, Handler, Info, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_RESTORER,
    SA_SIGINFO, SIG_DFL, SIG_IGN,
};
use crate::Error;
use core::mem::transmute;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use rustix::rand::{GetRandomFlags, getrandom};
use std::boxed::Box;
use std::sync::Mutex;
use std::vec::Vec;

/// Held while handlers are installed.
static INSTALLING: Mutex<()> = Mutex::new(());
/// What no other program can know: tells our signals and our marks from theirs.
static COOKIE: AtomicU64 = AtomicU64::new(0);

/// A signal, and the handlers behind ours. One for each signal, for ever.
#[derive(Debug)]
pub(in crate::host::linux_process) struct Chain {
    signal: i32,
    /// The signals that are blocked while our handler runs.
    blocks: u64,
    head: AtomicPtr<Link>,
}

/// What was installed when ours was installed over it. Never freed: a handler may be reading it.
#[derive(Debug)]
struct Link {
    action: Action,
    /// Whether it wanted to be called only once, and was.
    spent: AtomicBool,
    older: *const Link,
}

/// Where a signal went that was passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::host::linux_process) enum Passed {
    /// To a handler.
    Handled,
    /// Nobody handles it: what the kernel does by default is to be done.
    Default,
    /// It was to be ignored.
    Ignored,
}

impl Chain {
    /// Nothing interrupts the handler.
    pub(in crate::host::linux_process) const fn new(signal: i32) -> Self {
        Self { signal, blocks: u64::MAX, head: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Nothing interrupts the handler but the signal itself: whoever is in it does not block that.
    pub(in crate::host::linux_process) const fn open(signal: i32) -> Self {
        Self { signal, blocks: !raw::bit(signal), head: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Whether `handler` is what the kernel calls now.
    pub(in crate::host::linux_process) fn is_ours(&self, handler: Handler) -> Result<bool, Error> {
        Ok(raw::action(self.signal).map_err(refused)?.handler == address(handler))
    }

    /// Makes `handler` the one that the kernel calls. Does nothing if it is.
    ///
    /// # Safety
    /// The handler may run in any thread at any moment from now on.
    pub(in crate::host::linux_process) unsafe fn install(&self, handler: Handler) -> Result<(), Error> {
        let _installing = lock(&INSTALLING);
        draw_cookie()?;
        loop {
            let old = raw::action(self.signal).map_err(refused)?;
            if old.handler == address(handler) {
                return Ok(());
            }
            // It has to be known to our handler before that can be called.
            self.push(old)?;
            let alike = match old.handler {
                SIG_DFL | SIG_IGN => SA_RESTART | SA_ONSTACK,
                // Who wants system calls to be interrupted by this signal still gets that; and who needs the room of the
                // thread's own stack is not put on a small alternate one.
                _ => old.flags & (SA_RESTART | SA_ONSTACK),
            };
            let new = Action {
                handler: address(handler),
                flags: SA_SIGINFO | SA_RESTORER | SA_NODEFER | alike,
                restorer: (raw::restorer as unsafe extern "C" fn() as *const ()).expose_provenance(),
                mask: self.blocks,
            };
            // SAFETY: the caller answers for the handler; the restorer returns from it as the kernel expects.
            let replaced = unsafe { raw::set_action(self.signal, &new) }.map_err(refused)?;
            if replaced == old {
                return Ok(());
            }
            // Somebody else has installed one between the two calls: put back, and linked before ours.
            // SAFETY: what is installed was installed by somebody a moment ago.
            let _ = unsafe { raw::set_action(self.signal, &replaced) };
        }
    }

    fn push(&self, action: Action) -> Result<(), Error> {
        let older = self.head.load(Ordering::Acquire).cast_const();
        // SAFETY: links are never freed, and not changed but for `spent`.
        if unsafe { older.as_ref() }.is_some_and(|link| link.action == action) {
            return Ok(());
        }
        let mut link = Vec::new();
        link.try_reserve_exact(1)?;
        link.push(Link { action, spent: AtomicBool::new(false), older });
        let link = Box::into_raw(link.into_boxed_slice()).cast::<Link>();
        self.head.store(link, Ordering::Release);
        Ok(())
    }

    /// Hands a signal to the handler behind ours.
    ///
    /// # Safety
    /// `info` and `context` are what our handler was called with.
    pub(in crate::host::linux_process) unsafe fn pass(
        &self,
        info: *mut Info,
        context: *mut Context,
    ) -> Passed {
        // SAFETY: the caller says so; they lie on the thread's own stack.
        let (Some(marked), Some(interrupted)) = (unsafe { info.as_mut() }, unsafe { context.as_ref() })
        else {
            return Passed::Ignored;
        };
        let cookie = cookie();
        let link = match marked.mark {
            [mark, next] if mark == cookie => ptr::with_exposed_provenance::<Link>(next as usize),
            _ => self.head.load(Ordering::Acquire).cast_const(),
        };
        // SAFETY: links are never freed; the mark is ours, since nobody else knows the cookie.
        let Some(link) = (unsafe { link.as_ref() }) else { return Passed::Default };
        marked.mark = [cookie, link.older.expose_provenance() as u64];
        let Action { handler, flags, mask, .. } = link.action;
        match handler {
            SIG_DFL => return Passed::Default,
            SIG_IGN => return Passed::Ignored,
            _ if flags & SA_RESETHAND != 0 && link.spent.swap(true, Ordering::AcqRel) => {
                return Passed::Default;
            }
            _ => {}
        }
        let own = if flags & SA_NODEFER == 0 { raw::bit(self.signal) } else { 0 };
        raw::set_mask(interrupted.mask() | mask | own);
        let handler = ptr::with_exposed_provenance::<()>(handler);
        if flags & SA_SIGINFO == 0 {
            // SAFETY: it was installed as a handler of this kind.
            let handler = unsafe { transmute::<*const (), unsafe extern "C" fn(i32)>(handler) };
            // SAFETY: as the kernel would have called it.
            unsafe { handler(self.signal) };
        } else {
            // SAFETY: it was installed as a handler of this kind.
            let handler = unsafe { transmute::<*const (), Handler>(handler) };
            // SAFETY: as the kernel would have called it.
            unsafe { handler(self.signal, info, context) };
        }
        // Nothing interrupts the rest of ours; returning from it restores what the thread blocked.
        raw::set_mask(self.blocks);
        Passed::Handled
    }
}

/// The number by which our own signals are known.
pub(in crate::host::linux_process) fn cookie() -> u64 {
    COOKIE.load(Ordering::Relaxed)
}

/// Keeps handlers from being installed: for tests that fork.
#[cfg(test)]
pub(in crate::host::linux_process) fn hold() -> std::sync::MutexGuard<'static, ()> {
    lock(&INSTALLING)
}

fn draw_cookie() -> Result<(), Error> {
    while cookie() == 0 {
        let mut bytes = [0; 8];
        getrandom(&mut bytes, GetRandomFlags::empty()).map_err(refused)?;
        COOKIE.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
    }
    Ok(())
}

fn address(handler: Handler) -> usize {
    (handler as *const ()).expose_provenance()
}
