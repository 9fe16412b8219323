//! One's own Windows process.
//!
//! * memory is read by the kernel, so that a bad address is an error; text is written page by page, each writable and not executable for
//!   the moment, while whoever comes there waits (`memory`, `flip`); bytes of several pages at one moment (`exchange`);
//! * what lies where is asked of the kernel (`regions`), what a function's bounds are is read from the image's tables (`image`, `tables`, `view`);
//! * slots are pages near the target, or exactly where a shape wants the relay (`arena`), of which the unwinder is told (`unwind`);
//! * a pointer is exchanged by one compare-and-exchange, its page writable meanwhile if it was not (`pointer`); which pointers an image calls a
//!   function through its tables tell (`imports`); libraries are kept loaded (`images`);
//! * every core is made to fetch anew by `FlushProcessWriteBuffers` (`cores`);
//! * threads are suspended to be looked at, one at a time, or all at once for a rendezvous (`threads`), and sent on from a breakpoint by a vectored
//!   handler (`trap`);
//! * what all this runs through is not patched: `ntdll.dll`, and one page of kdetour's own (`guarded`).
//!
//! What differs from one processor to the other is in `arch`.
//!
//! From the first byte that is written to the last one nothing is called but functions of `ntdll.dll` (`nt`), and nothing is allocated or locked while a
//! thread is suspended: neither the loader's lock nor the heap's is ever needed then.
//!
//! Not there yet, and refused by name: debug registers ([`Error::DebugRegistersMissing`]), detours inside functions
//! ([`Error::NotFunction`]), functions of `ntdll.dll` ([`Error::Forbidden`]), processes with shadow stacks ([`Error::ShadowStack`]).

mod arch;
mod arena;
mod cores;
mod exchange;
mod flip;
mod guarded;
mod images;
pub(crate) mod imports;
mod memory;
mod nt;
mod pointer;
mod regions;
mod tables;
mod threads;
mod trap;
pub(crate) mod turn;
mod unwind;
mod view;

pub use crate::host::process::caller::{stack_pointer, with_return};
pub use crate::host::process::slots::ProcessSlots;
pub(crate) use arena::Arena;
pub use exchange::Prepared;
pub use images::Pin;
pub use memory::ProcessText;
pub use view::ProcessView;

use super::process::PAGE;
use super::process::exports::Exports;
use super::process::slots::lock;
use super::{BreakpointHook, Drain, Host, Quiesce, Rendezvous, Span};
use crate::Error;
use crate::commit::breakpoints::Breakpoints;
use crate::commit::{Exchange, Move, Protocol};
use alloc::sync::Arc;
use arena::Holds;
use core::ffi::c_void;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use guarded::Guarded;
use kdetour_plan::{Options, Plan, Reach, Shape, Shapes};
use nt::Nt;
use std::sync::Mutex;
use std::time::Instant;
use tables::Tables;
use unwind::Described;
use windows_sys::Win32::System::Memory::PAGE_EXECUTE_READ;
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetProcessMitigationPolicy, ProcessUserShadowStackPolicy,
};

/// How long threads are waited for that stand where they are to leave.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often handlers are looked at meanwhile.
const PAUSE: Duration = Duration::from_micros(200);

/// What a processor or a system lacks: `ERROR_NOT_SUPPORTED` (winerror.h).
pub(crate) const NOT_SUPPORTED: i32 = 50;

/// Between its INT3 and the vectored handler a thread is in `ntdll.dll`, and only a record on its stack knows from where: no drain waits
/// for that. So it is answered whenever it comes.
static BREAKPOINTS: Breakpoints = Breakpoints::remembering();

/// The host for one's own process.
///
/// A process needs one: [`typed::with_process`](crate::typed::with_process) gives the one that typed detours use. Two that patch would take
/// each other's patches for original code; breakpoints are answered for the first one that needs them.
#[derive(Debug)]
pub struct WindowsProcess {
    number: u64,
    nt: &'static Nt,
    guarded: Guarded,
    /// What else is said when a page becomes executable again.
    flags: u32,
    /// The memory for slots: code that must not be detoured itself.
    arena: Arc<Mutex<Arena>>,
    described: Mutex<Described>,
    tables: Tables,
    pub(in crate::host) exports: Mutex<Exports>,
}

impl WindowsProcess {
    /// This process.
    ///
    /// # Errors
    /// [`Error::Host`] with the system's number if it lacks a function that is needed, or forbids dynamic code; [`Error::ShadowStack`] if
    /// threads have shadow stacks: a displaced call would not agree with them.
    pub fn new() -> Result<Self, Error> {
        if has_shadow_stack() {
            return Err(Error::ShadowStack);
        }
        let nt = Nt::get()?;
        let (guarded, flags) = (Guarded::find(nt)?, arena::flags()?);
        // The handler is called by the system from now on, whatever becomes of this host: the library that it is in stays.
        images::stay(trap::address());
        // Who comes to a page that is being written needs it, whether there are breakpoints or not.
        trap::install(nt)?;
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            number: COUNT.fetch_add(1, Ordering::Relaxed) + 1,
            nt,
            guarded,
            flags,
            arena: Arc::new(Mutex::new(Arena::new(nt, Holds::Slots))),
            described: Mutex::default(),
            tables: Tables::default(),
            exports: Mutex::new(Exports::new()),
        })
    }

    /// Takes no memory for slots any more that has one of the addresses from `first` to `last`, until something else is said: a program
    /// may want these for itself. What is taken stays. With `first` behind `last` there are none.
    pub fn keep_slots_out_of(&self, first: u64, last: u64) {
        lock(&self.arena).keep_out_of(first, last);
    }

    /// Allocates `len` bytes of memory within reach, writable and not executable, for code that somebody else writes: `VirtualFree` gives
    /// it back. Slots never come there. No more than 64 KiB.
    ///
    /// # Errors
    /// [`Error::NoSlot`] if there is no room.
    pub fn map_near(&self, len: usize, reach: Reach) -> Result<Span, Error> {
        lock(&self.arena).lend(len, reach)
    }

    /// Gives back what [`map_near`](Self::map_near) has made, and nobody uses.
    pub(in crate::host) fn unmap_near(span: Span) {
        arena::give_back(span);
    }

    /// Has a page of [`map_near`](Self::map_near) executed, and not written any more.
    ///
    /// # Safety
    /// The page is the caller's, and nobody writes there any more.
    pub(in crate::host) unsafe fn make_executable(&self, page: u64) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.nt.protect(page, PAGE, PAGE_EXECUTE_READ) }.map(drop).map_err(Error::Host)
    }

    /// The memory of this process.
    #[expect(clippy::unnecessary_wraps, reason = "elsewhere it may not be to be had")]
    pub(in crate::host) const fn memory(&self) -> Result<&impl super::process::pe::Memory, Error> {
        Ok(self.nt)
    }

    /// Replaces the offset at `place` if it is `expected`; gives what was found.
    pub(in crate::host) fn swap_offset(&self, place: u64, expected: u32, new: u32) -> Result<u32, Error> {
        pointer::swap_offset(self.nt, place, expected, new)
    }

    /// Makes ready what is needed before the first turn is taken. No process is a copy of another one here, so nothing is called around that.
    #[expect(clippy::unnecessary_wraps, reason = "elsewhere it may fail")]
    pub(crate) fn at_fork(
        _before: extern "C" fn(),
        _behind: extern "C" fn(),
        _behind_in_child: extern "C" fn(),
    ) -> Result<(), Error> {
        turn::prepare();
        Ok(())
    }

    /// In a process that is a copy of another one, which none is.
    pub(crate) const fn forked() {}

    /// Whether the calling thread is the only one of the process. Those that the system has started in it count, too.
    ///
    /// # Errors
    /// [`Error::Host`] if the kernel does not tell.
    pub fn is_single_threaded(&self) -> Result<bool, Error> {
        threads::only_this_one(self.nt)
    }

    /// Makes sure that no thread is in any of `places`, which are sorted and do not overlap: neither by its instruction
    /// pointer, nor by a register or a word of its stack. Each is suspended for that moment. Of the caller's own stack what is above `caller`
    /// counts, as [`stack_pointer`] said further up. Nothing is kept below a stack pointer here, so the `slots` among them count as the others do.
    ///
    /// # Errors
    /// [`Error::Inside`] if the calling thread is; [`Error::Busy`] with the number of other threads that still are when the time is
    /// up; [`Error::ThreadNotReached`].
    pub fn look(
        &self,
        caller: u64,
        places: &[Range<u64>],
        _slots: &[Range<u64>],
        until: Instant,
    ) -> Result<(), Error> {
        threads::look_above(self.nt, caller, places, until)
    }
}

impl Host for WindowsProcess {
    type Text = ProcessText;
    type View<'a> = ProcessView<'a>;
    type Slots = ProcessSlots;

    fn view(&self) -> Result<ProcessView<'_>, Error> {
        Ok(ProcessView::new(self))
    }

    fn slots(&self) -> ProcessSlots {
        ProcessSlots(Arc::clone(&self.arena))
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        memory::read(self.nt, address, bytes)
    }

    fn swap(&self, place: u64, expected: u64, new: u64) -> Result<u64, Error> {
        pointer::swap(self.nt, place, expected, new)
    }

    fn open_text(&self, spans: &[Span]) -> Result<ProcessText, Error> {
        ProcessText::open(self.nt, &self.guarded, self.flags, spans)
    }

    fn sync_cores(&self) {
        cores::sync(self.nt);
    }

    fn describe(&self, plan: &Plan) -> Result<(), Error> {
        lock(&self.described).of(self.nt, plan)
    }

    fn withdraw(&self, slot: u64) {
        lock(&self.described).withdraw(slot);
    }

    /// Beside other threads the patch changes one byte if it can. Where nobody runs meanwhile, or everybody is parked,
    /// slots are packed.
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
}

impl Exchange for WindowsProcess {
    type Prepared<'a> = Prepared<'a>;

    fn prepare<'a>(&self, writes: &'a [(u64, &'a [u8])]) -> Result<Prepared<'a>, Error> {
        Prepared::new(self, writes)
    }

    fn exchange(&self, prepared: Prepared<'_>) -> Result<(), Error> {
        prepared.exchange()
    }
}

impl BreakpointHook for WindowsProcess {
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
        trap::answer_for(&BREAKPOINTS);
        trap::install(self.nt)
    }
}

// SAFETY: a handler says that it runs before it reads the table of breakpoints: once those who ran have left, those of later see what was
// published before. Where boundaries are given every thread is looked at.
unsafe impl Quiesce for WindowsProcess {
    #[inline(never)]
    fn quiesce(&self, boundaries: &[u64]) -> Result<(), Error> {
        // One that was preempted in its handler has to be scheduled once.
        if !trap::wait_for_handlers(Instant::now() + PATIENCE, PAUSE) {
            return Err(Error::ThreadNotReached { thread: 0 });
        }
        threads::left_above(self.nt, stack_pointer(), boundaries, Instant::now() + PATIENCE)
    }
}

impl Rendezvous for WindowsProcess {
    #[inline(never)]
    fn rendezvous(&self, moves: &[Move], work: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error> {
        threads::park_above(self.nt, stack_pointer(), moves, work)
    }
}

impl Drain for WindowsProcess {
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
    /// Blocks of 64 KiB of the address space that hold the pages.
    pub blocks: usize,
}

impl ProcessSlots {
    /// How much memory is taken now.
    pub fn footprint(&self) -> Footprint {
        let arena = lock(&self.0);
        Footprint { bytes: arena.bytes(), pages: arena.pages(), blocks: arena.blocks() }
    }
}

/// Whether threads of this process have shadow stacks; where the system does not know of them they have none.
pub(crate) fn has_shadow_stack() -> bool {
    /// `EnableUserShadowStack` of `PROCESS_MITIGATION_USER_SHADOW_STACK_POLICY` (winnt.h).
    const ENABLED: u32 = 1;
    let mut policy = 0_u32;
    let to: *mut c_void = (&raw mut policy).cast();
    // SAFETY: a structure of four bytes, whose size is told.
    let known = unsafe {
        GetProcessMitigationPolicy(
            GetCurrentProcess(),
            ProcessUserShadowStackPolicy,
            to,
            size_of_val(&policy),
        )
    };
    known != 0 && policy & ENABLED != 0
}
