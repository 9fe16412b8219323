//! What is asked of each thread by a signal, and its answer.
//!
//! The handler of SIGURG looks for its own thread in the roll that is being called. If it is asked there, it looks at
//! the registers that the kernel has saved and at its own stack, and answers; if all are to park, it then waits. SIGURG
//! is ignored where nobody handles it, and debuggers pass it: a signal of ours that arrives late does no harm.
//!
//! Which request a signal belongs to does not matter. The kernel keeps one pending SIGURG for each thread, and drops
//! the information of others; so the handler asks the roll, whoever has sent the signal.
//!
//! Handlers that are running are counted. What they may have seen is freed only when there are none: a handler counts
//! itself before it takes the roll, and the roll is taken away before the count is read.

use super::super::{lock, refused};
use super::chain::{Chain, cookie};
use super::raw::{self, Context, Info, SI_QUEUE, SIGURG};
use super::stack::{Regions, Seen, Stack, search};
use crate::Error;
use crate::address::narrow;
use core::ops::{Deref, Range};
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use rustix::io::Errno;
use rustix::thread::nanosleep;
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::boxed::Box;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;
use std::vec::Vec;

/// The handlers of SIGURG.
static CHAIN: Chain = Chain::new(SIGURG);
/// The roll that is being called.
static ROLL: AtomicPtr<Roll> = AtomicPtr::new(ptr::null_mut());
/// How many handlers may be looking at it.
static INSIDE: AtomicU64 = AtomicU64::new(0);
/// One roll is called at a time.
static TURN: Mutex<Retired> = Mutex::new(Retired(Vec::new()));

/// What a late handler may still be looking at.
struct Retired(Vec<Box<dyn Send>>);

/// Sorted and disjoint ranges of addresses.
#[derive(Debug)]
pub(super) struct Places {
    all: Box<[Range<u64>]>,
    /// Those that count below a stack pointer, too. No return address there is used any more, so functions do not: a leaf
    /// that is called again and again never overwrites what an earlier call has left there.
    below: Box<[Range<u64>]>,
}

impl Places {
    pub(super) fn new(
        places: impl ExactSizeIterator<Item = Range<u64>>,
        below: impl ExactSizeIterator<Item = Range<u64>>,
    ) -> Result<Self, Error> {
        Ok(Self { all: boxed(places)?, below: boxed(below)? })
    }

    pub(super) fn hold(&self, address: u64) -> bool {
        one_holds(&self.all, address)
    }

    /// Whether a word holds somebody up that is, or is not, below the stack pointer.
    pub(super) fn hold_word(&self, word: u64, below: bool) -> bool {
        one_holds(if below { &self.below } else { &self.all }, word)
    }

    /// Whether an address is in a place, but not its first one: that is no return address, even if a call that does
    /// not return lies before it.
    pub(super) fn hold_behind_start(&self, address: u64) -> bool {
        let index = self.all.partition_point(|place| place.end <= address);
        self.all.get(index).is_some_and(|place| place.start < address)
    }
}

fn boxed(places: impl ExactSizeIterator<Item = Range<u64>>) -> Result<Box<[Range<u64>]>, Error> {
    let mut all = Vec::new();
    all.try_reserve_exact(places.len())?;
    all.extend(places);
    Ok(all.into_boxed_slice())
}

fn one_holds(places: &[Range<u64>], address: u64) -> bool {
    let index = places.partition_point(|place| place.end <= address);
    places.get(index).is_some_and(|place| place.start <= address)
}

/// One thread, and its answer.
#[derive(Debug, Default)]
pub(super) struct Slot {
    thread: AtomicI32,
    state: AtomicU32,
    /// Where its stack was, and where that ends.
    sp: AtomicU64,
    end: AtomicU64,
    word: AtomicU64,
}

const IDLE: u32 = 0;
const ASKED: u32 = 1;
const CLEAN: u32 = 2;
const INSIDE_A_PLACE: u32 = 3;
const UNCLEAR: u32 = 4;

/// What a thread has said, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has not been asked.
    NotAsked,
    /// It has not answered yet.
    Awaited,
    /// Nothing was found on its stack, which is at `sp` and ends at `end`.
    Clean { sp: u64, end: u64 },
    /// This was found.
    Inside(u64),
    /// Its stack is not among the regions that it was given.
    Unclear,
}

impl Slot {
    pub(super) fn thread(&self) -> i32 {
        self.thread.load(Ordering::Relaxed)
    }

    pub(super) fn answer(&self) -> Answer {
        match self.state.load(Ordering::Acquire) {
            IDLE => Answer::NotAsked,
            ASKED => Answer::Awaited,
            CLEAN => {
                Answer::Clean { sp: self.sp.load(Ordering::Relaxed), end: self.end.load(Ordering::Relaxed) }
            }
            INSIDE_A_PLACE => Answer::Inside(self.word.load(Ordering::Relaxed)),
            _ => Answer::Unclear,
        }
    }

    /// Asks the thread, and says whether it is there.
    pub(super) fn ask(&self) -> Result<bool, Error> {
        self.state.store(ASKED, Ordering::SeqCst);
        let info = Info::sent(SIGURG, SI_QUEUE, (raw::process(), raw::user()), narrow(cookie()));
        match raw::send(self.thread(), &info) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(refused(error)),
        }
    }

    /// Forgets the answer.
    pub(super) fn forget(&self) {
        self.state.store(IDLE, Ordering::SeqCst);
    }
}

/// What all threads are asked.
#[derive(Debug)]
pub(super) struct Roll {
    /// What is looked for.
    pub(super) places: Places,
    regions: AtomicPtr<Regions>,
    slots: Box<[Slot]>,
    /// How many slots are in use.
    used: AtomicUsize,
    /// Whether threads are to wait, and where those go on that stand at certain addresses; sorted.
    park: Option<Box<[(u64, u64)]>>,
    gate: AtomicU32,
}

const CLOSED: u32 = 0;
const OPEN: u32 = 1;
/// The work was done: threads are to be moved.
const MOVE: u32 = 2;

impl Roll {
    pub(super) fn slots(&self) -> &[Slot] {
        self.slots.get(..self.used.load(Ordering::Acquire)).unwrap_or_default()
    }

    /// The slot of a thread.
    pub(super) fn slot(&self, thread: i32) -> Option<&Slot> {
        self.slots().iter().find(|slot| slot.thread() == thread)
    }

    /// Takes one more thread in; none if there is no slot left.
    pub(super) fn add(&self, thread: i32) -> Option<&Slot> {
        let used = self.used.load(Ordering::Acquire);
        let slot = self.slots.get(used)?;
        slot.thread.store(thread, Ordering::Relaxed);
        self.used.store(used.saturating_add(1), Ordering::Release);
        Some(slot)
    }

    /// Lets everybody go on.
    pub(super) fn open(&self, moves: bool) {
        self.gate.store(if moves { MOVE } else { OPEN }, Ordering::SeqCst);
        raw::wake(&self.gate);
    }

    /// Lets everybody go on who still waits.
    pub(super) fn open_if_closed(&self) {
        if self.gate.load(Ordering::SeqCst) == CLOSED {
            self.open(false);
        }
    }

    /// What a thread does that is asked. Runs in its signal handler.
    fn respond(&self, context: &mut Context) {
        let thread = raw::thread();
        let Some(slot) = self.slot(thread) else { return };
        if slot.state.load(Ordering::Acquire) != ASKED {
            return;
        }
        // SAFETY: regions that were replaced are freed when no handler is running.
        let Some(regions) = (unsafe { self.regions.load(Ordering::SeqCst).as_ref() }) else { return };
        let sp = context.sp();
        slot.sp.store(sp, Ordering::Relaxed);
        slot.end.store(regions.end(sp), Ordering::Relaxed);
        let state = match self.see(thread, regions, context) {
            Seen::Clean => CLEAN,
            Seen::Word(word) => {
                slot.word.store(word, Ordering::Relaxed);
                INSIDE_A_PLACE
            }
            Seen::Unclear => UNCLEAR,
        };
        slot.state.store(state, Ordering::SeqCst);
        if let Some(moves) = &self.park {
            while self.gate.load(Ordering::SeqCst) == CLOSED {
                raw::wait(&self.gate, CLOSED);
            }
            let ip = context.ip();
            let at = moves.partition_point(|&(from, _)| from < ip);
            if let Some(&(from, to)) = moves.get(at)
                && from == ip
                && self.gate.load(Ordering::SeqCst) == MOVE
            {
                context.set_ip(to);
            }
        }
    }

    fn see(&self, thread: i32, regions: &Regions, context: &Context) -> Seen {
        // A thread that stands where it can be moved from is not in the way.
        let ip = context.ip();
        if self.park.is_none() && self.places.hold(ip) {
            return Seen::Word(ip);
        }
        for register in context.registers() {
            if self.places.hold(register) {
                return Seen::Word(register);
            }
        }
        let stack = Stack { thread, sp: context.sp(), alternate: context.alternate() };
        search::<32>(regions, stack, |word, below| self.places.hold_word(word, below))
    }
}

/// The handler of SIGURG. Nothing interrupts it.
unsafe extern "C" fn handler(_: i32, info: *mut Info, context: *mut Context) {
    INSIDE.fetch_add(1, Ordering::SeqCst);
    // SAFETY: a roll that was taken away is freed when no handler is running, and this one is counted.
    if let Some(roll) = unsafe { ROLL.load(Ordering::SeqCst).as_ref() }
        // SAFETY: the kernel's, on this thread's stack; whoever passed the signal on to us passed on what it got.
        && let Some(context) = unsafe { context.as_mut() }
    {
        roll.respond(context);
    }
    INSIDE.fetch_sub(1, Ordering::SeqCst);
    // SAFETY: as above.
    let is_ours = unsafe { info.as_ref() }.is_some_and(|info| {
        info.code == SI_QUEUE && info.value() == narrow(cookie()) && info.signal == SIGURG
    });
    if !is_ours {
        // What nobody handles is ignored: SIGURG's default.
        // SAFETY: both are what this handler was called with.
        let _ = unsafe { CHAIN.pass(info, context) };
    }
}

/// Makes ours the handler of SIGURG, again if somebody else has installed one.
pub(super) fn prepare() -> Result<(), Error> {
    // SAFETY: the handler may run in any thread at any moment: it touches only what is in this file.
    unsafe { CHAIN.install(handler) }
}

/// In the child of a `fork`, whose only thread is in no handler of ours: others were, and no roll is called.
pub(in crate::host::linux_process) fn forked() {
    INSIDE.store(0, Ordering::SeqCst);
}

/// Whether ours is the handler of SIGURG.
pub(in crate::host::linux_process) fn is_listening() -> Result<bool, Error> {
    CHAIN.is_ours(handler)
}

/// A roll while it is called; no other one is.
pub(super) struct Call {
    roll: *mut Roll,
    turn: MutexGuard<'static, Retired>,
}

impl Call {
    /// Publishes a roll with room for so many threads. If they are to `park`, they wait until [`Roll::open`].
    pub(super) fn new(
        places: Places,
        park: Option<Box<[(u64, u64)]>>,
        regions: Regions,
        room: usize,
    ) -> Result<Self, Error> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(room)?;
        slots.resize_with(room, Slot::default);
        let mut turn = lock(&TURN);
        sweep(&mut turn);
        turn.0.try_reserve(2)?;
        let roll = Roll {
            places,
            regions: AtomicPtr::new(Box::into_raw(Box::new(regions))),
            slots: slots.into_boxed_slice(),
            used: AtomicUsize::new(0),
            park,
            gate: AtomicU32::new(CLOSED),
        };
        let roll = Box::into_raw(Box::new(roll));
        ROLL.store(roll, Ordering::SeqCst);
        Ok(Self { roll, turn })
    }

    /// Gives the threads that are asked from now on newer regions.
    pub(super) fn renew(&mut self, regions: Regions) -> Result<(), Error> {
        self.turn.0.try_reserve(3)?;
        let old = self.regions.swap(Box::into_raw(Box::new(regions)), Ordering::SeqCst);
        // SAFETY: it was made from a box, and this is the only place where it is taken out.
        self.turn.0.push(unsafe { Box::from_raw(old) });
        sweep(&mut self.turn);
        Ok(())
    }

    /// The regions that threads are given.
    pub(super) fn regions(&self) -> &Regions {
        // SAFETY: never null, and replaced only by `renew`, which borrows the call mutably.
        unsafe { &*self.regions.load(Ordering::SeqCst) }
    }
}

impl Deref for Call {
    type Target = Roll;

    fn deref(&self) -> &Roll {
        // SAFETY: freed only after the call is over.
        unsafe { &*self.roll }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        /// How often a handler that has answered is given time to return.
        const TRIES: usize = 20;
        // Whoever comes late, or has been forgotten, is not to wait.
        self.open_if_closed();
        ROLL.store(ptr::null_mut(), Ordering::SeqCst);
        let regions = self.regions.swap(ptr::null_mut(), Ordering::SeqCst);
        // There is room: `new` and `renew` have made it.
        // SAFETY: it was made from a box, and nobody else frees it.
        self.turn.0.push(unsafe { Box::from_raw(regions) });
        // SAFETY: the same.
        self.turn.0.push(unsafe { Box::from_raw(self.roll) });
        let mut pause = Pause::default();
        for _ in 0..TRIES {
            sweep(&mut self.turn);
            if self.turn.0.is_empty() {
                break;
            }
            pause.now();
        }
    }
}

/// Keeps rolls from being called: for tests that fork.
#[cfg(test)]
pub(super) fn hold() -> impl Drop {
    struct Held(#[expect(dead_code, reason = "held until it is dropped")] MutexGuard<'static, Retired>);
    impl Drop for Held {
        fn drop(&mut self) {}
    }
    Held(lock(&TURN))
}

/// Frees what no handler can be looking at any more.
fn sweep(retired: &mut Retired) {
    if INSIDE.load(Ordering::SeqCst) == 0 {
        retired.0.clear();
    }
}

/// A moment, told by the kernel and not by libc.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Timespec);

impl Deadline {
    pub(super) fn new(until: Instant) -> Self {
        let left = until.saturating_duration_since(Instant::now()).min(Duration::from_secs(1 << 30));
        let left = Timespec::try_from(left).unwrap_or_default();
        let now = clock_gettime(ClockId::Monotonic);
        Self(now.checked_add(left).unwrap_or(now))
    }

    pub(super) fn has_passed(&self) -> bool {
        clock_gettime(ClockId::Monotonic) >= self.0
    }
}

/// Pauses that become longer.
#[derive(Debug)]
pub(super) struct Pause(i64);

impl Default for Pause {
    fn default() -> Self {
        Self(20_000)
    }
}

impl Pause {
    /// Sleeps for a moment.
    pub(super) fn now(&mut self) {
        const LONGEST: i64 = 2_000_000;
        let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: self.0 });
        self.0 = self.0.saturating_mul(2).min(LONGEST);
    }
}
