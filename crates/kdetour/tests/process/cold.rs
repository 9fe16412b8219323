//! What the compiler has moved away of a function, known by its name, `NAME.cold`.

use crate::life::{Target, add, replacement};
use crate::support::{functions, in_a_process_of_its_own, turn};
use kdetour::Error;
use kdetour::plan::Refusal;
use kdetour::typed::{Detour, Function, reclaim};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

functions! {
    // Its piece jumps to its second instruction.
    led_back {
        "push rbx"
        ".Lled_back: mov rbx, rdi"
        "cmp rdi, 100"
        "ja led_back.cold"
        "lea rax, [rbx + rsi]"
        "pop rbx"
        "ret"
        ".pushsection .text.unlikely.kdetour_tests, \"ax\", @progbits"
        ".type led_back.cold, @function"
        "led_back.cold: sub rdi, 100"
        "jmp .Lled_back"
        ".size led_back.cold, . - led_back.cold"
        ".popsection"
    } {
        "mov eax, [esp + 4]"
        ".Lled_back: mov edx, [esp + 8]"
        "cmp eax, 100"
        "ja led_back.cold"
        "add eax, edx"
        "ret"
        ".pushsection .text.unlikely.kdetour_tests, \"ax\", @progbits"
        ".type led_back.cold, @function"
        "led_back.cold: sub eax, 100"
        "jmp .Lled_back"
        ".size led_back.cold, . - led_back.cold"
        ".popsection"
    }

    // All that it does is in its pieces, of which the compiler numbers the second one.
    in_pieces {
        "jmp in_pieces.cold"
        ".pushsection .text.unlikely.kdetour_tests, \"ax\", @progbits"
        ".type in_pieces.cold, @function"
        "in_pieces.cold: jmp in_pieces.cold.1"
        ".size in_pieces.cold, . - in_pieces.cold"
        // Somebody else's: between the two.
        ".skip 64, 0xcc"
        ".type in_pieces.cold.1, @function"
        "in_pieces.cold.1: sub rsp, 8"
        "call kdetour_test_waits"
        "add rsp, 8"
        "ret"
        ".size in_pieces.cold.1, . - in_pieces.cold.1"
        ".popsection"
    } {
        "jmp in_pieces.cold"
        ".pushsection .text.unlikely.kdetour_tests, \"ax\", @progbits"
        ".type in_pieces.cold, @function"
        "in_pieces.cold: jmp in_pieces.cold.1"
        ".size in_pieces.cold, . - in_pieces.cold"
        ".skip 64, 0xcc"
        ".type in_pieces.cold.1, @function"
        "in_pieces.cold.1: sub esp, 12"
        "call kdetour_test_waits"
        "add esp, 12"
        "ret"
        ".size in_pieces.cold.1, . - in_pieces.cold.1"
        ".popsection"
    }
}

static INSIDE: AtomicBool = AtomicBool::new(false);
static LEAVE: AtomicBool = AtomicBool::new(false);

/// What a piece calls, and where its caller sleeps.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn kdetour_test_waits() -> usize {
    INSIDE.store(true, SeqCst);
    while !LEAVE.load(SeqCst) {
        thread::sleep(Duration::from_millis(1));
    }
    77
}

#[test]
fn its_branches_into_the_window_count() {
    let turn = turn();
    // SAFETY: both have one signature.
    let refused = unsafe { Detour::attach_with(&turn.alone, led_back as Target, replacement) };
    let into = (led_back as Target).address() + if cfg!(target_arch = "x86") { 4 } else { 1 };
    assert!(
        matches!(refused, Err(Error::Refused(Refusal::BranchIntoWindow { into: found, .. })) if found == into),
        "{refused:?}"
    );
    assert_eq!(led_back(103, 1), 4);
}

#[test]
fn who_is_asleep_in_it_is_inside() {
    if !in_a_process_of_its_own("cold::who_is_asleep_in_it_is_inside") {
        return;
    }
    let _turn = turn();
    // SAFETY: both have one signature.
    let detour = unsafe { Detour::attach(add as Target, in_pieces) }.unwrap();
    drains_behind(detour, || (add as Target)(1, 2));
}

/// A detour in whose piece a caller sleeps is detached, and freed when the caller has left, and not before.
pub(crate) fn drains_behind(mut detour: Detour<Target>, call: impl FnOnce() -> usize + Send + 'static) {
    let caller = thread::spawn(call);
    while !INSIDE.load(SeqCst) {
        thread::yield_now();
    }
    detour.detach().unwrap();
    drop(detour);
    let busy = reclaim(Duration::from_millis(20));
    assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
    LEAVE.store(true, SeqCst);
    assert_eq!(caller.join().unwrap(), 77);
    reclaim(Duration::from_secs(5)).unwrap();
}
