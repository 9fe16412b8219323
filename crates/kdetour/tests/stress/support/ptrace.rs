//! Threads of a child, stopped where one wants them.

use super::runner::fail;
use std::ffi::c_void;
use std::{io, mem, ptr};

/// A thread of a child that this process has stopped.
pub(crate) struct Stopped {
    thread: i32,
    /// To be delivered when it goes on.
    signal: i32,
}

impl Stopped {
    /// Seizes a thread and stops it, wherever it is.
    pub(crate) fn seize(thread: i32) -> Self {
        request(libc::PTRACE_SEIZE, thread, 0, libc::PTRACE_O_TRACESYSGOOD as usize);
        request(libc::PTRACE_INTERRUPT, thread, 0, 0);
        let mut stopped = Self { thread, signal: 0 };
        stopped.wait();
        stopped
    }

    /// Waits for the next stop.
    fn wait(&mut self) -> i32 {
        let mut status = 0;
        loop {
            // SAFETY: a thread that this process traces.
            let waited = unsafe { libc::waitpid(self.thread, &raw mut status, libc::__WALL) };
            if waited == self.thread {
                break;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                fail(&format!("waiting for the thread {}: {error}", self.thread));
            }
        }
        if !libc::WIFSTOPPED(status) {
            let why = if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 };
            fail(&format!("the thread {} ended, by signal {why}", self.thread));
        }
        status >> 8
    }

    fn registers(&self) -> libc::user_regs_struct {
        // SAFETY: all zeros are valid registers.
        let mut registers: libc::user_regs_struct = unsafe { mem::zeroed() };
        request(libc::PTRACE_GETREGS, self.thread, 0, (&raw mut registers).expose_provenance());
        registers
    }

    pub(crate) fn ip(&self) -> u64 {
        #[cfg(target_arch = "x86_64")]
        let ip = self.registers().rip;
        // Registers are signed there.
        #[cfg(target_arch = "x86")]
        let ip = self.registers().eip.cast_unsigned().into();
        ip
    }

    /// The number of the system call that it is in.
    pub(crate) fn system_call(&self) -> u64 {
        #[cfg(target_arch = "x86_64")]
        let number = self.registers().orig_rax;
        #[cfg(target_arch = "x86")]
        let number = self.registers().orig_eax.cast_unsigned().into();
        number
    }

    pub(crate) fn sp(&self) -> u64 {
        #[cfg(target_arch = "x86_64")]
        let sp = self.registers().rsp;
        #[cfg(target_arch = "x86")]
        let sp = self.registers().esp.cast_unsigned().into();
        sp
    }

    /// Runs one instruction. A signal that arrives is delivered with the next one.
    pub(crate) fn step(&mut self) {
        let signal = mem::take(&mut self.signal);
        request(libc::PTRACE_SINGLESTEP, self.thread, 0, usize::try_from(signal).unwrap_or(0));
        let stop = self.wait();
        let is_step = stop == libc::SIGTRAP && {
            // SAFETY: all zeros are a valid description.
            let mut information: libc::siginfo_t = unsafe { mem::zeroed() };
            request(libc::PTRACE_GETSIGINFO, self.thread, 0, (&raw mut information).expose_provenance());
            // TRAP_BRKPT is also told behind a system call that was stepped over; an INT3 is told by the kernel.
            information.si_code != 0x80
        };
        if !is_step && stop >> 8 == 0 {
            self.signal = stop;
        }
    }

    /// Runs to the next beginning or end of a system call. Whether it is one.
    pub(crate) fn run_to_system_call(&mut self) -> bool {
        let signal = mem::take(&mut self.signal);
        request(libc::PTRACE_SYSCALL, self.thread, 0, usize::try_from(signal).unwrap_or(0));
        let stop = self.wait();
        if stop == libc::SIGTRAP | 0x80 {
            return true;
        }
        if stop >> 8 == 0 {
            self.signal = stop;
        }
        false
    }

    /// Runs instructions until one is to be run at an address that is wanted. None within so many: false.
    pub(crate) fn step_to(&mut self, most: usize, is_wanted: impl Fn(u64) -> bool) -> bool {
        for _ in 0..most {
            if is_wanted(self.ip()) {
                return true;
            }
            self.step();
        }
        false
    }

    /// Lets it go on, with a signal if it is not 0.
    pub(crate) fn release_with(self, signal: i32) {
        let signal = if signal == 0 { self.signal } else { signal };
        request(libc::PTRACE_DETACH, self.thread, 0, usize::try_from(signal).unwrap_or(0));
    }

    pub(crate) fn release(self) {
        self.release_with(0);
    }
}

fn request(request: libc::c_uint, thread: i32, address: usize, data: usize) {
    let address = ptr::without_provenance_mut::<c_void>(address);
    let data = ptr::with_exposed_provenance_mut::<c_void>(data);
    // SAFETY: what the kernel writes is a local of the caller, whose address is the data.
    let result = unsafe { libc::ptrace(request, thread, address, data) };
    if result == -1 {
        fail(&format!("ptrace request {request:#x} of the thread {thread}: {}", io::Error::last_os_error()));
    }
}
