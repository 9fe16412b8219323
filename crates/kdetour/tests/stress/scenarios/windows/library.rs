//! A library that the program frees while one of its functions is detoured and called.
//!
//! It is one of the system's that nothing else here needs.

use crate::support::runner::{Clock, fail, tell};
use kdetour::{Protocol, detour, typed};
use std::mem::transmute;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use windows_sys::Win32::Foundation::FreeLibrary;
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress, LoadLibraryA};

const LIBRARY: &std::ffi::CStr = c"winmm.dll";

/// `FOURCC mmioStringToFOURCCA(LPCSTR, UINT)`: four letters as a number.
type Named = extern "system" fn(*const u8, u32) -> u32;

detour! {
    static OF_LIBRARY: extern "system" fn(*const u8, u32) -> u32 = nowhere => added;
}

extern "system" fn nowhere(_: *const u8, _: u32) -> u32 {
    0
}

const ADDED: u32 = 1 << 24;

extern "system" fn added(letters: *const u8, flags: u32) -> u32 {
    OF_LIBRARY.original()(letters, flags).wrapping_add(ADDED)
}

fn is_loaded() -> bool {
    // SAFETY: a string that ends.
    !unsafe { GetModuleHandleA(LIBRARY.as_ptr().cast()) }.is_null()
}

pub(crate) fn library(clock: &Clock) -> String {
    let (mut rounds, mut toggles) = (0, 0_u64);
    let calls = AtomicU64::new(0);
    assert!(!is_loaded(), "{LIBRARY:?} is needed by nobody else");
    while !clock.is_over() || rounds < 3 {
        tell("load");
        // SAFETY: a library of the system, and a function of this type in it.
        let (library, target) = unsafe {
            let library = LoadLibraryA(LIBRARY.as_ptr().cast());
            assert!(!library.is_null(), "{LIBRARY:?} is loaded");
            let found = GetProcAddress(library, c"mmioStringToFOURCCA".as_ptr().cast()).expect("it is there");
            (library, transmute::<unsafe extern "system" fn() -> isize, Named>(found))
        };
        let letters = c"abcd".as_ptr().cast();
        let expected = u32::from_le_bytes(*b"abcd");
        assert_eq!(target(letters, 0), expected);
        // SAFETY: the detour has the target's signature, and calls it.
        unsafe { OF_LIBRARY.attach_to(target) }.expect("attaches");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        let answer = target(c"abcd".as_ptr().cast(), 0);
                        if answer != expected && answer != expected + ADDED {
                            fail(&format!("wrong: {answer:#x}, and was {expected:#x}"));
                        }
                        calls.fetch_add(1, SeqCst);
                    }
                });
            }
            tell("free while attached");
            // SAFETY: loaded above.
            assert_ne!(unsafe { FreeLibrary(library) }, 0);
            let before = calls.load(SeqCst);
            while calls.load(SeqCst) < before + 1000 {
                thread::sleep(Duration::from_millis(1));
            }
            assert!(is_loaded(), "it stays as long as it is detoured");
            for _ in 0..20 {
                OF_LIBRARY.detach().expect("detaches");
                // SAFETY: as above: what drains keeps the library, too.
                unsafe { OF_LIBRARY.attach_to(target) }.expect("attaches again");
                toggles += 1;
            }
            OF_LIBRARY.detach_by(Protocol::Exchange).expect("detaches");
            // Drained or not, whoever calls goes on until it is unloaded: so they stop before.
            stop.store(true, SeqCst);
        });
        assert!(is_loaded(), "it stays until a reclaim");
        tell("unloaded by reclaim");
        assert_eq!(typed::reclaim(Duration::from_secs(10)), Ok(1));
        assert!(!is_loaded(), "it is unloaded");
        rounds += 1;
    }
    format!("{rounds} rounds, {toggles} toggles, {} calls", calls.into_inner())
}
