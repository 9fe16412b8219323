//! What cannot be is refused by name, and nothing is written.

use crate::support::{By, attach, busy_address, put, targets, text, with};
use kdetour::host::windows_process::WindowsProcess;
use kdetour::host::{Host, Span, Text};
use kdetour::{Attach, Error, Kdetour, Method};
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};

static DATA: [u8; 64] = [0x90; 64];

#[test]
fn bad_addresses() {
    with(|kdetour| {
        let refused = |kdetour: &mut Kdetour<WindowsProcess>, target| {
            put(kdetour, By::Live, attach(target, None)).unwrap_err().error
        };
        assert_eq!(refused(kdetour, 0), Error::Null);
        assert_eq!(refused(kdetour, 16), Error::Unreadable { address: 16 });
        let data = DATA.as_ptr().addr() as u64;
        assert_eq!(refused(kdetour, data), Error::NotCode { address: data });
        if cfg!(target_arch = "x86_64") {
            let inside = busy_address() + 1;
            let expected = Error::NotFunction { address: inside, entry: busy_address() };
            assert_eq!(refused(kdetour, inside), expected);
        }
        let before = text(kdetour, busy_address());
        let away = Attach { detour: data, ..attach(busy_address(), None) };
        assert_eq!(put(kdetour, By::Live, away).unwrap_err().error, Error::NotCode { address: data });
        assert_eq!(text(kdetour, busy_address()), before);
        assert!(kdetour.is_empty());
    });
}

/// What exceptions and writes run through.
#[test]
fn the_ways_of_kdetour_itself() {
    with(|kdetour| {
        for name in [c"NtClose", c"NtProtectVirtualMemory", c"RtlAllocateHeap", c"KiUserExceptionDispatcher"]
        {
            // SAFETY: strings that end; a module that is always there.
            let found = unsafe {
                let module = GetModuleHandleA(c"ntdll.dll".as_ptr().cast());
                GetProcAddress(module, name.as_ptr().cast())
            };
            let target = (found.unwrap() as *const ()).addr() as u64;
            let failed = put(kdetour, By::Live, attach(target, None)).unwrap_err();
            assert_eq!(failed.error, Error::Forbidden { address: target }, "{name:?}");
        }
        let handle = put(kdetour, By::Local, attach(busy_address(), None)).unwrap();
        let slot = kdetour.record(handle).unwrap().slot.address;
        let failed = put(kdetour, By::Live, attach(slot, None)).unwrap_err();
        assert_eq!(failed.error, Error::Forbidden { address: slot });
        crate::support::take(kdetour, By::Local, handle).unwrap();
        crate::support::drain(kdetour, handle).unwrap();
    });
}

#[test]
fn what_is_not_there_yet() {
    with(|kdetour| {
        let refused =
            |kdetour: &mut Kdetour<WindowsProcess>, attach| put(kdetour, By::Live, attach).unwrap_err().error;
        let target = busy_address();
        let register = Attach { method: Method::DebugRegister, ..attach(target, None) };
        assert_eq!(refused(kdetour, register), Error::DebugRegistersMissing);
        let pointer = Attach { method: Method::Pointer, ..attach(target, None) };
        assert_eq!(refused(kdetour, pointer), Error::NotData { address: target });
        let inside = Attach { inside: true, ..attach(target, None) };
        assert_eq!(refused(kdetour, inside), Error::NotFunction { address: target, entry: 0 });
        for handle in kdetour.records().map(|record| record.handle).collect::<Vec<_>>() {
            crate::support::drain(kdetour, handle).unwrap();
        }
    });
}

/// Breakpoints are answered for one host.
#[test]
fn a_second_host() {
    with(|kdetour| {
        let first = put(kdetour, By::Live, attach(targets()[0], None)).unwrap();
        let mut second = Kdetour::new(WindowsProcess::new().unwrap());
        let failed = put(&mut second, By::Live, attach(targets()[1], None)).unwrap_err();
        assert_eq!(failed.error, Error::TrapHandler);
        crate::support::take(kdetour, By::Live, first).unwrap();
        crate::support::drain(kdetour, first).unwrap();
    });
}

#[test]
fn only_open_spans_are_written() {
    with(|kdetour| {
        let host = kdetour.host();
        let address = busy_address();
        let before = text(kdetour, address);
        let mut open = host.open_text(&[Span { address, len: 1 }]).unwrap();
        assert_eq!(open.write(address + 1, &[0xcc]), Err(Error::Unreadable { address: address + 1 }));
        assert_eq!(open.write(address - 1, &[0xcc, 0xcc]), Err(Error::Unreadable { address: address - 1 }));
        assert_eq!(text(kdetour, address), before);
        let nowhere = Span { address: 16, len: 1 };
        assert_eq!(host.open_text(&[nowhere]).unwrap_err(), Error::Unreadable { address: 16 });
    });
}
