//! Processors are parked, and let go.
//!
//! ```text
//!   Gathering   everybody else is called, and waits with interrupts on: it must still answer what others ask of it
//!   Parking     all are there: each raises its level and turns interrupts off
//!   (work)      all have: the caller of all this compares and writes
//!   Leaving     each fetches anew, and goes on as it was
//!   GivenUp     somebody did not come in time: nothing was written; who has come goes on, who has not finds out when it comes
//! ```
//!
//! The two steps are there for processors that wait for each other's answer with interrupts on, to flush a translation for example:
//! one that is parked at once would never answer.

use super::nt::{BroadcastRoutine, DISPATCH_LEVEL, DeferredRoutine, Dpc, HIGH_LEVEL, Nt, Processor, ticks};
use crate::Error;
use alloc::vec::Vec;
use core::arch;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use core::time::Duration;

const GATHERING: u8 = 0;
const PARKING: u8 = 1;
const LEAVING: u8 = 2;
const GIVEN_UP: u8 = 3;

/// The work, as everybody calls it.
type Work<'a> = &'a mut dyn FnMut() -> Result<(), Error>;

/// Where processors meet. It is on the stack of whoever called them, and outlives their visit.
struct Meeting<'a, N> {
    nt: &'a N,
    /// How many are called, besides whoever calls them.
    expected: usize,
    phase: AtomicU8,
    /// How many have come, are parked, and have gone again. Who has gone touches this no more.
    come: AtomicUsize,
    parked: AtomicUsize,
    gone: AtomicUsize,
}

/// What was waited for did not come in time, but for so many.
struct Late(usize);

impl Late {
    const fn error(&self, expected: usize) -> Error {
        Error::ProcessorNotReached { missing: expected.saturating_sub(self.0) }
    }
}

impl<'a, N: Nt> Meeting<'a, N> {
    const fn new(nt: &'a N, expected: usize) -> Self {
        let [come, parked, gone] = [const { AtomicUsize::new(0) }; 3];
        Self { nt, expected, phase: AtomicU8::new(GATHERING), come, parked, gone }
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Acquire)
    }

    fn set(&self, phase: u8) {
        self.phase.store(phase, Ordering::Release);
    }

    /// Waits until so many are counted, but no longer than the time that is given.
    fn wait(&self, counter: &AtomicUsize, count: usize, patience: Duration) -> Result<(), Late> {
        let (start, frequency) = self.nt.clock();
        let ticks = ticks(frequency, patience);
        while counter.load(Ordering::Acquire) < count {
            if self.nt.clock().0.wrapping_sub(start) > ticks {
                return Err(Late(counter.load(Ordering::Acquire)));
            }
            self.nt.pause();
        }
        Ok(())
    }

    /// Waits until all of so many that have come are gone: they run, and nothing holds them up.
    fn wait_until_gone(&self, count: usize) {
        while self.gone.load(Ordering::Acquire) < count {
            self.nt.pause();
        }
    }

    /// What somebody who was called does.
    ///
    /// # Safety
    /// The meeting is there until this has counted itself as gone. The caller is at `DISPATCH_LEVEL`.
    unsafe fn visit(this: *const Self) {
        // SAFETY: not gone yet.
        let (nt, phase) = unsafe { ((*this).nt, &raw const (*this).phase) };
        // SAFETY: as above, for each of these.
        let phase = || unsafe { (*phase).load(Ordering::Acquire) };
        // SAFETY: as above.
        unsafe { (*this).come.fetch_add(1, Ordering::AcqRel) };
        while phase() == GATHERING {
            nt.pause();
        }
        if phase() != GIVEN_UP {
            // SAFETY: not gone yet; at this level no thread is scheduled.
            unsafe { park(nt, &(*this).parked, || phase() == PARKING) };
        }
        // SAFETY: as above; from here on whoever called may be gone.
        unsafe { (*this).gone.fetch_add(1, Ordering::AcqRel) };
    }

    /// What the caller does once everybody has come: waits until they are parked, works, and lets them go.
    fn work(&self, work: Work<'_>, patience: Duration) -> Result<Result<(), Error>, Late> {
        self.set(PARKING);
        // SAFETY: both are undone below, on the same processor: the caller is at `DISPATCH_LEVEL` at least.
        let (irql, flags) = unsafe { (self.nt.raise(HIGH_LEVEL), self.nt.mask()) };
        let outcome = self.wait(&self.parked, self.expected, patience).map(|()| work());
        fetch_anew();
        self.set(if outcome.is_ok() { LEAVING } else { GIVEN_UP });
        // SAFETY: as above.
        unsafe {
            self.nt.unmask(flags);
            self.nt.lower(irql);
        }
        outcome
    }
}

/// Parks this processor while it is to wait: counts it, and lets it fetch anew at the end.
///
/// # Safety
/// No thread is scheduled on this processor.
unsafe fn park<N: Nt>(nt: &N, parked: &AtomicUsize, must_wait: impl Fn() -> bool) {
    // SAFETY: both are undone below, on the same processor.
    let (irql, flags) = unsafe { (nt.raise(HIGH_LEVEL), nt.mask()) };
    parked.fetch_add(1, Ordering::AcqRel);
    while must_wait() {
        nt.pause();
    }
    fetch_anew();
    // SAFETY: as above.
    unsafe {
        nt.unmask(flags);
        nt.lower(irql);
    }
}

/// Makes this core fetch its instructions anew: `cpuid` is serializing (Intel SDM volume 3, "Serializing Instructions").
pub(super) fn fetch_anew() {
    #[cfg(target_arch = "x86_64")]
    let _ = core::hint::black_box(arch::x86_64::__cpuid(0));
    #[cfg(target_arch = "x86")]
    let _ = core::hint::black_box(arch::x86::__cpuid(0));
}

/// One processor that is called.
struct Called<'a, N> {
    meeting: *const Meeting<'a, N>,
    processor: Processor,
    dpc: UnsafeCell<Dpc>,
}

/// The only place that calls anybody: two that called each other would wait for each other.
pub(super) struct Parking {
    busy: AtomicBool,
}

/// Whoever parks others right now.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Parking {
    pub(super) const fn new() -> Self {
        Self { busy: AtomicBool::new(false) }
    }

    fn turn(&self) -> Result<Turn<'_>, Error> {
        let taken = self.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        taken.map(|_| Turn(&self.busy)).map_err(|_| Error::TextBusy)
    }

    /// Parks all others by a deferred procedure call for each of them. `PASSIVE_LEVEL`.
    pub(super) fn by_dpc<N: Nt>(&self, nt: &N, patience: Duration, work: Work<'_>) -> Result<(), Error> {
        let _turn = self.turn()?;
        let processors = nt.processors()?;
        let Some((&own, others)) = processors.split_first() else { return Err(Error::TextBusy) };
        let meeting = Meeting::new(nt, others.len());
        let mut called: Vec<Called<'_, N>> = Vec::new();
        called.try_reserve_exact(others.len())?;
        called.extend(others.iter().map(|&processor| Called {
            meeting: &raw const meeting,
            processor,
            dpc: UnsafeCell::new(Dpc::new()),
        }));
        let pin = nt.pin(own);
        // SAFETY: it is lowered below; the thread stays on this processor.
        let irql = unsafe { nt.raise(DISPATCH_LEVEL) };
        let outcome = if nt.processor_count() == processors.len() {
            call_all(nt, &meeting, &called, patience, work)
        } else {
            // One has come since they were asked for.
            Err(Error::TextBusy)
        };
        // SAFETY: as above.
        unsafe { nt.lower(irql) };
        nt.unpin(pin);
        outcome
    }

    /// Parks all others by an interrupt that NT sends to all of them. `PASSIVE_LEVEL`.
    pub(super) fn by_ipi<N: Nt>(&self, nt: &N, patience: Duration, work: Work<'_>) -> Result<(), Error> {
        let _turn = self.turn()?;
        // SAFETY: it is lowered below; no thread is scheduled meanwhile.
        let irql = unsafe { nt.raise(DISPATCH_LEVEL) };
        // It runs on this processor, too, on this stack: that one works.
        let meeting = Meeting::new(nt, nt.processor_count().saturating_sub(1));
        let mut broadcast = Broadcast {
            meeting,
            caller: nt.thread(),
            patience,
            work: UnsafeCell::new(work),
            outcome: UnsafeCell::new(Err(Error::TextBusy)),
        };
        let context = (&raw mut broadcast).expose_provenance();
        let routine: BroadcastRoutine = on_every_processor::<N>;
        // SAFETY: the routine expects the address of a `Broadcast`, which lives until this returns.
        let sent = unsafe { nt.broadcast(routine, context) };
        // SAFETY: as above.
        unsafe { nt.lower(irql) };
        sent?;
        broadcast.outcome.into_inner()
    }

    /// Works where there is one processor, and nothing interrupts it. `PASSIVE_LEVEL`.
    pub(super) fn alone<N: Nt>(&self, nt: &N, work: Work<'_>) -> Result<(), Error> {
        let _turn = self.turn()?;
        // SAFETY: it is lowered below; no thread is scheduled meanwhile.
        let irql = unsafe { nt.raise(DISPATCH_LEVEL) };
        let outcome = if nt.processor_count() == 1 {
            let meeting = Meeting::new(nt, 0);
            meeting.work(work, Duration::ZERO).unwrap_or(Err(Error::TextBusy))
        } else {
            Err(Error::OtherThreads)
        };
        // SAFETY: as above.
        unsafe { nt.lower(irql) };
        outcome
    }
}

/// Calls everybody, and works when they are parked. `DISPATCH_LEVEL`.
fn call_all<N: Nt>(
    nt: &N,
    meeting: &Meeting<'_, N>,
    called: &[Called<'_, N>],
    patience: Duration,
    work: Work<'_>,
) -> Result<(), Error> {
    let routine: DeferredRoutine = on_called_processor::<N>;
    let queue = |one: &&Called<'_, N>| {
        let context = core::ptr::from_ref(*one).cast_mut().cast::<c_void>();
        // SAFETY: its room is its own, in memory that stays until all have gone, which is waited for below. The routine expects the
        // address of a `Called`.
        unsafe { nt.queue(one.dpc.get(), one.processor, routine, context) }
    };
    let queued = called.iter().take_while(queue).count();
    let all_are_queued = if queued == called.len() { Ok(()) } else { Err(Late(queued)) };
    let outcome = match all_are_queued.and_then(|()| meeting.wait(&meeting.come, queued, patience)) {
        Ok(()) => meeting.work(work, patience),
        Err(late) => {
            meeting.set(GIVEN_UP);
            Err(late)
        }
    };
    // SAFETY: what has begun is not in the queue any more, and says when it has gone.
    let taken_back = |one: &&Called<'_, N>| outcome.is_err() && unsafe { nt.unqueue(one.dpc.get()) };
    // Who was not queued never comes.
    let absent = called.iter().take(queued).filter(taken_back).count();
    meeting.wait_until_gone(queued - absent);
    outcome.unwrap_or_else(|late| Err(late.error(called.len())))
}

/// # Safety
/// `context` is a `Called`, which lives until the visit is over.
unsafe extern "system" fn on_called_processor<N: Nt>(
    _: *mut Dpc,
    context: *mut c_void,
    _: *mut c_void,
    _: *mut c_void,
) {
    // SAFETY: by the caller's word; what it leads to lives as long.
    unsafe { Meeting::visit((*context.cast::<Called<'_, N>>()).meeting) };
}

/// What every processor is handed.
struct Broadcast<'a, 'w, N> {
    meeting: Meeting<'a, N>,
    /// The thread that works: all others are interrupted.
    caller: usize,
    patience: Duration,
    work: UnsafeCell<Work<'w>>,
    outcome: UnsafeCell<Result<(), Error>>,
}

/// # Safety
/// `context` is the exposed address of a `Broadcast`, which lives until this has returned on every processor.
unsafe extern "system" fn on_every_processor<N: Nt>(context: usize) -> usize {
    // SAFETY: by the caller's word; it is shared from the moment on that anybody was called.
    let broadcast = unsafe { &*core::ptr::with_exposed_provenance::<Broadcast<'_, '_, N>>(context) };
    let meeting = &broadcast.meeting;
    if meeting.nt.thread() != broadcast.caller {
        // SAFETY: this is `IPI_LEVEL`.
        unsafe { park(meeting.nt, &meeting.parked, || matches!(meeting.phase(), GATHERING | PARKING)) };
        return 0;
    }
    // SAFETY: a thread runs on one processor; nobody else touches these two, and whoever sent the interrupt waits for all.
    let (work, outcome) = unsafe { (&mut *broadcast.work.get(), &mut *broadcast.outcome.get()) };
    let worked = meeting.work(&mut **work, broadcast.patience);
    *outcome = worked.unwrap_or_else(|late| Err(late.error(meeting.expected)));
    0
}
