//! What can go wrong, with the address in it.

use core::fmt;
use kdetour_plan::Refusal;

/// Why nothing was attached, or nothing was detached. Unless said otherwise nothing has been written.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The target or the detour is null.
    Null,
    /// No function, import or export has the name that was asked for.
    UnknownSymbol,
    /// Nothing readable is at `address`.
    Unreadable {
        /// The first address that cannot be read.
        address: u64,
    },
    /// What is at `address` is not executable code.
    NotCode {
        /// The address.
        address: u64,
    },
    /// `address` is inside the function that begins at `entry`; only entries can be detoured.
    NotFunction {
        /// The address that was given.
        address: u64,
        /// The entry of the function that it is in; 0 if it is in none.
        entry: u64,
    },
    /// The environment forbids patching the code at `address`: a kernel's kprobe blacklist, code that the
    /// breakpoint path itself runs through, or kdetour's own.
    Forbidden {
        /// The address.
        address: u64,
    },
    /// The survey or the plan refuses.
    Refused(Refusal),
    /// The target is detoured already, and the attach did not ask to be chained; or by this very detour, with
    /// one place for the original; or by a detour of another kind, or one whose window shares bytes with this one's.
    AlreadyDetoured {
        /// The target's entry.
        target: u64,
    },
    /// The byte at `address` is not what it was at planning or attaching: somebody else wrote it.
    Changed {
        /// The first such byte.
        address: u64,
        /// What was expected there.
        expected: u8,
        /// What was found.
        found: u8,
    },
    /// The pointer at `address` leads elsewhere than it did at attaching: somebody else wrote it.
    PointerChanged {
        /// Where the pointer is.
        address: u64,
        /// Where it should lead.
        expected: u64,
        /// Where it leads.
        found: u64,
    },
    /// The pointer at `address` is null: there is no original that a detour could call.
    NullPointer {
        /// Where the pointer is.
        address: u64,
    },
    /// A pointer cannot be exchanged at one moment at `address`: that is no multiple of its size.
    Misaligned {
        /// The address.
        address: u64,
    },
    /// What is at `address` is code, or no data in which pointers are exchanged.
    NotData {
        /// The address.
        address: u64,
    },
    /// The pointer at `address` is of a procedure linkage table, and not bound yet: it leads to the loader's stub, which would
    /// write over a detour when the original is called.
    Unbound {
        /// Where the pointer is.
        address: u64,
    },
    /// No image of the name that was asked for is loaded, or its file is not to be had.
    UnknownImage,
    /// What lies at `address` is no PE image that this process could run, or its tables are damaged.
    NotImage {
        /// Where it should begin.
        address: u64,
    },
    /// The export leads to no function, but to the name at `address`: of another image's export.
    Forwarded {
        /// Where the name is.
        address: u64,
    },
    /// No slot is free within reach of the target.
    NoSlot {
        /// Start of the window.
        target: u64,
        /// Bytes needed.
        needed: usize,
    },
    /// The handle names no attached detour.
    NotAttached,
    /// A thread stands inside the window at `address`, or sleeps with a return address there; try again later.
    ThreadInWindow {
        /// The interior boundary.
        address: u64,
    },
    /// Calls are still inside the detour; it stays in memory. Try again later.
    Busy {
        /// How many.
        calls: u64,
    },
    /// The calling thread is itself inside the detour that it waits for.
    Inside,
    /// Somebody else is patching text right now; try again later.
    TextBusy,
    /// Threads are preempted anywhere here, and one that is exiting could stand in the window unseen by a
    /// rendezvous; commit live.
    Preemptible,
    /// The calling thread has a shadow stack, which would not agree with where a detour inside a function goes on.
    ShadowStack,
    /// There are other threads, or a kernel has other processors online, and [`Local`](crate::Protocol::Local) cannot run
    /// beside them.
    OtherThreads,
    /// What is mapped at `address` cannot be exchanged for a changed copy: the kernel's own pages, huge or sealed
    /// ones, or a security module forbids it; commit by another protocol.
    NotExchangeable {
        /// An address in it.
        address: u64,
    },
    /// A thread that meets a breakpoint would be killed, since it blocks SIGTRAP.
    TrapBlocked {
        /// The thread's number; 0 if it is not a thread that blocks it now, but a signal handler that will.
        thread: i32,
    },
    /// Somebody else has taken SIGTRAP's handler; on Windows, no vectored handler can be added. Or breakpoints are answered for
    /// another host of this process.
    TrapHandler,
    /// No debug register is free for `address`: there are four, for kdetour, debuggers and perf together.
    NoDebugRegister {
        /// Where the trap was to be.
        address: u64,
    },
    /// This machine, or its kernel, has no debug registers that could be used.
    DebugRegistersMissing,
    /// The kernel does not let this process use debug registers.
    DebugRegistersForbidden,
    /// A thread did not answer in time: it blocks the signal that asks, is stopped, or the machine is busy.
    ThreadNotReached {
        /// The thread's number.
        thread: i32,
    },
    /// The call is made at an interrupt request level at which it must not be made (Windows drivers). Nothing has been done.
    Irql {
        /// The level at which it was made.
        now: u8,
        /// The highest level at which it may be made.
        most: u8,
    },
    /// Some processors did not park in time; nothing was written.
    ProcessorNotReached {
        /// How many.
        missing: usize,
    },
    /// The code at `address` is under the care of kernel patch protection (PatchGuard): a change of it stops the machine.
    PatchGuard {
        /// The address.
        address: u64,
    },
    /// The hypervisor protects the integrity of all kernel code (HVCI): none of it can be written.
    CodeIntegrity,
    /// The code at `address` is in session space: it is not the same, or not there, in every process.
    SessionSpace {
        /// The address.
        address: u64,
    },
    /// The code at `address` is thrown away when its driver has been initialized, and may be gone.
    Discardable {
        /// The address.
        address: u64,
    },
    /// The code at `address` is pageable: the page would come back from its file, without the patch.
    Pageable {
        /// The address.
        address: u64,
    },
    /// A thread may have been preempted at `address`, inside the window, and this environment has nothing by which one could wait
    /// until it has left. The caller may accept that: [`Preempted`](crate::commit::Preempted).
    NoGracePeriod {
        /// The first interior boundary.
        address: u64,
    },
    /// No memory.
    OutOfMemory,
    /// The environment refused: its error number.
    Host(i32),
}

impl Error {
    /// The address that the error is about; 0 if there is none.
    pub const fn address(&self) -> u64 {
        match *self {
            Self::Unreadable { address }
            | Self::NotCode { address }
            | Self::NotFunction { address, .. }
            | Self::Forbidden { address }
            | Self::Changed { address, .. }
            | Self::PointerChanged { address, .. }
            | Self::NullPointer { address }
            | Self::Misaligned { address }
            | Self::NotData { address }
            | Self::Unbound { address }
            | Self::NotImage { address }
            | Self::Forwarded { address }
            | Self::NotExchangeable { address }
            | Self::NoDebugRegister { address }
            | Self::PatchGuard { address }
            | Self::SessionSpace { address }
            | Self::Discardable { address }
            | Self::Pageable { address }
            | Self::NoGracePeriod { address }
            | Self::ThreadInWindow { address } => address,
            Self::AlreadyDetoured { target } | Self::NoSlot { target, .. } => target,
            Self::Refused(ref refusal) => refusal.address(),
            Self::Null
            | Self::UnknownSymbol
            | Self::UnknownImage
            | Self::NotAttached
            | Self::Busy { .. }
            | Self::Inside
            | Self::TextBusy
            | Self::Preemptible
            | Self::ShadowStack
            | Self::OtherThreads
            | Self::TrapBlocked { .. }
            | Self::TrapHandler
            | Self::DebugRegistersMissing
            | Self::DebugRegistersForbidden
            | Self::ThreadNotReached { .. }
            | Self::Irql { .. }
            | Self::ProcessorNotReached { .. }
            | Self::CodeIntegrity
            | Self::OutOfMemory
            | Self::Host(_) => 0,
        }
    }
}

impl Error {
    /// The variant's name; a refusal's own.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Null => "Null",
            Self::UnknownSymbol => "UnknownSymbol",
            Self::Unreadable { .. } => "Unreadable",
            Self::NotCode { .. } => "NotCode",
            Self::NotFunction { .. } => "NotFunction",
            Self::Forbidden { .. } => "Forbidden",
            Self::Refused(refusal) => refusal.name(),
            Self::AlreadyDetoured { .. } => "AlreadyDetoured",
            Self::Changed { .. } => "Changed",
            Self::PointerChanged { .. } => "PointerChanged",
            Self::NullPointer { .. } => "NullPointer",
            Self::Misaligned { .. } => "Misaligned",
            Self::NotData { .. } => "NotData",
            Self::Unbound { .. } => "Unbound",
            Self::UnknownImage => "UnknownImage",
            Self::NotImage { .. } => "NotImage",
            Self::Forwarded { .. } => "Forwarded",
            Self::NoSlot { .. } => "NoSlot",
            Self::NotAttached => "NotAttached",
            Self::ThreadInWindow { .. } => "ThreadInWindow",
            Self::Busy { .. } => "Busy",
            Self::Inside => "Inside",
            Self::TextBusy => "TextBusy",
            Self::Preemptible => "Preemptible",
            Self::ShadowStack => "ShadowStack",
            Self::OtherThreads => "OtherThreads",
            Self::NotExchangeable { .. } => "NotExchangeable",
            Self::TrapBlocked { .. } => "TrapBlocked",
            Self::TrapHandler => "TrapHandler",
            Self::NoDebugRegister { .. } => "NoDebugRegister",
            Self::DebugRegistersMissing => "DebugRegistersMissing",
            Self::DebugRegistersForbidden => "DebugRegistersForbidden",
            Self::ThreadNotReached { .. } => "ThreadNotReached",
            Self::Irql { .. } => "Irql",
            Self::ProcessorNotReached { .. } => "ProcessorNotReached",
            Self::PatchGuard { .. } => "PatchGuard",
            Self::CodeIntegrity => "CodeIntegrity",
            Self::SessionSpace { .. } => "SessionSpace",
            Self::Discardable { .. } => "Discardable",
            Self::Pageable { .. } => "Pageable",
            Self::NoGracePeriod { .. } => "NoGracePeriod",
            Self::OutOfMemory => "OutOfMemory",
            Self::Host(_) => "Host",
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<alloc::collections::TryReserveError> for Error {
    fn from(_: alloc::collections::TryReserveError) -> Self {
        Self::OutOfMemory
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Null => f.write_str("the target or the detour is null"),
            Self::UnknownSymbol => f.write_str("no function, import or export has this name"),
            Self::Unreadable { address } => write!(f, "nothing can be read at {address:#x}"),
            Self::NotCode { address } => write!(f, "{address:#x} is not executable code"),
            Self::NotFunction { address, entry: 0 } => write!(f, "{address:#x} is in no known function"),
            Self::NotFunction { address, entry } => {
                write!(f, "{address:#x} is inside the function at {entry:#x}, not its entry")
            }
            Self::Forbidden { address } => write!(f, "{address:#x} must not be patched: {FORBIDDEN}"),
            Self::Refused(ref refusal) => write!(f, "refused: {refusal}"),
            Self::AlreadyDetoured { target } => {
                write!(f, "{target:#x} is already detoured; detach that first, or ask for a chain of different detours of one kind")
            }
            Self::Changed { address, expected, found } => write!(
                f,
                "the byte at {address:#x} is {found:02x} and should be {expected:02x}: somebody else wrote it; \
                 remove the other probe first"
            ),
            Self::PointerChanged { address, expected, found } => write!(
                f,
                "the pointer at {address:#x} is {found:#x} and should be {expected:#x}: somebody else wrote it; \
                 remove the other hook first"
            ),
            Self::NullPointer { address } => {
                write!(f, "the pointer at {address:#x} is null: there is no original to call")
            }
            Self::Misaligned { address } => {
                write!(f, "{address:#x} is no place for a pointer: it is no multiple of {}", size_of::<usize>())
            }
            Self::NotData { address } => write!(f, "{address:#x} is no place for a pointer: {NOT_DATA}"),
            Self::Unbound { address } => {
                write!(f, "the pointer at {address:#x} is not bound yet: it leads to the loader's stub; look for the import first")
            }
            Self::UnknownImage => f.write_str("no image of this name is loaded, or its file is not to be had"),
            Self::NotImage { address } => {
                write!(f, "{address:#x} is not the base of a PE image for this processor, or its tables are damaged")
            }
            Self::Forwarded { address } => {
                write!(f, "the export is forwarded: at {address:#x} is the name of another image's; detour that one")
            }
            Self::NoSlot { target, needed } => {
                write!(f, "no slot of {needed} bytes is free within reach of {target:#x}")
            }
            Self::NotAttached => f.write_str("this detour is not attached"),
            Self::ThreadInWindow { address } => {
                write!(f, "a thread stands at {address:#x}, inside the window; try again, or commit live")
            }
            Self::Busy { calls } => {
                write!(f, "at least {calls} calls or threads are still inside; nothing of that is freed, try again later")
            }
            Self::Inside => f.write_str("this thread is inside the detour whose calls it would wait for"),
            Self::TextBusy => f.write_str(TEXT_BUSY),
            Self::Preemptible => f.write_str(
                "this kernel preempts tasks anywhere (preempt=full, PREEMPT_RT), and a rendezvous could miss one; commit live",
            ),
            Self::ShadowStack => f.write_str(SHADOW_STACK),
            Self::OtherThreads => f.write_str(OTHERS),
            Self::NotExchangeable { address } => {
                write!(f, "the page at {address:#x} cannot be exchanged; commit by another protocol")
            }
            Self::TrapBlocked { thread: 0 } => {
                f.write_str("a signal handler blocks SIGTRAP: a thread in it that met a breakpoint would be killed")
            }
            Self::TrapBlocked { thread } => {
                write!(f, "thread {thread} blocks SIGTRAP: if it met a breakpoint it would be killed")
            }
            Self::TrapHandler => f.write_str(TRAP_HANDLER),
            Self::NoDebugRegister { address } => {
                write!(f, "no debug register is free for {address:#x}: there are four, for debuggers and perf too")
            }
            Self::DebugRegistersMissing => f.write_str(
                "this machine or its kernel has no debug registers that could be used; take a jump or a breakpoint",
            ),
            Self::DebugRegistersForbidden => f.write_str(
                "the kernel does not let this process use debug registers: kernel.perf_event_paranoid is above 2, or a \
                 sandbox forbids perf_event_open",
            ),
            Self::ThreadNotReached { thread: 0 } => {
                f.write_str("a thread that has met a breakpoint was not scheduled in time: the machine is busy")
            }
            Self::ThreadNotReached { thread } => {
                write!(f, "thread {thread} did not answer in time: it blocks signals, is stopped, or the machine is busy")
            }
            Self::Irql { now, most } => {
                write!(f, "this was called at IRQL {now}, and may be called at {most} at the most; nothing was done")
            }
            Self::ProcessorNotReached { missing } => {
                write!(f, "{missing} processors did not park in time: something holds them up; try again")
            }
            Self::PatchGuard { address } => write!(
                f,
                "{address:#x} is guarded by kernel patch protection, which would stop the machine; nothing of kdetour gets round that"
            ),
            Self::CodeIntegrity => f.write_str(
                "the hypervisor protects all kernel code here (HVCI, memory integrity): none of it can be patched",
            ),
            Self::SessionSpace { address } => {
                write!(f, "{address:#x} is in session space, and is not the same code in every process")
            }
            Self::Discardable { address } => {
                write!(f, "{address:#x} is code that is thrown away once its driver is initialized")
            }
            Self::Pageable { address } => {
                write!(f, "{address:#x} is pageable code: a patch would be lost when the page is read in again")
            }
            Self::NoGracePeriod { address } => write!(
                f,
                "a thread may have been preempted at {address:#x}, inside the window, and nothing here can wait for it; detour \
                 another function, or accept the risk"
            ),
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::Host(code) => write!(f, "the environment refused with error {code}"),
        }
    }
}

impl core::error::Error for Error {}

/// Where no pointer is exchanged.
const NOT_DATA: &str = if cfg!(feature = "linux-process") {
    "its page is executable"
} else if cfg!(all(windows, feature = "windows-process")) {
    "pointers are not exchanged in Windows processes yet"
} else {
    "it is not in the data of the kernel or of a module"
};

/// What the environment forbids.
const FORBIDDEN: &str = if cfg!(feature = "linux-process") {
    "it is in a shared or sealed mapping, or one of kdetour's own slots"
} else if cfg!(all(windows, feature = "windows-process")) {
    "it is in ntdll.dll, in a shared mapping, or kdetour's own"
} else {
    "it is on the kprobe blacklist, entry, idle or init code, going, or kdetour's own"
};

/// Why breakpoints would not be answered.
const TRAP_HANDLER: &str = if cfg!(all(windows, feature = "windows-process")) {
    "breakpoints are answered for another host of this process, or no vectored handler can be added"
} else {
    "somebody else has taken the handler of SIGTRAP"
};

/// Who is in the way.
const TEXT_BUSY: &str = if cfg!(any(feature = "linux-process", all(windows, feature = "windows-process"))) {
    "this thread is inside kdetour already, or others patch without a pause; try again, outside of the detour"
} else {
    "somebody else is patching text; try again"
};

/// Who has a shadow stack.
const SHADOW_STACK: &str = if cfg!(any(feature = "linux-process", all(windows, feature = "windows-process")))
{
    "this thread has a shadow stack, which would not agree with where the detour goes on; start the program without it"
} else {
    "threads have shadow stacks in the kernel here, which would not agree with where a displaced call goes on"
};

/// Whom the local protocol cannot run beside.
const OTHERS: &str = if cfg!(any(feature = "linux-process", all(windows, feature = "windows-process"))) {
    "other threads are running; the local protocol needs the caller's promise"
} else {
    "other processors are online, which the local protocol cannot run beside; commit live"
};

/// Which of a session's changes failed, and why. All of them have been undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionError {
    /// Position of the change in the session, in the order in which the changes were added.
    pub index: usize,
    /// Why.
    pub error: Error,
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "change {}: {}", self.index, self.error)
    }
}

impl core::error::Error for SessionError {}

/// Why, without the position: for `?` inside of [`with_process`](crate::typed::with_process).
impl From<SessionError> for Error {
    fn from(failed: SessionError) -> Self {
        failed.error
    }
}
