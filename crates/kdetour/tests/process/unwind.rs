//! Unwinding through a detour: panics, backtraces, and a backtrace at every single instruction.

use crate::support::{AWAY, Turn, code_at, turn};
use kdetour::typed::{Function, StaticDetour, with_process};
use kdetour::{State, detour};
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::mem::zeroed;
use std::panic::{catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

type Target = extern "C-unwind" fn(usize, usize) -> usize;

#[cfg(target_arch = "x86")]
#[path = "unwind/x86.rs"]
mod code;
#[cfg(target_arch = "x86_64")]
#[path = "unwind/x86_64.rs"]
mod code;

use code::{FAR, KNOWN, instruction_pointer};

unsafe extern "C-unwind" {
    safe fn unwind_frame(first: usize, second: usize) -> usize;
    safe fn unwind_pushes(first: usize, second: usize) -> usize;
    safe fn unwind_branch(first: usize, second: usize) -> usize;
    safe fn unwind_call(first: usize, second: usize) -> usize;
    safe fn unwind_call_first(first: usize, second: usize) -> usize;
    safe fn unwind_step(target: Target, first: usize, second: usize, step: &mut Step) -> usize;
    safe fn unwind_stepped();
}

/// What the callee of a displaced call does.
static CALLEE: AtomicUsize = AtomicUsize::new(ADDS);
const ADDS: usize = 0;
const PANICS: usize = 1;
const LOOKS: usize = 2;

extern "C-unwind" fn callee(first: usize, second: usize) -> usize {
    match CALLEE.load(Ordering::Relaxed) {
        PANICS => resume_unwind(Box::new(first)),
        LOOKS => {
            FOUND.store(caller().is_some().into(), Ordering::Relaxed);
            first + second
        }
        _ => first + second,
    }
}

/// Whether the frame that was looked for was found.
static FOUND: AtomicU64 = AtomicU64::new(0);
/// What `unwind_step` sets in its flags, and its stack pointer.
#[repr(C)]
#[derive(Default)]
struct Step {
    flags: usize,
    stack: usize,
}

const TRAP: usize = 0x100;

// The Itanium C++ ABI for exceptions, level I.
unsafe extern "C" {
    fn _Unwind_Backtrace(trace: extern "C" fn(*mut c_void, *mut c_void) -> c_int, data: *mut c_void)
    -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
    fn _Unwind_GetCFA(context: *mut c_void) -> usize;
    fn _Unwind_GetGR(context: *mut c_void, register: c_int) -> usize;
}

/// The frame of `unwind_step`: its stack pointer, and the registers that a callee preserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Caller {
    stack: usize,
    registers: [usize; KNOWN.len()],
}

struct Search {
    for_return_to: usize,
    depth: usize,
    caller: Option<Caller>,
}

extern "C" fn visit(context: *mut c_void, search: *mut c_void) -> c_int {
    // SAFETY: `caller` gives its own search, and the unwinder its own context.
    unsafe {
        let search = &mut *search.cast::<Search>();
        search.depth += 1;
        if search.depth > 200 {
            return 4; // _URC_NORMAL_STOP: nothing goes on for ever
        }
        if _Unwind_GetIP(context) == search.for_return_to {
            let registers = KNOWN.map(|(register, _)| _Unwind_GetGR(context, register));
            search.caller = Some(Caller { stack: _Unwind_GetCFA(context), registers });
        }
    }
    0
}

/// Unwinds this thread's stack until it comes to the caller of all.
fn caller() -> Option<Caller> {
    let for_return_to = unwind_stepped as *const () as usize;
    let mut search = Search { for_return_to, depth: 0, caller: None };
    // SAFETY: `visit` takes a search.
    unsafe { _Unwind_Backtrace(visit, (&raw mut search).cast()) };
    search.caller
}

/// What the handler saw: where it was, and the caller if it was found.
struct Steps {
    count: AtomicUsize,
    seen: UnsafeCell<[(u64, Option<Caller>); 1024]>,
}

// SAFETY: one thread at a time steps, and reads what was seen afterwards.
unsafe impl Sync for Steps {}

static STEPS: Steps = Steps { count: AtomicUsize::new(0), seen: UnsafeCell::new([(0, None); 1024]) };

extern "C" fn on_step(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives the context.
    let at = instruction_pointer(unsafe { &*context.cast::<libc::ucontext_t>() });
    let index = STEPS.count.fetch_add(1, Ordering::Relaxed);
    // SAFETY: nobody else is here meanwhile.
    let seen = unsafe { &mut *STEPS.seen.get() };
    if let Some(seen) = seen.get_mut(index) {
        *seen = (at, caller());
    }
}

/// Calls a function one instruction at a time: its result, its caller, and what was seen.
fn step(target: Target, first: usize, second: usize) -> (usize, Caller, Vec<(u64, Option<Caller>)>) {
    // The unwinder allocates when it is used for the first time.
    let _ = caller();
    STEPS.count.store(0, Ordering::Relaxed);
    let mut step = Step { flags: TRAP, stack: 0 };
    // SAFETY: a handler for the traps of this thread, which is taken away again.
    let result = unsafe {
        let mut action: libc::sigaction = zeroed();
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_step;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        let mut before: libc::sigaction = zeroed();
        assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const action, &raw mut before), 0);
        let result = unwind_step(target, first, second, &mut step);
        assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const before, null_mut()), 0);
        result
    };
    let count = STEPS.count.load(Ordering::Relaxed);
    // SAFETY: nobody steps any more.
    let seen = unsafe { &*STEPS.seen.get() };
    let expected = Caller { stack: step.stack, registers: KNOWN.map(|(_, value)| value) };
    (result, expected, seen[..count].to_vec())
}

/// The slot of the detour that is attached to a target.
fn slot_of(target: Target) -> std::ops::Range<u64> {
    with_process(|kdetour| {
        let of =
            |record: &&kdetour::Record| record.target == target.address() && record.state == State::Attached;
        let slot = kdetour.records().find(of).unwrap().slot;
        Ok(slot.address..slot.address + slot.len as u64)
    })
    .unwrap()
}

detour! {
    static FRAME: Target = unwind_frame => through_frame;
    static PUSHES: Target = unwind_pushes => through_pushes;
    static BRANCH: Target = unwind_branch => through_branch;
    static CALL: Target = unwind_call => through_call;
    static CALL_FIRST: Target = unwind_call_first => through_call_first;
    static FAR_AWAY: Target = unwind_frame => through_far_away;
}

macro_rules! through {
    ($($name:ident $detour:ident)+) => {
        $(
            extern "C-unwind" fn $name(first: usize, second: usize) -> usize {
                $detour.original()(first, second) + 1000
            }
        )+
    };
}
through! {
    through_frame FRAME
    through_pushes PUSHES
    through_branch BRANCH
    through_call CALL
    through_call_first CALL_FIRST
    through_far_away FAR_AWAY
}

/// From every place, from that of the call on to that behind it, the caller is found as it is; in the slot at least
/// `in_slot` times. `everywhere` is whether the target has unwind information of its own.
fn every_step(
    turn: &Turn,
    detour: &'static StaticDetour<Target>,
    target: Target,
    in_slot: usize,
    everywhere: bool,
) {
    // SAFETY: both have one signature.
    unsafe { detour.attach_with(&turn.alone, target) }.unwrap();
    let slot = slot_of(target);
    let (result, expected, seen) = step(target, 30, 4);
    assert_eq!(result, 1034);
    let caller = (unwind_step as *const () as u64)..(unwind_stepped as *const () as u64 + 32);
    let inside = seen.iter().filter(|(at, _)| !caller.contains(at));
    let mut count = 0;
    for &(at, found) in inside {
        count += usize::from(slot.contains(&at));
        if everywhere || slot.contains(&at) {
            assert_eq!(found, Some(expected), "{at:#x}, slot {slot:x?}, {:#x}", target.address());
        }
    }
    assert!(count >= in_slot, "{count} instructions of the slot were seen");
    detour.detach_with(&turn.alone).unwrap();
    assert_eq!(target(30, 4), 34);
}

#[test]
fn every_instruction_of_a_slot_can_be_unwound() {
    let turn = turn();
    // Two or more displaced instructions, and the jump back.
    every_step(&turn, &FRAME, unwind_frame, 3, true);
    every_step(&turn, &PUSHES, unwind_pushes, 3, true);
    every_step(&turn, &BRANCH, unwind_branch, 3, true);
    every_step(&turn, &CALL, unwind_call, 3, true);
    every_step(&turn, &CALL_FIRST, unwind_call_first, 2, true);
}

/// The same, of a function far away: relays and far forms.
#[test]
fn every_instruction_of_a_far_slot_can_be_unwound() {
    let turn = turn();
    let address = code_at(AWAY[0], AWAY[1], FAR);
    // SAFETY: this very function was written there, and is never freed.
    let target = unsafe { std::mem::transmute::<usize, Target>(address as usize) };
    // The relay if there is one, the displaced instructions, and the jump back.
    every_step(&turn, &FAR_AWAY, target, 5, false);
}

detour! {
    static PANICKING: Target = unwind_call => passes_on;
}

/// Something to be dropped while a panic passes.
struct Dropped;
static DROPPED: AtomicUsize = AtomicUsize::new(0);

impl Drop for Dropped {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

extern "C-unwind" fn passes_on(first: usize, second: usize) -> usize {
    let _dropped = Dropped;
    if black_box(first) == 77 {
        resume_unwind(Box::new(second));
    }
    PANICKING.original()(first, second)
}

#[test]
fn panics_pass_through() {
    let turn = turn();
    // SAFETY: both have one signature.
    unsafe { PANICKING.attach_with(&turn.alone, unwind_call) }.unwrap();
    let call = |first, second| {
        let caught = catch_unwind(|| unwind_call(first, second));
        caught.map_err(|payload| *payload.downcast::<usize>().unwrap())
    };
    assert_eq!(call(1, 2), Ok(3));
    assert_eq!(call(77, 8), Err(8), "thrown in the detour");
    CALLEE.store(PANICS, Ordering::Relaxed);
    assert_eq!(call(5, 6), Err(5), "thrown by what the original calls");
    CALLEE.store(ADDS, Ordering::Relaxed);
    assert_eq!(DROPPED.load(Ordering::Relaxed), 3);
    PANICKING.detach_with(&turn.alone).unwrap();
    assert_eq!(call(77, 8), Ok(85));
}

detour! {
    static LOOKED_AT: Target = unwind_call => through_looked_at;
}

through! { through_looked_at LOOKED_AT }

#[test]
fn the_callee_of_a_displaced_call_finds_its_callers() {
    let turn = turn();
    // SAFETY: both have one signature.
    unsafe { LOOKED_AT.attach_with(&turn.alone, unwind_call) }.unwrap();
    CALLEE.store(LOOKS, Ordering::Relaxed);
    FOUND.store(0, Ordering::Relaxed);
    let result = unwind_step(unwind_call, 30, 4, &mut Step::default());
    CALLEE.store(ADDS, Ordering::Relaxed);
    assert_eq!((result, FOUND.load(Ordering::Relaxed)), (1034, 1));
    LOOKED_AT.detach_with(&turn.alone).unwrap();
}
