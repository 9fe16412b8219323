//! Exceptions of C++, and backtraces, through detours that come and go: every frame's destructor runs once, and every
//! caller is found.

use crate::support::built::{Built, symbol};
use crate::support::runner::{Clock, fail, tell};
use crate::support::sites::Site;
use kdetour::{AtomicAddress, Protocol, typed};
use std::ffi::c_void;
use std::mem::transmute;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// `thrown_target` throws what it is asked for. `thrown_frame` needs its frame for a destructor, as does the detour; both
/// count. Who asks for `TRACE` is told which of the three a backtrace finds.
const SOURCE: &str = r#"
#include <stdexcept>
#include <execinfo.h>
#include <dlfcn.h>
#include <string.h>
struct Counts { unsigned long long frames, detours; };
enum { THROW = 7, TRACE = 9 };
struct Counted { unsigned long long &count; ~Counted() { ++count; } };
extern "C" {
unsigned long long (*thrown_original)(unsigned long long, unsigned long long, Counts *);
__attribute__((noinline)) unsigned long long thrown_trace(void)
{
    void *found[32];
    int count = backtrace(found, 32);
    unsigned long long names = 0;
    for (int index = 0; index < count; index++) {
        Dl_info info;
        if (!dladdr(found[index], &info) || !info.dli_sname)
            continue;
        names |= !strcmp(info.dli_sname, "thrown_target") ? 1 : 0;
        names |= !strcmp(info.dli_sname, "thrown_detour") ? 2 : 0;
        names |= !strcmp(info.dli_sname, "thrown_outer") ? 4 : 0;
    }
    return names;
}
__attribute__((noinline)) unsigned long long thrown_target(unsigned long long what, unsigned long long value, Counts *counts)
{
    Counted counted = { counts->frames };
    if (what == THROW)
        throw std::runtime_error("seven");
    if (what == TRACE)
        return thrown_trace();
    return value * 3;
}
__attribute__((noinline)) unsigned long long thrown_detour(unsigned long long what, unsigned long long value, Counts *counts)
{
    Counted counted = { counts->detours };
    return (*(decltype(thrown_original) volatile *)&thrown_original)(what, value, counts) + 1000;
}
unsigned long long thrown_outer(unsigned long long what, unsigned long long value, Counts *counts)
{
    unsigned long long (*volatile target)(unsigned long long, unsigned long long, Counts *) = thrown_target;
    try {
        return target(what, value, counts) + 0 * counts->frames;
    } catch (const std::runtime_error &error) {
        return strcmp(error.what(), "seven") ? 2 : 1;
    }
}
}
"#;

const ORDINARY: u64 = 0;
const THROW: u64 = 7;
const TRACE: u64 = 9;
/// What the detour adds.
const ADDED: u64 = 1000;

#[repr(C)]
#[derive(Default)]
struct Counts {
    frames: u64,
    detours: u64,
}

type Outer = unsafe extern "C" fn(u64, u64, *mut Counts) -> u64;

/// Calls once, and says whether the detour was there, by what came of it.
fn call(outer: Outer, what: u64, value: u64) -> bool {
    let mut counts = Counts::default();
    // SAFETY: the library's function has this signature, and lets no exception out.
    let answer = unsafe { outer(what, value, &raw mut counts) };
    let detoured = counts.detours == 1;
    let expected = match (what, detoured) {
        (THROW, _) => 1,
        (TRACE, true) => 7 + ADDED,
        (TRACE, false) => 5,
        (_, true) => value * 3 + ADDED,
        (_, false) => value * 3,
    };
    if counts.frames != 1 || counts.detours > 1 || answer != expected {
        fail(&format!(
            "{what}: {answer}, not {expected}; {} frames, {} detours",
            counts.frames, counts.detours
        ));
    }
    detoured
}

pub(crate) fn exceptions(clock: &Clock) -> String {
    let library = Built::library("g++", "thrown", SOURCE);
    let handle = library.open(0);
    assert!(!handle.is_null(), "the library is loaded");
    let address = |name| symbol(handle, name);
    // SAFETY: the library's own function.
    let outer = unsafe { transmute::<*mut c_void, Outer>(address(c"thrown_outer")) };
    let of = |name| address(name).expose_provenance() as u64;
    // SAFETY: a word of the library, which stays loaded.
    let cell = unsafe { AtomicAddress::from_ptr(address(c"thrown_original").cast()) };
    let mut site = Site { cell: Some(cell), ..Site::new(of(c"thrown_target"), of(c"thrown_detour"), 0) };
    let whats = [ORDINARY, THROW, TRACE];
    for protocol in [Protocol::Exchange, Protocol::Live, Protocol::Rendezvous] {
        tell("attached and detached");
        site.attach(protocol).expect("attaches");
        assert!(whats.iter().all(|&what| call(outer, what, 5)), "{protocol:?}: the detour is called");
        site.detach(protocol).expect("detaches");
        assert!(!whats.iter().any(|&what| call(outer, what, 5)), "{protocol:?}: it is not called");
    }
    let (stop, toggles) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut calls, mut detoured) = (0_u64, 0_u64);
    thread::scope(|scope| {
        let callers: Vec<_> = (0..2)
            .map(|number| {
                let stop = &stop;
                scope.spawn(move || {
                    let (mut calls, mut detoured) = (0_u64, 0_u64);
                    while !stop.load(SeqCst) {
                        detoured += u64::from(call(outer, whats[calls as usize % 3], calls + number));
                        calls += 1;
                    }
                    (calls, detoured)
                })
            })
            .collect();
        tell("toggled beside callers");
        while !clock.is_over() || toggles.load(SeqCst) < 100 {
            site.attach(Protocol::Exchange).expect("attaches");
            thread::sleep(Duration::from_micros(200));
            site.detach(Protocol::Exchange).expect("detaches");
            thread::sleep(Duration::from_micros(200));
            toggles.fetch_add(1, SeqCst);
        }
        stop.store(true, SeqCst);
        for caller in callers {
            let (some, of_them) = caller.join().expect("a caller");
            (calls, detoured) = (calls + some, detoured + of_them);
        }
    });
    assert!(detoured > 0 && detoured < calls, "{detoured} of {calls} calls were detoured");
    assert_eq!(typed::reclaim(Duration::from_secs(10)), Ok(1));
    format!("{} toggles, {calls} calls, {detoured} of them detoured", toggles.load(SeqCst))
}
