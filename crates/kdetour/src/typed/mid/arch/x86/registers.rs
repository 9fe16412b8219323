//! The registers of a thread that has come to a detour inside a function.

use crate::address::{narrow, widen};
use core::fmt;

/// The registers as the function left them, and as it will find them again: what is written here is what it goes on
/// with.
///
/// The thunk pushes them in this order, the last one first.
#[repr(C)]
pub struct Registers {
    /// The XSAVE area, whose first 512 bytes have the form that FXSAVE gave them.
    pub(super) state: *mut Legacy,
    /// EDI.
    pub edi: u32,
    /// ESI.
    pub esi: u32,
    /// EBP.
    pub ebp: u32,
    pub(super) esp: u32,
    /// EBX.
    pub ebx: u32,
    /// EDX.
    pub edx: u32,
    /// ECX.
    pub ecx: u32,
    /// EAX.
    pub eax: u32,
    /// The flags. Of what is written here the processor takes what `popfd` takes.
    pub eflags: u32,
    /// The detoured instruction's address. If it is left alone the function goes on with that instruction; if it is
    /// changed, with the one that is named, whose place must be the start of one.
    pub eip: u32,
}

/// The first part of an XSAVE area (Intel SDM volume 1, section 13.4.1).
#[repr(C)]
pub(super) struct Legacy {
    x87: [u8; 160],
    xmm: [u128; 8],
}

impl Registers {
    pub(in crate::typed::mid) const fn ip(&self) -> u64 {
        widen(self.eip as usize)
    }

    pub(in crate::typed::mid) const fn set_ip(&mut self, ip: u64) {
        self.eip = narrow(ip) as u32;
    }

    /// The stack pointer, which cannot be changed.
    pub const fn esp(&self) -> u32 {
        self.esp
    }

    /// XMM0 to XMM7, the lowest byte first.
    pub const fn xmm(&self) -> &[u128; 8] {
        // SAFETY: the thunk has made the area before it called anybody with these registers, it is aligned to 64
        // bytes, and it is there until that call has returned.
        unsafe { &(*self.state).xmm }
    }

    /// XMM0 to XMM7, to be changed. The upper parts of the wider registers that they belong to stay as they are.
    pub const fn xmm_mut(&mut self) -> &mut [u128; 8] {
        // SAFETY: as above; and nobody else has these registers.
        unsafe { &mut (*self.state).xmm }
    }
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let general = [
            ("eax", self.eax),
            ("ecx", self.ecx),
            ("edx", self.edx),
            ("ebx", self.ebx),
            ("esp", self.esp),
            ("ebp", self.ebp),
            ("esi", self.esi),
            ("edi", self.edi),
            ("eflags", self.eflags),
            ("eip", self.eip),
        ];
        let mut all = f.debug_struct("Registers");
        for (name, value) in general {
            all.field(name, &format_args!("{value:#x}"));
        }
        all.field("xmm", self.xmm()).finish()
    }
}
