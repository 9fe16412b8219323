//! The port to an environment.
//!
//! A host says what its environment can do by the traits that it implements: a [`commit`](crate::commit) that
//! needs a breakpoint only compiles against a host that has a [`BreakpointHook`]. A host knows no decoder and no
//! session.
//!
//! | host | environment | protocols |
//! |---|---|---|
//! | `linux_kernel::LinuxKernel` | a Linux kernel, from `kdetour.ko` | `Live`, `Rendezvous`, `Local` |
//! | `linux_process::LinuxProcess` | one's own process | `Exchange`, `Live`, `Rendezvous`, `Local` |
//! | `windows_process::WindowsProcess` | one's own process, on Windows | `Exchange`, `Live`, `Rendezvous`, `Local` |
//! | `windows_kernel::WindowsKernel` | a Windows kernel, from a driver | `Rendezvous` and `Local`, [without a look at threads](Park) |

use crate::Error;
use crate::commit::breakpoints::Breakpoints;
use crate::commit::{Move, Protocol};
use crate::slots::SlotMemory;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use kdetour_plan::{Mode, Options, Plan, Reserved};

#[cfg(any(feature = "windows-kernel", all(windows, feature = "windows-process")))]
mod image;
#[cfg(feature = "linux-kernel")]
pub mod linux_kernel;
#[cfg(feature = "linux-process")]
pub mod linux_process;
#[cfg(any(feature = "linux-process", all(windows, feature = "windows-process")))]
mod pe;
#[cfg(any(feature = "linux-process", all(windows, feature = "windows-process")))]
pub(crate) mod process;
#[cfg(feature = "windows-kernel")]
pub mod windows_kernel;
#[cfg(all(windows, feature = "windows-process"))]
pub mod windows_process;

/// A run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first byte.
    pub address: u64,
    /// How many bytes it has.
    pub len: usize,
}

impl Span {
    /// Its addresses.
    pub const fn range(&self) -> core::ops::Range<u64> {
        self.address..self.address.saturating_add(self.len as u64)
    }
}

/// The most pieces of a function besides the one at its entry. Symbols do not tell static functions of one name
/// apart, so the pieces of all of them count.
pub const MAX_PARTS: usize = 32;

/// What an environment knows about a function.
#[derive(Clone, Debug, Default)]
pub struct Function {
    /// How long it is, by its symbol's bounds.
    pub length: Option<usize>,
    /// Its own ftrace entry site.
    pub fentry: Option<u64>,
    /// Where the next symbol starts.
    pub next_symbol: Option<u64>,
    /// How many bytes in front of its entry are behind the end of whatever is in front of it; 0 if that is not known.
    pub gap: usize,
    /// Whether nothing runs through the gap, no-ops though it may be: it is there to be patched.
    pub dead: bool,
    /// First and one-past-last address of the image that it is in.
    pub image: Option<(u64, u64)>,
    /// Where the image's global offset table is: 32-bit code tells by it where jump tables are.
    pub got: Option<u64>,
    /// Other pieces of the function: the `.cold` part that a compiler moves away.
    pub parts: Vec<Span>,
    /// Addresses near its entry, but behind it, that other code jumps to or calls.
    pub branch_targets: ArrayVec<u64, 8>,
    /// Bytes near its entry that belong to others.
    pub reserved: ArrayVec<Reserved, 8>,
}

/// What an environment knows about the function that an address is inside of.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// The function's entry.
    pub entry: u64,
    /// The function; its `branch_targets` are those near the address, and not near the entry.
    pub function: Function,
    /// All code of the function's image: other functions' parts may jump into this one.
    pub text: Vec<Span>,
    /// The image's data, where jump tables may be; sorted, and some of it may not be readable.
    pub data: Vec<Span>,
}

/// Why a debug register was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSet {
    /// Why.
    pub error: Error,
    /// Whether somebody may have trapped meanwhile.
    pub met: bool,
}

/// What every environment provides. No call is legal where sleeping is forbidden, unless it says so.
pub trait Host {
    /// Text opened for writing.
    type Text: Text;

    /// What is known now, for the length of one session.
    type View<'a>: View
    where
        Self: 'a;

    /// Where slots are taken from.
    type Slots: SlotMemory;

    /// Whether the caller may commit or plan anything, from where it is called: asked before everything else.
    ///
    /// # Errors
    /// [`Error::Irql`].
    fn ready(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Looks at the environment, once for all targets of a session.
    ///
    /// # Errors
    /// [`Error::Host`] or [`Error::OutOfMemory`].
    fn view(&self) -> Result<Self::View<'_>, Error>;

    /// The memory for slots; asked for once.
    fn slots(&self) -> Self::Slots;

    /// Reads code; a bad address is an error, not a fault. Never sleeps.
    ///
    /// # Errors
    /// [`Error::Unreadable`].
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error>;

    /// Whether somebody else owns bytes of `span` though they look untouched, such as a probe that is not armed.
    /// Asked with the text locked, or all others parked, just before the first write; does not sleep.
    ///
    /// # Errors
    /// Who does: [`Error::Refused`].
    fn contested(&self, _span: Span) -> Result<(), Error> {
        Ok(())
    }

    /// Opens the spans for writing through an alias: the pages themselves stay read-only and executable. All that
    /// writing needs is allocated here.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Unreadable`] or [`Error::Host`].
    fn open_text(&self, spans: &[Span]) -> Result<Self::Text, Error>;

    /// Returns when every processor that runs this code has executed a serializing instruction since the call.
    /// Does not sleep.
    fn sync_cores(&self);

    /// Lets those who unwind the stack know of a slot that is planned and not in use yet.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn describe(&self, plan: &Plan) -> Result<(), Error> {
        let _ = plan;
        Ok(())
    }

    /// Takes back what [`describe`](Self::describe) said of the slot at this address, which nobody is in any more.
    fn withdraw(&self, slot: u64) {
        let _ = slot;
    }

    /// Replaces the pointer at `place` by `new` if it is `expected`, at one moment for all who read it, and gives what was found
    /// there: `expected`, or else nothing has been written. The page's protection is afterwards what it was before.
    ///
    /// # Errors
    /// [`Error::Unreadable`], [`Error::NotData`], [`Error::Forbidden`], [`Error::OutOfMemory`] or [`Error::Host`].
    fn swap(&self, place: u64, expected: u64, new: u64) -> Result<u64, Error> {
        let _ = (expected, new);
        Err(Error::NotData { address: place })
    }

    /// Keeps everybody else who patches text by the environment's own means away until
    /// [`unlock_text`](Host::unlock_text). Where there is no such means it does nothing.
    fn lock_text(&self) {}

    /// Ends [`lock_text`](Host::lock_text).
    fn unlock_text(&self) {}

    /// Has every thread or processor that comes to `address` trap there, in front of the instruction, by a debug register; those that
    /// are started later, too. Where it traps is answered as a breakpoint at this address is
    /// ([`BreakpointHook::breakpoints`]), which is so before this is called. No byte changes.
    ///
    /// # Errors
    /// [`Error::NoDebugRegister`], [`Error::DebugRegistersMissing`], [`Error::DebugRegistersForbidden`],
    /// [`Error::OutOfMemory`] or [`Error::Host`]; nobody traps any more then.
    fn set_register(&self, address: u64) -> Result<(), NotSet> {
        let _ = address;
        Err(NotSet { error: Error::DebugRegistersMissing, met: false })
    }

    /// Takes back [`set_register`](Host::set_register). Who has trapped already may not have been answered yet.
    fn clear_register(&self, address: u64) {
        let _ = address;
    }

    /// How trampolines have to look here, and which shapes are wanted for a protocol.
    fn options(&self, protocol: Protocol) -> Options {
        let _ = protocol;
        Options::default()
    }
}

/// What an environment knows at one time.
pub trait View {
    /// How the processor decodes the code.
    fn mode(&self) -> Mode;

    /// As [`Host::read`].
    ///
    /// # Errors
    /// [`Error::Unreadable`].
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error>;

    /// What is known about the function whose entry is `target`.
    ///
    /// # Errors
    /// [`Error::NotCode`], [`Error::NotFunction`] or [`Error::Forbidden`] if it must not be detoured.
    fn function(&self, target: u64) -> Result<Function, Error>;

    /// What is known about the function that `address` is inside of, or the entry of. An environment that cannot tell
    /// how far functions reach has none.
    ///
    /// # Errors
    /// As for [`function`](View::function); [`Error::NotFunction`] without an entry if the function is not known.
    fn around(&self, address: u64) -> Result<Around, Error> {
        Err(Error::NotFunction { address, entry: 0 })
    }

    /// Whether all of a span is code that may be patched.
    ///
    /// # Errors
    /// [`Error::NotCode`] with the first address that is not.
    fn code(&self, _span: Span) -> Result<(), Error> {
        Ok(())
    }

    /// Where the pointer at `place` leads, if that is a place where it may be [swapped](Host::swap), and leads to code.
    ///
    /// # Errors
    /// [`Error::Misaligned`], [`Error::Unreadable`], [`Error::NotData`], [`Error::Forbidden`], [`Error::NullPointer`],
    /// [`Error::Unbound`], or [`Error::NotCode`] about where it leads.
    fn pointer(&self, place: u64) -> Result<u64, Error> {
        Err(Error::NotData { address: place })
    }

    /// Whether a detour may lie at `detour`.
    ///
    /// # Errors
    /// [`Error::NotCode`] or [`Error::Forbidden`].
    fn detour(&self, _detour: u64) -> Result<(), Error> {
        Ok(())
    }
}

/// Text opened for writing; closed when dropped.
pub trait Text {
    /// Writes bytes inside a span that was opened. A single byte is written by a single store. Allocates nothing,
    /// takes no lock that a patched function could take, does not sleep.
    ///
    /// # Errors
    /// [`Error::Unreadable`] if the span was not opened, [`Error::Host`] if the environment refuses.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error>;

    /// Reads what is there now, anywhere; a bad address is an error. Cheap where neighbours are read one after the
    /// other. Allocates nothing, does not sleep.
    ///
    /// # Errors
    /// [`Error::Unreadable`].
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Error>;

    /// Writes each of these as [`write`](Text::write) would, in any order.
    ///
    /// # Errors
    /// As [`write`](Text::write), with the position of one that failed; of the others any may have been written.
    fn write_many(&mut self, writes: &[(u64, &[u8])]) -> Result<(), (usize, Error)> {
        writes.iter().enumerate().try_for_each(|(index, &(address, bytes))| {
            self.write(address, bytes).map_err(|error| (index, error))
        })
    }
}

/// A host whose breakpoints reach [`Breakpoints::resume`]: every INT3 that a thread meets at a known boundary is
/// answered by sending the thread to the address found there.
pub trait BreakpointHook: Host {
    /// How many old tables of breakpoints may wait before a quiesce is asked for to free them.
    const OLD_TABLES: usize = 32;

    /// The boundaries that the hook answers.
    fn breakpoints(&self) -> &'static Breakpoints;

    /// Makes sure that the hook is in place and that a thread that meets a breakpoint reaches it. Asked before the
    /// first write of a commit that may leave a breakpoint to be met.
    ///
    /// # Errors
    /// [`Error::TrapHandler`] or [`Error::TrapBlocked`].
    fn arm(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// A host that can wait until nobody stands inside a window.
///
/// # Safety
/// [`quiesce`](Quiesce::quiesce) does what it says: breakpoint tables are freed after it.
pub unsafe trait Quiesce: Host {
    /// Returns when every thread that stood inside any window when this was called, with no way in left, has left
    /// it, and every trap handler that was running has finished. May sleep, for long. `boundaries` (sorted) are the
    /// places where nobody may be left standing, for a host that has to look there; there may be none.
    ///
    /// # Errors
    /// [`Error::ThreadInWindow`] or [`Error::ThreadNotReached`] where a thread cannot be waited for any longer.
    fn quiesce(&self, boundaries: &[u64]) -> Result<(), Error>;
}

/// A host that can park every other processor or thread.
pub trait Rendezvous: Host {
    /// Parks all others, makes sure that none of them stands, or will return, at one of `moves` (sorted by where they
    /// are from): moves it on, or gives up. Then runs `work`, makes every core fetch anew and lets them go. `work` may
    /// not allocate, lock or sleep.
    ///
    /// # Errors
    /// [`Error::ThreadInWindow`], [`Error::ThreadNotReached`] or [`Error::TextBusy`] before `work` ran, or what `work`
    /// returned.
    fn rendezvous(&self, moves: &[Move], work: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error>;
}

/// A host that can keep everybody else from running for a moment, and cannot tell where they stand: nothing there looks at threads that
/// were preempted, waits until they have left, or answers a breakpoint. So only patches that keep every interior boundary are written
/// there, unless the caller [accepts](crate::commit::Preempted) the rest.
pub trait Park: Host {
    /// The ways in which the others are kept from running; the caller chooses.
    type By: Copy + core::fmt::Debug;

    /// What shapes and records call such a way.
    fn protocol(by: Self::By) -> Protocol;

    /// Keeps everybody else from running, then runs `work`, makes every core fetch anew and lets them go. `work` may not allocate,
    /// lock or sleep. All that this needs is allocated before the first of them is stopped.
    ///
    /// # Errors
    /// [`Error::Irql`], [`Error::ProcessorNotReached`], [`Error::OtherThreads`], [`Error::TextBusy`], [`Error::OutOfMemory`] or
    /// [`Error::Host`] before `work` ran, or what `work` returned.
    fn park(&self, by: Self::By, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error>;
}

/// A host that can tell that nobody else runs, and keep it so for a moment.
pub trait Solo: Host {
    /// Makes sure that there is one processor, and that nobody who waits for it stands, or will return, at one of `moves`
    /// (sorted by where they are from). Then runs `work`, which nothing but a non-maskable interrupt interrupts, and fetches
    /// anew. `work` may not allocate, lock or sleep.
    ///
    /// # Errors
    /// [`Error::OtherThreads`], [`Error::ThreadInWindow`] or [`Error::TextBusy`] before `work` ran, or what `work` returned.
    fn solo(&self, moves: &[Move], work: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error>;
}

/// A host whose detours can be drained: what a grace period does not wait for, calls that sleep, is counted.
///
/// ```text
///   detached      nobody enters any more
///   quiesce       whoever was on the way in has reached the detour and counted itself
///   count is 0    whoever slept inside has taken itself off the count
///   quiesce       whoever was between the count and its return, in a trampoline or at a breakpoint, has left
/// ```
pub trait Drain: Quiesce {
    /// The sum of a counter of calls in flight, in the host's own kind of counter: 0 stands for none.
    ///
    /// # Safety
    /// The counter is 0, or what an [attach](crate::Attach::in_flight) was given whose detour has not been freed yet.
    unsafe fn in_flight(&self, counter: u64) -> u64;
}
