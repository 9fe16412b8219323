//! A thread that a tracer has stopped at any instruction of a call, while another one attaches, detaches, reclaims.
//!
//! The scenario's process is the tracer; the detours are in a child of it.
//!
//! ```text
//!   child, first thread     attach | detach | reclaim, when it is told to
//!   child, second thread    calls the target when it is told to, and stands where the tracer wants it
//!   tracer                  steps the second thread to its k-th instruction, has the first one do something,
//!                           lets the second one go: its answer is the one that the state at its entry gives
//! ```

use crate::support::ptrace::Stopped;
use crate::support::runner::{Clock, fail, tell};
use crate::support::sites::{self, Mode, Site};
use crate::support::system::{self, fork, shared, text, wait_for};
use crate::support::targets::{LONGEST, PLACES, PROLOGUES, Target, target};
use kdetour::{Error, typed};
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// What tracer and child tell each other.
struct Table {
    /// What the child's first thread is to do, and how often it has done something.
    order: AtomicU32,
    done: AtomicU32,
    /// 0 if it could; 1 if it was refused by a name that is expected of a thread that stands in the way; 2 busy.
    outcome: AtomicU32,
    /// The child's second thread, how often it is to call, and how often it has called.
    caller: AtomicI32,
    calls_wanted: AtomicU32,
    calls: AtomicU32,
    answer: AtomicU64,
    /// In the handler of a signal that interrupted the second thread; to leave it.
    in_handler: AtomicU32,
    leave: AtomicU32,
    calls_in_handler: AtomicU64,
}

const ATTACH: u32 = 1;
const DETACH: u32 = 2;
const RECLAIM: u32 = 3;
const END: u32 = 4;

const DONE: u32 = 0;
const IN_THE_WAY: u32 = 1;
const BUSY: u32 = 2;

const FIRST: u64 = 0x1234_5678;
const SECOND: u64 = 0x9abc;

/// No call has more instructions, through detour, relay and trampoline.
const MOST_STEPS: usize = 20_000;

const MODES: [Mode; 7] = [
    sites::EXCHANGE,
    sites::EXCHANGE_KEPT,
    sites::EXCHANGE_TRAPPED,
    sites::LIVE,
    sites::LIVE_TRAPPED,
    sites::LIVE_JUMP,
    sites::RENDEZVOUS,
];

/// What happens while the thread is stopped.
#[derive(Clone, Copy, Debug)]
struct Plot {
    attached_before: bool,
    orders: &'static [u32],
}

const PLOTS: [Plot; 5] = [
    Plot { attached_before: false, orders: &[ATTACH] },
    Plot { attached_before: true, orders: &[DETACH] },
    Plot { attached_before: false, orders: &[ATTACH, DETACH, RECLAIM] },
    Plot { attached_before: true, orders: &[DETACH, RECLAIM, ATTACH] },
    Plot { attached_before: true, orders: &[DETACH, ATTACH] },
];

/// At every instruction of a call.
pub(crate) fn everywhere(clock: &Clock) -> String {
    run(clock, false)
}

/// The same, with the handler of a signal between: it calls the target, too.
pub(crate) fn nested(clock: &Clock) -> String {
    run(clock, true)
}

#[derive(Default)]
struct Totals {
    stops: u64,
    boundaries: u64,
    busy: u64,
    in_the_way: u64,
    not_possible: u64,
    calls_in_handlers: u64,
}

fn run(clock: &Clock, nested: bool) -> String {
    let mut totals = Totals::default();
    let mut number = 0;
    // Each mode with each beginning, at changing places and with all plots.
    while !clock.is_over() || number < MODES.len() {
        let mode = MODES[number % MODES.len()];
        let prologue = number / 3 % PROLOGUES.len();
        let place = number * 4 % PLACES.len();
        if let Some(mut child) = Child::start(mode, prologue, place) {
            for plot in 0..PLOTS.len() {
                if clock.is_over() && plot > 1 {
                    break;
                }
                child.walk(PLOTS[(number + plot) % PLOTS.len()], nested, clock, &mut totals);
            }
            child.end();
        } else {
            totals.not_possible += 1;
        }
        number += 1;
    }
    assert!(totals.boundaries > 0, "no thread ever stood on an interior boundary");
    format!(
        "{} stops, {} on boundaries, {} times busy, {} times in the way, {} calls in handlers, {} modes not possible",
        totals.stops,
        totals.boundaries,
        totals.busy,
        totals.in_the_way,
        totals.calls_in_handlers,
        totals.not_possible
    )
}

/// Where the thread stands.
#[derive(Clone, Copy)]
struct Place {
    step: usize,
    at: u64,
    /// Whether it is not inside of anything that a reclaim frees.
    outside: bool,
}

struct Child {
    table: &'static Table,
    process: i32,
    what: String,
    target: u64,
    original: Vec<u8>,
    mode: Mode,
    attached: bool,
}

impl Child {
    /// None if the mode is not possible with the target.
    fn start(mode: Mode, prologue: usize, place: usize) -> Option<Self> {
        let what = format!("{}, {}, {}", mode.name, PROLOGUES[prologue], PLACES[place]);
        tell(&what);
        let table: &'static Table = shared();
        let call = target(prologue, place);
        let address = call as *const () as u64;
        let original = text(address, LONGEST);
        let process = fork(|| live(table, call, mode)).expect("a process");
        let mut child = Self { table, process, what, target: address, original, mode, attached: false };
        wait_for("the child's threads", || table.caller.load(SeqCst) != 0 || child.has_died());
        match child.order(ATTACH) {
            DONE => {
                child.order(DETACH);
                child.order(RECLAIM);
                Some(child)
            }
            _ => {
                child.end();
                None
            }
        }
    }

    fn fail(&self, why: &str) -> ! {
        // SAFETY: a child of this process.
        unsafe { libc::kill(self.process, libc::SIGKILL) };
        fail(&format!("{}: {why}", self.what));
    }

    fn end(&mut self) {
        self.table.order.store(END, SeqCst);
        self.table.calls_wanted.store(u32::MAX, SeqCst);
        let ended = system::wait_traced(self.process);
        if ended != 0 {
            self.fail(&format!("the child ended with {ended}"));
        }
    }

    /// Has the child's first thread do something.
    fn order(&mut self, order: u32) -> u32 {
        let before = self.table.done.load(SeqCst);
        self.table.order.store(order, SeqCst);
        wait_for(&format!("the child to do {order} ({})", self.what), || {
            self.table.done.load(SeqCst) != before || self.has_died()
        });
        let outcome = self.table.outcome.load(SeqCst);
        if outcome == DONE {
            match order {
                ATTACH => self.attached = true,
                DETACH => self.attached = false,
                _ => {}
            }
        }
        outcome
    }

    fn set(&mut self, attached: bool) {
        while self.attached != attached {
            self.order(if attached { ATTACH } else { DETACH });
        }
    }

    /// Stops the caller at each instruction of a call, one after the other, and lets the plot happen there.
    fn walk(&mut self, plot: Plot, nested: bool, clock: &Clock, totals: &mut Totals) {
        // A rendezvous waits for the one that is stopped, as long as it may: once is enough.
        let waits = self.mode.protocol == kdetour::Protocol::Rendezvous && !nested;
        if waits && (plot.attached_before || plot.orders.len() > 1) {
            return;
        }
        let mut step = usize::from(waits);
        while self.stop_at(step, plot, nested, totals) && !waits {
            // Every one at the beginning, where the windows are; fewer in what follows, which may be long.
            step += if clock.is_over() { 1 + step / 4 } else { 1 + step / 24 };
        }
    }

    /// False if the call is over before.
    fn stop_at(&mut self, step: usize, plot: Plot, nested: bool, totals: &mut Totals) -> bool {
        self.set(plot.attached_before);
        let thread = self.table.caller.load(SeqCst);
        let calls = self.table.calls.load(SeqCst);
        let mut stopped = Stopped::seize(thread);
        self.table.calls_wanted.store(calls + 1, SeqCst);
        if !stopped.step_to(MOST_STEPS, |ip| ip == self.target) {
            self.fail(&format!("the caller does not come to the target: it is at {:#x}", stopped.ip()));
        }
        let entered = stopped.sp();
        for _ in 0..step {
            stopped.step();
        }
        if self.table.calls.load(SeqCst) != calls {
            stopped.release();
            return false;
        }
        let at = stopped.ip();
        // In the target there is nothing of ours, and nor is there where the call has returned to.
        let in_target = (self.target..self.target + LONGEST as u64).contains(&at);
        let outside = in_target || stopped.sp() > entered;
        let place = Place { step, at, outside };
        totals.stops += 1;
        totals.boundaries += u64::from((self.target + 1..self.target + 5).contains(&at));
        if nested {
            self.table.leave.store(0, SeqCst);
            stopped.release_with(libc::SIGUSR1);
            wait_for("the handler", || self.table.in_handler.load(SeqCst) == 1);
            self.play(plot, place, totals);
            let before = self.table.calls_in_handler.load(SeqCst);
            wait_for("calls in the handler", || self.table.calls_in_handler.load(SeqCst) > before + 1);
            self.table.leave.store(1, SeqCst);
            totals.calls_in_handlers = self.table.calls_in_handler.load(SeqCst);
        } else {
            self.play(plot, place, totals);
            stopped.release();
        }
        wait_for(&format!("the call to return ({}, step {step}, {at:#x}, {plot:?})", self.what), || {
            self.table.calls.load(SeqCst) == calls + 1 || self.has_died()
        });
        let answer = self.table.answer.load(SeqCst);
        // Behind a landing pad, which stays, the window begins.
        let window = self.target + if self.original.starts_with(&[0xf3, 0x0f, 0x1e]) { 4 } else { 0 };
        let right = if (self.target..=window).contains(&at) {
            // It has not entered yet.
            sites::either(FIRST, SECOND, answer)
        } else if plot.attached_before {
            sites::is_detoured(FIRST, SECOND, answer)
        } else {
            sites::is_original(FIRST, SECOND, answer)
        };
        if !right {
            self.fail(&format!("{answer:#x} after a stop at step {step}, {at:#x}, {plot:?}"));
        }
        // Whoever calls now gets what the state says.
        if !self.attached {
            self.order(RECLAIM);
        }
        true
    }

    fn has_died(&self) -> bool {
        let task = format!("/proc/{}", self.process);
        if matches!(system::state_at(task.as_ref()), None | Some('Z' | 'X')) {
            self.fail(&format!("the child died: {}", system::wait_traced(self.process)));
        }
        false
    }

    fn play(&mut self, plot: Plot, place: Place, totals: &mut Totals) {
        let Place { step, at, outside } = place;
        for &order in plot.orders {
            // If what should come before was refused.
            if self.attached != (order == DETACH) {
                continue;
            }
            match self.order(order) {
                DONE => {
                    if order == RECLAIM && plot.attached_before && !outside {
                        self.fail(&format!("freed with a thread inside, at step {step}, {at:#x}, {plot:?}"));
                    }
                }
                BUSY => totals.busy += 1,
                // This one is in nobody's way, wherever it stands.
                _ if self.mode.shape != Some(kdetour::plan::Shape::Jump5Trapped)
                    && !self.may_be_in_the_way() =>
                {
                    self.fail(&format!("order {order} refused at step {step}, {at:#x}"))
                }
                _ => totals.in_the_way += 1,
            }
        }
        let found = memory_of(self.process, self.target);
        if !self.attached && found != self.original {
            self.fail(&format!("text is {found:02x?}"));
        }
    }

    fn may_be_in_the_way(&self) -> bool {
        self.mode.protocol != kdetour::Protocol::Exchange
    }
}

fn memory_of(process: i32, address: u64) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; LONGEST];
    let file = std::fs::File::open(format!("/proc/{process}/mem")).expect("the child's memory");
    file.read_exact_at(&mut bytes, address).expect("the child's text");
    bytes
}

/// For the handler.
static TABLE: AtomicU64 = AtomicU64::new(0);
static CALLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn in_between(_: i32) {
    let table = std::ptr::with_exposed_provenance::<Table>(TABLE.load(SeqCst) as usize);
    // SAFETY: the shared table, set before the handler was.
    let table = unsafe { &*table };
    let call = crate::support::targets::function(CALLED.load(SeqCst));
    table.in_handler.store(1, SeqCst);
    while table.leave.load(SeqCst) == 0 {
        let answer = black_box(call)(FIRST, SECOND);
        if !sites::either(FIRST, SECOND, answer) {
            // SAFETY: ends the process.
            unsafe { libc::_exit(77) };
        }
        table.calls_in_handler.fetch_add(1, SeqCst);
        thread::yield_now();
    }
    table.in_handler.store(0, SeqCst);
}

/// The child.
fn live(table: &'static Table, call: Target, mode: Mode) -> i32 {
    TABLE.store(std::ptr::from_ref(table).expose_provenance() as u64, SeqCst);
    CALLED.store(call as *const () as u64, SeqCst);
    system::handle(libc::SIGUSR1, in_between, libc::SA_ONSTACK, false);
    let caller = thread::spawn(move || {
        system::alternate_stack(mode.name.len().is_multiple_of(2));
        table.caller.store(system::thread_number(), SeqCst);
        loop {
            let calls = table.calls.load(SeqCst);
            while table.calls_wanted.load(SeqCst) == calls {
                spin_loop();
            }
            if table.order.load(SeqCst) == END {
                return;
            }
            let answer = black_box(call)(FIRST, SECOND);
            table.answer.store(answer, SeqCst);
            table.calls.store(calls + 1, SeqCst);
        }
    });
    let mut site = Site::adding::<0>(call).with(&mode);
    loop {
        let order = table.order.swap(0, SeqCst);
        let outcome = match order {
            0 => {
                thread::sleep(Duration::from_micros(20));
                continue;
            }
            ATTACH => site.attach(mode.protocol),
            DETACH => site.detach(mode.protocol),
            RECLAIM => typed::reclaim(Duration::from_millis(3)).map(drop),
            _ => break,
        };
        let outcome = match (order, outcome) {
            (_, Ok(())) => DONE,
            (RECLAIM, Err(Error::Busy { .. } | Error::ThreadNotReached { .. })) => BUSY,
            (
                ATTACH | DETACH,
                Err(
                    Error::ThreadInWindow { .. }
                    | Error::ThreadNotReached { .. }
                    // It is stopped in kdetour's own handler.
                    | Error::TrapBlocked { .. }
                    | Error::Refused(_)
                    | Error::NoSlot { .. },
                ),
            ) => IN_THE_WAY,
            (order, Err(error)) => fail(&format!("{}: order {order}: {error:?}", mode.name)),
        };
        table.outcome.store(outcome, SeqCst);
        table.done.fetch_add(1, SeqCst);
    }
    table.order.store(END, SeqCst);
    if caller.join().is_err() {
        return 1;
    }
    if site.handle.is_some() {
        let _ = site.detach(mode.protocol);
    }
    match typed::reclaim(Duration::from_secs(5)) {
        Ok(_) => 0,
        Err(error) => fail(&format!("{}: reclaim at the end: {error:?}", mode.name)),
    }
}
