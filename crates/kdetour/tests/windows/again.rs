//! The same tests in programs whose headers say something else, which is possible in 32-bit code only: this very program is copied, a bit in its header is
//! changed, and the copy is run.

use crate::support::{By, attach, drain, function, put, take, targets, with};
use kdetour::Error;
use kdetour::plan::Shape;
use std::fs;
use std::mem::transmute;
use std::process::{Command, Stdio};
use std::ptr;
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_EXECUTE_READ, PAGE_READWRITE, VirtualAlloc, VirtualFree,
    VirtualProtect,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessDEPPolicy};

/// Says to a copy which one it is.
const AGAIN: &str = "KDETOUR_WINDOWS_AGAIN";
/// Where a header has its bits, from the signature on ("PE Format": COFF file header, optional header), and the bit.
const LARGE_ADDRESSES: (usize, u8) = (4 + 18, 0x20);
const DATA_IS_DATA: (usize, u8) = (4 + 20 + 71, 0x01);

/// Runs a copy of this program in which a bit is set or not, and gives it these arguments.
fn again(name: &str, (offset, bit): (usize, u8), set: bool, arguments: &[&str]) {
    if std::env::var_os(AGAIN).is_some() {
        return;
    }
    let this = std::env::current_exe().unwrap();
    let mut bytes = fs::read(&this).unwrap();
    let header = u32::from_le_bytes(bytes[0x3c..0x40].try_into().unwrap()) as usize;
    assert_eq!(bytes[header..header + 4], *b"PE\0\0");
    let byte = &mut bytes[header + offset];
    *byte = if set { *byte | bit } else { *byte & !bit };
    let copy = std::env::temp_dir().join(format!("kdetour-{name}-{}.exe", std::process::id()));
    fs::write(&copy, &bytes).unwrap();
    let output = Command::new(&copy).args(arguments).env(AGAIN, name).stdin(Stdio::null()).output();
    fs::remove_file(&copy).unwrap();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{name}: {}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let passed = said.lines().find_map(|line| line.strip_prefix("test result: ok. ")).expect("a result");
    println!("{name}: {passed}");
    assert!(!passed.starts_with("0 "), "{said}");
}

/// Whether this is the copy of that name.
fn this_is(name: &str) -> bool {
    std::env::var_os(AGAIN).is_some_and(|again| again == name)
}

#[test]
fn without_data_execution_prevention() {
    again(
        "executes-data",
        DATA_IS_DATA,
        false,
        &["again::", "beside::live_in", "beside::at_a", "parked::a_"],
    );
}

#[test]
fn without_large_addresses() {
    again("small-addresses", LARGE_ADDRESSES, false, &["again::", "beside::live_in", "parked::bytes"]);
}

/// `mov edi, edi / mov eax, [esp + 4] / add eax, [esp + 8] / ret`
const SUM: [u8; 11] = [0x8b, 0xff, 0x8b, 0x44, 0x24, 0x04, 0x03, 0x44, 0x24, 0x08, 0xc3];

/// `MEM_TOP_DOWN` (winnt.h).
const TOP_DOWN: u32 = 0x10_0000;

/// Memory of this protection with a function in it, at the highest address there is.
fn high(protection: u32) -> usize {
    // SAFETY: memory of its own, which is written before it is anything else.
    unsafe {
        let memory = VirtualAlloc(ptr::null(), 4096, MEM_COMMIT | MEM_RESERVE | TOP_DOWN, PAGE_READWRITE);
        assert!(!memory.is_null());
        memory.cast::<u8>().write_bytes(0xcc, 4096);
        memory.cast::<[u8; 11]>().add(1).write(SUM);
        let mut old = 0;
        assert_ne!(VirtualProtect(memory, 4096, protection, &raw mut old), 0);
        memory.addr() + 11
    }
}

fn free(function: usize) {
    // SAFETY: it is from `high`, and nobody is there.
    let freed = unsafe { VirtualFree(ptr::with_exposed_provenance_mut(function - 11), 0, MEM_RELEASE) };
    assert_ne!(freed, 0);
}

/// Where whoever comes to a page does not wait, nothing is exchanged.
#[test]
fn data_that_is_executed_is_not_exchanged() {
    with(|kdetour| {
        // One instruction of several bytes; one byte needs no exchange.
        let target = targets()[2];
        // SAFETY: both are functions of this type, of this program.
        let session = unsafe { kdetour.session().attach(attach(target, Some(Shape::WholeInstruction))) };
        match session.commit_exchange(&mut |_, _| ()) {
            Ok(handles) => {
                assert!(!this_is("executes-data"));
                take(kdetour, By::Live, handles[0]).unwrap();
                drain(kdetour, handles[0]).unwrap();
            }
            Err(failed) => {
                assert!(this_is("executes-data"));
                assert!(matches!(failed.error, Error::NotExchangeable { .. }), "{failed}");
            }
        }
        assert_eq!(function(target)(7, 3), 10);
        for handle in kdetour.records().map(|record| record.handle).collect::<Vec<_>>() {
            drain(kdetour, handle).unwrap();
        }
    });
}

/// The copy is what its header says, or its tests would show nothing.
#[test]
fn data_is_executed_where_nothing_prevents_it() {
    let (mut flags, mut permanent) = (0, 0);
    // SAFETY: fills both.
    let known = unsafe { GetProcessDEPPolicy(GetCurrentProcess(), &raw mut flags, &raw mut permanent) };
    assert_ne!(known, 0);
    assert_eq!(flags & 1 == 0, this_is("executes-data"));
    if this_is("executes-data") {
        let sum = high(PAGE_READWRITE);
        // SAFETY: a function of two numbers, in memory that can be read and therefore executed.
        let sum_of = unsafe { transmute::<usize, extern "C" fn(usize, usize) -> usize>(sum) };
        assert_eq!(sum_of(7, 3), 10);
        free(sum);
    }
}

/// Code in no image, beyond 2 GiB where a program may have it there.
#[test]
fn code_at_the_highest_address() {
    with(|kdetour| {
        let sum = high(PAGE_EXECUTE_READ);
        assert_eq!(sum < 1 << 31, this_is("small-addresses"), "{sum:#x}");
        let target = sum as u64;
        for by in [By::Local, By::Live, By::Rendezvous] {
            let handle = put(kdetour, by, attach(target, None)).unwrap();
            assert_eq!(function(target)(7, 3), 1010);
            println!("{by:?}: slot at {:#x}", kdetour.record(handle).unwrap().slot.address);
            take(kdetour, by, handle).unwrap();
            assert_eq!(function(target)(7, 3), 10);
            drain(kdetour, handle).unwrap();
        }
        free(sum);
    });
}
