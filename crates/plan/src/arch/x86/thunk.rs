//! Functions that begin with a jump: import and incremental-link thunks, and the jumps of other hooking libraries.

use super::decode;
use super::relocate::ENDBR64;
use crate::code::Code;
use iced_x86::{Code as Opcode, FlowControl, Register};

/// Where a function that begins with a jump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thunk {
    /// A direct jump to this address.
    To(u64),
    /// A jump through the pointer at this address.
    Through(u64),
}

/// If the code is a thunk, where it goes; a caller that wants the function behind it surveys that one instead.
pub fn thunk(code: &Code<'_>) -> Option<Thunk> {
    let (bytes, skipped) = match code.bytes().strip_prefix(&ENDBR64) {
        Some(rest) => (rest, ENDBR64.len()),
        None => (code.bytes(), 0),
    };
    let decoded = decode::instruction(bytes, code.address().wrapping_add(skipped as u64)).ok()?;
    let instruction = &decoded.instruction;
    match instruction.flow_control() {
        FlowControl::UnconditionalBranch if matches!(decoded.bytes.first(), Some(0xe9 | 0xeb)) => {
            Some(Thunk::To(instruction.near_branch_target()))
        }
        // A far pointer, or one relative to a segment's base, is not at the address that the operand names.
        FlowControl::IndirectBranch
            if instruction.code() == Opcode::Jmp_rm64
                && instruction.is_ip_rel_memory_operand()
                && !matches!(instruction.memory_segment(), Register::FS | Register::GS) =>
        {
            Some(Thunk::Through(instruction.ip_rel_memory_address()))
        }
        _ => None,
    }
}

/// Where code goes that begins with one of the absolute jumps that other hooking libraries write: they are longer
/// than the window, so when such a hook is taken away, a jump back into its middle would run half an instruction.
pub(crate) fn absolute_jump(bytes: &[u8], address: u64) -> Option<u64> {
    let decoded = decode::instruction(bytes, address).ok()?;
    let first = &decoded.instruction;
    let rest = bytes.get(decoded.len()..)?;
    match first.code() {
        // jmp qword ptr [rip+0], and the address behind it
        Opcode::Jmp_rm64
            if first.is_ip_rel_memory_operand() && first.ip_rel_memory_address() == first.next_ip() =>
        {
            rest.first_chunk().map(|pointer| u64::from_le_bytes(*pointer))
        }
        // mov r64, imm64 / jmp r64
        Opcode::Mov_r64_imm64 => {
            let jump = decode::instruction(rest, first.next_ip()).ok()?.instruction;
            let same = jump.code() == Opcode::Jmp_rm64 && jump.op0_register() == first.op0_register();
            same.then(|| first.immediate64())
        }
        Opcode::Pushq_imm32 => {
            let low = first.immediate32to64().cast_unsigned();
            match *rest {
                // push imm32 / ret
                [0xc3, ..] => Some(low),
                // push imm32 / mov dword ptr [rsp+4], imm32 / ret
                [0xc7, 0x44, 0x24, 0x04, a, b, c, d, 0xc3, ..] => {
                    let high = u32::from_le_bytes([a, b, c, d]);
                    Some((u64::from(high) << 32) | (low & 0xffff_ffff))
                }
                _ => None,
            }
        }
        _ => None,
    }
}
