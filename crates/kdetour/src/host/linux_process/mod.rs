//! One's own Linux process.
//!
//! * text is read and written through `/proc/self/mem` (`memory`): the pages stay readable and executable, never
//!   writable, and a bad address is an error, not a fault;
//! * more than one byte is changed at one moment by exchanging the page for a changed copy (`exchange`);
//! * what lies where is read from `/proc/self/maps` (`maps`), or asked there (`query`), what a function's bounds are from the symbol tables
//!   of the mapped file (`function`, `symbols`);
//! * slots are pages mapped near the target, or exactly where a shape wants the relay (`arena`);
//! * every core is made to fetch anew by `membarrier` (`cores`);
//! * a pointer is exchanged by one compare-and-exchange, its page writable meanwhile if it was not (`pointer`); which pointers an
//!   image calls a function through its relocations tell (`imports`);
//! * threads are looked at and parked by a signal (`threads`), and sent on from a breakpoint by another (`trap`), or from where a
//!   debug register traps (`registers`).
//!
//! What differs from one processor to the other is in `arch`.
//!
//! kdetour itself enters the kernel by raw system calls. It calls functions of libc (to allocate, to copy bytes), so that
//! these may be detoured too.

pub(crate) mod arch;
mod arena;
mod cores;
mod exchange;
mod file;
mod fork;
mod function;
mod images;
pub(crate) mod imports;
mod maps;
mod memory;
mod moved;
mod names;
mod near;
mod parts;
mod pointer;
mod query;
mod registers;
mod symbols;
mod telling;
mod threads;
mod trap;
pub(crate) mod turn;
mod unwind;
mod view;

pub use super::process::slots::ProcessSlots;
pub use arena::Arena;
pub use images::Pin;
pub use memory::ProcessText;
pub use telling::Tell;
pub use threads::{stack_pointer, with_return};
pub use view::ProcessView;

use super::process::PAGE;
use super::process::exports::Exports;
use super::process::pe::Part;
use super::process::slots::lock;
use super::{BreakpointHook, Drain, Host, NotSet, Quiesce, Rendezvous, Span};
use crate::Error;
use crate::commit::breakpoints::Breakpoints;
use crate::commit::{Exchange, Move, Protocol};
use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use kdetour_plan::{Options, Plan, Reach, Shape, Shapes};
use memory::{Memory, SharedMemory};
use rustix::mm::{MprotectFlags, mprotect};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::Instant;
use std::vec::Vec;
use symbols::Files;
use telling::Telling;

/// How long threads are waited for that have to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a processor or a system lacks (errno.h).
pub(crate) const NOT_SUPPORTED: i32 = rustix::io::Errno::NOTSUP.raw_os_error();

/// How long a thread may block all signals, as it does while it starts, and while it is in a handler of ours.
const START: Duration = Duration::from_millis(250);
/// So much processor time it needs to leave a handler of ours.
const HANDLED: u64 = 1_000_000;
/// How often it is looked at meanwhile.
const PAUSE: Duration = Duration::from_micros(200);

static BREAKPOINTS: Breakpoints = Breakpoints::new();

/// The host for one's own process.
///
/// A process needs one: [`typed::with_process`](crate::typed::with_process) gives the one that typed detours use. Two that
/// patch would take each other's patches for original code; breakpoints are answered for the first one that needs them.
///
/// It is cheap to keep and should live as long as the process: it opens `/proc/self/mem` when it is made, which the
/// kernel may refuse later (`PR_SET_DUMPABLE`), and remembers the symbol tables that it has read.
#[derive(Debug)]
pub struct LinuxProcess {
    number: u64,
    memory: SharedMemory,
    files: Mutex<Files>,
    /// The memory for slots: code that must not be detoured itself.
    arena: Arc<Mutex<Arena>>,
    telling: Mutex<Telling>,
    pub(in crate::host) exports: Mutex<Exports>,
}

impl LinuxProcess {
    /// Opens this process.
    ///
    /// # Errors
    /// [`Error::Host`] if the process cannot read its own memory.
    pub fn new() -> Result<Self, Error> {
        cores::register();
        let memory = SharedMemory::new(Memory::open()?);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            number: COUNT.fetch_add(1, Ordering::Relaxed) + 1,
            memory,
            files: Mutex::new(Files::default()),
            arena: Arc::new(Mutex::new(Arena::new())),
            telling: Mutex::default(),
            exports: Mutex::new(Exports::new()),
        })
    }

    /// Has `before` called in front of every `fork`, and afterwards `behind` in the parent and `behind_in_child` in the child, which
    /// begins with [`forked`](Self::forked).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn at_fork(
        before: extern "C" fn(),
        behind: extern "C" fn(),
        behind_in_child: extern "C" fn(),
    ) -> Result<(), Error> {
        fork::register(before, behind, behind_in_child)
    }

    /// In the child of a `fork`: the handlers that other threads were in at that moment are not run to their end here.
    pub fn forked() {
        trap::forked();
        registers::forked();
        threads::forked();
    }

    /// Whether the calling thread is the only one of the process. A thread that has just been joined may still be on
    /// its way out: it is waited for, but not longer than some ten milliseconds.
    ///
    /// # Errors
    /// [`Error::Host`] if `/proc` does not tell.
    pub fn is_single_threaded(&self) -> Result<bool, Error> {
        threads::only_this_one()
    }

    /// Chooses who is told of slots that are planned from now on.
    pub fn tell(&self, whom: Tell) {
        lock(&self.telling).whom = whom;
    }

    /// Takes no memory for slots any more that has one of the addresses from `first` to `last`, until something else is said: a program
    /// may want these for itself. What is taken stays. With `first` behind `last` there are none.
    pub fn keep_slots_out_of(&self, first: u64, last: u64) {
        lock(&self.arena).keep_out_of(first, last);
    }

    /// Maps `len` bytes of memory within reach, writable and not executable, for code that somebody else writes: `munmap` gives
    /// it back. Slots never come there.
    ///
    /// # Errors
    /// [`Error::NoSlot`] if there is no room.
    pub fn map_near(&self, len: usize, reach: Reach) -> Result<Span, Error> {
        lock(&self.arena).lend(len, reach)
    }

    /// The memory of this process.
    pub(in crate::host) fn memory(&self) -> Result<&impl super::process::pe::Memory, Error> {
        self.memory.get()
    }

    /// Replaces the offset at `place` if it is `expected`; gives what was found.
    #[expect(clippy::unused_self, reason = "elsewhere the host is needed for it")]
    pub(in crate::host) fn swap_offset(&self, place: u64, expected: u32, new: u32) -> Result<u32, Error> {
        pointer::swap_offset(place, expected, new)
    }

    /// Has a page that was mapped by [`map_near`](Self::map_near) executed, and not written any more.
    ///
    /// # Safety
    /// The page is the caller's, and nobody writes there any more.
    #[expect(clippy::unused_self, reason = "elsewhere the host is needed for it")]
    pub(in crate::host) unsafe fn make_executable(&self, page: u64) -> Result<(), Error> {
        let page = usize::try_from(page).map_err(|_| Error::OutOfMemory)?;
        let page = core::ptr::with_exposed_provenance_mut(page);
        // SAFETY: the caller's promise; that page alone is protected.
        unsafe { mprotect(page, PAGE as usize, MprotectFlags::READ | MprotectFlags::EXEC) }.map_err(refused)
    }

    /// Gives back what [`map_near`](Self::map_near) has mapped, and nobody uses.
    pub(in crate::host) fn unmap_near(span: Span) {
        near::unmap(span);
    }

    /// Makes sure that no thread is in any of `places`, which are sorted and do not overlap: neither by its instruction
    /// pointer, nor by a register or a word of its stack. Sleeping threads are not disturbed; running ones answer by a
    /// signal. Of the caller's own stack what is above `caller` counts, as [`stack_pointer`] said further up. Below a stack pointer,
    /// where functions may keep data but no return address, only `slots` count, which are among them.
    ///
    /// # Errors
    /// [`Error::Inside`] if the calling thread is; [`Error::Busy`] with the number of other threads that still are when the time is
    /// up; [`Error::ThreadNotReached`].
    pub fn look(
        &self,
        caller: u64,
        places: &[Range<u64>],
        slots: &[Range<u64>],
        until: Instant,
    ) -> Result<(), Error> {
        threads::look_above(caller, places, slots, until)
    }
}

impl Host for LinuxProcess {
    type Text = ProcessText;
    type View<'a> = ProcessView<'a>;
    type Slots = ProcessSlots;

    fn view(&self) -> Result<ProcessView<'_>, Error> {
        ProcessView::new(self)
    }

    fn slots(&self) -> ProcessSlots {
        ProcessSlots(Arc::clone(&self.arena))
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.memory.get()?.read(address, bytes)
    }

    fn swap(&self, place: u64, expected: u64, new: u64) -> Result<u64, Error> {
        pointer::swap(place, expected, new)
    }

    fn open_text(&self, spans: &[Span]) -> Result<ProcessText, Error> {
        ProcessText::open(self.memory.get()?, spans)
    }

    /// Uses `membarrier`, which Linux has since 4.16. Where it is missing, or a sandbox forbids it, the calling core
    /// alone is serialized: enough for [`Protocol::Local`], where every other thread is scheduled anew before it runs
    /// this code again.
    fn sync_cores(&self) {
        cores::sync();
    }

    fn set_register(&self, address: u64) -> Result<(), NotSet> {
        registers::set(address)
    }

    fn clear_register(&self, address: u64) {
        registers::clear(address);
    }

    /// Beside other threads the patch changes one byte if it can. Where nobody runs meanwhile, or everybody is parked,
    /// slots are packed. What remains is for those who ask: a `Jump14`, where slots are near; a `Breakpoint` that stays,
    /// where threads may block its signal.
    fn options(&self, protocol: Protocol) -> Options {
        let wanted: &[Shape] = match protocol {
            Protocol::Exchange | Protocol::Live => &[
                Shape::WholeInstruction,
                Shape::Jump5Kept,
                Shape::Jump5Trapped,
                Shape::ShortJump,
                Shape::Jump5,
            ],
            _ => &[Shape::WholeInstruction, Shape::Jump5],
        };
        let shapes = wanted.iter().fold(Shapes::NONE, |shapes, &shape| shapes.with(shape));
        let one_byte = matches!(protocol, Protocol::Exchange | Protocol::Live);
        Options { shapes, one_byte, roomy: true, ..Options::default() }
    }

    fn describe(&self, plan: &Plan) -> Result<(), Error> {
        lock(&self.telling).of(plan)
    }

    fn withdraw(&self, slot: u64) {
        lock(&self.telling).withdraw(slot);
    }
}

/// Which thread is waited for, and how much processor time it had used at first.
#[derive(Default)]
struct Waits(Option<(i32, u64)>);

impl Waits {
    /// Whether a thread that blocks a signal only waits for a processor: where there are few, that may take long.
    fn for_a_processor(&mut self, thread: i32) -> bool {
        // 0 is a handler that is installed.
        let Some(used) = threads::processor_time(thread).filter(|_| thread != 0) else { return false };
        match self.0 {
            Some((known, before)) if known == thread => {
                used.saturating_sub(before) < HANDLED && threads::is_runnable(thread)
            }
            _ => {
                self.0 = Some((thread, used));
                true
            }
        }
    }
}

impl BreakpointHook for LinuxProcess {
    /// They are small, and no handler may be running when they are freed.
    const OLD_TABLES: usize = 256;

    fn breakpoints(&self) -> &'static Breakpoints {
        &BREAKPOINTS
    }

    fn arm(&self) -> Result<(), Error> {
        // The host whose breakpoints are answered.
        static ANSWERED: AtomicU64 = AtomicU64::new(0);
        let taken = ANSWERED.compare_exchange(0, self.number, Ordering::AcqRel, Ordering::Acquire);
        if taken.is_err_and(|number| number != self.number) {
            return Err(Error::TrapHandler);
        }
        trap::install(&BREAKPOINTS)?;
        let begin = Instant::now();
        let (mut waits, mut open) = (Waits::default(), Vec::new());
        loop {
            match trap::check(&mut open) {
                // A thread that is being started, or starts one, blocks everything for a moment; and one that is in the
                // handler of SIGURG, until it has been scheduled.
                Err(Error::TrapBlocked { thread })
                    if begin.elapsed() < START
                        || begin.elapsed() < PATIENCE && waits.for_a_processor(thread) =>
                {
                    sleep(PAUSE);
                }
                outcome => return outcome,
            }
        }
    }
}

// SAFETY: a trap handler says that it runs before it reads the table of breakpoints: once those who ran have left, those of
// later see what was published before. Where boundaries are given every thread is looked at.
unsafe impl Quiesce for LinuxProcess {
    fn quiesce(&self, boundaries: &[u64]) -> Result<(), Error> {
        // One that was preempted in its handler has to be scheduled once.
        if !trap::wait_for_handlers(Instant::now() + PATIENCE, PAUSE) {
            return Err(Error::ThreadNotReached { thread: 0 });
        }
        if boundaries.is_empty() {
            return Ok(());
        }
        let mut places = Vec::new();
        places.try_reserve_exact(boundaries.len())?;
        places.extend(boundaries.iter().map(|&boundary| boundary..boundary.wrapping_add(1)));
        threads::look_above(stack_pointer(), &places, &places, Instant::now() + PATIENCE).map_err(|error| {
            match error {
                Error::Busy { .. } => {
                    Error::ThreadInWindow { address: boundaries.first().copied().unwrap_or_default() }
                }
                other => other,
            }
        })
    }
}

impl Exchange for LinuxProcess {
    type Prepared<'a> = exchange::Exchange<'a>;

    fn prepare<'a>(&self, writes: &'a [(u64, &'a [u8])]) -> Result<exchange::Exchange<'a>, Error> {
        exchange::Exchange::prepare(self.memory.get()?, writes)
    }

    fn exchange(&self, prepared: exchange::Exchange<'_>) -> Result<(), Error> {
        prepared.commit().map_err(|failed| failed.error)
    }
}

impl Rendezvous for LinuxProcess {
    fn rendezvous(&self, moves: &[Move], work: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error> {
        let mut pairs = Vec::new();
        pairs.try_reserve_exact(moves.len())?;
        pairs.extend(moves.iter().map(|one| (one.at, one.resume)));
        threads::park(&pairs, Instant::now() + PATIENCE, work)?;
        cores::sync();
        Ok(())
    }
}

impl Drain for LinuxProcess {
    unsafe fn in_flight(&self, counter: u64) -> u64 {
        let Ok(address) = usize::try_from(counter) else { return 0 };
        let counter = core::ptr::with_exposed_provenance::<AtomicU64>(address);
        // SAFETY: by the caller's word: 0, or the counter that an attach gave, which lives until the detour is gone.
        unsafe { counter.as_ref() }.map_or(0, |counter| counter.load(Ordering::Acquire))
    }
}

/// How much memory slots take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of slots.
    pub bytes: usize,
    /// Pages of 4 KiB that hold them.
    pub pages: usize,
    /// Mappings of the process that hold the pages, at the least.
    pub mappings: usize,
}

impl ProcessSlots {
    /// How much memory is taken now.
    pub fn footprint(&self) -> Footprint {
        let arena = lock(&self.0);
        Footprint { bytes: arena.bytes(), pages: arena.pages(), mappings: arena.mappings() }
    }
}

/// What the kernel said.
fn refused(error: rustix::io::Errno) -> Error {
    Error::Host(error.raw_os_error())
}

impl super::process::pe::Memory for Memory {
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        Self::read(self, address, bytes)
    }

    fn parts(&self, first: u64, end: u64) -> Result<Vec<Part>, Error> {
        let (mappings, _) = query::within(core::iter::once((first, end)))?;
        let mut parts = Vec::new();
        for mapping in mappings.within(first, end) {
            parts.try_reserve(1)?;
            parts.push(Part { addresses: mapping.start..mapping.end, readable: mapping.readable });
        }
        Ok(parts)
    }
}
