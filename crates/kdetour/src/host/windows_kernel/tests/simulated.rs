//! A simulated NT: processors are threads, and every rule that is broken is written down.
//!
//! Each processor is a thread that runs a piece of code again and again, and between two runs takes the interrupts and deferred procedure
//! calls that were sent to it. Whoever calls the host is a thread that takes a processor's place while it is pinned there or has raised its
//! level. Text is a file in memory, mapped readable and executable; an MDL maps its pages once more.
//!
//! | rule | how it is checked |
//! |---|---|
//! | a call's IRQL | at every call |
//! | no memory is taken or given at a raised level | by the allocator of the tests |
//! | text is written through a mapping of an MDL only | the other one has no right to be written: the processor faults |
//! | only pages are locked that are there, and stay | the kind of each page is known |
//! | nobody goes on before everything is written | each processor that was parked remembers the text as it found it when it went on |
//! | what was raised, masked, mapped, pinned is taken back | at the end |

use super::memory::{Kind, Memory};
use crate::Error;
use crate::host::Span;
use crate::host::windows_kernel::nt::{
    APC_LEVEL, Alias, BroadcastRoutine, DISPATCH_LEVEL, DeferredRoutine, Dpc, HIGH_LEVEL, IPI_LEVEL, Module,
    Nt, PASSIVE_LEVEL, Processor, ThreadRoutine,
};
use alloc::vec::Vec;
use core::ffi::c_void;
use std::cell::Cell;
use std::collections::VecDeque;
use std::string::{String, ToString as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::thread_local;
use std::time::{Duration, Instant};

thread_local! {
    static IRQL: Cell<u8> = const { Cell::new(0) };
    static MASKED: Cell<bool> = const { Cell::new(false) };
    /// The processor on which a thread is, or whose place it would take.
    static ON: Cell<usize> = const { Cell::new(0) };
    /// How often the thread holds that processor.
    static HOLDS: Cell<usize> = const { Cell::new(0) };
    /// Whether the thread is in a call of the simulation itself, which may take memory.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static TAKEN_RAISED: Cell<usize> = const { Cell::new(0) };
    static WAS_PARKED: Cell<bool> = const { Cell::new(false) };
    /// Which piece of memory from now on is not there, counted from 1; 0 if all are.
    static MISSING: Cell<usize> = const { Cell::new(0) };
    /// Whether those behind it are not there either.
    static ONWARDS: Cell<bool> = const { Cell::new(false) };
    /// Whether it was asked for.
    static WAS_MISSING: Cell<bool> = const { Cell::new(false) };
}

/// Called by the allocator, and where NT takes memory itself: whether there is none for this thread now.
pub(super) fn is_missing() -> bool {
    if INSIDE.get() {
        return false;
    }
    let left = MISSING.get();
    if left > 1 || left == 1 && !ONWARDS.get() {
        MISSING.set(left - 1);
    }
    WAS_MISSING.set(WAS_MISSING.get() || left == 1);
    left == 1
}

/// What comes of some work if the `place`-th piece of memory that it asks for is not there, nor any behind it if that is `onwards`; and
/// whether it has asked for so many.
pub(super) fn lacking<T>(place: usize, onwards: bool, work: impl FnOnce() -> T) -> (T, bool) {
    MISSING.set(place);
    ONWARDS.set(onwards);
    let outcome = work();
    MISSING.set(0);
    (outcome, WAS_MISSING.replace(false))
}

/// Called by the allocator, for whatever is taken or given back.
pub(super) fn note_memory() {
    if IRQL.get() >= DISPATCH_LEVEL && !INSIDE.get() {
        TAKEN_RAISED.set(TAKEN_RAISED.get() + 1);
    }
}

/// While it lives memory may be taken: it is the simulation's.
struct Inside(bool);

impl Inside {
    fn new() -> Self {
        Self(INSIDE.replace(true))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(self.0);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A deferred procedure call that waits.
struct Queued {
    dpc: usize,
    routine: DeferredRoutine,
    context: usize,
}

/// One processor.
struct Cpu {
    name: Processor,
    /// Held by whoever runs on it.
    taken: AtomicBool,
    dpcs: Mutex<VecDeque<Queued>>,
    /// The interrupt that it has not taken yet.
    interrupt: AtomicBool,
    parked: AtomicUsize,
    visits: AtomicUsize,
}

/// An interrupt that is sent to all.
#[derive(Clone, Copy)]
struct Interrupt {
    routine: BroadcastRoutine,
    context: usize,
}

/// What goes wrong, or is set up otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Setting {
    /// This processor takes no deferred procedure calls.
    pub(super) stuck: Option<usize>,
    /// No deferred procedure call is put into this one's queue.
    pub(super) unqueued: Option<usize>,
    /// This one has taken a deferred procedure call from its queue, and begins with it so late.
    pub(super) slow: Option<(usize, Duration)>,
    /// This one does not run what an interrupt is sent for.
    pub(super) deaf: Option<usize>,
    /// Threads of higher priority leave none of this processor's time to others.
    pub(super) starved: Option<usize>,
    /// One more processor is there as soon as the level is raised.
    pub(super) one_more: bool,
    pub(super) debugged: bool,
    pub(super) guards: bool,
    pub(super) integrity: bool,
    pub(super) shadow_stacks: bool,
    pub(super) no_broadcast: bool,
    pub(super) no_mapping: bool,
}

pub(super) struct Machine {
    pub(super) memory: Memory,
    cpus: Vec<Cpu>,
    setting: Mutex<Setting>,
    modules: Mutex<Vec<Module>>,
    broken: Mutex<Vec<String>>,
    interrupt: Mutex<Option<Interrupt>>,
    arrived: AtomicUsize,
    done: AtomicUsize,
    /// The text as each processor found it that went on after it was parked.
    went_on: Mutex<Vec<(usize, u64)>>,
    mapped: AtomicUsize,
    pinned: AtomicUsize,
    start: Instant,
    stop: AtomicBool,
}

/// The simulated NT, as the host has it.
#[derive(Clone)]
pub(super) struct Simulated(pub(super) Arc<Machine>);

/// The processors' threads. When it goes, no rule must have been broken that nobody has asked about.
pub(super) struct Running {
    pub(super) nt: Simulated,
    threads: Vec<JoinHandle<()>>,
}

/// What a processor runs over and over.
pub(super) type Body = Arc<dyn Fn(usize) + Send + Sync>;

impl Running {
    /// So many processors in each group, all of which run the body.
    pub(super) fn start(memory: Memory, modules: Vec<Module>, groups: &[u8], body: &Body) -> Self {
        let names = (0_u16..)
            .zip(groups)
            .flat_map(|(group, &count)| (0..count).map(move |number| Processor { group, number }));
        let cpus = names.map(|name| Cpu {
            name,
            taken: AtomicBool::new(false),
            dpcs: Mutex::new(VecDeque::new()),
            interrupt: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            visits: AtomicUsize::new(0),
        });
        let machine = Arc::new(Machine {
            memory,
            cpus: cpus.collect(),
            setting: Mutex::default(),
            modules: Mutex::new(modules),
            broken: Mutex::default(),
            interrupt: Mutex::new(None),
            arrived: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            went_on: Mutex::default(),
            mapped: AtomicUsize::new(0),
            pinned: AtomicUsize::new(0),
            start: Instant::now(),
            stop: AtomicBool::new(false),
        });
        let run = |index| {
            let (machine, body) = (Arc::clone(&machine), Arc::clone(body));
            thread::spawn(move || machine.run(index, &*body))
        };
        let threads = (0..machine.cpus.len()).map(run).collect();
        Self { nt: Simulated(machine), threads }
    }

    pub(super) fn set(&self, setting: Setting) {
        *lock(&self.nt.0.setting) = setting;
    }

    pub(super) fn set_modules(&self, change: impl FnOnce(&mut Vec<Module>)) {
        change(&mut lock(&self.nt.0.modules));
    }

    /// The rules that were broken since the last time.
    pub(super) fn broken(&self) -> Vec<String> {
        core::mem::take(&mut *lock(&self.nt.0.broken))
    }

    /// How often each processor was parked, and how often a thread was pinned to it.
    pub(super) fn parked(&self) -> Vec<usize> {
        self.nt.0.cpus.iter().map(|cpu| cpu.parked.load(Ordering::SeqCst)).collect()
    }

    pub(super) fn visits(&self) -> Vec<usize> {
        self.nt.0.cpus.iter().map(|cpu| cpu.visits.load(Ordering::SeqCst)).collect()
    }

    /// Deferred procedure calls that wait.
    pub(super) fn waiting(&self) -> usize {
        self.nt.0.cpus.iter().map(|cpu| lock(&cpu.dpcs).len()).sum()
    }

    fn end(&mut self) {
        self.nt.0.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.nt.0.break_rule("a processor has panicked");
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
        let machine = &self.nt.0;
        for (what, count) in [("mappings", &machine.mapped), ("pinned threads", &machine.pinned)] {
            let left = count.load(Ordering::SeqCst);
            if left != 0 {
                machine.break_rule(&std::format!("{left} {what} are left"));
            }
        }
        let broken = self.broken();
        if !thread::panicking() {
            assert!(broken.is_empty(), "rules were broken: {broken:?}");
        }
    }
}

impl Machine {
    fn break_rule(&self, what: &str) {
        let _inside = Inside::new();
        lock(&self.broken).push(what.to_string());
    }

    /// Checks what holds for every call.
    fn call(&self, name: &str, most: u8) {
        let irql = IRQL.get();
        if irql > most {
            let _inside = Inside::new();
            self.break_rule(&std::format!("{name} at IRQL {irql}, above {most}"));
        }
    }

    fn setting(&self) -> Setting {
        *lock(&self.setting)
    }

    /// One processor.
    fn run(&self, index: usize, body: &(dyn Fn(usize) + Send + Sync)) {
        ON.set(index);
        while !self.stop.load(Ordering::SeqCst) {
            self.hold();
            body(index);
            self.take_interrupt(index);
            self.take_dpcs(index);
            self.let_go();
            thread::yield_now();
        }
    }

    /// Takes the processor on which the thread is.
    fn hold(&self) {
        HOLDS.set(HOLDS.get() + 1);
        let Some(cpu) = self.cpus.get(ON.get()).filter(|_| HOLDS.get() == 1) else { return };
        while cpu.taken.compare_exchange(false, true, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            thread::yield_now();
        }
    }

    fn let_go(&self) {
        HOLDS.set(HOLDS.get().saturating_sub(1));
        if let Some(cpu) = self.cpus.get(ON.get()).filter(|_| HOLDS.get() == 0) {
            cpu.taken.store(false, Ordering::SeqCst);
        }
    }

    fn take_dpcs(&self, index: usize) {
        if self.setting().stuck == Some(index) {
            return;
        }
        let Some(cpu) = self.cpus.get(index) else { return };
        loop {
            let next = lock(&cpu.dpcs).pop_front();
            let Some(Queued { dpc, routine, context }) = next else { return };
            if let Some((_, late)) = self.setting().slow.filter(|&(slow, _)| slow == index) {
                thread::sleep(late);
            }
            self.at(DISPATCH_LEVEL, || {
                let null = core::ptr::null_mut();
                let context = core::ptr::with_exposed_provenance_mut::<c_void>(context);
                // SAFETY: it was queued with this context.
                unsafe { routine(core::ptr::with_exposed_provenance_mut(dpc), context, null, null) };
            });
        }
    }

    /// The next interrupt of all, if this processor has not taken it yet: all begin at once.
    fn take_interrupt(&self, index: usize) {
        let Some(cpu) = self.cpus.get(index) else { return };
        if !cpu.interrupt.swap(false, Ordering::SeqCst) {
            return;
        }
        let interrupt = *lock(&self.interrupt);
        let Some(Interrupt { routine, context }) = interrupt else { return };
        self.arrived.fetch_add(1, Ordering::SeqCst);
        while self.arrived.load(Ordering::SeqCst) < self.cpus.len() {
            thread::yield_now();
        }
        if self.setting().deaf != Some(index) {
            self.at(IPI_LEVEL, || {
                // SAFETY: it was sent with this context.
                unsafe { routine(context) };
            });
        }
        self.done.fetch_add(1, Ordering::SeqCst);
    }

    /// Runs a routine of the host's at a level, and looks at what it has left.
    fn at(&self, irql: u8, work: impl FnOnce()) {
        let before = IRQL.replace(irql);
        work();
        if IRQL.get() != irql || MASKED.get() {
            self.break_rule("a routine has left the level or the interrupts otherwise than it found them");
        }
        self.check_memory();
        IRQL.set(before);
    }

    /// A processor goes on that was parked: it remembers the text as it finds it.
    fn goes_on(&self) {
        let _inside = Inside::new();
        if let Some(cpu) = self.cpus.get(ON.get()) {
            cpu.parked.fetch_add(1, Ordering::SeqCst);
        }
        let found = self.memory.sum();
        lock(&self.went_on).push((ON.get(), found));
    }

    fn check_memory(&self) {
        let taken = TAKEN_RAISED.replace(0);
        if taken > 0 {
            let _inside = Inside::new();
            self.break_rule(&std::format!("memory was taken or given {taken} times at a raised level"));
        }
    }

    /// The meeting is over: the text is what everybody has found who went on.
    fn check_text(&self) {
        let _inside = Inside::new();
        let now = self.memory.sum();
        let others = core::mem::take(&mut *lock(&self.went_on));
        for (index, found) in others {
            if found != now {
                self.break_rule(&std::format!("processor {index} went on before the text was written"));
            }
        }
    }
}

// SAFETY: each call does what it says, to the simulated machine.
unsafe impl Nt for Simulated {
    type Pin = usize;

    fn irql(&self) -> u8 {
        IRQL.get()
    }

    unsafe fn raise(&self, to: u8) -> u8 {
        let before = IRQL.get();
        if to < before {
            self.0.break_rule("the level was raised to a lower one");
        }
        if before < DISPATCH_LEVEL && to >= DISPATCH_LEVEL {
            self.0.hold();
        }
        if to == HIGH_LEVEL {
            WAS_PARKED.set(true);
        }
        IRQL.set(to);
        before
    }

    unsafe fn lower(&self, to: u8) {
        if WAS_PARKED.replace(false) {
            self.0.goes_on();
        }
        let before = IRQL.replace(to);
        if to > before {
            self.0.break_rule("the level was lowered to a higher one");
        }
        if MASKED.get() && to < HIGH_LEVEL {
            self.0.break_rule("the level was lowered with interrupts off");
        }
        if before >= DISPATCH_LEVEL && to < DISPATCH_LEVEL {
            self.0.check_memory();
            self.0.check_text();
            self.0.let_go();
        }
    }

    unsafe fn mask(&self) -> usize {
        let flags = usize::from(!MASKED.replace(true));
        super::counted::begin();
        flags
    }

    unsafe fn unmask(&self, flags: usize) {
        super::counted::end();
        MASKED.set(flags == 0);
    }

    fn clock(&self) -> (u64, u64) {
        (u64::try_from(self.0.start.elapsed().as_nanos()).unwrap(), 1_000_000_000)
    }

    fn pause(&self) {
        thread::yield_now();
    }

    fn thread(&self) -> usize {
        IRQL.with(|irql| core::ptr::from_ref(irql).addr())
    }

    fn processors(&self) -> Result<Vec<Processor>, Error> {
        self.0.call("processors", PASSIVE_LEVEL);
        if is_missing() {
            return Err(Error::OutOfMemory);
        }
        let _inside = Inside::new();
        Ok(self.0.cpus.iter().map(|cpu| cpu.name).collect())
    }

    fn processor_count(&self) -> usize {
        self.0.call("processor_count", DISPATCH_LEVEL);
        self.0.cpus.len() + usize::from(self.0.setting().one_more && IRQL.get() == DISPATCH_LEVEL)
    }

    fn pin(&self, to: Processor) -> usize {
        self.0.call("pin", PASSIVE_LEVEL);
        let before = ON.get();
        if HOLDS.get() > 0 {
            self.0.break_rule("a thread was pinned twice");
        }
        ON.set(self.0.cpus.iter().position(|cpu| cpu.name == to).unwrap());
        self.0.hold();
        self.0.pinned.fetch_add(1, Ordering::SeqCst);
        before
    }

    fn unpin(&self, before: usize) {
        self.0.call("unpin", PASSIVE_LEVEL);
        self.0.let_go();
        self.0.pinned.fetch_sub(1, Ordering::SeqCst);
        ON.set(before);
    }

    unsafe fn broadcast(&self, routine: BroadcastRoutine, context: usize) -> Result<(), Error> {
        self.0.call("broadcast", IPI_LEVEL - 1);
        let machine = &self.0;
        if machine.setting().no_broadcast {
            return Err(Error::Host(-1));
        }
        machine.arrived.store(0, Ordering::SeqCst);
        machine.done.store(0, Ordering::SeqCst);
        *lock(&machine.interrupt) = Some(Interrupt { routine, context });
        machine.cpus.iter().for_each(|cpu| cpu.interrupt.store(true, Ordering::SeqCst));
        machine.take_interrupt(ON.get());
        while machine.done.load(Ordering::SeqCst) < machine.cpus.len() {
            thread::yield_now();
        }
        Ok(())
    }

    unsafe fn queue(
        &self,
        dpc: *mut Dpc,
        to: Processor,
        routine: DeferredRoutine,
        context: *mut c_void,
    ) -> bool {
        self.0.call("queue", DISPATCH_LEVEL);
        let _inside = Inside::new();
        let place = self.0.cpus.iter().position(|cpu| cpu.name == to).unwrap();
        if self.0.setting().unqueued == Some(place) {
            return false;
        }
        let cpu = &self.0.cpus[place];
        let (dpc, context) = (dpc.expose_provenance(), context.expose_provenance());
        lock(&cpu.dpcs).push_back(Queued { dpc, routine, context });
        true
    }

    unsafe fn unqueue(&self, dpc: *mut Dpc) -> bool {
        self.0.call("unqueue", DISPATCH_LEVEL);
        let _inside = Inside::new();
        self.0.cpus.iter().any(|cpu| {
            let mut dpcs = lock(&cpu.dpcs);
            let place = dpcs.iter().position(|queued| queued.dpc == dpc.addr());
            place.and_then(|place| dpcs.remove(place)).is_some()
        })
    }

    fn is_resident(&self, address: u64) -> bool {
        self.0.call("is_resident", DISPATCH_LEVEL);
        self.0.memory.kind(address) == Some(Kind::Resident)
    }

    unsafe fn map(&self, span: Span) -> Result<Alias, Error> {
        self.0.call("map", APC_LEVEL);
        let mut pages = (span.address..span.address + span.len as u64).step_by(4096);
        if !pages.all(|page| self.0.memory.kind(page) == Some(Kind::Resident)) {
            self.0
                .break_rule("a page was locked that is not there, or does not stay: NT raises an exception");
        }
        if self.0.setting().no_mapping || is_missing() {
            return Err(Error::OutOfMemory);
        }
        self.0.mapped.fetch_add(1, Ordering::SeqCst);
        Ok(self.0.memory.alias(span))
    }

    unsafe fn unmap(&self, alias: Alias) {
        self.0.call("unmap", APC_LEVEL);
        self.0.mapped.fetch_sub(1, Ordering::SeqCst);
        self.0.memory.drop_alias(alias);
    }

    unsafe fn copy(&self, from: u64, to: &mut [u8]) {
        self.0.call("copy", PASSIVE_LEVEL);
        let last = from + (to.len() as u64).saturating_sub(1);
        let mut pages = (from & !4095..=last).step_by(4096);
        if !pages.all(|page| matches!(self.0.memory.kind(page), Some(Kind::Resident | Kind::Paged))) {
            self.0.break_rule(&std::format!("{} bytes at {from:#x} were read that are not there", to.len()));
            return;
        }
        self.0.memory.read(from, to);
    }

    fn modules(&self) -> Result<Vec<Module>, Error> {
        self.0.call("modules", PASSIVE_LEVEL);
        if is_missing() {
            return Err(Error::OutOfMemory);
        }
        let _inside = Inside::new();
        Ok(lock(&self.0.modules).clone())
    }

    fn is_debugged(&self) -> bool {
        self.0.call("is_debugged", PASSIVE_LEVEL);
        self.0.setting().debugged
    }

    fn has_code_integrity(&self) -> bool {
        self.0.call("has_code_integrity", PASSIVE_LEVEL);
        self.0.setting().integrity
    }

    fn has_shadow_stacks(&self) -> bool {
        self.0.call("has_shadow_stacks", PASSIVE_LEVEL);
        self.0.setting().shadow_stacks
    }

    fn guards_itself(&self) -> bool {
        self.0.setting().guards
    }

    fn sleep(&self, microseconds: u32) {
        self.0.call("sleep", PASSIVE_LEVEL);
        thread::sleep(Duration::from_micros(microseconds.into()));
    }

    unsafe fn run_thread(&self, routine: ThreadRoutine, context: *mut c_void) -> Result<(), Error> {
        self.0.call("run_thread", PASSIVE_LEVEL);
        if is_missing() {
            return Err(Error::OutOfMemory);
        }
        let _inside = Inside::new();
        let context = context.expose_provenance();
        thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: by the caller's word.
                unsafe { routine(core::ptr::with_exposed_provenance_mut(context)) };
            });
        });
        Ok(())
    }

    fn run_last(&self) -> bool {
        self.0.call("run_last", PASSIVE_LEVEL);
        let on = ON.get();
        let has_run = self.0.setting().starved != Some(on);
        if let Some(cpu) = self.0.cpus.get(on).filter(|_| has_run) {
            cpu.visits.fetch_add(1, Ordering::SeqCst);
        }
        has_run
    }
}
