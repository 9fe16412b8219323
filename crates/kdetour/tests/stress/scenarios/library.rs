//! A library that the program closes while one of its functions is detoured and called.

use crate::support::built::{Built, symbol};
use crate::support::callers::Callers;
use crate::support::runner::{Clock, tell};
use crate::support::sites;
use crate::support::targets::{Target, function};
use kdetour::{Protocol, detour, typed};
use std::ffi::{CStr, c_void};
use std::time::Duration;

const SOURCE: &str = "
unsigned long long stress_library(unsigned long long first, unsigned long long second) {
    volatile unsigned long long kept = first * 3;
    return (kept + second) ^ 0x55;
}
";

detour! {
    static OF_LIBRARY: extern "C" fn(u64, u64) -> u64 = nowhere => added;
}

extern "C" fn nowhere(_: u64, _: u64) -> u64 {
    0
}

extern "C" fn added(first: u64, second: u64) -> u64 {
    OF_LIBRARY.original()(first, second).wrapping_add(1 << 44)
}

fn close(handle: *mut c_void) {
    // SAFETY: opened before.
    assert_eq!(unsafe { libc::dlclose(handle) }, 0);
}

const NAME: &CStr = c"stress_library";

pub(crate) fn library(clock: &Clock) -> String {
    let library = Built::library("cc", "stress", SOURCE);
    let (mut rounds, mut calls, mut toggles) = (0, 0, 0_u64);
    while !clock.is_over() || rounds < 3 {
        tell("open");
        let handle = library.open(0);
        assert!(!handle.is_null(), "the library is loaded");
        let target: Target = function(symbol(handle, NAME).expose_provenance() as u64);
        // SAFETY: the detour has the target's signature, and calls it.
        unsafe { OF_LIBRARY.attach_to(target) }.expect("attaches");
        let callers = Callers::start(2, target, sites::either);
        tell("close while attached");
        close(handle);
        callers.wait_for_calls(1000);
        assert!(library.is_mapped(), "it stays as long as it is detoured");
        for _ in 0..20 {
            OF_LIBRARY.detach().expect("detaches");
            // SAFETY: as above: what drains keeps the library, too.
            unsafe { OF_LIBRARY.attach_to(target) }.expect("attaches again");
            toggles += 1;
        }
        OF_LIBRARY.detach_by(Protocol::Exchange).expect("detaches");
        // Drained or not, whoever calls goes on until it is unloaded: so they stop before.
        calls += callers.stop();
        assert!(library.is_mapped(), "it stays until a reclaim");
        tell("unloaded by reclaim");
        assert_eq!(typed::reclaim(Duration::from_secs(10)), Ok(1));
        assert!(!library.is_mapped(), "it is unloaded");
        assert!(library.open(libc::RTLD_NOLOAD).is_null(), "it is unloaded");
        rounds += 1;
    }
    format!("{rounds} rounds, {toggles} toggles, {calls} calls")
}
