//! The registers of a thread that has come to a detour inside a function.

use core::fmt;

/// The registers as the function left them, and as it will find them again: what is written here is what it goes on
/// with.
///
/// The thunk pushes them in this order, the last one first.
#[repr(C)]
pub struct Registers {
    /// The XSAVE area, whose first 512 bytes have the form that FXSAVE gave them.
    pub(super) state: *mut Legacy,
    /// RAX.
    pub rax: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RBX.
    pub rbx: u64,
    pub(super) rsp: u64,
    /// RBP.
    pub rbp: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// R8.
    pub r8: u64,
    /// R9.
    pub r9: u64,
    /// R10.
    pub r10: u64,
    /// R11.
    pub r11: u64,
    /// R12.
    pub r12: u64,
    /// R13.
    pub r13: u64,
    /// R14.
    pub r14: u64,
    /// R15.
    pub r15: u64,
    /// The flags. Of what is written here the processor takes what `popfq` takes.
    pub rflags: u64,
    /// The detoured instruction's address. If it is left alone the function goes on with that instruction; if it is
    /// changed, with the one that is named, whose place must be the start of one.
    pub rip: u64,
}

/// The first part of an XSAVE area (Intel SDM volume 1, section 13.4.1).
#[repr(C)]
pub(super) struct Legacy {
    x87: [u8; 160],
    xmm: [u128; 16],
}

impl Registers {
    pub(in crate::typed::mid) const fn ip(&self) -> u64 {
        self.rip
    }

    pub(in crate::typed::mid) const fn set_ip(&mut self, ip: u64) {
        self.rip = ip;
    }

    /// The stack pointer, which cannot be changed. Below it the function may have a red zone of 128 bytes.
    pub const fn rsp(&self) -> u64 {
        self.rsp
    }

    /// XMM0 to XMM15, the lowest byte first.
    pub const fn xmm(&self) -> &[u128; 16] {
        // SAFETY: the thunk has made the area before it called anybody with these registers, it is aligned to 64
        // bytes, and it is there until that call has returned.
        unsafe { &(*self.state).xmm }
    }

    /// XMM0 to XMM15, to be changed. The upper parts of the wider registers that they belong to stay as they are.
    pub const fn xmm_mut(&mut self) -> &mut [u128; 16] {
        // SAFETY: as above; and nobody else has these registers.
        unsafe { &mut (*self.state).xmm }
    }
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let general = [
            ("rax", self.rax),
            ("rcx", self.rcx),
            ("rdx", self.rdx),
            ("rbx", self.rbx),
            ("rsp", self.rsp),
            ("rbp", self.rbp),
            ("rsi", self.rsi),
            ("rdi", self.rdi),
            ("r8", self.r8),
            ("r9", self.r9),
            ("r10", self.r10),
            ("r11", self.r11),
            ("r12", self.r12),
            ("r13", self.r13),
            ("r14", self.r14),
            ("r15", self.r15),
            ("rflags", self.rflags),
            ("rip", self.rip),
        ];
        let mut all = f.debug_struct("Registers");
        for (name, value) in general {
            all.field(name, &format_args!("{value:#x}"));
        }
        all.field("xmm", self.xmm()).finish()
    }
}
