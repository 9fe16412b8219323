//! Functions that the system's libraries export, under calls.
//!
//! Which instructions these begin with differs from one system to the other. So each is asked first, and what is refused is told; but some have to
//! be detoured everywhere.

use crate::support::{By, drain, put, take, text, under_calls, watched, with};
use kdetour::host::windows_process::WindowsProcess;
use kdetour::plan::Shapes;
use kdetour::{AtomicAddress, Attach, Kdetour};
use std::ffi::CStr;
use std::mem::transmute;
use std::sync::atomic::{AtomicUsize, Ordering};
use windows_sys::Win32::System::LibraryLoader::{GetProcAddress, LoadLibraryA};

static ORIGINAL: AtomicAddress = AtomicAddress::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// How functions of one convention and so many arguments are called, and a detour of theirs.
#[derive(Clone, Copy)]
struct Convention {
    call: fn(u64, [usize; 3]) -> usize,
    counted: fn() -> u64,
}

/// On x86-32 who is called takes the arguments off the stack, or does not; so the detour has to be just as the target is.
macro_rules! conventions {
    ($($name:ident: $abi:literal ($($argument:ident)*),)*) => { $(
        fn $name() -> Convention {
            extern $abi fn counted($($argument: usize),*) -> usize {
                CALLS.fetch_add(1, Ordering::Relaxed);
                function(ORIGINAL.load(Ordering::Acquire))($($argument),*)
            }
            fn function(address: u64) -> extern $abi fn($(conventions!(@number $argument)),*) -> usize {
                // SAFETY: a function of such a type, of a library that stays, or its trampoline.
                unsafe { transmute(usize::try_from(address).unwrap()) }
            }
            fn call(address: u64, arguments: [usize; 3]) -> usize {
                let [$($argument,)* ..] = arguments;
                function(address)($($argument),*)
            }
            Convention { call, counted: || (counted as *const ()).addr() as u64 }
        }
    )* };
    (@number $argument:ident) => { usize };
}
conventions! {
    system0: "system" (),
    system1: "system" (a),
    system2: "system" (a b),
    system3: "system" (a b c),
    c1: "C" (a),
    c2: "C" (a b),
}

/// A function of the system.
struct Exported {
    library: &'static CStr,
    name: &'static CStr,
    convention: Convention,
    arguments: [usize; 3],
}

impl Exported {
    fn find(&self) -> Option<u64> {
        let found = find(self.library, self.name);
        if found.is_none() {
            println!("{:?} {:?}: not exported", self.library, self.name);
        }
        found
    }

    fn attach(&self, target: u64, shapes: Option<Shapes>) -> Attach {
        let detour = (self.convention.counted)();
        Attach { target, detour, cell: Some(&ORIGINAL), shapes, ..Attach::default() }
    }

    /// Attaches and detaches it under calls, or alone. Whether it can be detoured.
    fn is_detoured(
        &self,
        kdetour: &mut Kdetour<WindowsProcess>,
        by: By,
        target: u64,
        shapes: Option<Shapes>,
    ) -> bool {
        let (name, arguments) = (self.name, self.arguments);
        let before = text(kdetour, target);
        // What is in the upper half of a register is not of an `int`.
        let expected = (self.convention.call)(target, arguments) as u32;
        let call = || assert_eq!((self.convention.call)(target, arguments) as u32, expected, "{name:?}");
        let rounds = if by == By::Local { 1 } else { 10 };
        let mut work = || {
            for _ in 0..rounds {
                let calls = CALLS.load(Ordering::Relaxed);
                let handle = match put(kdetour, by, self.attach(target, shapes)) {
                    Ok(handle) => handle,
                    Err(failed) => {
                        println!("{:?} {name:?}, {by:?}: {failed}", self.library);
                        return false;
                    }
                };
                call();
                assert!(CALLS.load(Ordering::Relaxed) > calls, "{name:?}");
                take(kdetour, by, handle).unwrap();
                drain(kdetour, handle).unwrap();
            }
            true
        };
        let mut detoured = false;
        match by {
            By::Local => detoured = work(),
            _ => watched(target, |_| detoured = under_calls(call, work)),
        }
        assert_eq!(text(kdetour, target), before, "{name:?}");
        detoured
    }
}

fn find(library: &CStr, name: &CStr) -> Option<u64> {
    // SAFETY: strings that end.
    let found = unsafe { GetProcAddress(LoadLibraryA(library.as_ptr().cast()), name.as_ptr().cast()) };
    found.map(|found| (found as *const ()).addr() as u64)
}

fn text_of(text: &'static CStr) -> usize {
    text.as_ptr().addr()
}

#[test]
fn functions_of_the_system() {
    // Which library, which function, what it is called with.
    let all: [(&CStr, &CStr, Convention, [usize; 3]); 12] = [
        (c"kernel32.dll", c"lstrlenA", system1(), [text_of(c"four"), 0, 0]),
        (c"kernel32.dll", c"lstrcmpA", system2(), [text_of(c"same"), text_of(c"same"), 0]),
        (c"kernel32.dll", c"MulDiv", system3(), [6, 7, 3]),
        (c"kernel32.dll", c"GetACP", system0(), [0; 3]),
        (c"kernel32.dll", c"GetOEMCP", system0(), [0; 3]),
        (c"kernel32.dll", c"IsBadStringPtrA", system2(), [text_of(c"text"), 4, 0]),
        (c"kernelbase.dll", c"lstrlenA", system1(), [text_of(c"four"), 0, 0]),
        (c"kernelbase.dll", c"GetCurrentProcessId", system0(), [0; 3]),
        (c"msvcrt.dll", c"labs", c1(), [7_usize.wrapping_neg(), 0, 0]),
        (c"msvcrt.dll", c"atoi", c1(), [text_of(c"1234"), 0, 0]),
        (c"msvcrt.dll", c"strchr", c2(), [text_of(c"abcdef"), b'd' as usize, 0]),
        (c"msvcrt.dll", c"toupper", c1(), [b'x' as usize, 0, 0]),
    ];
    with(|kdetour| {
        let mut detoured = [0; 3];
        for (library, name, convention, arguments) in all {
            let exported = Exported { library, name, convention, arguments };
            let Some(target) = exported.find() else { continue };
            for (by, count) in [By::Local, By::Live, By::Rendezvous].into_iter().zip(&mut detoured) {
                *count += usize::from(exported.is_detoured(kdetour, by, target, None));
            }
        }
        println!("detoured: {detoured:?}");
        assert!(detoured.iter().all(|&count| count >= 4), "{detoured:?}");
        assert!(kdetour.is_empty());
    });
}

/// Functions made to be patched: `mov edi, edi` behind five bytes that nothing runs through. A short jump over the one leads to a long one in the others.
#[test]
#[cfg(target_arch = "x86")]
fn entries_that_are_made_for_it() {
    // SAFETY: a string that ends; a library that is always there.
    let library = unsafe { LoadLibraryA(c"kernelbase.dll".as_ptr().cast()) }.addr();
    let all: [(&CStr, &CStr, Convention, [usize; 3]); 3] = [
        (c"kernelbase.dll", c"GetModuleHandleA", system1(), [text_of(c"kernelbase.dll"), 0, 0]),
        (c"kernelbase.dll", c"GetProcAddress", system2(), [library, text_of(c"Sleep"), 0]),
        (c"kernel32.dll", c"SetLastError", system1(), [0; 3]),
    ];
    with(|kdetour| {
        let mut detoured = 0;
        for (library, name, convention, arguments) in all {
            let exported = Exported { library, name, convention, arguments };
            let Some(target) = exported.find() else { continue };
            if text(kdetour, target)[..2] != [0x8b, 0xff] {
                println!("{name:?} begins with {:x?}", &text(kdetour, target)[..8]);
                continue;
            }
            let before = text(kdetour, target - 5);
            assert!(
                exported.is_detoured(
                    kdetour,
                    By::Live,
                    target,
                    Some(Shapes::only(kdetour::plan::Shape::ShortJump))
                ),
                "{name:?}"
            );
            assert_eq!(text(kdetour, target - 5), before);
            detoured += 1;
        }
        assert!(detoured > 0);
    });
}

#[test]
fn a_library_that_is_not_there_has_no_functions() {
    assert_eq!(find(c"kdetour-no-such.dll", c"nothing"), None);
}
