//! A Linux kernel, from inside `kdetour.ko`.
//!
//! Everything here is a call into the module's C half (`kernel/linux/host.c`), which uses exported symbols only,
//! and a few more that it looks up by name when it is loaded. Text is written through a vmap alias; breakpoints
//! arrive through the die notifier; cores are synchronised by IPI; the quiesce is `synchronize_rcu_tasks`, the
//! rendezvous `stop_machine` with a look at every task's stack; slots lie in the module's own text.

use super::{
    BreakpointHook, Drain, Function, Host, MAX_PARTS, NotSet, Quiesce, Rendezvous, Solo, Span, Text, View,
};
use crate::Error;
use crate::commit::breakpoints::Breakpoints;
use crate::commit::{Move, Protocol};
use crate::slots::{SlotMemory, Slots};
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;
use kdetour_plan::{Mode, Options, Owner, Reach, Refusal, Reserved, Shape, Shapes};

const PAGE: u64 = 4096;
/// -ENOMEM.
const NO_MEMORY: i32 = -12;
/// -ENODEV, -ENOSPC, -EOPNOTSUPP.
const NO_DEVICE: i32 = -19;
const NO_SPACE: i32 = -28;
const NOT_SUPPORTED: i32 = -95;

/// What the C half knows about a function: `struct kd_function` of `kernel/linux/host.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawFunction {
    entry: u64,
    length: u64,
    fentry: u64,
    next_symbol: u64,
    image_start: u64,
    image_end: u64,
    reserved_count: u32,
    part_count: u32,
    landing_count: u32,
    unused: u32,
    reserved: [RawReserved; 8],
    parts: [RawPart; MAX_PARTS],
    landings: [u64; 8],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawPart {
    address: u64,
    len: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawReserved {
    address: u64,
    len: u32,
    owner: u32,
}

const _: () = assert!(size_of::<RawFunction>() == 8 * 8 + 8 * 16 + MAX_PARTS * 16 + 8 * 8);

/// Answers of `kd_host_function`, `enum kd_host_answer` of `kernel/linux/host.h`.
mod answer {
    pub(super) const OK: i32 = 0;
    pub(super) const UNREADABLE: i32 = 1;
    pub(super) const NOT_CODE: i32 = 2;
    pub(super) const NOT_FUNCTION: i32 = 3;
    pub(super) const FORBIDDEN: i32 = 4;
    pub(super) const THREAD_IN_WINDOW: i32 = 5;
    pub(super) const TEXT_BUSY: i32 = 6;
    pub(super) const WORK_FAILED: i32 = 7;
    pub(super) const PREEMPTIBLE: i32 = 8;
    pub(super) const OTHER_PROCESSORS: i32 = 9;
    pub(super) const MISALIGNED: i32 = 10;
    pub(super) const NOT_DATA: i32 = 11;
}

// The C half of kdetour.ko; each is documented in kernel/linux/host.h.
unsafe extern "C" {
    fn kd_host_read(address: u64, to: *mut u8, len: usize) -> i32;
    fn kd_host_read_code(address: u64, to: *mut u8, len: usize) -> i32;
    fn kd_host_function(target: u64, function: *mut RawFunction) -> i32;
    fn kd_host_detour(detour: u64) -> i32;
    fn kd_host_pointer(place: u64, leads_to: *mut u64) -> i32;
    fn kd_host_swap(place: u64, expected: u64, new: u64, found: *mut u64) -> i32;
    fn kd_host_kprobe(address: u64, len: usize) -> u64;
    fn kd_host_map(pages: *const u64, count: usize) -> *mut u8;
    fn kd_host_unmap(alias: *mut u8);
    fn kd_host_sync_cores();
    fn kd_host_lock_text();
    fn kd_host_unlock_text();
    fn kd_host_quiesce();
    fn kd_host_set_register(address: u64) -> i32;
    fn kd_host_clear_register(address: u64);
    fn kd_host_in_flight(counter: u64) -> u64;
    fn kd_host_slab(len: *mut usize) -> u64;
    fn kd_host_slab_back(start: u64) -> bool;
    fn kd_host_landing_pads() -> bool;
    fn kd_host_rendezvous(boundaries: *const u64, count: usize, work: *mut c_void, place: *mut u64) -> i32;
    fn kd_host_solo(boundaries: *const u64, count: usize, work: *mut c_void, place: *mut u64) -> i32;
}

/// How the C half runs a piece of work where nobody else runs: `kd_host_rendezvous` or `kd_host_solo`.
type Meet = unsafe extern "C" fn(*const u64, usize, *mut c_void, *mut u64) -> i32;

static BREAKPOINTS: Breakpoints = Breakpoints::new();

/// Where a thread goes on that has met an INT3 at `at`, or trapped there by a debug register; 0 if it is none of ours. Called by the
/// die notifier and by perf: any context, interrupts off.
#[unsafe(no_mangle)]
pub extern "C" fn kd_breakpoint(at: u64) -> u64 {
    BREAKPOINTS.resume(at).unwrap_or(0)
}

/// The work of a rendezvous, as the C half hands it back.
struct Work<'a> {
    work: &'a mut dyn FnMut() -> Result<(), Error>,
    outcome: Result<(), Error>,
}

/// Runs the work of a rendezvous: on one processor, all others parked, interrupts off. 0 if it succeeded.
///
/// # Safety
/// `work` is the pointer that was given to the `kd_host_rendezvous` or `kd_host_solo` that calls this, before it returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_rendezvous_work(work: *mut c_void) -> i32 {
    // SAFETY: by the caller's word it is the `Work` on the stack of `meet` below, which waits meanwhile and
    // touches it only afterwards.
    let work = unsafe { &mut *work.cast::<Work<'_>>() };
    work.outcome = (work.work)();
    i32::from(work.outcome.is_err())
}

/// The running kernel.
#[derive(Debug)]
pub struct LinuxKernel(());

impl LinuxKernel {
    /// The running kernel.
    ///
    /// # Safety
    /// The code is linked into a module whose C half has finished `kd_lookup_init`, and that exists only once.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

impl Host for LinuxKernel {
    type Text = KernelText;
    type View<'a> = &'a Self;
    type Slots = KernelSlots;

    fn view(&self) -> Result<&Self, Error> {
        Ok(self)
    }

    fn slots(&self) -> KernelSlots {
        KernelSlots(Slots::new())
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        read(address, bytes)
    }

    fn contested(&self, span: Span) -> Result<(), Error> {
        // SAFETY: looks an address up, in any context.
        match unsafe { kd_host_kprobe(span.address, span.len) } {
            0 => Ok(()),
            address => Err(Refusal::Reserved { address, owner: Owner::Kprobe }.into()),
        }
    }

    fn swap(&self, place: u64, expected: u64, new: u64) -> Result<u64, Error> {
        let mut found = 0;
        // SAFETY: `found` is writable; the place is one that was accepted when its detour was attached, by a client
        // that says that it stays.
        let answer = unsafe { kd_host_swap(place, expected, new, &raw mut found) };
        if answer == answer::OK { Ok(found) } else { Err(place_error(answer, place)) }
    }

    fn open_text(&self, spans: &[Span]) -> Result<KernelText, Error> {
        let mut pages: Vec<u64> = Vec::new();
        for span in spans.iter().filter(|span| span.len > 0) {
            let first = span.address & !(PAGE - 1);
            let last = span.address.saturating_add(span.len as u64 - 1) & !(PAGE - 1);
            let count = usize::try_from((last - first) / PAGE + 1).unwrap_or(usize::MAX);
            pages.try_reserve(count)?;
            pages.extend((first..=last).step_by(4096));
        }
        pages.sort_unstable();
        pages.dedup();
        if pages.is_empty() {
            return Ok(KernelText { pages, alias: ptr::null_mut() });
        }
        // SAFETY: the array holds `pages.len()` page addresses; what is not mapped is answered with null.
        let alias = unsafe { kd_host_map(pages.as_ptr(), pages.len()) };
        if alias.is_null() { Err(Error::OutOfMemory) } else { Ok(KernelText { pages, alias }) }
    }

    fn sync_cores(&self) {
        // SAFETY: callable wherever interrupts are on, which commits are.
        unsafe { kd_host_sync_cores() }
    }

    fn lock_text(&self) {
        // SAFETY: takes the kernel's text_mutex in process context; commits do not nest.
        unsafe { kd_host_lock_text() }
    }

    fn unlock_text(&self) {
        // SAFETY: only called after `lock_text`, by the same task.
        unsafe { kd_host_unlock_text() }
    }

    fn set_register(&self, address: u64) -> Result<(), NotSet> {
        // SAFETY: called in process context, with the module's mutex held and no other lock.
        let error = match unsafe { kd_host_set_register(address) } {
            0 => return Ok(()),
            NO_MEMORY => Error::OutOfMemory,
            NO_SPACE => Error::NoDebugRegister { address },
            NO_DEVICE | NOT_SUPPORTED => Error::DebugRegistersMissing,
            other => Error::Host(other),
        };
        // They are switched on when every processor has one.
        Err(NotSet { error, met: false })
    }

    fn clear_register(&self, address: u64) {
        // SAFETY: as above; any address is answered.
        unsafe { kd_host_clear_register(address) }
    }

    /// Slots lie where the module's text is, so no shape can be had for which their address matters.
    fn options(&self, _: Protocol) -> Options {
        let shapes = Shapes::NONE.with(Shape::WholeInstruction).with(Shape::Jump5);
        // SAFETY: answers a build-time constant.
        Options { landing_pad: unsafe { kd_host_landing_pads() }, shapes, ..Options::default() }
    }
}

impl View for &LinuxKernel {
    fn mode(&self) -> Mode {
        Mode::Bits64
    }

    /// What is under kprobes: one further in a function may hide a branch. One in a window is
    /// [reserved](Function::reserved), and [contested](Host::contested).
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        // SAFETY: `bytes` is writable for its length; a bad source address is answered, not followed.
        match unsafe { kd_host_read_code(address, bytes.as_mut_ptr(), bytes.len()) } {
            0 => Ok(()),
            _ => Err(Error::Unreadable { address }),
        }
    }

    fn function(&self, target: u64) -> Result<Function, Error> {
        let mut raw = MaybeUninit::<RawFunction>::zeroed();
        // SAFETY: `raw` is a `struct kd_function`; any target is answered.
        let answer = unsafe { kd_host_function(target, raw.as_mut_ptr()) };
        // SAFETY: all its fields are integers, for which zero is a value.
        let raw = unsafe { raw.assume_init_ref() };
        match answer {
            answer::OK => function(raw),
            answer::UNREADABLE => Err(Error::Unreadable { address: target }),
            answer::NOT_CODE => Err(Error::NotCode { address: target }),
            answer::NOT_FUNCTION => Err(Error::NotFunction { address: target, entry: raw.entry }),
            answer::FORBIDDEN => Err(Error::Forbidden { address: target }),
            NO_MEMORY => Err(Error::OutOfMemory),
            other => Err(Error::Host(other)),
        }
    }

    fn pointer(&self, place: u64) -> Result<u64, Error> {
        let mut function = 0;
        // SAFETY: any address is answered, and `function` is writable.
        match unsafe { kd_host_pointer(place, &raw mut function) } {
            answer::OK if function == 0 => Err(Error::NullPointer { address: place }),
            // A function that stays, of the kernel or of a module, as a detour is.
            answer::OK => self.detour(function).map(|()| function),
            answer => Err(place_error(answer, place)),
        }
    }

    fn detour(&self, detour: u64) -> Result<(), Error> {
        // SAFETY: any address is answered.
        match unsafe { kd_host_detour(detour) } {
            answer::OK => Ok(()),
            answer::FORBIDDEN => Err(Error::Forbidden { address: detour }),
            _ => Err(Error::NotCode { address: detour }),
        }
    }
}

/// The slots: part of the module's own text, and what other modules bring for it.
#[derive(Debug)]
pub struct KernelSlots(Slots);

impl KernelSlots {
    /// Bytes that slots take.
    pub fn bytes_in_use(&self) -> usize {
        self.0.bytes_in_use()
    }
}

impl SlotMemory for KernelSlots {
    fn near(&mut self, len: usize, reach: Reach) -> Option<Span> {
        if let Some(slot) = self.0.take(len, reach) {
            return Some(slot);
        }
        let mut size = 0;
        // SAFETY: `size` is writable. What is given is ours until it is given back.
        let address = unsafe { kd_host_slab(&raw mut size) };
        if address == 0 {
            return None;
        }
        if self.0.add(Span { address, len: size }).is_err() {
            // SAFETY: no slot was taken from it.
            unsafe { kd_host_slab_back(address) };
            return None;
        }
        self.0.take(len, reach)
    }

    fn trim(&mut self, slot: Span, len: usize) -> Span {
        self.0.trim(slot, len)
    }

    fn free(&mut self, slot: Span) {
        // SAFETY: no slot is in the area that is named.
        self.0.free(slot, |area| unsafe { kd_host_slab_back(area.address) });
    }
}

fn read(address: u64, bytes: &mut [u8]) -> Result<(), Error> {
    // SAFETY: `bytes` is writable for its length; a bad source address is answered, not followed.
    match unsafe { kd_host_read(address, bytes.as_mut_ptr(), bytes.len()) } {
        0 => Ok(()),
        _ => Err(Error::Unreadable { address }),
    }
}

/// What the C half says about the place of a pointer.
fn place_error(answer: i32, place: u64) -> Error {
    match answer {
        answer::UNREADABLE => Error::Unreadable { address: place },
        answer::MISALIGNED => Error::Misaligned { address: place },
        answer::NOT_DATA => Error::NotData { address: place },
        answer::FORBIDDEN => Error::Forbidden { address: place },
        NO_MEMORY => Error::OutOfMemory,
        other => Error::Host(other),
    }
}

fn function(raw: &RawFunction) -> Result<Function, Error> {
    let known = |address: u64| (address != 0).then_some(address);
    let mut reserved = ArrayVec::new();
    let count = usize::try_from(raw.reserved_count).unwrap_or(usize::MAX);
    for one in raw.reserved.iter().take(count) {
        let owner = match one.owner {
            0 => Owner::ExceptionTable,
            1 => Owner::JumpLabel,
            2 => Owner::StaticCall,
            3 => Owner::Alternative,
            4 => Owner::Ftrace,
            5 => Owner::BugTable,
            _ => Owner::Kprobe,
        };
        let _ = reserved.try_push(Reserved { address: one.address, len: one.len, owner });
    }
    let count = usize::try_from(raw.landing_count).unwrap_or(usize::MAX);
    let branch_targets = raw.landings.iter().copied().take(count).collect();
    let mut parts = Vec::new();
    parts.try_reserve_exact(MAX_PARTS)?;
    let count = usize::try_from(raw.part_count).unwrap_or(usize::MAX);
    for one in raw.parts.iter().take(count) {
        let len = usize::try_from(one.len).unwrap_or(usize::MAX);
        parts.push(Span { address: one.address, len });
    }
    Ok(Function {
        parts,
        length: usize::try_from(raw.length).ok().filter(|&length| length != 0),
        fentry: known(raw.fentry),
        next_symbol: known(raw.next_symbol),
        image: known(raw.image_start).map(|start| (start, raw.image_end)),
        gap: 0,
        dead: false,
        got: None,
        branch_targets,
        reserved,
    })
}

impl BreakpointHook for LinuxKernel {
    fn breakpoints(&self) -> &'static Breakpoints {
        &BREAKPOINTS
    }
}

// SAFETY: `synchronize_rcu_tasks` waits until every task has voluntarily given up its processor or run in user
// mode, and until every processor has passed a quiescent state: a task preempted inside a window, and a handler
// running with interrupts off, have both gone on by then.
unsafe impl Quiesce for LinuxKernel {
    fn quiesce(&self, _: &[u64]) -> Result<(), Error> {
        // SAFETY: called where sleeping is allowed.
        unsafe { kd_host_quiesce() };
        Ok(())
    }
}

impl Rendezvous for LinuxKernel {
    fn rendezvous(&self, moves: &[Move], work: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error> {
        meet(kd_host_rendezvous, moves, work)
    }
}

impl Solo for LinuxKernel {
    fn solo(&self, moves: &[Move], work: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error> {
        meet(kd_host_solo, moves, work)
    }
}

fn meet(by: Meet, moves: &[Move], work: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error> {
    let mut boundaries = Vec::new();
    boundaries.try_reserve_exact(moves.len())?;
    boundaries.extend(moves.iter().map(|one| one.at));
    let mut work = Work { work, outcome: Ok(()) };
    let mut place = 0;
    // SAFETY: `work` lives until the call returns and is touched by `kd_rendezvous_work` alone meanwhile; the
    // boundaries are readable for their count.
    let answer = unsafe {
        by(boundaries.as_ptr(), boundaries.len(), (&raw mut work).cast::<c_void>(), &raw mut place)
    };
    match answer {
        answer::OK => Ok(()),
        answer::THREAD_IN_WINDOW => Err(Error::ThreadInWindow { address: place }),
        answer::TEXT_BUSY => Err(Error::TextBusy),
        answer::PREEMPTIBLE => Err(Error::Preemptible),
        answer::OTHER_PROCESSORS => Err(Error::OtherThreads),
        answer::WORK_FAILED => work.outcome,
        other => Err(Error::Host(other)),
    }
}

impl Drain for LinuxKernel {
    unsafe fn in_flight(&self, counter: u64) -> u64 {
        // SAFETY: by the caller's word: the per-CPU counter that a client registered, which lives until its detour is gone.
        if counter == 0 { 0 } else { unsafe { kd_host_in_flight(counter) } }
    }
}

/// Pages of text, mapped once more, writable and not executable.
#[derive(Debug)]
pub struct KernelText {
    /// Sorted; page number `i` is at `alias + i * PAGE`.
    pages: Vec<u64>,
    alias: *mut u8,
}

impl Text for KernelText {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        read(address, bytes)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        for (at, &byte) in (address..).zip(bytes) {
            let page = at & !(PAGE - 1);
            let index = self.pages.binary_search(&page).map_err(|_| Error::Unreadable { address: at })?;
            let offset = index * 4096 + usize::try_from(at - page).unwrap_or(0);
            // SAFETY: the alias maps `pages.len()` pages writable, and `index` is one of them. Nobody else writes
            // through it; processors that fetch the bytes meanwhile are what the commit protocol is about.
            unsafe { self.alias.add(offset).write_volatile(byte) };
        }
        Ok(())
    }
}

impl Drop for KernelText {
    fn drop(&mut self) {
        if !self.alias.is_null() {
            // SAFETY: made by `kd_host_map`, unmapped once.
            unsafe { kd_host_unmap(self.alias) };
        }
    }
}
