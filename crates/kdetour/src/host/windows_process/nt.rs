//! Functions of `ntdll.dll`, called directly.
//!
//! The functions of `kernel32.dll` and `kernelbase.dll` that wrap them may be detoured themselves, and a detour may lock or allocate.
//! While a thread is suspended, or a page cannot be executed, only these are called: each enters the kernel at once and takes no
//! lock of the process. `ntdll.dll` is not detoured ([`guarded`](super::guarded)).
//!
//! They are looked up once, by name: so a system that lacks one is an error, not a program that does not start.

use crate::Error;
use crate::address::{narrow, widen};
use core::ffi::{CStr, c_void};
use core::{mem, ptr};
use std::sync::OnceLock;
use windows_sys::Win32::System::Diagnostics::Debug::CONTEXT;
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};
use windows_sys::Win32::System::Memory::MEMORY_BASIC_INFORMATION;
use windows_sys::Win32::System::Threading::{
    CreateMutexW, GetCurrentProcess, GetCurrentProcessId, IsWow64Process,
};

/// What a function answers: negative if it has failed (`NTSTATUS`).
pub(super) type Status = i32;
/// What the kernel calls an object.
pub(super) type Handle = *mut c_void;

/// `STATUS_NO_MORE_ENTRIES`, `STATUS_THREAD_IS_TERMINATING` (ntstatus.h).
const NO_MORE_ENTRIES: Status = 0x8000_001a_u32.cast_signed();
pub(super) const TERMINATING: Status = 0xc000_004b_u32.cast_signed();
/// What a thread that runs has not ended with (`STATUS_PENDING`).
const PENDING: usize = 0x103;
/// `ERROR_MOD_NOT_FOUND`, `ERROR_PROC_NOT_FOUND` (winerror.h).
const NO_MODULE: i32 = 126;
const NO_FUNCTION: i32 = 127;

/// Suspend and resume, get and set the context, query: winnt.h, `THREAD_...`.
const ACCESS: u32 = 0x2 | 0x8 | 0x10 | 0x40;

/// This process.
fn process() -> Handle {
    ptr::without_provenance_mut(usize::MAX)
}

/// A context where the kernel wants it: aligned to 16 bytes.
#[repr(C, align(16))]
pub(super) struct Context(pub(super) CONTEXT);

impl Context {
    /// Room for the parts that `flags` name.
    pub(super) fn of(flags: u32) -> Self {
        // SAFETY: numbers and arrays of numbers, for which zeros are valid.
        let mut context = Self(unsafe { mem::zeroed() });
        context.0.ContextFlags = flags;
        context
    }
}

/// Words of `THREAD_BASIC_INFORMATION` (winternl.h): what the thread has ended with, its environment block, the numbers of process and thread, the
/// processors that it may run on, two priorities of 32 bits.
const BASIC: usize = 5 + 8 / size_of::<usize>();
const NUMBER: usize = 3;

pub(super) type Protect = unsafe extern "system" fn(Handle, *mut usize, *mut usize, u32, *mut u32) -> Status;
type Query = unsafe extern "system" fn(Handle, *const c_void, i32, *mut c_void, usize, *mut usize) -> Status;
type Read = unsafe extern "system" fn(Handle, *const c_void, *mut c_void, usize, *mut usize) -> Status;
type NextThread = unsafe extern "system" fn(Handle, Handle, u32, u32, u32, *mut Handle) -> Status;
type OfThread = unsafe extern "system" fn(Handle, *mut u32) -> Status;
type OfContext = unsafe extern "system" fn(Handle, *mut CONTEXT) -> Status;
type QueryThread = unsafe extern "system" fn(Handle, i32, *mut c_void, u32, *mut u32) -> Status;
type Close = unsafe extern "system" fn(Handle) -> Status;
type Delay = unsafe extern "system" fn(u8, *const i64) -> Status;
type Nothing = unsafe extern "system" fn() -> Status;
type Wait = unsafe extern "system" fn(Handle, u8, *const i64) -> Status;
type Release = unsafe extern "system" fn(Handle, *mut i32) -> Status;
type Open = unsafe extern "system" fn(*mut Handle, u32, *const c_void, *const c_void) -> Status;
type Duplicate = unsafe extern "system" fn(Handle, Handle, Handle, *mut Handle, u32, u32, u32) -> Status;

/// The functions.
#[derive(Debug)]
pub(super) struct Nt {
    protect: Protect,
    query: Query,
    read: Read,
    next_thread: NextThread,
    suspend: OfThread,
    resume: OfThread,
    get_context: OfContext,
    set_context: OfContext,
    query_thread: QueryThread,
    close: Close,
    delay: Delay,
    yield_processor: Nothing,
    flush: Nothing,
    wait: Wait,
    release: Release,
    open: Open,
    duplicate: Duplicate,
    /// What copies of kdetour in this process take turns by; null where there can be no such object.
    turns: usize,
    /// Where `ntdll.dll` is.
    base: u64,
    /// Whether this is a 32-bit process on a 64-bit system.
    is_wow64: bool,
}

static NT: OnceLock<Nt> = OnceLock::new();

fn is_wow64() -> bool {
    let mut is_wow64 = 0;
    // SAFETY: this process, and a number to be filled.
    let known = unsafe { IsWow64Process(GetCurrentProcess(), &raw mut is_wow64) };
    known != 0 && is_wow64 != 0
}

/// The mutex of this process. Where somebody forbids named objects, copies do not know of each other.
fn turns() -> Handle {
    // SAFETY: this has no conditions.
    let name = std::format!("Local\\kdetour-pages-{}\0", unsafe { GetCurrentProcessId() });
    let name: std::vec::Vec<u16> = name.encode_utf16().collect();
    // SAFETY: no attributes, and a string that ends.
    unsafe { CreateMutexW(ptr::null(), 0, name.as_ptr()) }
}

/// Looks a function up, as one of type `F`.
///
/// # Safety
/// `F` is a pointer to a function of the type that the one of this name has.
pub(super) unsafe fn find<F: Copy>(module: Handle, name: &CStr) -> Result<F, Error> {
    const { assert!(size_of::<F>() == size_of::<usize>()) };
    // SAFETY: a module that is always loaded, and a string that ends.
    let found = unsafe { GetProcAddress(module, name.as_ptr().cast()) };
    let found = found.ok_or(Error::Host(NO_FUNCTION))?;
    // SAFETY: a pointer to a function as another one of the same size; its type is the caller's promise.
    Ok(unsafe { mem::transmute_copy(&found) })
}

impl Nt {
    /// The functions.
    ///
    /// # Errors
    /// [`Error::Host`] with `ERROR_PROC_NOT_FOUND` if this system lacks one.
    pub(super) fn get() -> Result<&'static Self, Error> {
        match NT.get() {
            Some(nt) => Ok(nt),
            None => {
                let nt = Self::load()?;
                Ok(NT.get_or_init(|| nt))
            }
        }
    }

    /// The functions, if they have been looked up.
    pub(super) fn known() -> Option<&'static Self> {
        NT.get()
    }

    fn load() -> Result<Self, Error> {
        // SAFETY: a string that ends.
        let module = unsafe { GetModuleHandleA(c"ntdll.dll".as_ptr().cast()) };
        if module.is_null() {
            return Err(Error::Host(NO_MODULE));
        }
        // SAFETY: the types are those of the documentation (MSDN, "ntddk.h" and "winternl.h"), and of the system's own headers where
        // that says nothing (`NtGetNextThread`, `NtYieldExecution`, `NtFlushProcessWriteBuffers`).
        unsafe {
            Ok(Self {
                protect: find(module, c"NtProtectVirtualMemory")?,
                query: find(module, c"NtQueryVirtualMemory")?,
                read: find(module, c"NtReadVirtualMemory")?,
                next_thread: find(module, c"NtGetNextThread")?,
                suspend: find(module, c"NtSuspendThread")?,
                resume: find(module, c"NtResumeThread")?,
                get_context: find(module, c"NtGetContextThread")?,
                set_context: find(module, c"NtSetContextThread")?,
                query_thread: find(module, c"NtQueryInformationThread")?,
                close: find(module, c"NtClose")?,
                delay: find(module, c"NtDelayExecution")?,
                yield_processor: find(module, c"NtYieldExecution")?,
                flush: find(module, c"NtFlushProcessWriteBuffers")?,
                wait: find(module, c"NtWaitForSingleObject")?,
                release: find(module, c"NtReleaseMutant")?,
                open: find(module, c"NtOpenThread")?,
                duplicate: find(module, c"NtDuplicateObject")?,
                turns: turns().expose_provenance(),
                base: widen(module.addr()),
                is_wow64: is_wow64(),
            })
        }
    }

    /// Whether this is a 32-bit process on a 64-bit system.
    pub(super) const fn is_wow64(&self) -> bool {
        self.is_wow64
    }

    /// Where `ntdll.dll` begins.
    pub(super) const fn base(&self) -> u64 {
        self.base
    }

    /// Where the function is that changes a page's protection.
    pub(super) fn protect_address(&self) -> usize {
        (self.protect as *const ()).addr()
    }

    /// Protects the pages that hold these bytes; how the first one was protected before.
    ///
    /// # Safety
    /// Nobody relies on what such pages do not allow any more, or do.
    pub(super) unsafe fn protect(&self, address: u64, len: u64, protection: u32) -> Result<u32, Status> {
        let (mut base, mut size, mut old) = (narrow(address), narrow(len), 0);
        // SAFETY: three places for what the kernel has made of it; the rest is the caller's promise.
        let status =
            unsafe { (self.protect)(process(), &raw mut base, &raw mut size, protection, &raw mut old) };
        if status < 0 { Err(status) } else { Ok(old) }
    }

    /// Where the function is that lets others run.
    pub(super) fn yield_address(&self) -> usize {
        (self.yield_processor as *const ()).addr()
    }

    /// Where the functions are that open a thread by its number, close, wait and release; and what copies of kdetour take turns by, or 0.
    pub(super) fn ending(&self) -> [usize; 5] {
        let (open, close) = ((self.open as *const ()).addr(), (self.close as *const ()).addr());
        let (wait, release) = ((self.wait as *const ()).addr(), (self.release as *const ()).addr());
        [open, close, wait, release, self.turns]
    }

    /// A handle of the calling thread; none if the kernel gives none.
    pub(super) fn own_handle(&self) -> Option<usize> {
        /// `DUPLICATE_SAME_ACCESS` (winnt.h).
        const SAME_ACCESS: u32 = 2;
        let me = ptr::without_provenance_mut(usize::MAX - 1);
        let mut handle = ptr::null_mut();
        // SAFETY: this process and this thread; `handle` is writable.
        let status =
            unsafe { (self.duplicate)(process(), me, process(), &raw mut handle, 0, 0, SAME_ACCESS) };
        (status >= 0).then(|| handle.expose_provenance())
    }

    /// Waits until no other copy of kdetour in this process has its turn at pages or at threads.
    pub(super) fn take_turn(&self) {
        if self.turns != 0 {
            // SAFETY: our own mutex, for however long. If a thread has ended that had it, it is given as well.
            let _ = unsafe { (self.wait)(ptr::with_exposed_provenance_mut(self.turns), 0, ptr::null()) };
        }
    }

    /// Takes back one [`take_turn`](Self::take_turn) of the same thread.
    pub(super) fn end_turn(&self) {
        if self.turns != 0 {
            // SAFETY: our own mutex; what its count was is not asked for.
            let _ = unsafe { (self.release)(ptr::with_exposed_provenance_mut(self.turns), ptr::null_mut()) };
        }
    }

    /// Reads memory of this process; says how much could be read if not all could.
    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), usize> {
        let mut read = 0;
        let from = ptr::with_exposed_provenance(narrow(address));
        if widen(narrow(address)) != address {
            return Err(0);
        }
        let to = bytes.as_mut_ptr().cast();
        // SAFETY: the buffer is writable for its length; what cannot be read is an error.
        let status = unsafe { (self.read)(process(), from, to, bytes.len(), &raw mut read) };
        if status >= 0 && read == bytes.len() { Ok(()) } else { Err(read.min(bytes.len())) }
    }

    /// What the kernel says about the page at an address; none where there can be none.
    pub(super) fn query(&self, address: u64) -> Option<MEMORY_BASIC_INFORMATION> {
        // SAFETY: numbers and pointers, for which zeros are valid.
        let mut found: MEMORY_BASIC_INFORMATION = unsafe { mem::zeroed() };
        let at = ptr::without_provenance(usize::try_from(address).ok()?);
        let (to, len) = ((&raw mut found).cast(), size_of_val(&found));
        // SAFETY: class 0 (`MemoryBasicInformation`) fills the structure, whose size it is told.
        let status = unsafe { (self.query)(process(), at, 0, to, len, ptr::null_mut()) };
        (status >= 0).then_some(found)
    }

    /// The thread behind `last`, or the first one, if that is null; none if there is no other. Both are to be closed.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub(super) fn next_thread(&self, last: Handle) -> Result<Option<Handle>, Error> {
        let mut next = ptr::null_mut();
        // SAFETY: a handle of a thread that this has given, or none; `next` is writable.
        match unsafe { (self.next_thread)(process(), last, ACCESS, 0, 0, &raw mut next) } {
            NO_MORE_ENTRIES => Ok(None),
            status if status < 0 => Err(Error::Host(status)),
            _ => Ok(Some(next)),
        }
    }

    /// A thread's number; none if the kernel does not tell.
    pub(super) fn number(&self, thread: Handle) -> Option<u32> {
        self.basic(thread).and_then(|found| u32::try_from(found[NUMBER]).ok())
    }

    /// Whether a thread has ended: its object stays as long as somebody has a handle of it. One that has ended with 259 is taken for one that runs.
    pub(super) fn has_ended(&self, thread: Handle) -> bool {
        // Its first four bytes.
        self.basic(thread).is_some_and(|[status, ..]| status & 0xffff_ffff != PENDING)
    }

    fn basic(&self, thread: Handle) -> Option<[usize; BASIC]> {
        let mut found = [0_usize; BASIC];
        let len = size_of_val(&found) as u32;
        let to = (&raw mut found).cast();
        // SAFETY: class 0 (`ThreadBasicInformation`) fills the structure, whose size it is told.
        let status = unsafe { (self.query_thread)(thread, 0, to, len, ptr::null_mut()) };
        (status >= 0).then_some(found)
    }

    /// Suspends a thread once more.
    pub(super) fn suspend(&self, thread: Handle) -> Status {
        // SAFETY: a handle that allows it; the count is not asked for.
        unsafe { (self.suspend)(thread, ptr::null_mut()) }
    }

    /// Takes back one [`suspend`](Self::suspend).
    pub(super) fn resume(&self, thread: Handle) {
        // SAFETY: a handle that allows it; the count is not asked for.
        let _ = unsafe { (self.resume)(thread, ptr::null_mut()) };
    }

    /// The registers of a thread that is suspended. Waits until it really is.
    pub(super) fn context(&self, thread: Handle, context: &mut Context) -> Status {
        // SAFETY: a handle that allows it, and an aligned structure that says what is wanted.
        unsafe { (self.get_context)(thread, &raw mut context.0) }
    }

    /// Gives registers to a thread that is suspended.
    ///
    /// # Safety
    /// The thread may go on with them.
    pub(super) unsafe fn set_context(&self, thread: Handle, context: &mut Context) -> Status {
        // SAFETY: a handle that allows it, and an aligned structure that says what is in it; the rest is the caller's promise.
        unsafe { (self.set_context)(thread, &raw mut context.0) }
    }

    /// Closes a handle that [`next_thread`](Self::next_thread) gave.
    pub(super) fn close(&self, handle: Handle) {
        // SAFETY: it is ours, and not used any more.
        let _ = unsafe { (self.close)(handle) };
    }

    /// Sleeps for so many microseconds, at least.
    pub(super) fn pause(&self, microseconds: u32) {
        // In units of 100 nanoseconds; negative is from now on.
        let time = -10 * i64::from(microseconds);
        // SAFETY: not alertable: nothing is called meanwhile.
        let _ = unsafe { (self.delay)(0, &raw const time) };
    }

    /// `FlushProcessWriteBuffers`.
    pub(super) fn flush(&self) {
        // SAFETY: it has neither arguments nor effects but the one that is asked for.
        let _ = unsafe { (self.flush)() };
    }
}
