//! Attached and detached, alone and beside other threads.

#[cfg(target_arch = "x86_64")]
use crate::support::patchable_address;
use crate::support::{
    By, CALLS, attach, drain, function, put, take, targets, text, under_calls, watched, with,
};
use kdetour::Method;
use kdetour::host::{Host, Span, Text};
use kdetour::plan::Shape;
use std::sync::atomic::Ordering;
use std::thread;

/// How often each is attached and detached under calls.
const ROUNDS: usize = 8;

#[test]
fn alone() {
    with(|kdetour| {
        for target in targets() {
            watched(target, |_| {
                let before = text(kdetour, target);
                assert_eq!(function(target)(7, 3), 10);
                let handle = put(kdetour, By::Local, attach(target, None)).unwrap();
                assert_ne!(text(kdetour, target), before);
                assert_eq!(function(target)(7, 3), 1010);
                take(kdetour, By::Local, handle).unwrap();
                assert_eq!(text(kdetour, target), before);
                assert_eq!(function(target)(7, 3), 10);
                drain(kdetour, handle).unwrap();
            });
        }
        assert!(kdetour.is_empty());
        assert_eq!(kdetour.slots().footprint().bytes, 0);
    });
}

/// A page is seen while it is written: it is not executable then, and whoever comes there waits.
#[test]
fn no_page_is_writable_and_executable() {
    /// So often it is to be seen writable; and so often it is written at the most.
    const ENOUGH: usize = 20;
    const WRITES: usize = 400_000;
    with(|kdetour| {
        let address = targets()[0];
        let bytes = text(kdetour, address);
        let mut open = kdetour.host().open_text(&[Span { address, len: 1 }]).unwrap();
        let mut write = || open.write(address, &bytes[..1]).unwrap();
        watched(address, |seen| {
            let mut writes = 0;
            while seen.load(Ordering::Relaxed) < ENOUGH && writes < WRITES {
                write();
                writes += 1;
            }
            let seen = seen.load(Ordering::Relaxed);
            println!("written {writes} times, seen {seen} times");
            // Where there is one processor, whoever looks and whoever writes take turns.
            assert!(seen >= ENOUGH || thread::available_parallelism().unwrap().get() == 1);
        });
        // Beside callers, all of whom are in this page.
        let call = || assert_eq!(function(address)(7, 3), 10);
        under_calls(call, || (0..20_000).for_each(|_| write()));
        assert_eq!(text(kdetour, address), bytes);
    });
}

/// Calls of the target answer 10 or 1010, whatever happens to it meanwhile.
fn toggled(by: By, shape: Option<Shape>) {
    with(|kdetour| {
        let mut fits = 0;
        for target in targets() {
            let before = text(kdetour, target);
            let call = || {
                let answer = function(target)(7, 3);
                assert!(answer == 10 || answer == 1010, "{answer}");
            };
            watched(target, |_| {
                under_calls(call, || {
                    for _ in 0..ROUNDS {
                        let calls = CALLS.load(Ordering::Relaxed);
                        let handle = match put(kdetour, by, attach(target, shape)) {
                            Ok(handle) => handle,
                            // Not every function has room for every shape.
                            Err(failed) if shape.is_some() => {
                                println!("{shape:?} at {target:#x}: {failed}");
                                return;
                            }
                            Err(failed) => panic!("{failed}"),
                        };
                        fits += 1;
                        assert_eq!(function(target)(7, 3), 1010);
                        assert!(CALLS.load(Ordering::Relaxed) > calls);
                        take(kdetour, by, handle).unwrap();
                        assert_eq!(function(target)(7, 3), 10);
                        drain(kdetour, handle).unwrap();
                    }
                });
            });
            assert_eq!(text(kdetour, target), before);
        }
        assert!(fits >= ROUNDS, "{shape:?}");
        assert!(kdetour.is_empty());
        assert_eq!(kdetour.slots().footprint().pages, 0);
    });
}

#[test]
fn live_in_the_best_shape() {
    toggled(By::Live, None);
}

#[test]
fn live_over_a_whole_instruction() {
    toggled(By::Live, Some(Shape::WholeInstruction));
}

#[test]
fn live_with_bytes_kept() {
    toggled(By::Live, Some(Shape::Jump5Kept));
}

#[test]
fn live_with_bytes_that_trap() {
    toggled(By::Live, Some(Shape::Jump5Trapped));
}

#[test]
fn live_over_several_instructions() {
    toggled(By::Live, Some(Shape::Jump5));
}

#[test]
fn by_exchange_in_the_best_shape() {
    toggled(By::Exchange, None);
}

#[test]
fn by_exchange_over_a_whole_instruction() {
    toggled(By::Exchange, Some(Shape::WholeInstruction));
}

#[test]
fn by_exchange_with_bytes_kept() {
    toggled(By::Exchange, Some(Shape::Jump5Kept));
}

#[test]
fn by_exchange_with_bytes_that_trap() {
    toggled(By::Exchange, Some(Shape::Jump5Trapped));
}

/// Only 64-bit images say where the function in front ends.
#[test]
#[cfg(target_arch = "x86_64")]
fn with_a_short_jump_into_the_padding() {
    let target = patchable_address();
    with(|kdetour| {
        let before = (text(kdetour, target - 16), text(kdetour, target));
        assert_eq!(before.0[..16], [0xcc; 16]);
        let call = || assert!([10, 1010].contains(&function(target)(7, 3)));
        for by in [By::Exchange, By::Live, By::Rendezvous] {
            under_calls(call, || {
                for _ in 0..ROUNDS {
                    let handle = put(kdetour, by, attach(target, Some(Shape::ShortJump))).unwrap();
                    assert_eq!(text(kdetour, target)[..2], [0xeb, 0xf9], "to five bytes in front");
                    assert_eq!(text(kdetour, target)[2..], before.1[2..]);
                    assert_eq!(function(target)(7, 3), 1010);
                    take(kdetour, by, handle).unwrap();
                    assert_eq!(function(target)(7, 3), 10);
                    drain(kdetour, handle).unwrap();
                    // The padding comes back with that.
                    assert_eq!((text(kdetour, target - 16), text(kdetour, target)), before);
                }
            });
        }
        assert!(kdetour.is_empty());
    });
}

#[test]
fn at_a_rendezvous() {
    toggled(By::Rendezvous, None);
}

#[test]
fn attached_live_and_detached_at_a_rendezvous() {
    with(|kdetour| {
        for target in targets() {
            let before = text(kdetour, target);
            let call = || assert!([10, 1010].contains(&function(target)(7, 3)));
            under_calls(call, || {
                for _ in 0..ROUNDS {
                    let handle = put(kdetour, By::Live, attach(target, None)).unwrap();
                    take(kdetour, By::Rendezvous, handle).unwrap();
                    drain(kdetour, handle).unwrap();
                }
            });
            assert_eq!(text(kdetour, target), before);
        }
    });
}

#[test]
fn by_a_breakpoint_that_stays() {
    with(|kdetour| {
        for target in targets() {
            let before = text(kdetour, target);
            let call = || assert!([10, 1010].contains(&function(target)(7, 3)));
            under_calls(call, || {
                let breakpoint = kdetour::Attach { method: Method::Breakpoint, ..attach(target, None) };
                let handle = put(kdetour, By::Live, breakpoint).unwrap();
                assert_eq!(text(kdetour, target)[0], 0xcc);
                assert_eq!(function(target)(7, 3), 1010);
                take(kdetour, By::Live, handle).unwrap();
                assert_eq!(function(target)(7, 3), 10);
                drain(kdetour, handle).unwrap();
            });
            assert_eq!(text(kdetour, target), before);
        }
    });
}
