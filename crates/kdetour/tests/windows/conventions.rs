//! The ways of 32-bit code to call a function: arguments in registers, or taken off the stack by who is called. A detour has its target's; neither patch
//! nor slot touches a register or the stack.

use crate::support::{By, drain, put, take, under_calls, with};
use kdetour::{AtomicAddress, Attach};
use std::hint::black_box;
use std::mem::transmute;
use std::sync::atomic::{AtomicUsize, Ordering};

macro_rules! conventions {
    ($($name:ident: $abi:literal,)*) => { $(
        #[test]
        fn $name() {
            type Function = extern $abi fn(usize, usize, usize) -> usize;
            static ORIGINAL: AtomicAddress = AtomicAddress::new(0);
            static CALLS: AtomicUsize = AtomicUsize::new(0);

            #[inline(never)]
            extern $abi fn target(one: usize, other: usize, third: usize) -> usize {
                black_box(one) * 100 + black_box(other) * 10 + black_box(third)
            }
            extern $abi fn detour(one: usize, other: usize, third: usize) -> usize {
                CALLS.fetch_add(1, Ordering::Relaxed);
                function(ORIGINAL.load(Ordering::Acquire))(one, other, third) + 1000
            }
            fn function(address: u64) -> Function {
                // SAFETY: the target, or its trampoline.
                unsafe { transmute(usize::try_from(address).unwrap()) }
            }
            with(|kdetour| {
                let at = |function: Function| (function as *const ()).addr() as u64;
                let attach = Attach { target: at(target), detour: at(detour), cell: Some(&ORIGINAL), ..Attach::default() };
                let call = || assert!([123, 1123].contains(&function(at(target))(1, 2, 3)));
                for by in [By::Live, By::Rendezvous] {
                    under_calls(call, || {
                        for _ in 0..10 {
                            let calls = CALLS.load(Ordering::Relaxed);
                            let handle = put(kdetour, by, attach).unwrap();
                            assert_eq!(function(at(target))(1, 2, 3), 1123);
                            assert!(CALLS.load(Ordering::Relaxed) > calls);
                            take(kdetour, by, handle).unwrap();
                            assert_eq!(function(at(target))(1, 2, 3), 123);
                            drain(kdetour, handle).unwrap();
                        }
                    });
                }
            });
        }
    )* };
}
conventions! {
    arguments_on_the_stack: "cdecl",
    arguments_taken_off_the_stack: "stdcall",
    arguments_in_registers: "fastcall",
    this_in_a_register: "thiscall",
}
