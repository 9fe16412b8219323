//! The vectored handler: threads that meet a breakpoint, or come to a page that is being written.
//!
//! The kernel tells of a breakpoint with the address of the INT3 itself, in the exception record and in the instruction pointer (it has
//! taken one off that). So the handler decides by that address alone: whether a boundary is known there. A single step, a breakpoint that
//! nobody knows and every other exception are left to whoever is asked next, as if this handler were not there.
//!
//! It is the first one when it is installed, and is made the first one again before every commit that may leave a breakpoint to be met:
//! another one in front of it may lie in a page that is being written, or take every breakpoint for its own. It is the last one as well, for
//! ever: whoever is in another one that was in front meanwhile is past the first, and has to be answered all the same.
//!
//! A debugger is asked before all handlers. It sees each breakpoint that is met, and each fault in a page that is being written, and has to
//! pass them on. The kernel puts the registers on the stack of the thread: where there is no room left for them the process ends, as it
//! would for any other exception.

use super::arch;
use super::flip;
use super::memory;
use super::nt::Nt;
use crate::Error;
use crate::address::widen;
use crate::commit::breakpoints::Breakpoints;
use crate::host::process::inside::Inside;
use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use core::time::Duration;
use std::sync::Mutex;
use std::time::Instant;
use windows_sys::Win32::System::Diagnostics::Debug::{
    AddVectoredExceptionHandler, EXCEPTION_POINTERS, RemoveVectoredExceptionHandler,
};

/// `STATUS_ACCESS_VIOLATION`, `STATUS_BREAKPOINT` (ntstatus.h).
pub(super) const ACCESS_VIOLATION: i32 = 0xc000_0005_u32.cast_signed();
const BREAKPOINT: i32 = 0x8000_0003_u32.cast_signed();
/// What was to be done when memory could not be accessed: execute (MSDN, `EXCEPTION_RECORD`).
const EXECUTE: usize = 8;
/// `EXCEPTION_CONTINUE_EXECUTION`, `EXCEPTION_CONTINUE_SEARCH` (excpt.h).
const GO_ON: i32 = -1;
const ASK_OTHERS: i32 = 0;

static BREAKPOINTS: AtomicPtr<Breakpoints> = AtomicPtr::new(ptr::null_mut());
/// The handlers that are running.
static INSIDE: Inside = Inside::new();
/// What the system calls our handler; null before it is installed.
static INSTALLED: Mutex<Installed> = Mutex::new(Installed(ptr::null_mut()));

struct Installed(*mut c_void);

/// Whether it is the last one, too.
static LAST: AtomicBool = AtomicBool::new(false);

// SAFETY: a name, which is given back to the system only.
unsafe impl Send for Installed {}

/// Makes ours the first handler: pages can be written now.
///
/// # Errors
/// [`Error::TrapHandler`] if there is no memory for it.
pub(super) fn install(nt: &Nt) -> Result<(), Error> {
    flip::prepare(nt);
    let mut installed = super::lock(&INSTALLED);
    // SAFETY: the handler may run in any thread at any moment: it reads atomics and the table, which are made for it.
    let added = unsafe { AddVectoredExceptionHandler(1, Some(arch::handler())) };
    if added.is_null() {
        return Err(Error::TrapHandler);
    }
    if !LAST.load(Ordering::Acquire) {
        // SAFETY: as above.
        let last = unsafe { AddVectoredExceptionHandler(0, Some(arch::handler())) };
        LAST.store(!last.is_null(), Ordering::Release);
    }
    let former = core::mem::replace(&mut installed.0, added);
    if !former.is_null() {
        // SAFETY: it was added once and not removed since. Both were there for a moment, and answer the same.
        let _ = unsafe { RemoveVectoredExceptionHandler(former) };
    }
    Ok(())
}

/// Where the handler's code is.
pub(super) fn address() -> u64 {
    widen((answer as *const ()).addr())
}

/// Answers these boundaries from now on.
pub(super) fn answer_for(breakpoints: &'static Breakpoints) {
    BREAKPOINTS.store(ptr::from_ref(breakpoints).cast_mut(), Ordering::SeqCst);
}

/// Returns when nobody reads a table of boundaries any more that was replaced before; false if the time is up before.
pub(super) fn wait_for_handlers(until: Instant, pause: Duration) -> bool {
    INSIDE.wait(until, pause)
}

/// What the handler does in Rust, once its assembler has nobody to wait for.
///
/// # Safety
/// Called by the system, as a vectored handler is.
pub(super) unsafe extern "system" fn answer(pointers: *mut EXCEPTION_POINTERS) -> i32 {
    // SAFETY: the system's, on this thread's stack, for as long as the handler runs.
    let Some(pointers) = (unsafe { pointers.as_ref() }) else { return ASK_OTHERS };
    // SAFETY: the same.
    let (Some(record), Some(context)) =
        (unsafe { (pointers.ExceptionRecord.as_ref(), pointers.ContextRecord.as_mut()) })
    else {
        return ASK_OTHERS;
    };
    match (record.ExceptionCode, record.ExceptionInformation) {
        (BREAKPOINT, _) => match resume(widen(record.ExceptionAddress.addr())) {
            Some(resume) => {
                arch::set_ip(context, resume);
                GO_ON
            }
            None => ASK_OTHERS,
        },
        (ACCESS_VIOLATION, [EXECUTE, address, ..]) => {
            let was_written = Nt::known().is_some_and(|nt| flip::was_written(nt, widen(address)));
            if was_written { GO_ON } else { ASK_OTHERS }
        }
        _ => ASK_OTHERS,
    }
}

/// Where a thread goes on that has met a breakpoint at this address. One that is remembered leads to its own address: the instruction that was
/// there before has come back, and an INT3 there now is somebody else's.
fn resume(at: u64) -> Option<u64> {
    answer_to(at).filter(|&resume| resume != at || !is_breakpoint(at))
}

/// Whether there is an INT3.
fn is_breakpoint(at: u64) -> bool {
    let mut byte = [0];
    Nt::known().is_some_and(|nt| memory::read(nt, at, &mut byte).is_ok() && byte == [0xcc])
}

fn answer_to(at: u64) -> Option<u64> {
    let counted = INSIDE.enter();
    // SAFETY: null, or what was given to `answer_for` for ever.
    let breakpoints = unsafe { BREAKPOINTS.load(Ordering::SeqCst).as_ref() };
    let resume = breakpoints.and_then(|breakpoints| breakpoints.resume(at));
    INSIDE.leave(counted);
    resume
}

#[cfg(test)]
mod tests {
    #![expect(clippy::undocumented_unsafe_blocks, reason = "functions of this file, and the system's")]

    use super::super::guarded::Guarded;
    use super::super::memory::ProcessText;
    use super::*;
    use crate::commit::breakpoints::Boundary;
    use crate::host::{Span, Text};
    use core::arch::global_asm;
    use core::sync::atomic::AtomicUsize;
    use std::boxed::Box;
    use std::sync::MutexGuard;
    use std::{thread, vec};

    // Meets a breakpoint: the known one returns 1 where it goes on; the unknown one returns 2.
    macro_rules! functions {
        ($prefix:literal) => {
            global_asm!(
                concat!(".globl ", $prefix, "kdetour_trap_known"),
                concat!($prefix, "kdetour_trap_known:"),
                "int3",
                "mov eax, 2",
                "ret",
                concat!(".globl ", $prefix, "kdetour_trap_resumed"),
                concat!($prefix, "kdetour_trap_resumed:"),
                "mov eax, 1",
                "ret",
                concat!(".globl ", $prefix, "kdetour_trap_unknown"),
                concat!($prefix, "kdetour_trap_unknown:"),
                "int3",
                "mov eax, 2",
                "ret",
            );
        };
    }
    #[cfg(target_arch = "x86_64")]
    functions!("");
    #[cfg(target_arch = "x86")]
    functions!("_");

    unsafe extern "C" {
        fn kdetour_trap_known() -> u32;
        fn kdetour_trap_resumed() -> u32;
        fn kdetour_trap_unknown() -> u32;
    }

    fn address(function: unsafe extern "C" fn() -> u32) -> u64 {
        widen((function as *const ()).addr())
    }

    /// The known one is answered, as long as this test has its turn.
    fn answered(nt: &Nt) -> MutexGuard<'static, ()> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = super::super::lock(&TURN);
        let breakpoints = Box::leak(Box::new(Breakpoints::new()));
        let (at, resume) = (address(kdetour_trap_known), address(kdetour_trap_resumed));
        let _ = breakpoints.publish(vec![Boundary { at, resume, attached: true, rank: 1 }]).unwrap();
        answer_for(breakpoints);
        install(nt).unwrap();
        turn
    }

    static HEARD: AtomicUsize = AtomicUsize::new(0);

    /// Somebody else's handler, behind ours: it goes on behind the breakpoint.
    unsafe extern "system" fn hear(pointers: *mut EXCEPTION_POINTERS) -> i32 {
        let (record, context) = unsafe { (&*(*pointers).ExceptionRecord, &mut *(*pointers).ContextRecord) };
        if record.ExceptionCode != BREAKPOINT {
            return ASK_OTHERS;
        }
        assert_eq!(widen(record.ExceptionAddress.addr()), address(kdetour_trap_unknown));
        HEARD.fetch_add(1, Ordering::SeqCst);
        arch::set_ip(context, address(kdetour_trap_unknown) + 1);
        GO_ON
    }

    #[test]
    fn known_breakpoints_are_answered_and_others_left_alone() {
        let nt = Nt::get().unwrap();
        let _turn = answered(nt);
        let behind = unsafe { AddVectoredExceptionHandler(0, Some(hear)) };
        assert_eq!(unsafe { kdetour_trap_known() }, 1);
        assert_eq!((HEARD.load(Ordering::SeqCst), unsafe { kdetour_trap_unknown() }), (0, 2));
        assert_eq!(HEARD.load(Ordering::SeqCst), 1);
        // Installed anew it is still one.
        install(nt).unwrap();
        assert_eq!((unsafe { kdetour_trap_known() }, unsafe { kdetour_trap_unknown() }), (1, 2));
        assert_eq!(HEARD.load(Ordering::SeqCst), 2);
        assert!(!INSIDE.any());
        unsafe { RemoveVectoredExceptionHandler(behind) };
    }

    /// A thread has met a breakpoint, which is taken back and forgotten before the thread comes to the handler.
    #[test]
    fn who_comes_late_goes_on_where_he_was() {
        let nt = Nt::get().unwrap();
        let _turn = answered(nt);
        let breakpoints = Box::leak(Box::new(Breakpoints::remembering()));
        // At the first instruction of `resumed` there is no INT3 any more; at `known` there is one, of somebody else by now.
        let (gone, foreign) = (address(kdetour_trap_resumed), address(kdetour_trap_known));
        let boundary = |at| Boundary { at, resume: 1, attached: true, rank: 1 };
        let _ = breakpoints.publish(vec![boundary(gone), boundary(foreign)]).unwrap();
        answer_for(breakpoints);
        assert_eq!((resume(gone), resume(foreign)), (Some(1), Some(1)));
        let _ = breakpoints.publish(vec![]).unwrap();
        assert_eq!((resume(gone), resume(foreign)), (Some(gone), None));
        assert_eq!(resume(gone + 1), None);
    }

    /// The page that is written holds what handlers run through, but for their first instructions, which have a page of their own.
    #[test]
    fn the_handlers_own_page_is_written_while_threads_are_in_it() {
        let nt = Nt::get().unwrap();
        let _turn = answered(nt);
        let own = widen((answer as *const ()).addr());
        let mut byte = [0];
        memory::read(nt, own, &mut byte).unwrap();
        let guarded = Guarded::find(nt).unwrap();
        let mut text = ProcessText::open(nt, &guarded, 0, &[Span { address: own, len: 1 }]).unwrap();
        let (done, begun) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        assert_eq!(unsafe { kdetour_trap_known() }, 1);
                        begun.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            // So long that the writer loses its processor while the page is not executable: then others fault all that time.
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(1) || begun.load(Ordering::Relaxed) < 3000 {
                text.write(own, &byte).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(!INSIDE.any());
    }
}
