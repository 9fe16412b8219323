//! Who is inside of a detour when that is drained, and who comes meanwhile.

use crate::support::{By, attach, drain, function, put, take, targets, text, with};
use kdetour::host::BreakpointHook;
use kdetour::{Attach, Method};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

static INSIDE: AtomicBool = AtomicBool::new(false);
static LEAVE: AtomicBool = AtomicBool::new(false);

#[unsafe(no_mangle)]
extern "C" fn kdetour_windows_test_sleeps() -> usize {
    INSIDE.store(true, SeqCst);
    while !LEAVE.load(SeqCst) {
        thread::sleep(Duration::from_millis(1));
    }
    77
}

extern "C" fn asleep(_one: usize, _other: usize) -> usize {
    std::hint::black_box(kdetour_windows_test_sleeps()) + 1
}

/// Attaches a detour in which a thread sleeps then, and detaches it; what that thread answers.
fn left(
    kdetour: &mut kdetour::Kdetour<kdetour::host::windows_process::WindowsProcess>,
    by: Attach,
) -> (kdetour::Handle, thread::JoinHandle<usize>) {
    INSIDE.store(false, SeqCst);
    LEAVE.store(false, SeqCst);
    let handle = put(kdetour, By::Live, by).unwrap();
    let target = by.target;
    let caller = thread::spawn(move || function(target)(7, 3));
    while !INSIDE.load(SeqCst) {
        thread::yield_now();
    }
    take(kdetour, By::Live, handle).unwrap();
    (handle, caller)
}

/// A drain looks at threads one after the other. One that has met a breakpoint before, and comes to the handler after it was looked at, must not
/// be sent into the slot that is freed then: while others are waited for, the breakpoint leads to the target itself.
#[test]
fn nobody_is_sent_into_a_slot_while_it_is_drained() {
    with(|kdetour| {
        let target = targets()[0];
        let before = text(kdetour, target);
        let detour = (asleep as *const ()).addr() as u64;
        let breakpoint = Attach { method: Method::Breakpoint, detour, ..attach(target, None) };
        let (handle, caller) = left(kdetour, breakpoint);
        let breakpoints = kdetour.host().breakpoints();
        assert!(breakpoints.resume(target).is_some_and(|resume| resume != target));
        let turned_away = thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let patience = Instant::now() + Duration::from_secs(5);
                while breakpoints.resume(target) != Some(target) && Instant::now() < patience {
                    thread::sleep(Duration::from_millis(1));
                }
                let turned_away = breakpoints.resume(target) == Some(target);
                LEAVE.store(true, SeqCst);
                turned_away
            });
            drain(kdetour, handle).unwrap();
            watcher.join().unwrap()
        });
        assert!(turned_away);
        assert_eq!(caller.join().unwrap(), 78);
        assert_eq!(text(kdetour, target), before);
    });
}

// A function of two pieces, as a compiler makes them that moves away what is rarely taken: the unwind information of the second one is chained to
// the first one's. All that it does is in the second.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".globl kdetour_windows_test_moved",
    ".p2align 4, 0xcc",
    "kdetour_windows_test_moved:",
    "sub rsp, 40",
    "jmp kdetour_windows_test_moved_cold",
    "kdetour_windows_test_moved_end:",
    // Of nobody.
    ".skip 64, 0xcc",
    "kdetour_windows_test_moved_cold:",
    "call kdetour_windows_test_sleeps",
    "add rsp, 40",
    "ret",
    "kdetour_windows_test_moved_cold_end:",
    ".p2align 4, 0xcc",
    ".pushsection .xdata, \"dr\"",
    ".p2align 2",
    "kdetour_windows_test_moved_info:",
    ".byte 1, 4, 1, 0",    // version 1; a prologue of 4 bytes; one code
    ".byte 4, 0x42, 0, 0", // UWOP_ALLOC_SMALL: 40 bytes
    "kdetour_windows_test_moved_cold_info:",
    ".byte 0x21, 0, 0, 0", // UNW_FLAG_CHAININFO
    ".rva kdetour_windows_test_moved",
    ".rva kdetour_windows_test_moved_end",
    ".rva kdetour_windows_test_moved_info",
    ".popsection",
    ".pushsection .pdata, \"dr\"",
    ".p2align 2",
    ".rva kdetour_windows_test_moved",
    ".rva kdetour_windows_test_moved_end",
    ".rva kdetour_windows_test_moved_info",
    ".rva kdetour_windows_test_moved_cold",
    ".rva kdetour_windows_test_moved_cold_end",
    ".rva kdetour_windows_test_moved_cold_info",
    ".popsection",
);

#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    fn kdetour_windows_test_moved(one: usize, other: usize) -> usize;
}

#[cfg(target_arch = "x86_64")]
#[test]
fn who_is_asleep_in_what_was_moved_away_is_inside() {
    with(|kdetour| {
        let detour = (kdetour_windows_test_moved as *const ()).addr() as u64;
        let (handle, caller) = left(kdetour, Attach { detour, ..attach(targets()[0], None) });
        let soon = Instant::now() + Duration::from_millis(50);
        assert_eq!(kdetour.drain(&[handle], soon), Err(kdetour::Error::Busy { calls: 1 }));
        LEAVE.store(true, SeqCst);
        assert_eq!(caller.join().unwrap(), 77);
        drain(kdetour, handle).unwrap();
    });
}
