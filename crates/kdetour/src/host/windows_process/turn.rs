//! Whose turn it is, and waiting for it: by functions of `ntdll.dll`, which are not detoured, and without memory of a thread's own, which would
//! be allocated.

use super::nt::{self, Nt, Status};
use super::{arch, images};
use crate::address::widen;
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, Ordering};
use core::{hint, ptr};
use std::sync::OnceLock;
use windows_sys::Win32::System::LibraryLoader::GetModuleHandleA;

/// How long a waiter sleeps before it looks whether anybody holds it at all, in units of 100 nanoseconds; negative is from now on.
static LOOK: i64 = -1_000_000;

type Wait = unsafe extern "system" fn(*const c_void, *const c_void, usize, *const i64) -> Status;
type Wake = unsafe extern "system" fn(*const c_void);
type Delay = unsafe extern "system" fn(u8, *const i64) -> Status;
type Ends = unsafe extern "system" fn() -> u8;

/// What waiting is done by.
#[derive(Debug, Default)]
struct Waiting {
    /// `RtlWaitOnAddress`, `RtlWakeAddressSingle`: since Windows 8.
    wait: Option<(Wait, Wake)>,
    /// `NtDelayExecution`, where those are not.
    delay: Option<Delay>,
    /// `RtlDllShutdownInProgress`.
    ends: Option<Ends>,
}

static WAITING: OnceLock<Waiting> = OnceLock::new();

/// What needs the loader's lock is done before anybody waits: a thread in a DLL's `DllMain` has that lock, and may want the turn. So functions are looked
/// up, which may be detoured besides, and what this code is in is kept loaded: whoever has loaded it may go, but the vectored handler stays.
pub(crate) fn prepare() {
    if WAITING.get().is_none() {
        images::stay(widen((prepare as fn() as *const ()).addr()));
        // What is missing is told when the host is made.
        let _ = Nt::get();
        waiting();
    }
}

fn waiting() -> &'static Waiting {
    // Not looked up by whoever is the first while others wait for him: one of them may have the loader's lock.
    if let Some(known) = WAITING.get() {
        return known;
    }
    let found = look_up();
    WAITING.get_or_init(|| found)
}

fn look_up() -> Waiting {
    // SAFETY: a string that ends.
    let module = unsafe { GetModuleHandleA(c"ntdll.dll".as_ptr().cast()) };
    if module.is_null() {
        return Waiting::default();
    }
    // SAFETY: the types are those of the documentation (MSDN: `WaitOnAddress`, `NtDelayExecution`, `RtlDllShutdownInProgress`), of which the
    // first one's is what it calls: a time as that of the second one.
    unsafe {
        let wait = nt::find::<Wait>(module, c"RtlWaitOnAddress").ok();
        let wake = nt::find::<Wake>(module, c"RtlWakeAddressSingle").ok();
        Waiting {
            wait: wait.zip(wake),
            delay: nt::find(module, c"NtDelayExecution").ok(),
            ends: nt::find(module, c"RtlDllShutdownInProgress").ok(),
        }
    }
}

/// Who holds a turn: a thread. Nothing interrupts one between taking it and saying so, as a signal would elsewhere.
#[derive(Debug)]
pub(crate) struct Holder {
    /// 0 for none.
    thread: AtomicU32,
}

impl Holder {
    pub(crate) const fn new() -> Self {
        Self { thread: AtomicU32::new(0) }
    }

    /// Whether it is the calling thread.
    pub(crate) fn is_me(&self) -> bool {
        self.thread.load(Ordering::Relaxed) == arch::thread()
    }

    /// The calling thread is about to wait.
    #[expect(clippy::unused_self, reason = "there is nothing to be said: it runs nothing else meanwhile")]
    pub(crate) const fn waits(&self) {}

    /// It does not wait any more, and does not hold it.
    #[expect(clippy::unused_self, reason = "there is nothing to be said: it runs nothing else meanwhile")]
    pub(crate) const fn leaves(&self) {}

    /// It holds the turn now.
    pub(crate) fn has(&self) {
        self.thread.store(arch::thread(), Ordering::Relaxed);
    }

    /// It is about to give it back.
    pub(crate) fn gives(&self) {
        self.thread.store(0, Ordering::Relaxed);
    }

    /// Whether whoever holds it will never give it back: the process is ending, and all threads but this one have been.
    #[expect(clippy::unused_self, reason = "it is so for every holder")]
    pub(crate) fn is_gone(&self) -> bool {
        // SAFETY: it takes nothing, and says whether that is so.
        waiting().ends.is_some_and(|ends| unsafe { ends() } != 0)
    }
}

/// Sleeps while `state` is `value`; returns when woken, too late, or when it is time to look at the holder again.
pub(crate) fn wait(state: &AtomicU32, value: u32) {
    let waiting = waiting();
    if let Some((wait, _)) = waiting.wait {
        let (at, expected) = (ptr::from_ref(state).cast(), (&raw const value).cast());
        // SAFETY: four bytes that stay, and four to compare them with; a time.
        let _ = unsafe { wait(at, expected, size_of::<u32>(), &raw const LOOK) };
    } else if let Some(delay) = waiting.delay {
        /// A millisecond, or what the system makes of it.
        static BRIEFLY: i64 = -10_000;
        // SAFETY: not alertable: nothing is called meanwhile.
        let _ = unsafe { delay(0, &raw const BRIEFLY) };
    } else {
        hint::spin_loop();
    }
}

/// Wakes one who waits.
pub(crate) fn wake(state: &AtomicU32) {
    if let Some((_, wake)) = waiting().wait {
        // SAFETY: an address, which is not read.
        unsafe { wake(ptr::from_ref(state).cast()) };
    }
}
