//! What the tests of a process share.

#[cfg(not(windows))]
#[path = "linux.rs"]
mod system;
#[cfg(windows)]
#[path = "windows.rs"]
mod system;

pub(crate) use system::*;

use kdetour::host::{Host, Span, Text};
use kdetour::plan::Reach;
use kdetour::slots::SlotMemory;
use kdetour::typed::Alone;
use std::env;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The only test that calls, attaches or detaches right now.
pub(crate) struct Turn {
    pub(crate) alone: Alone,
    _turn: MutexGuard<'static, ()>,
}

/// Waits for the other tests of this program.
pub(crate) fn turn() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    system::begin();
    // SAFETY: the functions that are detoured here are called by tests only, which take turns; the thread that
    // runs the tests waits for them meanwhile, and the other tests' threads wait for their turn, or leave.
    Turn { alone: unsafe { Alone::promise() }, _turn: turn }
}

/// Whether this is a process for this test only; if not, such a process has run it. For what needs stacks that nobody
/// has used before: the ones of threads that wait for their turn hold what other tests have left there.
pub(crate) fn in_a_process_of_its_own(test: &str) -> bool {
    const ALONE: &str = "KDETOUR_TEST_ALONE";
    if env::var_os(ALONE).is_some() {
        return true;
    }
    let mut command = Command::new(env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--test-threads=1"]).env(ALONE, "1").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    false
}

/// Puts code at an address between `first` and `last`, with INT3 behind it.
pub(crate) fn code_at(first: u64, last: u64, code: &[u8]) -> u64 {
    let host = Process::new().unwrap();
    // Never given back: it is the text of a function.
    let mut slots = std::mem::ManuallyDrop::new(host.slots());
    let Span { address, len } = slots.near(code.len(), Reach { first, last }).unwrap();
    assert!(first <= address && address <= last && len >= code.len());
    let mut text = host.open_text(&[Span { address, len }]).unwrap();
    text.write(address, code).unwrap();
    address
}

/// Functions, and types of them, of the ABI that those in assembler have: System V's in 64-bit mode, on Windows as well. So what is tested is
/// the same code everywhere.
#[cfg(all(target_arch = "x86_64", windows))]
macro_rules! native {
    (@ [$($done:tt)*] extern "C" $($rest:tt)*) => {
        $crate::support::native! { @ [$($done)* extern "sysv64"] $($rest)* }
    };
    (@ [$($done:tt)*] $next:tt $($rest:tt)*) => {
        $crate::support::native! { @ [$($done)* $next] $($rest)* }
    };
    (@ [$($done:tt)*]) => { $($done)* };
    ($($all:tt)*) => { $crate::support::native! { @ [] $($all)* } };
}
#[cfg(not(all(target_arch = "x86_64", windows)))]
macro_rules! native {
    ($($all:tt)*) => { $($all)* };
}
pub(crate) use native;

/// Writes functions in assembler: [`Target`](crate::life::Target)s, with the bounds that their symbols give, or on Windows their unwind
/// information. Of two bodies the first one is for x86-64, the second one for x86-32, where arguments are on the stack.
macro_rules! functions {
    ($($(#[$attribute:meta])* $name:ident { $($line:literal)+ } $({ $($other:literal)+ })?)+) => {
        $($crate::support::function! { $name { $($line)+ } $({ $($other)+ })? })+
        $crate::support::native! {
            unsafe extern "C" {
                $($(#[$attribute])* pub(crate) safe fn $name(first: usize, second: usize) -> usize;)+
            }
        }
    };
}
pub(crate) use functions;

/// The code of one of them.
macro_rules! function {
    ($name:ident { $($line:literal)+ } { $($other:literal)+ }) => {
        #[cfg(target_arch = "x86_64")]
        $crate::support::function! { $name { $($line)+ } }
        #[cfg(target_arch = "x86")]
        $crate::support::function! { $name { $($other)+ } }
    };
    ($name:ident { $($line:literal)+ }) => {
        #[cfg(not(windows))]
        core::arch::global_asm!(
            ".pushsection .text.kdetour_tests, \"ax\", @progbits",
            ".balign 16",
            concat!(".globl ", stringify!($name)),
            concat!(".type ", stringify!($name), ", @function"),
            concat!(stringify!($name), ":"),
            $($line,)+
            concat!(".size ", stringify!($name), ", . - ", stringify!($name)),
            ".popsection",
        );
        #[cfg(all(windows, target_arch = "x86_64"))]
        core::arch::global_asm!(
            ".text",
            ".balign 16, 0xcc",
            concat!(".globl ", stringify!($name)),
            concat!(".seh_proc ", stringify!($name)),
            concat!(stringify!($name), ":"),
            ".seh_endprologue",
            $($line,)+
            ".text",
            ".seh_endproc",
            ".balign 16, 0xcc",
        );
        #[cfg(all(windows, target_arch = "x86"))]
        core::arch::global_asm!(
            ".text",
            ".balign 16, 0xcc",
            concat!(".globl _", stringify!($name)),
            // As C's compilers call it, and as the code of others here does.
            concat!("_", stringify!($name), ":"),
            concat!(stringify!($name), ":"),
            ".cfi_startproc",
            $($line,)+
            ".text",
            ".cfi_endproc",
            ".balign 16, 0xcc",
        );
    };
}
pub(crate) use function;

/// The directive that writes addresses.
#[cfg(all(not(windows), target_arch = "x86_64"))]
macro_rules! pointers {
    () => {
        ".quad"
    };
}
#[cfg(all(not(windows), target_arch = "x86"))]
macro_rules! pointers {
    () => {
        ".long"
    };
}
#[cfg(not(windows))]
pub(crate) use pointers;
