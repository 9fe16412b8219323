//! Pages that are written under threads that run in them, by calls that fail, and by writers that are ended.

#![expect(clippy::undocumented_unsafe_blocks, reason = "memory of this test, and the system's functions")]

use super::super::{regions, trap};
use super::*;
use core::sync::atomic::AtomicBool;
use core::time::Duration;
use std::os::windows::io::AsRawHandle;
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;
use std::vec::Vec;
use std::{slice, thread};
use windows_sys::Win32::System::Diagnostics::Debug::WriteProcessMemory;
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_EXECUTE_READ, PAGE_READWRITE, VirtualAlloc, VirtualFree,
    VirtualProtect,
};
use windows_sys::Win32::System::Threading::{
    CreateMutexW, GetCurrentProcess, ReleaseMutex, TerminateProcess, TerminateThread, WaitForSingleObject,
};

const PAGES: usize = 4;
/// One of these tests at a time.
static TURN: Mutex<()> = Mutex::new(());

/// How many calls are left until one fails, and how many fail then.
static LEFT: AtomicUsize = AtomicUsize::new(0);
static FAILING: AtomicUsize = AtomicUsize::new(0);
const REFUSED: Status = 0xc000_0022_u32.cast_signed();

unsafe extern "system" fn protect(
    process: *mut core::ffi::c_void,
    base: *mut usize,
    size: *mut usize,
    new: u32,
    old: *mut u32,
) -> Status {
    if LEFT.load(Ordering::SeqCst) == 0 && FAILING.load(Ordering::SeqCst) > 0 {
        FAILING.fetch_sub(1, Ordering::SeqCst);
        return REFUSED;
    }
    LEFT.store(LEFT.load(Ordering::SeqCst).saturating_sub(1), Ordering::SeqCst);
    let real = std::ptr::with_exposed_provenance::<()>(Nt::known().unwrap().protect_address());
    let real: super::super::nt::Protect = unsafe { core::mem::transmute(real) };
    unsafe { real(process, base, size, new, old) }
}

/// Four pages of code, the first byte of which is written; what became of that, and the bytes.
fn written(left: usize, failing: usize) -> (Result<(), Failed>, Vec<u8>, usize) {
    let _turn = super::super::lock(&TURN);
    let nt = Nt::get().unwrap();
    trap::install(nt).unwrap();
    let len = PAGES * PAGE as usize;
    let base = unsafe { VirtualAlloc(ptr::null(), len, MEM_RESERVE | MEM_COMMIT, PAGE_EXECUTE_READ) };
    let base: *mut u8 = base.cast();
    let starts: Vec<_> = (0..PAGES).map(|page| unsafe { base.add(page * PAGE as usize) }).collect();
    let mut pages: Vec<_> = starts.iter().map(|start| Page::at(widen(start.addr()))).collect();
    let new = [0x90; 1];
    let writes = starts.iter().map(|start| Write { to: start.addr(), from: new.as_ptr(), len: 1 });
    let writes: Vec<_> = writes.collect();
    LEFT.store(left, Ordering::SeqCst);
    FAILING.store(failing, Ordering::SeqCst);
    let outcome = unsafe { write_pages_by(nt, (protect as *const ()).addr(), &mut pages, &writes, 0) };
    let bytes = starts.iter().map(|start| unsafe { start.read_volatile() }).collect();
    let is_code = |start: &&*mut u8| regions::is_executable(nt.query(widen(start.addr())).unwrap().Protect);
    let code = starts.iter().filter(is_code).count();
    assert_eq!(unsafe { slice::from_raw_parts(base.add(1), 16) }, [0; 16]);
    unsafe { VirtualFree(base.cast(), 0, MEM_RELEASE) };
    (outcome, bytes, code)
}

#[test]
fn all_pages_are_written_and_executable_again() {
    assert_eq!(written(usize::MAX, 0), (Ok(()), [0x90; PAGES].to_vec(), PAGES));
}

#[test]
fn one_that_does_not_become_writable_leaves_all_as_they_were() {
    for left in 0..PAGES {
        let failed = Failed { status: REFUSED, written: false };
        assert_eq!(written(left, 1), (Err(failed), [0; PAGES].to_vec(), PAGES), "{left}");
    }
}

#[test]
fn one_that_does_not_become_executable_is_tried_again() {
    for left in PAGES..2 * PAGES {
        assert_eq!(written(left, TRIES as usize), (Ok(()), [0x90; PAGES].to_vec(), PAGES), "{left}");
    }
}

/// It is told, the others are executable, and nobody waits any more.
#[test]
fn one_that_never_does_is_given_up() {
    for left in PAGES..2 * PAGES {
        let failed = Failed { status: REFUSED, written: true };
        let expected = (Err(failed), [0x90; PAGES].to_vec(), PAGES - 1);
        assert_eq!(written(left, TRIES as usize + 1), expected, "{left}");
        // Nobody else is writing either.
        let nt = Nt::get().unwrap();
        let _turn = Turn::take(nt);
        assert_eq!(FIRST.load(Ordering::SeqCst), usize::MAX);
    }
}

/// In which call a thread is held for ever, whether behind what that does, and whether it is there.
static HELD_AT: AtomicUsize = AtomicUsize::new(0);
static BEHIND: AtomicBool = AtomicBool::new(false);
static IS_HELD: AtomicBool = AtomicBool::new(false);
/// Where a thread has the byte that it writes, on its stack.
static ON_STACK: AtomicUsize = AtomicUsize::new(0);

unsafe extern "system" fn protect_and_stay(
    process: *mut core::ffi::c_void,
    base: *mut usize,
    size: *mut usize,
    new: u32,
    old: *mut u32,
) -> Status {
    let nt = Nt::known().unwrap();
    let stays = HELD_AT.fetch_sub(1, Ordering::SeqCst) == 0;
    let stay = || {
        IS_HELD.store(true, Ordering::SeqCst);
        loop {
            nt.pause(1000);
        }
    };
    if stays && !BEHIND.load(Ordering::SeqCst) {
        stay();
    }
    let real = std::ptr::with_exposed_provenance::<()>(nt.protect_address());
    let real: super::super::nt::Protect = unsafe { core::mem::transmute(real) };
    let status = unsafe { real(process, base, size, new, old) };
    if stays {
        stay();
    }
    status
}

/// Pages each of which begins with a function that answers 1: `mov eax, 1`, `ret`.
fn answering(pages: usize) -> &'static [usize] {
    let len = pages * PAGE as usize;
    let base = unsafe { VirtualAlloc(ptr::null(), len, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE) };
    let starts: Vec<_> = (0..pages).map(|page| base.expose_provenance() + page * PAGE as usize).collect();
    for &start in &starts {
        unsafe { ptr::with_exposed_provenance_mut::<[u8; 6]>(start).write([0xb8, 1, 0, 0, 0, 0xc3]) };
    }
    let mut old = 0;
    assert_ne!(unsafe { VirtualProtect(base, len, PAGE_EXECUTE_READ, &raw mut old) }, 0);
    starts.leak()
}

fn call(start: usize) -> u32 {
    let function = ptr::with_exposed_provenance::<()>(start);
    let function: extern "C" fn() -> u32 = unsafe { core::mem::transmute(function) };
    function()
}

/// A thread that is in the middle of having these pages answer 2: in one of its calls, or behind that.
fn held(starts: &'static [usize], at: usize, behind: bool) -> thread::JoinHandle<()> {
    HELD_AT.store(at, Ordering::SeqCst);
    BEHIND.store(behind, Ordering::SeqCst);
    IS_HELD.store(false, Ordering::SeqCst);
    let writer = thread::spawn(move || {
        let nt = Nt::get().unwrap();
        let new = [2_u8];
        ON_STACK.store(new.as_ptr().expose_provenance(), Ordering::SeqCst);
        let protect = (protect_and_stay as *const ()).addr();
        let write = |start: usize, from| Write { to: start + 1, from, len: 1 };
        let _ = match starts {
            &[start] => unsafe { write_page_by(nt, protect, start as u64, &[write(start, new.as_ptr())], 0) },
            _ => {
                let pages: Vec<_> = starts.iter().map(|&start| Page::at(start as u64)).collect();
                let from = new.to_vec().leak().as_ptr();
                let writes: Vec<_> = starts.iter().map(|&start| write(start, from)).collect();
                unsafe { write_pages_by(nt, protect, pages.leak(), writes.leak(), 0) }
            }
        };
    });
    while !IS_HELD.load(Ordering::SeqCst) {
        thread::yield_now();
    }
    writer
}

/// Nobody waits for ever, nothing is half written, no page has lost what it allows, and the next one has his turn.
#[test]
fn what_a_thread_was_writing_that_is_ended_is_finished() {
    let _turn = super::super::lock(&TURN);
    let nt = Nt::get().unwrap();
    trap::install(nt).unwrap();
    for pages in [1, PAGES] {
        for (at, behind) in (0..2 * pages).flat_map(|at| [(at, false), (at, true)]) {
            let starts = answering(pages);
            let writer = held(starts, at, behind);
            unsafe {
                assert_ne!(TerminateThread(writer.as_raw_handle().cast(), 0), 0);
                assert_eq!(WaitForSingleObject(writer.as_raw_handle().cast(), 10_000), 0);
                // Its stack is gone, or somebody else's.
                let (place, other) = (ptr::with_exposed_provenance(ON_STACK.load(Ordering::SeqCst)), 7_u8);
                let other = (&raw const other).cast();
                WriteProcessMemory(GetCurrentProcess(), place, other, 1, ptr::null_mut());
            }
            // In front of the first change nobody has to wait.
            let expected = if (at, behind) == (0, false) { 1 } else { 2 };
            assert_eq!(call(starts[0]), expected, "{pages} {at} {behind}");
            drop(Turn::take(nt));
            for &start in starts {
                assert_eq!(call(start), 2, "{pages} {at} {behind}");
                assert_eq!(nt.query(start as u64).unwrap().Protect, PAGE_EXECUTE_READ);
            }
        }
    }
}

/// Whoever ends the process ends all others first, and may come to such a page then.
#[test]
fn a_process_ends_while_a_page_is_written() {
    const CHILD: &str = "KDETOUR_ENDS";
    if std::env::var_os(CHILD).is_none() {
        let name = "host::windows_process::flip::tests::a_process_ends_while_a_page_is_written";
        let mut child = Command::new(std::env::current_exe().unwrap());
        let mut child = child.args(["--exact", name]).env(CHILD, "1").spawn().unwrap();
        let patience = Instant::now() + Duration::from_secs(60);
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() < patience => thread::sleep(Duration::from_millis(5)),
                None => {
                    let _ = child.kill();
                    panic!("it does not end");
                }
            }
        };
        assert_eq!(status.code(), Some(42));
        return;
    }
    let nt = Nt::get().unwrap();
    trap::install(nt).unwrap();
    let starts = answering(1);
    let _writer = held(starts, 0, true);
    unsafe {
        let ntdll = ptr::with_exposed_provenance_mut(narrow(nt.base()));
        type Terminate = unsafe extern "system" fn(super::super::nt::Handle, Status) -> Status;
        let terminate = super::super::nt::find::<Terminate>(ntdll, c"NtTerminateProcess").unwrap();
        // What the end of a process begins with: no process is all other threads of this one.
        terminate(ptr::null_mut(), 0);
        let answer = call(starts[0]);
        TerminateProcess(GetCurrentProcess(), 40 + answer);
    }
}

/// Another copy of kdetour in this process, or another version: all that they share is a mutex by its name. Two that have a page at once would
/// leave it as the first one has made it for the moment.
#[test]
fn copies_take_turns() {
    let _turn = super::super::lock(&TURN);
    let nt = Nt::get().unwrap();
    trap::install(nt).unwrap();
    let starts = answering(1);
    let (start, done) = (starts[0], AtomicBool::new(false));
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let name = std::format!("Local\\kdetour-pages-{}\0", std::process::id());
            let name: Vec<u16> = name.encode_utf16().collect();
            let page = ptr::with_exposed_provenance(start);
            let (mut turns, mut old) = (0_usize, 0);
            unsafe {
                let mutex = CreateMutexW(ptr::null(), 0, name.as_ptr());
                assert!(!mutex.is_null());
                while !done.load(Ordering::SeqCst) {
                    assert_eq!(WaitForSingleObject(mutex, 60_000), 0);
                    assert_ne!(VirtualProtect(page, 1, PAGE_READWRITE, &raw mut old), 0);
                    thread::yield_now();
                    assert_eq!(old, PAGE_EXECUTE_READ, "behind {turns} turns");
                    assert_ne!(VirtualProtect(page, 1, old, &raw mut old), 0);
                    assert_ne!(ReleaseMutex(mutex), 0);
                    turns += 1;
                }
            }
            turns
        });
        for _ in 0..300 {
            let write = Write { to: start + 1, from: [3].as_ptr(), len: 1 };
            unsafe { write_page(nt, start as u64, &[write], 0) }.unwrap();
            thread::yield_now();
        }
        done.store(true, Ordering::SeqCst);
        assert!(other.join().unwrap() > 0);
    });
    assert_eq!(nt.query(start as u64).unwrap().Protect, PAGE_EXECUTE_READ);
    assert_eq!(call(start), 3);
}
