//! Decoding: single instructions, and the bytes of a slot one after the other.

use iced_x86::{
    Code as Opcode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};
use kdetour_plan::Mode;

/// The instruction at `bytes[0]`, with its own bytes.
pub(crate) fn decode(mode: Mode, bytes: &[u8], ip: u64) -> Result<(Instruction, &[u8]), String> {
    let mut decoder = Decoder::with_ip(mode.bits(), bytes, ip, DecoderOptions::NONE);
    let one = decoder.decode();
    match bytes.get(..one.len()) {
        Some(own) if !one.is_invalid() => Ok((one, own)),
        _ => Err(format!("{ip:#x} does not decode: {:02x?}", bytes.get(..15).unwrap_or(bytes))),
    }
}

/// Modulo the size of the address space.
pub(crate) fn wrap(mode: Mode, address: u64) -> u64 {
    if mode.bits() == 32 { address & 0xffff_ffff } else { address }
}

/// Whether control can reach the address behind an instruction.
pub(crate) fn goes_on(one: &Instruction) -> bool {
    !matches!(
        one.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
    )
}

/// A direct branch or call, with its displacement in the instruction.
pub(crate) fn is_near_branch(one: &Instruction) -> bool {
    matches!(one.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
}

/// A direct branch whose target is as wide as the mode's addresses.
pub(crate) fn is_wide_branch(mode: Mode, one: &Instruction) -> bool {
    one.op0_kind() == if mode.bits() == 32 { OpKind::NearBranch32 } else { OpKind::NearBranch64 }
}

/// What compilers, assemblers and linkers fill gaps with, and nothing runs through or is changed by.
pub(crate) fn is_fill(mode: Mode, one: &Instruction) -> bool {
    let register = one.op0_register();
    match one.mnemonic() {
        Mnemonic::Nop | Mnemonic::Int3 => true,
        // lea esi, [esi+0] and mov esi, esi: no-ops in 32-bit code, where no upper half is cleared.
        Mnemonic::Lea if mode.bits() == 32 => {
            register.is_gpr32()
                && one.memory_base() == register
                && one.memory_index() == Register::None
                && one.memory_displacement64() == 0
        }
        Mnemonic::Mov if mode.bits() == 32 => register.is_gpr32() && one.op1_register() == register,
        _ => false,
    }
}

/// A direct jump to `target`.
pub(crate) fn is_jump_to(mode: Mode, one: &Instruction, target: u64) -> bool {
    one.mnemonic() == Mnemonic::Jmp && is_wide_branch(mode, one) && one.near_branch_target() == target
}

/// Reads bytes that begin at an address, one instruction after the other.
pub(crate) struct Reader<'a> {
    pub(crate) mode: Mode,
    pub(crate) bytes: &'a [u8],
    pub(crate) address: u64,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(mode: Mode, bytes: &'a [u8], address: u64) -> Self {
        Self { mode, bytes, address, at: 0 }
    }

    /// The address of the next byte.
    pub(crate) fn at(&self) -> u64 {
        self.address.wrapping_add(self.at as u64)
    }

    /// How many bytes were read.
    pub(crate) fn offset(&self) -> usize {
        self.at
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or(&[])
    }

    /// The next instruction, which is not taken.
    pub(crate) fn peek(&self) -> Result<(Instruction, &'a [u8]), String> {
        decode(self.mode, self.rest(), self.at())
    }

    pub(crate) fn next(&mut self) -> Result<(Instruction, &'a [u8]), String> {
        let (one, own) = self.peek()?;
        self.at += own.len();
        Ok((one, own))
    }

    /// An address among the code.
    pub(crate) fn pointer(&mut self) -> Result<u64, String> {
        let pointer = self.rest().first_chunk().ok_or("no eight bytes for an address")?;
        self.at += pointer.len();
        Ok(u64::from_le_bytes(*pointer))
    }

    /// A jump of either form; answers where it goes.
    pub(crate) fn jump(&mut self) -> Result<u64, String> {
        let (one, _) = self.next()?;
        if one.mnemonic() == Mnemonic::Jmp && is_wide_branch(self.mode, &one) {
            return Ok(one.near_branch_target());
        }
        // jmp qword ptr [rip+0] and the address
        ensure!(
            self.mode.bits() == 64
                && one.code() == Opcode::Jmp_rm64
                && one.is_ip_rel_memory_operand()
                && one.ip_rel_memory_address() == one.next_ip(),
            "a jump was to be at {:#x}: {one:?}",
            one.ip()
        );
        self.pointer()
    }
}
