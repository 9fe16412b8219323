//! Panics pass through a detour in 32-bit code, too: its frames are described by their own images, and no slot is among them.

use crate::support::{By, drain, put, take, with};
use kdetour::{AtomicAddress, Attach};
use std::mem::transmute;
use std::panic::catch_unwind;
use std::sync::atomic::Ordering;

static ORIGINAL: AtomicAddress = AtomicAddress::new(0);

#[inline(never)]
extern "C-unwind" fn panics(number: usize) -> usize {
    assert!(number != 7, "seven");
    number + 1
}

fn function(address: u64) -> extern "C-unwind" fn(usize) -> usize {
    // SAFETY: the function above, or its trampoline.
    unsafe { transmute(usize::try_from(address).unwrap()) }
}

extern "C-unwind" fn passes(number: usize) -> usize {
    100 + function(ORIGINAL.load(Ordering::Acquire))(number)
}

#[test]
fn through_detour_and_target() {
    with(|kdetour| {
        let target = (panics as *const ()).addr() as u64;
        let called = |number| catch_unwind(|| function(target)(number));
        for by in [By::Local, By::Live, By::Rendezvous] {
            let attach = Attach {
                target,
                detour: (passes as *const ()).addr() as u64,
                cell: Some(&ORIGINAL),
                ..Attach::default()
            };
            let handle = put(kdetour, by, attach).unwrap();
            assert_eq!(called(1).unwrap(), 102);
            assert!(called(7).is_err());
            take(kdetour, by, handle).unwrap();
            assert_eq!(called(1).unwrap(), 2);
            drain(kdetour, handle).unwrap();
        }
    });
}
