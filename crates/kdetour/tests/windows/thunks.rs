//! Functions that are one jump, and those behind them.

use crate::support::{By, attach, busy_address, drain, function, put, take, targets, text, with};
use kdetour::plan::{Code, Thunk, thunk};
use kdetour::{AtomicAddress, Attach, Error};
use std::ffi::CStr;
use std::mem::transmute;
use std::sync::atomic::Ordering;
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};

/// The thunk of this program, and where it leads.
#[test]
fn of_this_program() {
    with(|kdetour| {
        let [busy, .., thunk] = targets();
        for direct in [false, true] {
            assert_eq!(kdetour.behind_thunks(thunk, direct), Ok(busy));
            assert_eq!(kdetour.behind_thunks(busy, direct), Ok(busy));
            assert_eq!(kdetour.behind_thunks(16, direct), Err(Error::Unreadable { address: 16 }));
        }
        // Behind it all callers come by.
        let handle = put(kdetour, By::Exchange, attach(busy, None)).unwrap();
        assert_eq!((function(busy)(7, 3), function(thunk)(7, 3)), (1010, 1010));
        // The detour's own jump leads nowhere.
        assert_eq!(kdetour.behind_thunks(thunk, true), Ok(busy));
        take(kdetour, By::Exchange, handle).unwrap();
        drain(kdetour, handle).unwrap();
        // Before it only its own do; what is detoured is not followed.
        let before = text(kdetour, thunk);
        let handle = put(kdetour, By::Exchange, attach(thunk, None)).unwrap();
        assert_eq!((function(busy_address())(7, 3), function(thunk)(7, 3)), (10, 1010));
        assert_eq!(kdetour.behind_thunks(thunk, true), Ok(thunk));
        take(kdetour, By::Exchange, handle).unwrap();
        drain(kdetour, handle).unwrap();
        assert_eq!(text(kdetour, thunk), before);
    });
}

type Asked = extern "system" fn() -> u32;

static ORIGINAL: AtomicAddress = AtomicAddress::new(0);

extern "system" fn asked() -> u32 {
    let original = usize::try_from(ORIGINAL.load(Ordering::Acquire)).unwrap();
    // SAFETY: the original, of this type.
    1 + unsafe { transmute::<usize, Asked>(original) }()
}

fn find(library: &CStr, name: &CStr) -> Option<u64> {
    // SAFETY: strings that end.
    let found = unsafe {
        let module = GetModuleHandleA(library.as_ptr().cast());
        if module.is_null() { None } else { GetProcAddress(module, name.as_ptr().cast()) }
    };
    found.map(|found| (found as *const ()).addr() as u64)
}

/// One of `kernel32.dll` that is a jump to `kernelbase.dll`: which are, differs from one system to the other, but some are everywhere.
#[test]
#[cfg_attr(
    target_arch = "x86",
    ignore = "32-bit Wine has more than a jump in these: each is made to be patched"
)]
fn of_the_system() {
    let names = [
        c"GetACP",
        c"GetOEMCP",
        c"GetCurrentProcessId",
        c"GetTickCount",
        c"GetVersion",
        c"GetProcessVersion",
    ];
    with(|kdetour| {
        let mut followed = 0;
        for name in names {
            let (Some(front), Some(behind)) = (find(c"kernel32.dll", name), find(c"kernelbase.dll", name))
            else {
                continue;
            };
            let bytes = text(kdetour, front);
            let is_thunk = matches!(thunk(&Code::in_mode(mode(), front, &bytes)), Some(Thunk::Through(_)));
            println!("{name:?}: {front:#x}, {behind:#x}, a thunk: {is_thunk}");
            if !is_thunk || front == behind {
                continue;
            }
            assert_eq!(kdetour.behind_thunks(front, false), Ok(behind), "{name:?}");
            // One whose answer does not change by itself.
            if name != c"GetACP" {
                continue;
            }
            followed += 1;
            // SAFETY: a function of this type.
            let call = |at: u64| unsafe { transmute::<usize, Asked>(usize::try_from(at).unwrap()) }();
            let expected = call(front);
            let target = kdetour.behind_thunks(front, false).unwrap();
            let detour = (asked as *const ()).addr() as u64;
            let attach = Attach { target, detour, cell: Some(&ORIGINAL), ..Attach::default() };
            let handle = put(kdetour, By::Exchange, attach).unwrap();
            assert_eq!((call(front), call(behind)), (expected + 1, expected + 1));
            take(kdetour, By::Exchange, handle).unwrap();
            assert_eq!((call(front), call(behind)), (expected, expected));
            drain(kdetour, handle).unwrap();
        }
        assert!(followed > 0, "none is a thunk");
    });
}

fn mode() -> kdetour::plan::Mode {
    if cfg!(target_arch = "x86_64") { kdetour::plan::Mode::Bits64 } else { kdetour::plan::Mode::Bits32 }
}
