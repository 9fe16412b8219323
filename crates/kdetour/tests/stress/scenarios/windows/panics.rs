//! Panics, which are exceptions of Windows here, through detours that come and go: every frame's destructor runs once.

use crate::support::runner::{Clock, fail, tell};
use crate::support::sites::Site;
use kdetour::typed::Function;
use kdetour::{AtomicAddress, Protocol, typed};
use std::cell::Cell;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

type Thrower = extern "C-unwind" fn(u64, u64) -> u64;

/// What the detour adds.
const ADDED: u64 = 1000;

static ORIGINAL: AtomicAddress = AtomicAddress::new(0);

thread_local! {
    static FRAMES: Cell<u64> = const { Cell::new(0) };
    static DETOURS: Cell<u64> = const { Cell::new(0) };
}

struct Counted(fn());

impl Drop for Counted {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn count_frame() {
    FRAMES.set(FRAMES.get() + 1);
}

fn count_detour() {
    DETOURS.set(DETOURS.get() + 1);
}

#[inline(never)]
extern "C-unwind" fn throws(what: u64, value: u64) -> u64 {
    let _counted = Counted(count_frame);
    if what == 1 {
        // Nothing is printed by it, as it would be by `panic!`.
        resume_unwind(Box::new(value));
    }
    value * 3
}

extern "C-unwind" fn detour(what: u64, value: u64) -> u64 {
    let _counted = Counted(count_detour);
    let code = std::ptr::with_exposed_provenance::<()>(ORIGINAL.load(SeqCst) as usize);
    // SAFETY: the original, of this type.
    let original = unsafe { std::mem::transmute::<*const (), Thrower>(code) };
    original(what, value) + ADDED
}

/// Calls once, and says whether the detour was there, by what came of it.
fn call(what: u64, value: u64) -> bool {
    FRAMES.set(0);
    DETOURS.set(0);
    let answer = catch_unwind(AssertUnwindSafe(|| black_box(throws as Thrower)(what, value)));
    let detoured = DETOURS.get() == 1;
    let right = match answer {
        Ok(answer) => what == 0 && answer == value * 3 + if detoured { ADDED } else { 0 },
        Err(thrown) => what == 1 && thrown.downcast_ref::<u64>() == Some(&value),
    };
    if !right || FRAMES.get() != 1 || DETOURS.get() > 1 {
        fail(&format!("{what}, {value}: {} frames, {} detours", FRAMES.get(), DETOURS.get()));
    }
    detoured
}

pub(crate) fn panics(clock: &Clock) -> String {
    let mut site = Site::new((throws as Thrower).address(), (detour as Thrower).address(), 0);
    site.cell = Some(&ORIGINAL);
    for protocol in [Protocol::Exchange, Protocol::Live, Protocol::Rendezvous] {
        tell("attached and detached");
        site.attach(protocol).unwrap_or_else(|error| panic!("{error:?}"));
        assert!(call(0, 5) && call(1, 5), "{protocol:?}: the detour is called");
        site.detach(protocol).unwrap_or_else(|error| panic!("{error:?}"));
        assert!(!call(0, 5) && !call(1, 5), "{protocol:?}: it is not called");
    }
    let (stop, calls, detoured) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut toggles = 0_u64;
    thread::scope(|scope| {
        for number in 0..2 {
            let (stop, calls, detoured) = (&stop, &calls, &detoured);
            scope.spawn(move || {
                let mut count = 0;
                while !stop.load(SeqCst) {
                    detoured.fetch_add(u64::from(call(count % 2, count + number)), SeqCst);
                    calls.fetch_add(1, SeqCst);
                    count += 1;
                }
            });
        }
        tell("toggled beside callers");
        while !clock.is_over() || toggles < 50 || detoured.load(SeqCst) == 0 {
            site.attach(Protocol::Exchange).unwrap_or_else(|error| panic!("{error:?}"));
            thread::sleep(Duration::from_micros(200));
            site.detach(Protocol::Exchange).unwrap_or_else(|error| panic!("{error:?}"));
            thread::sleep(Duration::from_micros(200));
            toggles += 1;
        }
        stop.store(true, SeqCst);
    });
    let (calls, detoured) = (calls.into_inner(), detoured.into_inner());
    assert!(detoured < calls, "{detoured} of {calls} calls were detoured");
    assert_eq!(typed::reclaim(Duration::from_secs(10)), Ok(1));
    format!("{toggles} toggles, {calls} calls, {detoured} of them detoured")
}
