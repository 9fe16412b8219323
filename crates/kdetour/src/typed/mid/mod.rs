//! Detours inside functions, with the registers.
//!
//! ```text
//!   function:  ...                        stub, thunk:  all registers saved   ------>  your function(&mut Registers)
//!              jmp stub  ------------------>            all registers restored <-----
//!              ...  <----- trampoline: the displaced instructions  <----
//! ```

mod arch;
mod attach;
mod site;
mod state;

pub use arch::Registers;
pub(super) use attach::Mid;

use super::process::{self, By};
use crate::commit::Alone;
use crate::{Error, Handle, Protocol};
use attach::Callback;
use core::{fmt, mem};
use std::boxed::Box;

/// A detour at an instruction inside a function. Dropping it detaches, as dropping a [`Detour`](super::Detour) does.
///
/// Each time that a thread comes to the instruction, from above or by a jump, a function of yours is called with the
/// thread's [`Registers`]. Then the thread goes on with the instruction and all registers as they were, or as your
/// function changed them.
///
/// ```
/// use kdetour::typed::{MidDetour, Registers};
///
/// # #[cfg(all(target_arch = "x86_64", not(windows)))]
/// core::arch::global_asm!(
///     ".globl triple",
///     ".type triple, @function",
///     "triple: lea rax, [rdi + rdi]",
///     "add rax, rdi",             // 4 bytes into the function
///     "nop dword ptr [rax]",
///     "ret",
///     ".size triple, . - triple",
/// );
/// # #[cfg(all(target_arch = "x86", not(windows)))]
/// # core::arch::global_asm!(
/// #     ".globl triple",
/// #     ".type triple, @function",
/// #     "triple: mov eax, [esp + 4]",
/// #     "add eax, eax",
/// #     "add eax, [esp + 4]",       // 6 bytes into the function
/// #     "nop dword ptr [eax]",
/// #     "ret",
/// #     ".size triple, . - triple",
/// # );
/// # #[cfg(not(windows))]
/// unsafe extern "C" {
///     safe fn triple(value: usize) -> usize;
/// }
///
/// # #[cfg(target_arch = "x86_64")]
/// extern "C" fn one_more(registers: &mut Registers) {
///     registers.rax += 1;
/// }
/// # #[cfg(target_arch = "x86")]
/// # extern "C" fn one_more(registers: &mut Registers) {
/// #     registers.eax += 1;
/// # }
///
/// # #[cfg(not(windows))]
/// # fn main() -> Result<(), kdetour::Error> {
/// let address = (triple as extern "C" fn(usize) -> usize as *const ()).addr() as u64 + 4;
/// # #[cfg(target_arch = "x86")]
/// # let address = address + 2;
/// // SAFETY: the function adds to whatever is in RAX, and nobody else uses it here.
/// let mut detour = unsafe { MidDetour::attach(address, one_more) }?;
/// assert_eq!(triple(5), 16);
/// detour.detach()?;
/// assert_eq!(triple(5), 15);
/// # Ok(())
/// # }
/// # #[cfg(windows)]
/// # fn main() {
/// #     let address = (one_more as extern "C" fn(&mut Registers) as *const ()).addr() as u64;
/// #     // SAFETY: it is refused.
/// #     let refused = unsafe { MidDetour::attach(address, one_more) }.map(drop);
/// #     assert_eq!(refused, Err(kdetour::Error::NotFunction { address, entry: 0 }));
/// # }
/// ```
///
/// # Where
/// Not on Windows yet, where the host tells of no function's surroundings: [`Error::NotFunction`].
///
/// At the start of any instruction of a function whose bounds the symbols of its file tell. Nothing may jump strictly
/// into the bytes that the patch changes: the function itself, its jump tables and all other code of its image are
/// looked through for that.
///
/// # What your function must know
/// * It runs wherever the detoured function runs: in the middle of the allocator, with locks held, in a signal handler.
/// * It does not unwind: a panic ends the process.
/// * It may call the function that it is in the middle of, and is called again then.
/// * RSP cannot be changed; what is above it can be. RIP can: the function then goes on there.
/// * `errno` is not kept.
/// * It has as much stack as the thread has left, less up to about 3 KiB, or 11 KiB on processors with tile registers.
/// * A backtrace ends at it.
///
/// A thread that has a shadow stack cannot go on elsewhere, so there attaching is refused: [`Error::ShadowStack`].
///
/// # Several at one instruction
/// The youngest is called first, and then the next older one, with the registers as they are then; unless RIP was
/// changed. A function's entry may have detours of this kind or [detours of the function](super::Detour), not both.
///
/// # Memory
/// As for a [`Detour`](super::Detour) nothing is freed when it is detached, and [`reclaim`](super::reclaim) frees what
/// nobody is inside any more: the slot, a stub of 32 bytes, the closure. The same function at the same address takes
/// again what has not been freed.
#[must_use = "dropping it detaches"]
pub struct MidDetour {
    address: u64,
    /// None once it is detached.
    handle: Option<Handle>,
}

impl MidDetour {
    /// Calls `function` whenever a thread comes to `address`. Attaches by [`Protocol::Exchange`]: whatever other threads
    /// do.
    ///
    /// # Errors
    /// Why the instruction cannot be detoured. Nothing has been written then.
    ///
    /// # Safety
    /// * What `function` does to the registers, and to whatever the detoured function uses, lets that function go on.
    /// * Both stay in memory until [`reclaim`](super::reclaim) has freed the detour. Shared objects do: they are kept
    ///   loaded.
    /// * This is not called from a signal handler.
    pub unsafe fn attach(address: u64, function: extern "C" fn(&mut Registers)) -> Result<Self, Error> {
        // SAFETY: the caller's promise.
        unsafe { Self::attach_by(Protocol::Exchange, address, function) }
    }

    /// As [`attach`](Self::attach), by a protocol of one's choice.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach), and what the protocol needs and does not find.
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn attach_by(
        protocol: Protocol,
        address: u64,
        function: extern "C" fn(&mut Registers),
    ) -> Result<Self, Error> {
        // SAFETY: the caller's promise.
        unsafe { Self::attach_function(By::Protocol(protocol), address, function) }
    }

    /// As [`attach`](Self::attach), by [`Protocol::Local`], where other threads stay away from the function.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn attach_with(
        alone: &Alone,
        address: u64,
        function: extern "C" fn(&mut Registers),
    ) -> Result<Self, Error> {
        // SAFETY: the caller's promise.
        unsafe { Self::attach_function(By::Alone(alone), address, function) }
    }

    unsafe fn attach_function(
        by: By<'_>,
        address: u64,
        function: extern "C" fn(&mut Registers),
    ) -> Result<Self, Error> {
        let context = function as *const ();
        let code = context.addr() as u64;
        let callback = Callback { function: call_function, context, state: None, code };
        // SAFETY: the caller's promise.
        let handle = unsafe { attach::attach(by, address, callback) }?;
        Ok(Self { address, handle: Some(handle) })
    }

    /// As [`attach`](Self::attach), for a closure. It is dropped by [`reclaim`](super::reclaim).
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn attach_closure<F>(address: u64, closure: F) -> Result<Self, Error>
    where
        F: Fn(&mut Registers) + Send + Sync + 'static,
    {
        // SAFETY: the caller's promise.
        unsafe { Self::attach_closure_by(Protocol::Exchange, address, closure) }
    }

    /// As [`attach_by`](Self::attach_by), for a closure.
    ///
    /// # Errors
    /// As for [`attach_by`](Self::attach_by).
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn attach_closure_by<F>(protocol: Protocol, address: u64, closure: F) -> Result<Self, Error>
    where
        F: Fn(&mut Registers) + Send + Sync + 'static,
    {
        // SAFETY: the caller's promise.
        unsafe { Self::attach_any_closure(By::Protocol(protocol), address, closure) }
    }

    /// As [`attach_with`](Self::attach_with), for a closure.
    ///
    /// # Errors
    /// As for [`attach_with`](Self::attach_with).
    ///
    /// # Safety
    /// As for [`attach`](Self::attach).
    pub unsafe fn attach_closure_with<F>(alone: &Alone, address: u64, closure: F) -> Result<Self, Error>
    where
        F: Fn(&mut Registers) + Send + Sync + 'static,
    {
        // SAFETY: the caller's promise.
        unsafe { Self::attach_any_closure(By::Alone(alone), address, closure) }
    }

    unsafe fn attach_any_closure<F>(by: By<'_>, address: u64, closure: F) -> Result<Self, Error>
    where
        F: Fn(&mut Registers) + Send + Sync + 'static,
    {
        let closure = Box::into_raw(Box::new(closure));
        let function: extern "C" fn(&mut Registers, *const ()) = call_closure::<F>;
        let code = (function as *const ()).addr() as u64;
        let context = closure.cast_const().cast();
        let callback = Callback { function, context, state: Some(Box::new(Held(closure))), code };
        // SAFETY: the caller's promise; the closure is dropped with the state.
        let handle = unsafe { attach::attach(by, address, callback) }?;
        Ok(Self { address, handle: Some(handle) })
    }

    /// The detoured instruction.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Whether it is attached.
    pub const fn is_attached(&self) -> bool {
        self.handle.is_some()
    }

    /// Gives the function its own bytes back, whatever other threads do.
    ///
    /// # Errors
    /// As for [`Detour::detach`](super::Detour::detach).
    pub fn detach(&mut self) -> Result<(), Error> {
        self.detach_any(By::Protocol(Protocol::Exchange))
    }

    /// As [`detach`](Self::detach), by a protocol of one's choice.
    ///
    /// # Errors
    /// As for [`detach`](Self::detach), and what the protocol needs and does not find.
    pub fn detach_by(&mut self, protocol: Protocol) -> Result<(), Error> {
        self.detach_any(By::Protocol(protocol))
    }

    /// As [`detach`](Self::detach), by [`Protocol::Local`], where other threads stay away from the function.
    ///
    /// # Errors
    /// As for [`detach`](Self::detach).
    pub fn detach_with(&mut self, alone: &Alone) -> Result<(), Error> {
        self.detach_any(By::Alone(alone))
    }

    fn detach_any(&mut self, by: By<'_>) -> Result<(), Error> {
        process::detach(by, self.handle.ok_or(Error::NotAttached)?)?;
        self.handle = None;
        Ok(())
    }

    /// Leaves it attached for ever.
    pub fn leak(mut self) {
        self.handle = None;
    }
}

impl Drop for MidDetour {
    fn drop(&mut self) {
        if self.is_attached() {
            // What cannot be detached stays attached, which harms nobody.
            let _ = self.detach();
        }
    }
}

impl fmt::Debug for MidDetour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MidDetour")
            .field("address", &format_args!("{:#x}", self.address))
            .field("attached", &self.is_attached())
            .finish()
    }
}

/// A closure that nobody calls any more, to be dropped.
struct Held<F>(*mut F);

// SAFETY: it is the only owner of the closure, which may be dropped by any thread.
unsafe impl<F: Send> Send for Held<F> {}

impl<F> Drop for Held<F> {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw` in `attach_any_closure`, owned by this value alone; it is dropped when the
        // attach has failed, or when the detour has been drained.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// Calls the function that is the context.
extern "C" fn call_function(registers: &mut Registers, context: *const ()) {
    // SAFETY: the context of a site with this function is such a function: `attach_function` made it from one.
    let function = unsafe { mem::transmute::<*const (), extern "C" fn(&mut Registers)>(context) };
    function(registers);
}

/// Calls the closure that the context points to.
extern "C" fn call_closure<F: Fn(&mut Registers)>(registers: &mut Registers, context: *const ()) {
    // SAFETY: the context of a site with this function points to such a closure, which is dropped when nobody can
    // be inside any more.
    let closure = unsafe { &*context.cast::<F>() };
    closure(registers);
}
