//! Functions that begin with a jump: import and incremental-link thunks, and the jumps of other hooking libraries.

use super::decode;
use super::flow::flow_control;
use super::landing_pad;
use crate::code::{Code, Mode};
use iced_x86::{Code as Opcode, FlowControl, Instruction, OpKind, Register};

/// Where a function that begins with a jump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thunk {
    /// A direct jump to this address.
    To(u64),
    /// A jump through the pointer at this address.
    Through(u64),
}

/// If the code is a thunk, where it goes; a caller that wants the function behind it surveys that one instead. In front of its jump it may have a
/// landing pad, and one instruction that does nothing, which is there to be patched.
pub fn thunk(code: &Code<'_>) -> Option<Thunk> {
    let pad = landing_pad(code.mode());
    let (mut bytes, skipped) = match code.bytes().strip_prefix(&pad) {
        Some(rest) => (rest, pad.len()),
        None => (code.bytes(), 0),
    };
    let mut at = code.address().wrapping_add(skipped as u64);
    let mut decoded = decode::instruction(code.mode(), bytes, at).ok()?;
    if does_nothing(&decoded.instruction, code.mode()) {
        at = at.wrapping_add(decoded.len() as u64);
        bytes = bytes.get(decoded.len()..)?;
        decoded = decode::instruction(code.mode(), bytes, at).ok()?;
    }
    let instruction = &decoded.instruction;
    match flow_control(instruction) {
        FlowControl::UnconditionalBranch if matches!(decoded.bytes.first(), Some(0xe9 | 0xeb)) => {
            Some(Thunk::To(instruction.near_branch_target()))
        }
        // A far pointer, or one relative to a segment's base, is not at the address that the operand names.
        FlowControl::IndirectBranch
            if (instruction.is_ip_rel_memory_operand() && instruction.code() == Opcode::Jmp_rm64
                || is_absolute(instruction) && instruction.code() == Opcode::Jmp_rm32)
                && !matches!(instruction.memory_segment(), Register::FS | Register::GS) =>
        {
            Some(Thunk::Through(instruction.memory_displacement64()))
        }
        _ => None,
    }
}

/// Whether it is what compilers put at the entry of functions that may be patched: a no-op, `lea rsp, [rsp]`, or `mov edi, edi` where that
/// changes nothing.
fn does_nothing(instruction: &Instruction, mode: Mode) -> bool {
    match instruction.code() {
        Opcode::Nopw
        | Opcode::Nopd
        | Opcode::Nopq
        | Opcode::Nop_rm16
        | Opcode::Nop_rm32
        | Opcode::Nop_rm64 => true,
        Opcode::Mov_r32_rm32 | Opcode::Mov_rm32_r32 => {
            mode == Mode::Bits32
                && instruction.op1_kind() == OpKind::Register
                && instruction.op0_register() == instruction.op1_register()
        }
        Opcode::Lea_r32_m | Opcode::Lea_r64_m => {
            let wide = if mode == Mode::Bits32 { Opcode::Lea_r32_m } else { Opcode::Lea_r64_m };
            instruction.code() == wide
                && instruction.memory_base() == instruction.op0_register()
                && instruction.memory_index() == Register::None
                && instruction.memory_displacement64() == 0
        }
        _ => false,
    }
}

/// Whether the operand is memory at an address that the instruction itself holds.
fn is_absolute(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Memory
        && instruction.memory_base() == Register::None
        && instruction.memory_index() == Register::None
}

/// Where code goes that begins with one of the absolute jumps that other hooking libraries write: they are longer
/// than the window, so when such a hook is taken away, a jump back into its middle would run half an instruction.
pub(crate) fn absolute_jump(mode: Mode, bytes: &[u8], address: u64) -> Option<u64> {
    let decoded = decode::instruction(mode, bytes, address).ok()?;
    let first = &decoded.instruction;
    let rest = bytes.get(decoded.len()..)?;
    match first.code() {
        // jmp qword ptr [rip+0], and the address behind it
        Opcode::Jmp_rm64
            if first.is_ip_rel_memory_operand() && first.ip_rel_memory_address() == first.next_ip() =>
        {
            rest.first_chunk().map(|pointer| u64::from_le_bytes(*pointer))
        }
        // jmp dword ptr [next], and the address behind it
        Opcode::Jmp_rm32 if is_absolute(first) && first.memory_displacement64() == first.next_ip() => {
            rest.first_chunk().map(|pointer| u64::from(u32::from_le_bytes(*pointer)))
        }
        // mov r64, imm64 / jmp r64
        Opcode::Mov_r64_imm64 => {
            let jump = decode::instruction(mode, rest, first.next_ip()).ok()?.instruction;
            let same = jump.code() == Opcode::Jmp_rm64 && jump.op0_register() == first.op0_register();
            same.then(|| first.immediate64())
        }
        // mov r32, imm32 / jmp r32
        Opcode::Mov_r32_imm32 if mode == Mode::Bits32 => {
            let jump = decode::instruction(mode, rest, first.next_ip()).ok()?.instruction;
            let same = jump.code() == Opcode::Jmp_rm32 && jump.op0_register() == first.op0_register();
            same.then(|| u64::from(first.immediate32()))
        }
        // push imm32 / ret
        Opcode::Pushd_imm32 => rest.starts_with(&[0xc3]).then(|| u64::from(first.immediate32())),
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
