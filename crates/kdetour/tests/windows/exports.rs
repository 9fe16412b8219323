//! Functions that the system's libraries export, under calls.
//!
//! Which instructions these begin with differs from one system to the other. So each is asked first, and what is refused is told; but some have to
//! be detoured everywhere.

use crate::support::{By, drain, put, take, text, under_calls, watched, with};
use kdetour::{AtomicAddress, Attach};
use std::ffi::CStr;
use std::mem::transmute;
use std::sync::atomic::{AtomicUsize, Ordering};
use windows_sys::Win32::System::LibraryLoader::{GetProcAddress, LoadLibraryA};

/// Any function of up to four numbers or pointers: one convention on x86-64, whatever it is declared as.
type Function = extern "system" fn(usize, usize, usize, usize) -> usize;

static ORIGINAL: AtomicAddress = AtomicAddress::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

extern "system" fn counted(a: usize, b: usize, c: usize, d: usize) -> usize {
    CALLS.fetch_add(1, Ordering::Relaxed);
    function(ORIGINAL.load(Ordering::Acquire))(a, b, c, d)
}

fn function(address: u64) -> Function {
    // SAFETY: a function of such a type, of a library that stays, or its trampoline.
    unsafe { transmute::<usize, Function>(usize::try_from(address).unwrap()) }
}

fn find(library: &CStr, name: &CStr) -> Option<u64> {
    // SAFETY: strings that end.
    let found = unsafe { GetProcAddress(LoadLibraryA(library.as_ptr().cast()), name.as_ptr().cast()) };
    found.map(|found| (found as *const ()).addr() as u64)
}

#[test]
fn functions_of_the_system() {
    let text_of = |text: &'static CStr| text.as_ptr().addr();
    // Which library, which function, what it is called with.
    let all: [(&CStr, &CStr, [usize; 4]); 12] = [
        (c"kernel32.dll", c"lstrlenA", [text_of(c"four"), 0, 0, 0]),
        (c"kernel32.dll", c"lstrcmpA", [text_of(c"same"), text_of(c"same"), 0, 0]),
        (c"kernel32.dll", c"MulDiv", [6, 7, 3, 0]),
        (c"kernel32.dll", c"GetACP", [0; 4]),
        (c"kernel32.dll", c"GetOEMCP", [0; 4]),
        (c"kernel32.dll", c"IsBadStringPtrA", [text_of(c"text"), 4, 0, 0]),
        (c"kernelbase.dll", c"lstrlenA", [text_of(c"four"), 0, 0, 0]),
        (c"kernelbase.dll", c"GetCurrentProcessId", [0; 4]),
        (c"msvcrt.dll", c"labs", [7_usize.wrapping_neg(), 0, 0, 0]),
        (c"msvcrt.dll", c"atoi", [text_of(c"1234"), 0, 0, 0]),
        (c"msvcrt.dll", c"strchr", [text_of(c"abcdef"), b'd' as usize, 0, 0]),
        (c"msvcrt.dll", c"toupper", [b'x' as usize, 0, 0, 0]),
    ];
    with(|kdetour| {
        let mut detoured = [0; 3];
        for (library, name, [a, b, c, d]) in all {
            let Some(target) = find(library, name) else {
                println!("{library:?} {name:?}: not exported");
                continue;
            };
            let before = text(kdetour, target);
            let expected = function(target)(a, b, c, d) as u32;
            let call = || assert_eq!(function(target)(a, b, c, d) as u32, expected, "{name:?}");
            for (by, done) in [By::Local, By::Live, By::Rendezvous].into_iter().zip(&mut detoured) {
                let attach = Attach {
                    target,
                    detour: (counted as *const ()).addr() as u64,
                    cell: Some(&ORIGINAL),
                    ..Attach::default()
                };
                let rounds = if by == By::Local { 1 } else { 10 };
                let mut work = || {
                    for _ in 0..rounds {
                        let calls = CALLS.load(Ordering::Relaxed);
                        let handle = match put(kdetour, by, attach) {
                            Ok(handle) => handle,
                            Err(failed) => {
                                println!("{library:?} {name:?}, {by:?}: {failed}");
                                return;
                            }
                        };
                        call();
                        assert!(CALLS.load(Ordering::Relaxed) > calls, "{name:?}");
                        take(kdetour, by, handle).unwrap();
                        drain(kdetour, handle).unwrap();
                    }
                    *done += 1;
                };
                match by {
                    By::Local => work(),
                    _ => {
                        watched(target, |_| under_calls(call, work));
                    }
                }
                assert_eq!(text(kdetour, target), before, "{name:?}");
            }
        }
        println!("detoured: {detoured:?}");
        assert!(detoured.iter().all(|&count| count >= 4), "{detoured:?}");
        assert!(kdetour.is_empty());
    });
}

#[test]
fn a_library_that_is_not_there_has_no_functions() {
    assert_eq!(find(c"kdetour-no-such.dll", c"nothing"), None);
}
