//! What Windows tells and does, for tests.

use super::Region;
use std::ffi::{CString, c_void};
use std::process::{Child, Command, ExitStatus};
use std::{mem, ptr};
use windows_sys::Win32::Foundation::{CloseHandle, HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::System::Diagnostics::Debug::ReadProcessMemory;
use windows_sys::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, TH32CS_SNAPTHREAD, THREADENTRY32, Thread32First, Thread32Next,
};
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_PRIVATE, MEMORY_BASIC_INFORMATION, PAGE_GUARD, VirtualQuery,
};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetCurrentProcessId, GetCurrentThreadId, OpenThread, ResumeThread, SuspendThread,
    THREAD_GET_CONTEXT, THREAD_SET_CONTEXT, THREAD_SUSPEND_RESUME, TerminateProcess,
};

/// Any protection by which code can run.
const EXECUTABLE: u32 = 0xf0;

/// The calling thread's number.
pub(crate) fn thread_number() -> i32 {
    // SAFETY: asks for a number.
    unsafe { GetCurrentThreadId() }.cast_signed()
}

/// The bytes at an address, as they are now.
pub(crate) fn text(address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0_u8; len];
    let from = ptr::with_exposed_provenance(usize::try_from(address).expect("an address"));
    let mut read = 0;
    // SAFETY: the buffer has that length; what cannot be read is an error.
    let done = unsafe {
        ReadProcessMemory(GetCurrentProcess(), from, bytes.as_mut_ptr().cast(), len, &raw mut read)
    };
    assert!(done != 0 && read == len, "text at {address:#x} can be read");
    bytes
}

/// How many threads there are. One that has just been joined may still be on its way out.
pub(crate) fn threads() -> usize {
    numbers_of(process_number()).len()
}

fn process_number() -> u32 {
    // SAFETY: asks for a number.
    unsafe { GetCurrentProcessId() }
}

/// The numbers of a process's threads.
fn numbers_of(process: u32) -> Vec<u32> {
    // SAFETY: numbers, for which zeros are valid.
    let mut entry: THREADENTRY32 = unsafe { mem::zeroed() };
    entry.dwSize = size_of_val(&entry) as u32;
    let mut numbers = Vec::new();
    // SAFETY: a list of threads, which is closed below, and a structure whose size it says.
    unsafe {
        let list = CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0);
        assert_ne!(list, INVALID_HANDLE_VALUE, "threads are told");
        let mut more = Thread32First(list, &raw mut entry) != 0;
        while more {
            if entry.th32OwnerProcessID == process {
                numbers.push(entry.th32ThreadID);
            }
            more = Thread32Next(list, &raw mut entry) != 0;
        }
        CloseHandle(list);
    }
    numbers
}

/// The memory that can be executed.
pub(crate) fn executable() -> Vec<Region> {
    let mut all: Vec<Region> = Vec::new();
    let mut at = 0_usize;
    // SAFETY: numbers and pointers, for which zeros are valid.
    let mut found: MEMORY_BASIC_INFORMATION = unsafe { mem::zeroed() };
    // SAFETY: fills the structure.
    while unsafe { VirtualQuery(ptr::without_provenance(at), &raw mut found, size_of_val(&found)) } != 0 {
        let (start, end) = (found.BaseAddress.addr(), found.BaseAddress.addr() + found.RegionSize);
        if found.State == MEM_COMMIT && found.Protect & EXECUTABLE != 0 {
            let (start, end) = (start as u64, end as u64);
            let (protection, kind) = (found.Protect, found.Type);
            let name = format!("{:#x} of {:#x}", protection, found.AllocationBase.addr());
            // Pages that are the process's own by now are told apart from those that are not, for a while.
            match all.last_mut().filter(|last| last.end == start && last.name == name) {
                Some(last) => last.end = end,
                None => all.push(Region {
                    start,
                    end,
                    is_readable: protection & PAGE_GUARD == 0 && protection != 0x10,
                    is_anonymous: kind == MEM_PRIVATE,
                    name,
                }),
            }
        }
        if end <= at {
            break;
        }
        at = end;
    }
    all
}

/// The address of a function of a library that is loaded.
pub(crate) fn symbol(name: &str) -> u64 {
    let wanted = CString::new(name).expect("a name");
    let libraries = [c"kernelbase.dll", c"kernel32.dll", c"msvcrt.dll", c"ntdll.dll"];
    let found = libraries.into_iter().find_map(|library| {
        // SAFETY: strings that end; nothing is called.
        unsafe {
            let module = GetModuleHandleA(library.as_ptr().cast());
            if module.is_null() { None } else { GetProcAddress(module, wanted.as_ptr().cast()) }
        }
    });
    (found.unwrap_or_else(|| panic!("{name} is not there")) as *const ()).expose_provenance() as u64
}

/// Ends the process, at once.
pub(crate) fn end_now() -> ! {
    // SAFETY: it is meant.
    unsafe { TerminateProcess(GetCurrentProcess(), 1) };
    std::process::abort()
}

/// What the command starts can be ended: nothing that these scenarios start outlives them.
pub(crate) fn apart(_: &mut Command) {}

/// Ends a process.
pub(crate) fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
}

/// How a process has ended.
pub(crate) fn ended(status: ExitStatus) -> String {
    format!("ended with {status}")
}

/// The threads of a process that hangs.
pub(crate) fn threads_of(process: u32) -> String {
    format!("threads {:?}", numbers_of(process))
}

/// A thread of this process, to be suspended.
pub(crate) struct Thread(HANDLE);

// SAFETY: a number that the kernel knows, in every thread.
unsafe impl Send for Thread {}

impl Thread {
    pub(crate) fn of(number: i32) -> Self {
        let access = THREAD_SUSPEND_RESUME | THREAD_GET_CONTEXT | THREAD_SET_CONTEXT;
        // SAFETY: a number is given.
        let handle = unsafe { OpenThread(access, 0, number.cast_unsigned()) };
        assert!(!handle.is_null(), "thread {number} is there");
        Self(handle)
    }

    /// For functions of the system.
    pub(crate) fn handle(&self) -> *mut c_void {
        self.0
    }

    /// False if it has ended.
    pub(crate) fn suspend(&self) -> bool {
        // SAFETY: a thread of this process.
        unsafe { SuspendThread(self.0) != u32::MAX }
    }

    pub(crate) fn resume(&self) {
        // SAFETY: as above.
        assert_ne!(unsafe { ResumeThread(self.0) }, u32::MAX, "resumed");
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: ours.
        unsafe { CloseHandle(self.0) };
    }
}
