//! What the tests share: the process's detours, functions to detour, and whoever watches the pages.

use kdetour::commit::Alone;
use kdetour::host::Host;
use kdetour::host::windows_process::WindowsProcess;
use kdetour::plan::{Shape, Shapes};
use kdetour::{AtomicAddress, Attach, Error, Handle, Kdetour, SessionError};
use std::collections::BTreeSet;
use std::mem::{self, transmute};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEMORY_BASIC_INFORMATION, PAGE_EXECUTE_READWRITE, PAGE_EXECUTE_WRITECOPY, PAGE_READWRITE,
    PAGE_WRITECOPY, VirtualQuery,
};

/// A function of two numbers.
pub(crate) type Target = extern "C" fn(usize, usize) -> usize;

/// Functions by their machine code, for each processor; the numbers are in RCX and RDX, or on the stack.
macro_rules! functions {
    ($($(#[$note:meta])* $name:ident { $($long:literal)* } { $($short:literal)* })*) => {
        $(
            #[cfg(target_arch = "x86_64")]
            core::arch::global_asm!(
                ".p2align 4, 0xcc",
                concat!(".globl kdetour_windows_test_", stringify!($name)),
                concat!(".seh_proc kdetour_windows_test_", stringify!($name)),
                concat!("kdetour_windows_test_", stringify!($name), ":"),
                ".seh_endprologue",
                $($long,)*
                ".seh_endproc",
                ".p2align 4, 0xcc",
            );
            #[cfg(target_arch = "x86")]
            core::arch::global_asm!(
                ".p2align 4, 0xcc",
                concat!(".globl _kdetour_windows_test_", stringify!($name)),
                concat!("_kdetour_windows_test_", stringify!($name), ":"),
                $($short,)*
                ".p2align 4, 0xcc",
            );
            unsafe extern "C" {
                #[link_name = concat!("kdetour_windows_test_", stringify!($name))]
                fn $name(one: usize, other: usize) -> usize;
            }
        )*
    };
}
functions! {
    /// 55 | 48 89 e5 | 53, and 55 | 89 e5 | ba 10: one byte in front of the first boundary.
    busy {
        "push rbp"
        "mov rbp, rsp"
        "push rbx"
        "lea rax, [rcx + rdx]"
        "pop rbx"
        "pop rbp"
        "ret"
    } {
        "push ebp"
        "mov ebp, esp"
        "mov edx, 0x10"
        "mov eax, [ebp + 8]"
        "add eax, [ebp + 12]"
        "pop ebp"
        "ret"
    }

    /// 41 54 | 49 89 cc: two bytes.
    two_by_two {
        "push r12"
        "mov r12, rcx"
        "lea rax, [r12 + rdx]"
        "pop r12"
        "ret"
    } {
        "mov edx, edx"
        "mov eax, [esp + 4]"
        "add eax, [esp + 8]"
        "ret"
    }

    one_long {
        "lea rax, [rcx + rdx + 0x1000]"
        "sub rax, 0x1000"
        "ret"
    } {
        "lea eax, [esp + 0x1000]"
        "mov eax, [eax - 0x1000 + 4]"
        "add eax, [esp + 8]"
        "ret"
    }
}

// As `/hotpatch` makes them: a first instruction of two bytes that does nothing, and padding in front.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".p2align 4, 0xcc",
    ".skip 16, 0xcc",
    ".globl kdetour_windows_test_patchable",
    ".seh_proc kdetour_windows_test_patchable",
    "kdetour_windows_test_patchable:",
    ".byte 0x66, 0x90", // xchg ax, ax
    ".seh_endprologue",
    "lea rax, [rcx + rdx]",
    "ret",
    ".seh_endproc",
    ".p2align 4, 0xcc",
);

#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    fn kdetour_windows_test_patchable(one: usize, other: usize) -> usize;
}

/// The address of a function that is made to be patched.
#[cfg(target_arch = "x86_64")]
pub(crate) fn patchable_address() -> u64 {
    (kdetour_windows_test_patchable as *const ()).addr() as u64
}

/// Where the thunk leads.
static LEADS_TO: Leads = Leads(busy);

#[repr(transparent)]
struct Leads(unsafe extern "C" fn(usize, usize) -> usize);

// SAFETY: it is never written.
unsafe impl Sync for Leads {}

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".p2align 4, 0xcc",
    ".globl kdetour_windows_test_thunk",
    "kdetour_windows_test_thunk:",
    "jmp qword ptr [rip + {to}]",
    ".p2align 4, 0xcc",
    to = sym LEADS_TO,
);
#[cfg(target_arch = "x86")]
core::arch::global_asm!(
    ".p2align 4, 0xcc",
    ".globl _kdetour_windows_test_thunk",
    "_kdetour_windows_test_thunk:",
    "jmp dword ptr [{to}]",
    ".p2align 4, 0xcc",
    to = sym LEADS_TO,
);

unsafe extern "C" {
    /// One jump through a pointer, as many functions of kernel32 are.
    #[link_name = "kdetour_windows_test_thunk"]
    fn thunk(one: usize, other: usize) -> usize;
}

/// The address of a function.
pub(crate) fn busy_address() -> u64 {
    (busy as *const ()).addr() as u64
}

/// All of them.
pub(crate) fn targets() -> [u64; 4] {
    [busy, two_by_two, one_long, thunk]
        .map(|one: unsafe extern "C" fn(usize, usize) -> usize| (one as *const ()).addr() as u64)
}

/// The function at an address.
pub(crate) fn function(address: u64) -> Target {
    // SAFETY: one of those above, or a trampoline of one.
    unsafe { transmute::<usize, Target>(usize::try_from(address).unwrap()) }
}

/// What the replacement calls. There is one test at a time.
pub(crate) static ORIGINAL: AtomicAddress = AtomicAddress::new(0);
/// How often it was called.
pub(crate) static CALLS: AtomicUsize = AtomicUsize::new(0);

pub(crate) extern "C" fn replacement(one: usize, other: usize) -> usize {
    CALLS.fetch_add(1, Ordering::Relaxed);
    1000 + function(ORIGINAL.load(Ordering::Acquire))(one, other)
}

/// A detour of one of the functions above.
pub(crate) fn attach(target: u64, shape: Option<Shape>) -> Attach {
    Attach {
        target,
        detour: (replacement as *const ()).addr() as u64,
        cell: Some(&ORIGINAL),
        shapes: shape.map(Shapes::only),
        ..Attach::default()
    }
}

/// How something is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Local,
    Exchange,
    Live,
    Rendezvous,
}

/// Works with the detours of this process: one test at a time.
pub(crate) fn with<R>(work: impl FnOnce(&mut Kdetour<WindowsProcess>) -> R) -> R {
    static PROCESS: Mutex<Option<Kdetour<WindowsProcess>>> = Mutex::new(None);
    let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    work(process.get_or_insert_with(|| Kdetour::new(WindowsProcess::new().unwrap())))
}

/// Attaches one.
pub(crate) fn put(
    kdetour: &mut Kdetour<WindowsProcess>,
    by: By,
    attach: Attach,
) -> Result<Handle, SessionError> {
    // SAFETY: both are functions of the same type, of this program or of libraries that stay.
    let session = unsafe { kdetour.session().attach(attach) };
    // SAFETY: whoever uses this has no other thread that calls the target.
    let alone = unsafe { Alone::promise() };
    let handles = match by {
        By::Local => session.commit_local(&alone, &mut |_, _| ()),
        By::Exchange => session.commit_exchange(&mut |_, _| ()),
        By::Live => session.commit_live(&mut |_, _| ()),
        By::Rendezvous => session.commit_rendezvous(&mut |_, _| ()),
    };
    handles.map(|handles| handles[0])
}

/// Takes one away.
pub(crate) fn take(
    kdetour: &mut Kdetour<WindowsProcess>,
    by: By,
    handle: Handle,
) -> Result<(), SessionError> {
    let session = kdetour.session().detach(handle);
    // SAFETY: as above.
    let alone = unsafe { Alone::promise() };
    let handles = match by {
        By::Local => session.commit_local(&alone, &mut |_, _| ()),
        By::Exchange => session.commit_exchange(&mut |_, _| ()),
        By::Live => session.commit_live(&mut |_, _| ()),
        By::Rendezvous => session.commit_rendezvous(&mut |_, _| ()),
    };
    handles.map(|_| ())
}

/// Waits until nobody is inside, and frees it. It has no frame of its own, in which there could be return addresses of calls that are over.
#[inline(always)]
pub(crate) fn drain(kdetour: &mut Kdetour<WindowsProcess>, handle: Handle) -> Result<(), Error> {
    kdetour.drain(&[handle], Instant::now() + Duration::from_secs(20))
}

/// The bytes at an address, as they are now.
pub(crate) fn text(kdetour: &Kdetour<WindowsProcess>, address: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    kdetour.host().read(address, &mut bytes).unwrap();
    bytes
}

/// The region that holds an address.
fn region(at: usize) -> Option<MEMORY_BASIC_INFORMATION> {
    // SAFETY: numbers and pointers.
    let mut region: MEMORY_BASIC_INFORMATION = unsafe { mem::zeroed() };
    // SAFETY: fills the structure.
    let known = unsafe { VirtualQuery(ptr::without_provenance(at), &raw mut region, size_of_val(&region)) };
    (known != 0).then_some(region)
}

fn is_both(region: &MEMORY_BASIC_INFORMATION) -> bool {
    region.State == MEM_COMMIT && region.Protect & (PAGE_EXECUTE_READWRITE | PAGE_EXECUTE_WRITECOPY) != 0
}

/// The pages that are writable and executable now.
fn writable_and_executable() -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut at = 0_usize;
    while let Some(region) = region(at) {
        if is_both(&region) {
            found.extend((region.BaseAddress.addr()..).step_by(4096).take(region.RegionSize / 4096));
        }
        match region.BaseAddress.addr().checked_add(region.RegionSize) {
            Some(next) if next > at => at = next,
            _ => break,
        }
    }
    found
}

/// Ends what others do, however this ends.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` while a thread looks all the time at the page that holds `target`, and now and then at all others: none is writable and
/// executable. `work` is told how often the page was seen writable.
pub(crate) fn watched(target: u64, work: impl FnOnce(&AtomicUsize)) {
    // Some belong to the system's own loader.
    let before = writable_and_executable();
    let page = usize::try_from(target).unwrap();
    let (done, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for _ in 0..1000 {
                    let found = region(page).unwrap();
                    assert!(!is_both(&found), "{page:#x} is {:#x}", found.Protect);
                    let is_written = found.Protect & (PAGE_READWRITE | PAGE_WRITECOPY) != 0;
                    seen.fetch_add(usize::from(is_written), Ordering::Relaxed);
                }
                let found = writable_and_executable();
                assert!(found.is_subset(&before), "{:x?}", found.difference(&before));
            }
        });
        let finished = Done(&done);
        work(&seen);
        drop(finished);
        watcher.join().unwrap();
    });
}

/// Calls from four threads as long as `work` lasts; each call answers for itself whether it was right.
pub(crate) fn under_calls<R>(call: impl Fn() + Sync, work: impl FnOnce() -> R) -> R {
    let done = AtomicBool::new(false);
    let begun = AtomicUsize::new(0);
    thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut calls = 0_usize;
                    while !done.load(Ordering::Relaxed) || calls == 0 {
                        call();
                        calls += 1;
                        // Others have to come to their turn on few processors, too.
                        if calls.is_multiple_of(1024) {
                            thread::yield_now();
                        }
                        if calls == 1 {
                            begun.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        let finished = Done(&done);
        while begun.load(Ordering::Relaxed) < 4 {
            thread::yield_now();
        }
        let result = work();
        drop(finished);
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        result
    })
}
