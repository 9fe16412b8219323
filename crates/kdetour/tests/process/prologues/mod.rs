//! Hard prologues, executed: called as they are, while detoured, and after detaching.
//!
//! The detour counts and calls the original, so a wrong trampoline gives a wrong result, or none.

use crate::support::{assert_no_page_is_writable_and_executable, native, text, turn};
use kdetour::detour;
use kdetour::typed::Function;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

native! {
    type Target = extern "C" fn(usize, usize) -> usize;
}

#[cfg(target_arch = "x86")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86")]
use x86::push_mov_sub;
#[cfg(target_arch = "x86_64")]
use x86_64::push_mov_sub;

detour! {
    static CALL: Target = push_mov_sub => counting;
}

static CALLS: AtomicUsize = AtomicUsize::new(0);
static FIRST: AtomicUsize = AtomicUsize::new(0);
static SECOND: AtomicUsize = AtomicUsize::new(0);

native! {
    extern "C" fn counting(first: usize, second: usize) -> usize {
        CALLS.fetch_add(1, SeqCst);
        FIRST.store(first, SeqCst);
        SECOND.store(second, SeqCst);
        CALL.original()(first, second)
    }
}

/// Calls a function before, while and after it is detoured.
fn check(name: &str, target: Target, expected: impl Fn(usize, usize) -> usize) {
    let turn = turn();
    let arguments = [(1, 2), (7, 0), (40_000, usize::MAX), (3, 1 << (usize::BITS / 2 + 8))];
    let call_all = |when: &str, calls: usize| {
        for (first, second) in arguments {
            let before = CALLS.load(SeqCst);
            assert_eq!(target(first, second), expected(first, second), "{name}({first}, {second}) {when}");
            assert_eq!(CALLS.load(SeqCst) - before, calls, "calls of {name}'s detour {when}");
            if calls > 0 {
                assert_eq!((FIRST.load(SeqCst), SECOND.load(SeqCst)), (first, second), "{name}");
            }
        }
    };
    let original = text(target.address(), 64);
    call_all("before", 0);
    // Twice: the second time the bytes come from a detach.
    for _ in 0..2 {
        // SAFETY: the detour has the target's signature and calls it.
        unsafe { CALL.attach_with(&turn.alone, target) }.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_ne!(text(target.address(), 64), original, "{name} is not patched");
        assert_no_page_is_writable_and_executable();
        call_all("while detoured", 1);
        CALL.detach_with(&turn.alone).unwrap();
        assert_eq!(text(target.address(), 64), original, "{name} is not as it was");
        call_all("afterwards", 0);
        // The trampoline stays good.
        assert_eq!(CALL.original()(3, 4), expected(3, 4), "{name}'s trampoline afterwards");
    }
}

macro_rules! cases {
    ($($(#[$attribute:meta])* $name:ident = $expected:expr, { $($line:literal)+ })+) => {
        crate::support::functions! { $($name { $($line)+ })+ }

        mod cases {
            $($(#[$attribute])* #[test] fn $name() {
                crate::prologues::check(stringify!($name), super::$name, $expected);
            })+
        }
    };
}
use cases;
