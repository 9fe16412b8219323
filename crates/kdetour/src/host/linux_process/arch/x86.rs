//! x86-32: processes of a 32-bit kernel, and such of a 64-bit one.

use super::{Frame, Masking, cpuid};
use crate::address::narrow;
use core::arch::naked_asm;
use core::arch::x86::_rdtsc;
use core::hint::black_box;
use object::elf::{self, FileHeader32, RelocationType};
use object::{Architecture, LittleEndian};

/// One past the last address that the kernel gives out: a 64-bit kernel all but the last two pages (`IA32_PAGE_OFFSET`), a 32-bit one
/// three of four gigabytes, and so does a 64-bit one that was asked to (`ADDR_LIMIT_3GB`). The stack is at the end, so what is mapped at
/// the highest address tells.
pub(crate) const fn top(highest: u64) -> u64 {
    const THREE_GIGABYTES: u64 = 3 << 30;
    if highest > THREE_GIGABYTES { (1 << 32) - 2 * 4096 } else { THREE_GIGABYTES }
}

// arch/x86/entry/syscalls/syscall_32.tbl
pub(crate) const NR_GETPID: usize = 20;
pub(crate) const NR_IOCTL: usize = 54;
pub(crate) const NR_RT_SIGACTION: usize = 174;
pub(crate) const NR_RT_SIGPROCMASK: usize = 175;
/// `getuid32`.
pub(crate) const NR_GETUID: usize = 199;
pub(crate) const NR_GETTID: usize = 224;
pub(crate) const NR_FUTEX: usize = 240;
pub(crate) const NR_CLOCK_GETTIME: usize = 265;
pub(crate) const NR_RT_TGSIGQUEUEINFO: usize = 335;
pub(crate) const NR_PERF_EVENT_OPEN: usize = 336;
pub(crate) const NR_PROCESS_VM_READV: usize = 347;

/// In which a thread sleeps as long as a child borrows the process's memory: clone, vfork, clone3.
pub(crate) const WITH_A_CHILD: [i64; 3] = [120, 190, 435];

/// What a system call does with the mask of a thread that sleeps in it; none if nothing.
pub(crate) const fn masking(number: i64) -> Option<Masking> {
    match number {
        // rt_sigtimedwait, rt_sigtimedwait_time64
        177 | 421 => Some(Masking::Waits),
        // sigsuspend, rt_sigsuspend
        72 | 179 => Some(Masking::Always),
        // ppoll, ppoll_time64; epoll_pwait, epoll_pwait2, io_uring_enter
        309 | 414 => Some(Masking::Argument(3)),
        319 | 441 | 426 => Some(Masking::Argument(4)),
        // pselect6, pselect6_time64, io_pgetevents, io_pgetevents_time64
        308 | 413 | 385 | 416 => Some(Masking::Pointed(5)),
        _ => None,
    }
}

/// Enters the kernel.
///
/// # Safety
/// The arguments are what the system call is defined for.
pub(crate) unsafe fn call(number: usize, arguments: [usize; 6]) -> isize {
    // SAFETY: the caller answers for the arguments.
    unsafe { interrupt(number, &raw const arguments) }
}

/// `int 0x80` with six arguments, one of them in ebp: the compiler gives that away for nothing.
#[unsafe(naked)]
unsafe extern "C" fn interrupt(number: usize, arguments: *const [usize; 6]) -> isize {
    naked_asm!(
        "push ebp",
        "push edi",
        "push esi",
        "push ebx",
        "mov eax, [esp + 20]",
        "mov ebp, [esp + 24]",
        "mov ebx, [ebp]",
        "mov ecx, [ebp + 4]",
        "mov edx, [ebp + 8]",
        "mov esi, [ebp + 12]",
        "mov edi, [ebp + 16]",
        "mov ebp, [ebp + 20]",
        "int 0x80",
        "pop ebx",
        "pop esi",
        "pop edi",
        "pop ebp",
        "ret",
    )
}

/// Where a handler returns to: `rt_sigreturn`, in the very bytes by which unwinders and debuggers know it.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn restorer() {
    naked_asm!(".byte 0xb8, 0xad, 0, 0, 0", "int 0x80")
}

/// `siginfo_t`, as far as it is read here. The kernel uses the first 32 bytes, and clears the rest.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Info {
    pub(crate) signal: i32,
    errno: i32,
    pub(crate) code: i32,
    pid: i32,
    /// Or what an event of perf was opened with.
    uid: u32,
    value: usize,
    unused: [u64; 11],
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

    /// What the event of perf that has sent it was opened with (`si_perf_data`): it is behind the address, where a sender's user is.
    pub(crate) const fn event_data(&self) -> usize {
        self.uid as usize
    }
}

/// The start of `ucontext_t`: how the thread goes on.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Context {
    flags: u32,
    link: u32,
    /// Address, flags, size.
    alternate: [u32; 3],
    /// gs, fs, es, ds.
    segments: [u32; 4],
    /// edi, esi, ebp, esp, ebx, edx, ecx, eax.
    registers: [u32; 8],
    trap: u32,
    error: u32,
    eip: u32,
    cs: u32,
    eflags: u32,
    /// esp once more; ss, the floating point state's address, the first signals that were blocked, the address of a page fault.
    rest: [u32; 5],
    mask: u64,
}

impl Context {
    /// The instruction pointer.
    pub(crate) fn ip(&self) -> u64 {
        self.eip.into()
    }

    pub(crate) const fn set_ip(&mut self, ip: u64) {
        self.eip = narrow(ip) as u32;
    }

    /// The stack pointer.
    pub(crate) fn sp(&self) -> u64 {
        let [_, _, _, sp, ..] = self.registers;
        sp.into()
    }

    /// All general registers.
    pub(crate) fn registers(&self) -> impl Iterator<Item = u64> {
        self.registers.into_iter().map(u64::from)
    }

    /// The flags.
    pub(crate) fn eflags(&self) -> u64 {
        self.eflags.into()
    }

    pub(crate) const fn set_eflags(&mut self, eflags: u64) {
        self.eflags = narrow(eflags) as u32;
    }

    /// The processor's number of the exception.
    pub(crate) fn trap(&self) -> u64 {
        self.trap.into()
    }

    /// The thread's alternate stack: first and one-past-last address.
    pub(crate) fn alternate(&self) -> (u64, u64) {
        let [base, _, size] = self.alternate.map(u64::from);
        (base, base.saturating_add(size))
    }

    /// The signals that were blocked.
    pub(crate) const fn mask(&self) -> u64 {
        self.mask
    }
}

/// What the kernel puts on a stack when it calls a signal handler, if `word`, which is at `at`, is the code segment in it: `struct
/// rt_sigframe`, or for a handler without `SA_SIGINFO` the older `struct sigframe`, which does not tell of an alternate stack. `read`
/// reads a word.
pub(crate) fn frame(word: usize, at: u64, read: impl Fn(u64) -> Option<u64>) -> Option<Frame> {
    // `struct sigcontext`: how far before the code segment these are.
    const START: u64 = 15 * 4;
    const DATA: u64 = 12 * 4;
    const SP: u64 = 8 * 4;
    // How far behind it.
    const EFLAGS: u64 = 4;
    const SP_AGAIN: u64 = 2 * 4;
    const STACK: u64 = 3 * 4;
    const STATE: u64 = 4 * 4;
    // __USER32_CS of a 64-bit kernel, also for a paravirtualised Xen guest, with its segment of data; those of a 32-bit kernel.
    let data = match word {
        0x23 | 0xe023 => [0x2b, 0xe02b],
        0x73 => [0x7b, 0x7b],
        _ => return None,
    };
    let before = |distance| read(at.wrapping_sub(distance));
    let behind = |distance| read(at.wrapping_add(distance));
    let (sp, eflags, state) = (before(SP)?, behind(EFLAGS)?, behind(STATE)?);
    // Bit 1 of eflags is always set, and those above 21 never; the floating point state lies above, not far.
    let is_context = behind(SP_AGAIN)? == sp
        && eflags & 2 != 0
        && eflags < 1 << 22
        && data.contains(&behind(STACK)?)
        && data.contains(&before(DATA)?)
        && state > at
        && state.wrapping_sub(at) < 1 << 16;
    if !is_context {
        return None;
    }
    // In front of that are in `ucontext` flags, link, address, flags and size of the alternate stack; the frame begins with the
    // restorer, the signal, and pointers to `siginfo`, which is next, and to `ucontext`.
    const ALTERNATE: u64 = START + 3 * 4;
    const ALTERNATE_SIZE: u64 = START + 4;
    const CONTEXT: u64 = START + 5 * 4;
    const POINTER: u64 = CONTEXT + 128 + 4;
    if before(POINTER)? == at.wrapping_sub(CONTEXT) {
        let (base, size) = (before(ALTERNATE)?, before(ALTERNATE_SIZE)?);
        return Some(Frame { sp, alternate: (base, base.saturating_add(size)) });
    }
    // The older one begins with the restorer and the signal.
    let signal = before(START + 4)?;
    (1..=64).contains(&signal).then_some(Frame { sp, alternate: (0, 0) })
}

// Where glibc's control block of a thread has its own address, and the thread's number (sysdeps/i386/nptl/tls.h, nptl/descr.h).
pub(crate) const CONTROL_SELF: u64 = 8;
pub(crate) const CONTROL_THREAD: u64 = 0x68;

/// What perf wants to be told as the length of an instruction, however long that is: that of a word of the kernel's, which may be
/// another one than ours.
pub(crate) const EVENT_LENGTHS: &[u64] = &[8, 4];

/// The class of ELF that processes like this one consist of.
pub(crate) type FileHeader = FileHeader32<LittleEndian>;
pub(crate) const ARCHITECTURE: Architecture = Architecture::I386;
pub(crate) const R_GLOB_DAT: RelocationType = elf::R_386_GLOB_DAT;
pub(crate) const R_JUMP_SLOT: RelocationType = elf::R_386_JMP_SLOT;
/// `EI_CLASS`: ELFCLASS32.
pub(crate) const ELF_CLASS: u8 = 1;
/// `e_machine`: EM_386.
pub(crate) const ELF_MACHINE: u8 = 3;

/// `Elf32_Phdr`.
#[repr(C)]
pub(crate) struct ProgramHeader {
    pub(crate) kind: u32,
    offset: u32,
    pub(crate) address: usize,
    physical: u32,
    file_size: u32,
    pub(crate) size: usize,
    flags: u32,
    align: u32,
}

/// `Elf32_Sym`: a symbol by its name, its value and its size, and what is behind: its kind, its visibility, its section.
pub(crate) fn elf_symbol(
    name: u32,
    [a, b, c, d]: [u8; 4],
    value: u64,
    size: u64,
) -> impl Iterator<Item = u8> {
    let [value, size] = [value, size].map(|value| narrow(value).to_le_bytes());
    name.to_le_bytes().into_iter().chain(value).chain(size).chain([a, b, c, d])
}

// DWARF's numbers in `.eh_frame` (System V ABI for i386, table 2.14): of the return address's column, and of esp.
pub(crate) const DWARF_RETURN_ADDRESS: u8 = 8;
pub(crate) const DWARF_STACK_POINTER: u8 = 4;

/// Executes a serializing instruction: CPUID (Intel SDM volume 3, "Serializing Instructions").
pub(crate) fn serialize() {
    black_box(cpuid(0, 0));
}

/// The processor's time stamp.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every processor has the counter that has SSE2, which the compiler takes for granted.
    unsafe { _rdtsc() }
}

/// Whether the calling thread has a shadow stack: Linux has none for 32-bit processes (Documentation/arch/x86/shstk.rst).
pub(crate) const fn has_shadow_stack() -> bool {
    false
}
