//! What is done before and after `fork`.
//!
//! A child has the memory of the moment at which it was made, but only one thread. If another thread was in the middle of a
//! commit then, nobody would finish it in the child. So whoever forks waits until no commit is under way.

use super::{lock, refused};
use crate::Error;
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, Ordering};
use rustix::io::Errno;
use std::sync::Mutex;

unsafe extern "C" {
    fn pthread_atfork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) -> c_int;
}

/// Has `prepare` called before every `fork`, in the thread that forks, and afterwards `parent` in the parent and `child` in
/// the child. Only the first call registers anything: there is one lock in a process. A child made by other means (`vfork`,
/// `clone`, `posix_spawn`) shares the memory, or is made without them.
///
/// # Errors
/// [`Error::Host`] if there is no memory; the next call tries again.
pub(super) fn register(
    prepare: extern "C" fn(),
    parent: extern "C" fn(),
    child: extern "C" fn(),
) -> Result<(), Error> {
    static REGISTERED: Mutex<bool> = Mutex::new(false);
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.load(Ordering::Acquire) {
        return Ok(());
    }
    let mut registered = lock(&REGISTERED);
    if !*registered {
        // SAFETY: the functions are there as long as this code: if it is in a library, the C library forgets them
        // when the library is unloaded.
        match unsafe { pthread_atfork(prepare, parent, child) } {
            0 => {
                *registered = true;
                DONE.store(true, Ordering::Release);
            }
            error => return Err(refused(Errno::from_raw_os_error(error))),
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

    static CALLS: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];

    extern "C" fn prepare() {
        CALLS[0].fetch_add(1, SeqCst);
    }

    extern "C" fn parent() {
        CALLS[1].fetch_add(1, SeqCst);
    }

    extern "C" fn child() {
        CALLS[2].fetch_add(1, SeqCst);
    }

    /// Whether `work` says so in a child of its own. A panic there is told, and is a no.
    pub(in super::super) fn in_child(work: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child does nothing but this work, and ends; it allocates, which glibc allows.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            if let Err(panic) = &said {
                let text = panic.downcast_ref::<std::string::String>().map(std::string::String::as_str);
                let text = text.or_else(|| panic.downcast_ref().copied()).unwrap_or_default();
                _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
            }
            let failed = i32::from(!said.unwrap_or_default());
            // SAFETY: nothing of the parent's is to be run in the child.
            unsafe { libc::_exit(failed) };
        }
        let mut status = -1;
        // SAFETY: the status is written.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        status == 0
    }

    #[test]
    fn each_is_called_once_on_its_side() {
        // Other tests fork, too: the child tells what it was called by its own fork.
        register(prepare, parent, child).unwrap();
        register(prepare, parent, child).unwrap();
        assert!(in_child(|| {
            let calls = CALLS.each_ref().map(|calls| calls.load(SeqCst));
            calls[0] > calls[1] && calls[2] == 1
        }));
        assert!(CALLS[1].load(SeqCst) > 0);
        assert_eq!(CALLS[2].load(SeqCst), 0);
    }
}
