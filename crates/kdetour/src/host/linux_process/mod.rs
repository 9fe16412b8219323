//! One's own Linux process.
//!
//! * text is read and written through `/proc/self/mem` (`memory`): the pages stay readable and executable, never
//!   writable, and a bad address is an error, not a fault;
//! * what lies where is read from `/proc/self/maps` (`maps`), what a function's bounds are from the symbol tables
//!   of the mapped file (`function`, `symbols`);
//! * slots are pages mapped into gaps near the target (`near`);
//! * every core is made to fetch anew by `membarrier` (`cores`).
//!
//! It commits by [`Protocol::Local`](crate::Protocol::Local) only: no other thread may run meanwhile. Whether there
//! are others says [`LinuxProcess::is_single_threaded`].
//!
//! kdetour itself enters the kernel by raw system calls. It calls functions of libc (to allocate, to lock, to copy
//! bytes), so that these may be detoured too; but a detour must not attach or detach from inside.

mod cores;
mod file;
mod function;
mod maps;
mod memory;
mod near;
mod symbols;
mod threads;

pub use memory::ProcessText;

use super::{Function, Host, Span};
use crate::Error;
use kdetour_plan::Reach;
use maps::Mappings;
use memory::{Memory, SharedMemory};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec::Vec;
use symbols::Files;

/// The smallest page.
const PAGE: u64 = 4096;

/// The host for one's own process.
///
/// It is cheap to keep and should live as long as the process: it opens `/proc/self/mem` when it is made, which the
/// kernel may refuse later (`PR_SET_DUMPABLE`), and remembers the symbol tables that it has read.
#[derive(Debug)]
pub struct LinuxProcess {
    memory: SharedMemory,
    files: Mutex<Files>,
    /// The memory that was given out for slots: code that must not be detoured itself.
    slots: Mutex<Vec<Span>>,
}

impl LinuxProcess {
    /// Opens this process.
    ///
    /// # Errors
    /// [`Error::Host`] if `/proc/self/mem` cannot be opened: no `/proc`, or a process that must not be dumped.
    pub fn new() -> Result<Self, Error> {
        cores::register();
        Ok(Self {
            memory: SharedMemory::new(Memory::open()?),
            files: Mutex::new(Files::default()),
            slots: Mutex::new(Vec::new()),
        })
    }

    /// Whether the calling thread is the only one of the process. A thread that has just been joined may still be on
    /// its way out: it is waited for, but not longer than some ten milliseconds.
    ///
    /// # Errors
    /// [`Error::Host`] if `/proc` does not tell.
    pub fn is_single_threaded(&self) -> Result<bool, Error> {
        threads::only_this_one()
    }
}

impl Host for LinuxProcess {
    type Text = ProcessText;

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.memory.get()?.read(address, bytes)
    }

    /// Length and neighbours come from the symbol tables of the mapped file. Nothing is said if the file at the
    /// mapping's path is not the one that is mapped (deleted, replaced), has no symbols or is no ELF file.
    fn function(&self, target: u64) -> Result<Function, Error> {
        let mappings = Mappings::read()?;
        let mapping = mappings.of(target).ok_or(Error::Unreadable { address: target })?;
        if !mapping.executable {
            return Err(Error::NotCode { address: target });
        }
        let is_slot = |slot: &Span| target.wrapping_sub(slot.address) < slot.len as u64;
        // A shared mapping shows the same bytes to other processes, and is not copied when it is written.
        if mapping.shared || lock(&self.slots).iter().any(is_slot) {
            return Err(Error::Forbidden { address: target });
        }
        if mapping.inode == 0 {
            return Ok(Function::default());
        }
        let image = mappings.image_of(mapping);
        let symbols = lock(&self.files).of(mapping);
        let function = match symbols {
            Some(symbols) => function::describe(&symbols, mapping, target)?,
            None => Function::default(),
        };
        Ok(Function { image: Some(image), ..function })
    }

    fn open_text(&self, spans: &[Span]) -> Result<ProcessText, Error> {
        ProcessText::open(self.memory.get()?, spans)
    }

    fn executable_memory(&self, len: usize, reach: Reach) -> Option<Span> {
        let memory = self.memory.get().ok()?;
        let mut slots = lock(&self.slots);
        slots.try_reserve(1).ok()?;
        let span = near::map(&memory, len, reach)?;
        slots.push(span);
        Some(span)
    }

    /// Uses `membarrier`, which Linux has since 4.16. Where it is missing, or a sandbox forbids it, the calling core
    /// alone is serialized: enough for [`Protocol::Local`](crate::Protocol::Local), where every other thread is
    /// scheduled anew before it runs this code again.
    fn sync_cores(&self) {
        cores::sync();
    }
}

/// Locks, whoever panicked meanwhile: what these locks guard is valid after every single statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the kernel said.
fn refused(error: rustix::io::Errno) -> Error {
    Error::Host(error.raw_os_error())
}
