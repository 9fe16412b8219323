//! x86-64.

use super::{Frame, Masking, cpuid};
use core::arch::x86_64::_rdtsc;
use core::arch::{asm, naked_asm};
use core::hint::black_box;
use object::elf::{self, FileHeader64, RelocationType};
use object::{Architecture, LittleEndian};

/// One past the last address that the kernel gives out without being asked for more (Documentation/arch/x86/x86_64/
/// mm.rst: 47 bits, less a guard page), whatever is mapped at the highest address.
pub(crate) const fn top(_highest: u64) -> u64 {
    (1 << 47) - 4096
}

// arch/x86/entry/syscalls/syscall_64.tbl
pub(crate) const NR_RT_SIGACTION: usize = 13;
pub(crate) const NR_RT_SIGPROCMASK: usize = 14;
pub(crate) const NR_IOCTL: usize = 16;
pub(crate) const NR_GETPID: usize = 39;
pub(crate) const NR_GETUID: usize = 102;
pub(crate) const NR_GETTID: usize = 186;
pub(crate) const NR_FUTEX: usize = 202;
pub(crate) const NR_CLOCK_GETTIME: usize = 228;
pub(crate) const NR_RT_TGSIGQUEUEINFO: usize = 297;
pub(crate) const NR_PERF_EVENT_OPEN: usize = 298;
pub(crate) const NR_PROCESS_VM_READV: usize = 310;

/// In which a thread sleeps as long as a child borrows the process's memory: clone, vfork, clone3.
pub(crate) const WITH_A_CHILD: [i64; 3] = [56, 58, 435];

/// What a system call does with the mask of a thread that sleeps in it; none if nothing.
pub(crate) const fn masking(number: i64) -> Option<Masking> {
    match number {
        // rt_sigtimedwait
        128 => Some(Masking::Waits),
        // rt_sigsuspend
        130 => Some(Masking::Always),
        // ppoll; epoll_pwait, epoll_pwait2, io_uring_enter
        271 => Some(Masking::Argument(3)),
        281 | 441 | 426 => Some(Masking::Argument(4)),
        // pselect6, io_pgetevents
        270 | 333 => Some(Masking::Pointed(5)),
        _ => None,
    }
}

/// Enters the kernel.
///
/// # Safety
/// The arguments are what the system call is defined for.
pub(crate) unsafe fn call(number: usize, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: the caller answers for the arguments. The kernel changes rax, rcx and r11, and what they point to.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Where a handler returns to: `rt_sigreturn`, in the very bytes by which unwinders and debuggers know it.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn restorer() {
    naked_asm!(".byte 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0", "syscall")
}

/// `siginfo_t`, as far as it is read here. The kernel uses the first 48 bytes, and clears the rest.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Info {
    pub(crate) signal: i32,
    errno: i32,
    pub(crate) code: i32,
    padding: i32,
    pid: i32,
    uid: u32,
    value: usize,
    unused: [u64; 10],
    /// Beyond what the kernel uses: how far the signal has been passed on.
    pub(crate) mark: [u64; 2],
}

impl Info {
    /// What somebody sends with a value.
    pub(crate) fn sent(signal: i32, code: i32, (pid, uid): (i32, u32), value: usize) -> Self {
        Self { signal, code, pid, uid, value, ..Self::default() }
    }

    /// The value that it was sent with.
    pub(crate) const fn value(&self) -> usize {
        self.value
    }

    /// What the event of perf that has sent it was opened with (`si_perf_data`).
    pub(crate) const fn event_data(&self) -> usize {
        self.value
    }
}

/// The start of `ucontext_t`: how the thread goes on.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Context {
    flags: u64,
    link: u64,
    /// Address, flags, size.
    alternate: [u64; 3],
    /// r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp.
    registers: [u64; 16],
    rip: u64,
    eflags: u64,
    segments: u64,
    error: u64,
    trap: u64,
    rest: [u64; 11],
    mask: u64,
}

impl Context {
    /// The instruction pointer.
    pub(crate) const fn ip(&self) -> u64 {
        self.rip
    }

    pub(crate) const fn set_ip(&mut self, ip: u64) {
        self.rip = ip;
    }

    /// The stack pointer.
    pub(crate) const fn sp(&self) -> u64 {
        let [.., sp] = self.registers;
        sp
    }

    /// All general registers.
    pub(crate) fn registers(&self) -> impl Iterator<Item = u64> {
        self.registers.into_iter()
    }

    /// The flags.
    pub(crate) const fn eflags(&self) -> u64 {
        self.eflags
    }

    pub(crate) const fn set_eflags(&mut self, eflags: u64) {
        self.eflags = eflags;
    }

    /// The processor's number of the exception.
    pub(crate) const fn trap(&self) -> u64 {
        self.trap
    }

    /// The thread's alternate stack: first and one-past-last address.
    pub(crate) const fn alternate(&self) -> (u64, u64) {
        let [base, _, size] = self.alternate;
        (base, base.saturating_add(size))
    }

    /// The signals that were blocked.
    pub(crate) const fn mask(&self) -> u64 {
        self.mask
    }
}

/// What the kernel puts on a stack when it calls a signal handler (`struct rt_sigframe`), if `word`, which is at `at`, is the code
/// segment in it. `read` reads a word.
pub(crate) fn frame(word: usize, at: u64, read: impl Fn(u64) -> Option<u64>) -> Option<Frame> {
    // How far before the code segment these are: a frame begins with the restorer and `ucontext`.
    const FLAGS: u64 = 23 * 8;
    const LINK: u64 = 22 * 8;
    const ALTERNATE: u64 = 21 * 8;
    const ALTERNATE_SIZE: u64 = 19 * 8;
    const SP: u64 = 3 * 8;
    const EFLAGS: u64 = 8;
    // How far behind it.
    const STATE: u64 = 5 * 8;
    // __USER_CS, and the one of a paravirtualised Xen guest; no fs and no gs.
    if !matches!(word & 0xffff_ffff_ffff, 0x33 | 0xe033) {
        return None;
    }
    let before = |distance| read(at.wrapping_sub(distance));
    let (eflags, state) = (before(EFLAGS)?, read(at.wrapping_add(STATE))?);
    // Three flags are defined, `link` is never used; bit 1 of eflags is always set, and those above 21 never; the
    // floating point state lies above, not far.
    let is_frame = eflags & 2 != 0
        && eflags < 1 << 22
        && state > at
        && state.wrapping_sub(at) < 1 << 16
        && before(FLAGS)? < 8
        && before(LINK)? == 0;
    if !is_frame {
        return None;
    }
    let (base, size) = (before(ALTERNATE)?, before(ALTERNATE_SIZE)?);
    Some(Frame { sp: before(SP)?, alternate: (base, base.saturating_add(size)) })
}

// Where glibc's control block of a thread has its own address, and the thread's number (sysdeps/x86_64/nptl/tls.h, nptl/descr.h).
pub(crate) const CONTROL_SELF: u64 = 16;
pub(crate) const CONTROL_THREAD: u64 = 0x2d0;

/// What perf wants to be told as the length of an instruction, however long that is: that of a word of the kernel's.
pub(crate) const EVENT_LENGTHS: &[u64] = &[8];

/// The class of ELF that processes like this one consist of.
pub(crate) type FileHeader = FileHeader64<LittleEndian>;
pub(crate) const ARCHITECTURE: Architecture = Architecture::X86_64;
pub(crate) const R_GLOB_DAT: RelocationType = elf::R_X86_64_GLOB_DAT;
pub(crate) const R_JUMP_SLOT: RelocationType = elf::R_X86_64_JUMP_SLOT;
/// `EI_CLASS`: ELFCLASS64.
pub(crate) const ELF_CLASS: u8 = 2;
/// `e_machine`: EM_X86_64.
pub(crate) const ELF_MACHINE: u8 = 62;

/// `Elf64_Phdr`.
#[repr(C)]
pub(crate) struct ProgramHeader {
    pub(crate) kind: u32,
    flags: u32,
    offset: u64,
    pub(crate) address: usize,
    physical: u64,
    file_size: u64,
    pub(crate) size: usize,
    align: u64,
}

/// `Elf64_Sym`: a symbol by its name, its value and its size, and what is between: its kind, its visibility, its section.
pub(crate) fn elf_symbol(
    name: u32,
    [a, b, c, d]: [u8; 4],
    value: u64,
    size: u64,
) -> impl Iterator<Item = u8> {
    let [value, size] = [value, size].map(u64::to_le_bytes);
    name.to_le_bytes().into_iter().chain([a, b, c, d]).chain(value).chain(size)
}

// DWARF's numbers (System V ABI for x86-64, table 3.36): of the return address's column, and of rsp.
pub(crate) const DWARF_RETURN_ADDRESS: u8 = 16;
pub(crate) const DWARF_STACK_POINTER: u8 = 7;

/// Executes a serializing instruction: CPUID (Intel SDM volume 3, "Serializing Instructions").
pub(crate) fn serialize() {
    black_box(cpuid(0, 0));
}

/// The processor's time stamp.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every processor in 64-bit mode has the counter.
    unsafe { _rdtsc() }
}

/// Whether the calling thread has a shadow stack (Documentation/arch/x86/shstk.rst). It is switched on for a whole program when it
/// starts, by its loader, so every thread has one or none.
pub(crate) fn has_shadow_stack() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_SHSTK_STATUS: usize = 0x5005;
    const ARCH_SHSTK_SHSTK: u64 = 1;
    let mut features = 0_u64;
    let to = (&raw mut features).expose_provenance();
    // SAFETY: it writes the eight bytes that it is given the address of, or nothing.
    let result = unsafe { call(ARCH_PRCTL, [ARCH_SHSTK_STATUS, to, 0, 0, 0, 0]) };
    // A kernel that knows of no shadow stacks refuses.
    result == 0 && features & ARCH_SHSTK_SHSTK != 0
}
