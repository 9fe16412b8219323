//! Images that Windows' own loader has loaded: what the program imports, what a library exports, and what stays loaded.

use crate::pointers::LONG;
use crate::support::{
    assert_no_page_is_writable_and_executable, in_a_process_of_its_own, permissions, text, turn,
};
use kdetour::typed::pointer::{Image, imports, imports_of};
use kdetour::typed::{Detour, PointerDetour, pe, reclaim};
use kdetour::{AtomicAddress, Error};
use std::ffi::{CStr, c_void};
use std::hint::black_box;
use std::mem::transmute;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use windows_sys::Win32::Foundation::FreeLibrary;
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress, LoadLibraryA};

type Handle = unsafe extern "system" fn(*const u8) -> *mut c_void;
type Number = unsafe extern "C" fn(i32) -> i32;

static ASKED: AtomicUsize = AtomicUsize::new(0);
static ORIGINAL: AtomicAddress = AtomicAddress::new(0);

unsafe extern "system" fn nothing_is_loaded(_: *const u8) -> *mut c_void {
    ASKED.fetch_add(1, SeqCst);
    std::ptr::null_mut()
}

unsafe extern "C" fn ten_more(of: i32) -> i32 {
    // SAFETY: a function of this type is there before the first call gets here.
    let original = unsafe { transmute::<usize, Number>(ORIGINAL.load(SeqCst) as usize) };
    // SAFETY: it has no conditions.
    unsafe { original(of) + 10 }
}

fn load(library: &CStr) -> *mut c_void {
    // SAFETY: a string that ends; these libraries do nothing that a test would notice.
    let module = unsafe { LoadLibraryA(library.as_ptr().cast()) };
    assert!(!module.is_null(), "{library:?}");
    module
}

fn handle(library: &CStr) -> *mut c_void {
    // SAFETY: a string that ends.
    unsafe { GetModuleHandleA(black_box(library.as_ptr().cast())) }
}

fn look_up(module: *mut c_void, name: &CStr) -> Number {
    // SAFETY: a module that is loaded, and a string that ends.
    let found = unsafe { GetProcAddress(module, name.as_ptr().cast()) };
    // SAFETY: what these tests look up are functions of this type.
    unsafe { transmute::<unsafe extern "system" fn() -> isize, Number>(found.unwrap()) }
}

fn address(function: Number) -> u64 {
    function as *const () as u64
}

#[test]
fn what_the_program_imports() {
    if !in_a_process_of_its_own("modules::what_the_program_imports") {
        return;
    }
    let _turn = turn();
    let kernel = handle(c"kernel32.dll");
    assert!(!kernel.is_null());
    let places = imports::<Handle>(Image::Program, "GetModuleHandleA").unwrap();
    let before: Vec<_> = places
        .iter()
        .map(|place| (place.addr() as u64, text(place.addr() as u64, size_of::<usize>())))
        .map(|(place, pointer)| (place, pointer, permissions(place)))
        .collect();
    for _ in 0..2 {
        // SAFETY: it is a function of this type, and nobody keeps what was read of the pointer.
        let detours = places.iter().map(|&place| unsafe { PointerDetour::attach(place, nothing_is_loaded) });
        let detours = detours.collect::<Result<Vec<_>, _>>().unwrap();
        let asked = ASKED.load(SeqCst);
        assert!(handle(c"kernel32.dll").is_null());
        assert!(ASKED.load(SeqCst) > asked);
        // SAFETY: it is the function, and the string ends.
        assert_eq!(unsafe { detours[0].original()(c"kernel32.dll".as_ptr().cast()) }, kernel);
        assert_no_page_is_writable_and_executable();
        drop(detours);
        assert_eq!(handle(c"kernel32.dll"), kernel);
        for (place, pointer, allowed) in &before {
            assert_eq!((&text(*place, size_of::<usize>()), &permissions(*place)), (pointer, allowed));
        }
    }
    reclaim(LONG).unwrap();
}

#[test]
fn images_are_found_by_each_of_their_names() {
    let _turn = turn();
    let module = handle(c"kernel32.dll").addr() as u64;
    // What it imports differs from one system to the other, but for this.
    let names = ["NtClose", "RtlFreeHeap", "RtlInitUnicodeString", "NtQueryInformationProcess"];
    let name = names.into_iter().find(|name| imports_of(Image::Holding(module), name).is_ok()).unwrap();
    let places = imports_of(Image::Holding(module + 0x1000), name);
    assert!(places.as_ref().is_ok_and(|places| !places.is_empty()));
    assert_eq!(imports_of(Image::Named("kernel32.dll"), name), places);
    assert_eq!(imports_of(Image::Named("KERNEL32"), name), places);
    assert_eq!(pe::imports_of(module, None, name), places);
    for image in [
        Image::Named("no_such_library.dll"),
        Image::Named(""),
        Image::Named("kernel32.dll\0"),
        Image::Holding(16),
    ] {
        assert_eq!(imports_of(image, name), Err(Error::UnknownImage), "{image:?}");
    }
    assert_eq!(imports_of(Image::Program, "no_program_imports_this"), Err(Error::UnknownSymbol));
}

#[test]
fn what_a_library_exports() {
    if !in_a_process_of_its_own("modules::what_a_library_exports") {
        return;
    }
    let _turn = turn();
    let module = load(c"msvcrt.dll");
    let earlier = look_up(module, c"abs");
    // SAFETY: it is the base of a library that stays; nobody compares the function's address.
    let mut export = unsafe { pe::Export::<Number>::lead(module, "abs") }.unwrap();
    let kept = look_up(module, c"abs");
    // It is found elsewhere, within reach of an entry, and does what it did.
    assert!(address(kept) != address(earlier) && address(kept) - (module.addr() as u64) < 1 << 31);
    // SAFETY: it has no conditions.
    let call = |function: Number| unsafe { function(black_box(-7)) };
    assert_eq!((call(kept), call(earlier)), (7, 7));
    // SAFETY: it is a function of this type.
    let detour = unsafe { PointerDetour::attach(export.pointer(), ten_more as Number) }.unwrap();
    ORIGINAL.store(address(detour.original()), SeqCst);
    assert_eq!((call(kept), call(look_up(module, c"abs")), call(earlier)), (17, 17, 7));
    assert_eq!(
        (permissions(address(kept)), permissions(export.pointer().addr() as u64)),
        ("r-xp".into(), "rw-p".into())
    );
    assert_no_page_is_writable_and_executable();
    drop(detour);
    assert_eq!(call(kept), 7);
    export.restore().unwrap();
    assert_eq!((address(look_up(module, c"abs")), call(kept)), (address(earlier), 7));
    reclaim(LONG).unwrap();
}

#[test]
fn an_export_of_another_image_is_told() {
    let _turn = turn();
    let module = handle(c"kernel32.dll").addr() as u64;
    // SAFETY: it is refused.
    let refused = unsafe { pe::lead(module, "HeapAlloc") };
    assert!(matches!(refused, Err(Error::Forwarded { .. })), "{refused:?}");
    // SAFETY: it is refused.
    let refused = unsafe { pe::lead(module, "no_library_exports_this") };
    assert_eq!(refused, Err(Error::UnknownSymbol));
}

/// While a detour is attached, or may be running, the library of its target stays.
#[test]
fn a_library_stays_loaded() {
    if !in_a_process_of_its_own("modules::a_library_stays_loaded") {
        return;
    }
    let _turn = turn();
    let name = c"winmm.dll";
    assert!(handle(name).is_null());
    let module = load(name);
    let target = look_up(module, c"timeBeginPeriod");
    // SAFETY: both take a number or a pointer, and give a number.
    let mut detour = unsafe { Detour::attach(target, ten_more as Number) }.unwrap();
    // SAFETY: it was loaded above.
    assert_ne!(unsafe { FreeLibrary(module) }, 0);
    assert_eq!(handle(name), module);
    ORIGINAL.store(address(ten_less), SeqCst);
    // SAFETY: the detour calls what stands there.
    assert_eq!(unsafe { target(black_box(50)) }, 50);
    detour.detach().unwrap();
    drop(detour);
    assert_eq!(handle(name), module);
    reclaim(LONG).unwrap();
    assert!(handle(name).is_null());
}

unsafe extern "C" fn ten_less(of: i32) -> i32 {
    of - 10
}
