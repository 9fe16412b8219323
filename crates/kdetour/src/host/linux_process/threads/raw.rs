//! The system calls that a signal handler needs, and what the kernel hands to it.
//!
//! Written out here, since a handler must not call a function of libc: it may be detoured, and the thread may have
//! been interrupted inside of it. No error number is stored anywhere, so there is none to be saved.

use super::super::arch::{self, call};
use crate::address::{narrow, widen};
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU32;
use rustix::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use rustix::io::Errno;

pub(in crate::host::linux_process) use super::super::arch::{Context, Info, restorer};

pub(in crate::host::linux_process) const SIGTRAP: i32 = 5;
pub(in crate::host::linux_process) const SIGURG: i32 = 23;
/// The last signal (signal(7)).
pub(in crate::host::linux_process) const SIGNALS: i32 = 64;

pub(in crate::host::linux_process) const SA_SIGINFO: usize = 4;
pub(in crate::host::linux_process) const SA_RESTORER: usize = 0x0400_0000;
pub(in crate::host::linux_process) const SA_ONSTACK: usize = 0x0800_0000;
pub(in crate::host::linux_process) const SA_RESTART: usize = 0x1000_0000;
pub(in crate::host::linux_process) const SA_NODEFER: usize = 0x4000_0000;
pub(in crate::host::linux_process) const SA_RESETHAND: usize = 0x8000_0000;
pub(in crate::host::linux_process) const SIG_DFL: usize = 0;
pub(in crate::host::linux_process) const SIG_IGN: usize = 1;
/// `si_code` of what `sigqueue` sends.
pub(in crate::host::linux_process) const SI_QUEUE: i32 = -1;

/// The bit of a signal in a set.
pub(in crate::host::linux_process) const fn bit(signal: i32) -> u64 {
    1 << ((signal.wrapping_sub(1)) & 63)
}

/// The kernel's `struct sigaction`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::host::linux_process) struct Action {
    pub(in crate::host::linux_process) handler: usize,
    pub(in crate::host::linux_process) flags: usize,
    pub(in crate::host::linux_process) restorer: usize,
    pub(in crate::host::linux_process) mask: u64,
}

/// The kernel's `struct perf_event_attr`, as long as Linux 5.13 knows it (`PERF_ATTR_SIZE_VER7`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(in crate::host::linux_process) struct Event {
    kind: u32,
    size: u32,
    config: u64,
    period: u64,
    sampled: u64,
    read: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    address: u64,
    len: u64,
    unused: [u64; 6],
    /// What the signal has as its data.
    data: u64,
}

impl Event {
    /// A SIGTRAP in front of each execution of the instruction at `address` in user mode; also in threads that are started later.
    pub(in crate::host::linux_process) const fn execution_of(address: u64, data: u64) -> Self {
        const PERF_TYPE_BREAKPOINT: u32 = 5;
        const HW_BREAKPOINT_X: u32 = 4;
        const INHERIT: u64 = 1 << 1;
        const EXCLUDE_KERNEL: u64 = 1 << 5;
        const EXCLUDE_HYPERVISOR: u64 = 1 << 6;
        const INHERIT_THREAD: u64 = 1 << 35;
        const REMOVE_ON_EXEC: u64 = 1 << 36;
        const SIGTRAP: u64 = 1 << 37;
        Self {
            kind: PERF_TYPE_BREAKPOINT,
            size: size_of::<Self>() as u32,
            config: 0,
            period: 1,
            sampled: 0,
            read: 0,
            flags: INHERIT | EXCLUDE_KERNEL | EXCLUDE_HYPERVISOR | INHERIT_THREAD | REMOVE_ON_EXEC | SIGTRAP,
            wakeup: 0,
            breakpoint: HW_BREAKPOINT_X,
            address,
            len: 0,
            unused: [0; 6],
            data,
        }
    }
}

const _: () = assert!(size_of::<Event>() == 128);

/// What a handler looks like that was installed with `SA_SIGINFO`.
pub(in crate::host::linux_process) type Handler = unsafe extern "C" fn(i32, *mut Info, *mut Context);

fn answer(result: isize) -> Result<usize, Errno> {
    let error = || i32::try_from(result.wrapping_neg()).unwrap_or(i32::MAX);
    usize::try_from(result).map_err(|_| Errno::from_raw_os_error(error()))
}

const fn argument(value: i32) -> usize {
    // Sign-extended, as the kernel does it.
    (value as isize).cast_unsigned()
}

pub(in crate::host::linux_process) fn thread() -> i32 {
    // SAFETY: it has no arguments.
    unsafe { call(arch::NR_GETTID, [0; 6]) as i32 }
}

pub(in crate::host::linux_process) fn process() -> i32 {
    // SAFETY: it has no arguments.
    unsafe { call(arch::NR_GETPID, [0; 6]) as i32 }
}

pub(in crate::host::linux_process) fn user() -> u32 {
    // SAFETY: it has no arguments.
    unsafe { call(arch::NR_GETUID, [0; 6]) as u32 }
}

/// What happens at a signal now.
pub(in crate::host::linux_process) fn action(signal: i32) -> Result<Action, Errno> {
    let mut old = Action::default();
    let to = &raw mut old;
    // SAFETY: no new action is given, and the old one goes to where there is room for it.
    answer(unsafe { call(arch::NR_RT_SIGACTION, [argument(signal), 0, to.expose_provenance(), 8, 0, 0]) })?;
    Ok(old)
}

/// Says what is to happen at a signal, and returns what happened before.
///
/// # Safety
/// The action's handler may run in any thread at any moment from now on.
pub(in crate::host::linux_process) unsafe fn set_action(signal: i32, new: &Action) -> Result<Action, Errno> {
    let mut old = Action::default();
    let (from, to) = (&raw const *new, &raw mut old);
    let arguments = [argument(signal), from.expose_provenance(), to.expose_provenance(), 8, 0, 0];
    // SAFETY: the caller answers for the handler; both pointers are to actions of ours.
    answer(unsafe { call(arch::NR_RT_SIGACTION, arguments) })?;
    Ok(old)
}

/// Sets which signals the calling thread blocks.
pub(in crate::host::linux_process) fn set_mask(mask: u64) {
    const SIG_SETMASK: usize = 2;
    let from = &raw const mask;
    // SAFETY: the set is 8 bytes long, and no old one is asked for.
    let _ = unsafe { call(arch::NR_RT_SIGPROCMASK, [SIG_SETMASK, from.expose_provenance(), 0, 8, 0, 0]) };
}

/// Sends a signal with its information to a thread of this process.
pub(in crate::host::linux_process) fn send(thread: i32, info: &Info) -> Result<(), Errno> {
    let from = (&raw const *info).expose_provenance();
    let arguments = [argument(process()), argument(thread), argument(info.signal), from, 0, 0];
    // SAFETY: the information is 128 bytes long, as the kernel reads it.
    answer(unsafe { call(arch::NR_RT_TGSIGQUEUEINFO, arguments) }).map(|_| ())
}

/// How long a thread of this process has run, in nanoseconds; none if there is no such thread. What it has used up to now is
/// counted, unlike in `/proc`.
pub(in crate::host::linux_process) fn processor_time(thread: i32) -> Option<u64> {
    // include/linux/posix-timers_types.h: the complement of the number, above the bits for a thread and its scheduled time.
    const OF_A_THREAD: i32 = 4;
    const SCHEDULED: i32 = 2;
    let clock = !thread << 3 | OF_A_THREAD | SCHEDULED;
    let mut time = [0_usize; 2];
    let to = &raw mut time;
    // SAFETY: a `struct timespec` is two words, and there is room for them.
    answer(unsafe { call(arch::NR_CLOCK_GETTIME, [argument(clock), to.expose_provenance(), 0, 0, 0, 0]) })
        .ok()?;
    let [seconds, nanoseconds] = time.map(widen);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

/// Sleeps as long as the word has this value, or shorter.
pub(in crate::host::linux_process) fn wait(word: &AtomicU32, value: u32) {
    const FUTEX_WAIT_PRIVATE: usize = 128;
    let address = word.as_ptr().expose_provenance();
    // SAFETY: the word stays where it is while it is borrowed; there is no time-out to be read.
    let _ = unsafe { call(arch::NR_FUTEX, [address, FUTEX_WAIT_PRIVATE, value as usize, 0, 0, 0]) };
}

/// Wakes all who wait for the word to change.
pub(in crate::host::linux_process) fn wake(word: &AtomicU32) {
    const FUTEX_WAKE_PRIVATE: usize = 129;
    let address = word.as_ptr().expose_provenance();
    // SAFETY: the word is there; nothing of it is changed.
    let _ = unsafe { call(arch::NR_FUTEX, [address, FUTEX_WAKE_PRIVATE, i32::MAX as usize, 0, 0, 0]) };
}

/// Opens an event of one thread.
pub(in crate::host::linux_process) fn open_event(event: &Event, thread: i32) -> Result<OwnedFd, Errno> {
    const ON_ANY_PROCESSOR: i32 = -1;
    const NO_GROUP: i32 = -1;
    const PERF_FLAG_FD_CLOEXEC: usize = 8;
    let (processor, group) = (argument(ON_ANY_PROCESSOR), argument(NO_GROUP));
    let mut opened = Err(Errno::INVAL);
    for &len in arch::EVENT_LENGTHS {
        let event = Event { len, ..*event };
        let from = (&raw const event).expose_provenance();
        let arguments = [from, argument(thread), processor, group, PERF_FLAG_FD_CLOEXEC, 0];
        // SAFETY: the event is as long as it says.
        opened = answer(unsafe { call(arch::NR_PERF_EVENT_OPEN, arguments) });
        if opened != Err(Errno::INVAL) {
            break;
        }
    }
    let file = opened?;
    let file = i32::try_from(file).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just opened it, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

/// Nobody meets an event any more, whoever has a copy of its file.
pub(in crate::host::linux_process) fn disable_event(event: &OwnedFd) {
    const PERF_EVENT_IOC_DISABLE: usize = 0x2401;
    // SAFETY: it has no argument but 0: the event alone, and those that were inherited from it.
    let _ =
        unsafe { call(arch::NR_IOCTL, [argument(event.as_raw_fd()), PERF_EVENT_IOC_DISABLE, 0, 0, 0, 0]) };
}

/// Copies memory of this process, which need not be there, and says whether it was.
///
/// # Safety
/// `to` has room for `len` bytes.
pub(in crate::host::linux_process) unsafe fn read(address: u64, to: *mut u8, len: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { read_some(address, to, len) == Ok(len) }
}

/// Copies as much of the memory of this process as there is, by process_vm_readv(2), and says how much. The kernel asks for no
/// permission where the memory is the caller's own.
///
/// # Safety
/// `to` has room for `len` bytes.
pub(in crate::host::linux_process) unsafe fn read_some(
    address: u64,
    to: *mut u8,
    len: usize,
) -> Result<usize, Errno> {
    if widen(narrow(address)) != address {
        return Err(Errno::FAULT);
    }
    let (local, remote) = ([to.expose_provenance(), len], [narrow(address), len]);
    let local = (&raw const local).expose_provenance();
    let remote = (&raw const remote).expose_provenance();
    // A thread's number serves as well as the process's, and a thread may always read its own memory.
    let arguments = [argument(thread()), local, 1, remote, 1, 0];
    // SAFETY: what is written is `to`, for which the caller answers; what is read the kernel checks.
    answer(unsafe { call(arch::NR_PROCESS_VM_READV, arguments) })
}

/// A number, or an array of them, in this process's memory.
pub(in crate::host::linux_process) fn value<T: Copy>(address: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: that is its size.
    let is_read = unsafe { read(address, value.as_mut_ptr().cast(), size_of::<T>()) };
    // SAFETY: it has been read; only integers, and arrays of them, are asked for.
    is_read.then(|| unsafe { value.assume_init() })
}
