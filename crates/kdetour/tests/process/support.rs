//! What the tests of a process share.

use kdetour::host::linux_process::LinuxProcess;
use kdetour::host::{Host, Span, Text};
use kdetour::plan::Reach;
use kdetour::slots::SlotMemory;
use kdetour::typed::Alone;
use std::env;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
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

/// The bytes at an address, as they are now.
pub(crate) fn text(address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, address).unwrap();
    bytes
}

/// Writes as somebody else would, who knows nothing of kdetour.
pub(crate) fn poke(address: u64, bytes: &[u8]) {
    File::options().write(true).open("/proc/self/mem").unwrap().write_all_at(bytes, address).unwrap();
}

/// No page can be written and executed.
pub(crate) fn assert_no_page_is_writable_and_executable() {
    for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let permissions = line.split_whitespace().nth(1).unwrap();
        assert!(!permissions.contains("wx"), "{line}");
    }
}

/// Puts code at an address between `first` and `last`, with INT3 behind it.
pub(crate) fn code_at(first: u64, last: u64, code: &[u8]) -> u64 {
    let host = LinuxProcess::new().unwrap();
    // Never given back: it is the text of a function.
    let mut slots = std::mem::ManuallyDrop::new(host.slots());
    let Span { address, len } = slots.near(code.len(), Reach { first, last }).unwrap();
    assert!(first <= address && address <= last && len >= code.len());
    let mut text = host.open_text(&[Span { address, len }]).unwrap();
    text.write(address, code).unwrap();
    address
}

/// Where code is put that is to be far from this program, or at least not in it: first and last address. In a 64-bit process no jump
/// reaches from one to the other.
pub(crate) const AWAY: [u64; 2] = match usize::BITS {
    64 => [0x1_0000_0000, 0x1_7000_0000],
    _ => [0x1000_0000, 0x4000_0000],
};

/// Writes functions in assembler: `extern "C" fn(usize, usize) -> usize`, with the bounds that their symbols give. Of two bodies the
/// first one is for x86-64, the second one for x86-32, where arguments are on the stack.
macro_rules! functions {
    ($($(#[$attribute:meta])* $name:ident { $($line:literal)+ } $({ $($other:literal)+ })?)+) => {
        $($crate::support::function! { $name { $($line)+ } $({ $($other)+ })? })+
        unsafe extern "C" {
            $($(#[$attribute])* pub(crate) safe fn $name(first: usize, second: usize) -> usize;)+
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
    };
}
pub(crate) use function;

/// The directive that writes addresses.
#[cfg(target_arch = "x86_64")]
macro_rules! pointers {
    () => {
        ".quad"
    };
}
#[cfg(target_arch = "x86")]
macro_rules! pointers {
    () => {
        ".long"
    };
}
pub(crate) use pointers;
