//! A thread that is suspended at any instruction of a call, while another one attaches, detaches, reclaims.
//!
//! ```text
//!   caller       calls the target when it is told to, and traps behind each instruction: the handler counts them, and at the k-th has it
//!                go on in a loop that touches nothing
//!   controller   suspends it in that loop and gives it back the registers of the k-th instruction; attaches, detaches, reclaims;
//!                lets it go: its answer is the one that the state at its entry gives
//! ```

use super::registers;
use crate::support::callers::wrong;
use crate::support::runner::{Clock, fail, tell};
use crate::support::sites::{self, Mode, Site};
use crate::support::system::{Thread, text, thread_number, wait_for};
use crate::support::targets::{LONGEST, PLACES, PROLOGUES, Target, function, target};
use kdetour::plan::Shape;
use kdetour::{Error, Protocol, typed};
use std::cell::UnsafeCell;
use std::hint::black_box;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use windows_sys::Win32::System::Diagnostics::Debug::{
    AddVectoredExceptionHandler, CONTEXT, EXCEPTION_POINTERS, GetThreadContext, SetThreadContext,
};

const FIRST: u64 = 0x1234_5678;
const SECOND: u64 = 0x9abc;

/// `EXCEPTION_SINGLE_STEP` (ntstatus.h), and the flag of the processor.
const SINGLE_STEP: i32 = 0x8000_0004_u32.cast_signed();
const TRAP_FLAG: u32 = 0x100;

const MODES: [Mode; 7] = [
    sites::EXCHANGE,
    sites::EXCHANGE_KEPT,
    sites::EXCHANGE_TRAPPED,
    sites::LIVE,
    sites::LIVE_TRAPPED,
    sites::RENDEZVOUS_JUMP,
    sites::LIVE_JUMP,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Attach,
    Detach,
    Reclaim,
}

/// What happens while the thread is suspended.
#[derive(Clone, Copy, Debug)]
struct Plot {
    attached_before: bool,
    orders: &'static [Order],
}

const PLOTS: [Plot; 5] = [
    Plot { attached_before: false, orders: &[Order::Attach] },
    Plot { attached_before: true, orders: &[Order::Detach] },
    Plot { attached_before: false, orders: &[Order::Attach, Order::Detach, Order::Reclaim] },
    Plot { attached_before: true, orders: &[Order::Detach, Order::Reclaim, Order::Attach] },
    Plot { attached_before: true, orders: &[Order::Detach, Order::Attach] },
];

unsafe extern "C" {
    /// A loop of four bytes that touches nothing.
    fn stress_parked();
    /// Calls `call` with the other arguments, and traps behind each instruction from its entry on.
    fn stress_stepping(first: u64, second: u64, call: Target) -> u64;
}

/// What the handler and the controller tell each other.
struct Table {
    caller: AtomicI32,
    target: AtomicU64,
    /// The number of the instruction that it is to stand at, and of the one that it has come to.
    wanted: AtomicUsize,
    step: AtomicUsize,
    entered: AtomicBool,
    /// Its stack pointer at the entry.
    stack: AtomicU64,
    parked: AtomicBool,
    /// Calls that it is to make, and has made.
    calls_wanted: AtomicU64,
    calls: AtomicU64,
    answer: AtomicU64,
    ending: AtomicBool,
}

static TABLE: Table = Table {
    caller: AtomicI32::new(0),
    target: AtomicU64::new(0),
    wanted: AtomicUsize::new(0),
    step: AtomicUsize::new(0),
    entered: AtomicBool::new(false),
    stack: AtomicU64::new(0),
    parked: AtomicBool::new(false),
    calls_wanted: AtomicU64::new(0),
    calls: AtomicU64::new(0),
    answer: AtomicU64::new(0),
    ending: AtomicBool::new(false),
};

#[repr(C, align(16))]
struct Registers(CONTEXT);

/// The registers at the instruction where the thread is to stand.
struct Kept(UnsafeCell<mem::MaybeUninit<Registers>>);

// SAFETY: written by the handler before `parked` is set, read by the controller behind that.
unsafe impl Sync for Kept {}

static KEPT: Kept = Kept(UnsafeCell::new(mem::MaybeUninit::uninit()));

/// The traps of the caller.
unsafe extern "system" fn step(pointers: *mut EXCEPTION_POINTERS) -> i32 {
    // SAFETY: the system's, for as long as this runs.
    let (record, context) = unsafe { (&*(*pointers).ExceptionRecord, &mut *(*pointers).ContextRecord) };
    if record.ExceptionCode != SINGLE_STEP || thread_number() != TABLE.caller.load(SeqCst) {
        return 0;
    }
    let (at, stack) = (registers::ip(context), registers::sp(context));
    if !TABLE.entered.load(SeqCst) && at == TABLE.target.load(SeqCst) {
        TABLE.entered.store(true, SeqCst);
        TABLE.stack.store(stack, SeqCst);
        TABLE.step.store(0, SeqCst);
    } else if TABLE.entered.load(SeqCst) {
        TABLE.step.fetch_add(1, SeqCst);
    }
    if TABLE.entered.load(SeqCst) && stack > TABLE.stack.load(SeqCst) {
        // The call is over.
        context.EFlags &= !TRAP_FLAG;
    } else if TABLE.entered.load(SeqCst) && TABLE.step.load(SeqCst) == TABLE.wanted.load(SeqCst) {
        context.EFlags &= !TRAP_FLAG;
        // SAFETY: nobody reads it before `parked` is set.
        unsafe { (*KEPT.0.get()).write(Registers(*context)) };
        registers::set_ip(context, (stress_parked as *const ()).addr());
        TABLE.parked.store(true, SeqCst);
    } else {
        context.EFlags |= TRAP_FLAG;
    }
    -1
}

#[derive(Default)]
struct Totals {
    stops: u64,
    boundaries: u64,
    moved: u64,
    busy: u64,
    in_the_way: u64,
    not_possible: u64,
}

pub(crate) fn everywhere(clock: &Clock) -> String {
    // SAFETY: it may run in any thread: it reads and writes atomics.
    assert!(!unsafe { AddVectoredExceptionHandler(0, Some(step)) }.is_null());
    let mut totals = Totals::default();
    thread::scope(|scope| {
        scope.spawn(caller);
        wait_for("the caller", || TABLE.caller.load(SeqCst) != 0);
        let thread = Thread::of(TABLE.caller.load(SeqCst));
        let mut number = 0;
        // Each mode with each beginning, at changing places and with all plots.
        while !clock.is_over() || number < MODES.len() {
            let mode = MODES[number % MODES.len()];
            let (prologue, place) = (number / 3 % PROLOGUES.len(), number * 4 % PLACES.len());
            match Child::start(&thread, mode, prologue, place) {
                Some(mut child) => {
                    for plot in 0..PLOTS.len() {
                        if clock.is_over() && plot > 1 {
                            break;
                        }
                        child.walk(PLOTS[(number + plot) % PLOTS.len()], clock, &mut totals);
                    }
                    child.end();
                }
                None => totals.not_possible += 1,
            }
            number += 1;
        }
        TABLE.ending.store(true, SeqCst);
    });
    assert!(totals.boundaries > 0, "no thread ever stood on an interior boundary");
    let Totals { stops, boundaries, moved, busy, in_the_way, not_possible } = totals;
    format!(
        "{stops} stops, {boundaries} on boundaries, {moved} moved on, {busy} times busy, {in_the_way} times in the way, \
         {not_possible} modes not possible"
    )
}

/// Calls when it is told to.
fn caller() {
    TABLE.caller.store(thread_number(), SeqCst);
    while !TABLE.ending.load(SeqCst) {
        let calls = TABLE.calls.load(SeqCst);
        if TABLE.calls_wanted.load(SeqCst) == calls {
            thread::yield_now();
            continue;
        }
        let call = function(TABLE.target.load(SeqCst));
        // SAFETY: a function of this type.
        let answer = black_box(unsafe { stress_stepping(FIRST, SECOND, call) });
        TABLE.answer.store(answer, SeqCst);
        TABLE.calls.store(calls + 1, SeqCst);
    }
}

struct Child<'a> {
    thread: &'a Thread,
    what: String,
    target: u64,
    original: Vec<u8>,
    mode: Mode,
    site: Site,
    attached: bool,
}

/// What came of an order.
enum Outcome {
    Done,
    Busy,
    InTheWay,
}

impl<'a> Child<'a> {
    /// None if the mode is not possible with the target.
    fn start(thread: &'a Thread, mode: Mode, prologue: usize, place: usize) -> Option<Self> {
        let what = format!("{}, {}, {}", mode.name, PROLOGUES[prologue], PLACES[place]);
        tell(&what);
        let call = target(prologue, place);
        let target = call as *const () as u64;
        let site = Site::adding::<0>(call).with(&mode);
        let original = text(target, LONGEST);
        let mut child = Self { thread, what, target, original, mode, site, attached: false };
        TABLE.target.store(target, SeqCst);
        match child.site.attach(mode.protocol) {
            Ok(()) => {
                child.attached = true;
                child.end();
                Some(child)
            }
            Err(Error::Refused(_) | Error::NoSlot { .. }) => None,
            Err(error) => child.fail(&format!("{error:?}")),
        }
    }

    fn fail(&self, why: &str) -> ! {
        fail(&format!("{}: {why}", self.what))
    }

    fn end(&mut self) {
        self.set(false);
        typed::reclaim(Duration::from_secs(10)).expect("nobody is inside any more");
    }

    fn order(&mut self, order: Order) -> Outcome {
        let outcome = match order {
            Order::Attach => self.site.attach(self.mode.protocol),
            Order::Detach => self.site.detach(self.mode.protocol),
            Order::Reclaim => typed::reclaim(Duration::from_millis(3)).map(drop),
        };
        match (order, outcome) {
            (_, Ok(())) => {
                self.attached = if order == Order::Reclaim { self.attached } else { order == Order::Attach };
                Outcome::Done
            }
            (Order::Reclaim, Err(Error::Busy { .. } | Error::ThreadNotReached { .. })) => Outcome::Busy,
            (
                Order::Attach | Order::Detach,
                Err(Error::ThreadInWindow { .. } | Error::ThreadNotReached { .. }),
            ) => Outcome::InTheWay,
            (order, Err(error)) => self.fail(&format!("{order:?}: {error:?}")),
        }
    }

    fn set(&mut self, attached: bool) {
        while self.attached != attached {
            self.order(if attached { Order::Attach } else { Order::Detach });
        }
    }

    /// Has the caller stand at each instruction of a call, one after the other, and lets the plot happen there.
    fn walk(&mut self, plot: Plot, clock: &Clock, totals: &mut Totals) {
        let mut step = 0;
        while self.stop_at(step, plot, totals) {
            // Every one at the beginning, where the windows are; fewer in what follows, which may be long.
            step += if clock.is_over() { 1 + step / 4 } else { 1 + step / 24 };
        }
    }

    /// The registers of the caller, which is suspended.
    fn registers(&self) -> Registers {
        // SAFETY: numbers.
        let mut found: Registers = unsafe { mem::zeroed() };
        found.0.ContextFlags = registers::WHICH;
        // SAFETY: a thread of ours, and an aligned structure.
        assert_ne!(unsafe { GetThreadContext(self.thread.handle(), &raw mut found.0) }, 0);
        found
    }

    /// Suspends the caller in its loop, and puts it where it is to stand.
    fn put_there(&self) -> Registers {
        let parked = (stress_parked as *const ()).addr() as u64;
        loop {
            assert!(self.thread.suspend(), "the caller is there");
            if (parked..parked + 4).contains(&registers::ip(&self.registers().0)) {
                break;
            }
            self.thread.resume();
            thread::yield_now();
        }
        // SAFETY: written before `parked` was set.
        let mut kept = Registers(unsafe { (*KEPT.0.get()).assume_init_ref() }.0);
        kept.0.ContextFlags = registers::WHICH;
        // SAFETY: it goes on where it was.
        assert_ne!(unsafe { SetThreadContext(self.thread.handle(), &raw const kept.0) }, 0);
        kept
    }

    /// False if the call is over before.
    fn stop_at(&mut self, step: usize, plot: Plot, totals: &mut Totals) -> bool {
        self.set(plot.attached_before);
        let calls = TABLE.calls.load(SeqCst);
        TABLE.wanted.store(step, SeqCst);
        TABLE.entered.store(false, SeqCst);
        TABLE.parked.store(false, SeqCst);
        TABLE.calls_wanted.store(calls + 1, SeqCst);
        let is_over = || TABLE.calls.load(SeqCst) > calls;
        wait_for(&format!("the caller to come to step {step} ({})", self.what), || {
            TABLE.parked.load(SeqCst) || is_over()
        });
        if is_over() {
            assert!(TABLE.entered.load(SeqCst), "the caller did not come to the target");
            return false;
        }
        let there = self.put_there();
        let (at, sp) = (registers::ip(&there.0), registers::sp(&there.0));
        let is_in_target = (self.target..self.target + LONGEST as u64).contains(&at);
        // In the target there is nothing of ours, and nor is there where the call has returned to.
        let outside = is_in_target || sp > TABLE.stack.load(SeqCst);
        totals.stops += 1;
        totals.boundaries += u64::from((self.target + 1..self.target + 5).contains(&at));
        self.play(plot, step, at, outside, totals);
        totals.moved += u64::from(registers::ip(&self.registers().0) != at);
        self.thread.resume();
        wait_for(&format!("the call to return ({}, step {step}, {at:#x}, {plot:?})", self.what), is_over);
        let answer = TABLE.answer.load(SeqCst);
        // Behind a landing pad, which stays, the window begins.
        let window = self.target + if self.original.starts_with(&[0xf3, 0x0f, 0x1e]) { 4 } else { 0 };
        let is_right = if (self.target..=window).contains(&at) {
            // It has not entered yet.
            sites::either(FIRST, SECOND, answer)
        } else if plot.attached_before {
            sites::is_detoured(FIRST, SECOND, answer)
        } else {
            sites::is_original(FIRST, SECOND, answer)
        };
        if !is_right {
            tell(&format!("{}: a stop at step {step}, {at:#x}, {plot:?}", self.what));
            wrong(function(self.target), FIRST, SECOND, answer);
        }
        // Whoever calls now gets what the state says.
        if !self.attached {
            self.order(Order::Reclaim);
        }
        true
    }

    fn play(&mut self, plot: Plot, step: usize, at: u64, outside: bool, totals: &mut Totals) {
        for &order in plot.orders {
            // If what should come before was refused.
            if self.attached != (order == Order::Detach) {
                continue;
            }
            match self.order(order) {
                Outcome::Done if order == Order::Reclaim && plot.attached_before && !outside => {
                    self.fail(&format!("freed with a thread inside, at step {step}, {at:#x}, {plot:?}"))
                }
                Outcome::Done => {}
                Outcome::Busy => totals.busy += 1,
                // A free jump over several instructions alone has to have it gone, and a rendezvous.
                Outcome::InTheWay
                    if self.mode.shape == Some(Shape::Jump5)
                        || self.mode.protocol == Protocol::Rendezvous =>
                {
                    totals.in_the_way += 1;
                }
                Outcome::InTheWay => self.fail(&format!("{order:?} refused at step {step}, {at:#x}")),
            }
        }
        let found = text(self.target, LONGEST);
        if !self.attached && found != self.original {
            self.fail(&format!("text is {found:02x?}"));
        }
    }
}
