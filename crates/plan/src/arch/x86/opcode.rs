//! Instructions by name, and whether they have operands.
//!
//! As in [`flow`](super::flow): asked of iced-x86 itself this takes two tables, 15 KB of a driver. A test compares both for every
//! instruction that there is.

use iced_x86::{Code, Instruction, OpKind, Register};

/// The most operands of an instruction that may be asked for one by one; what is not there is no memory and no register.
pub(crate) const OPERANDS: u32 = 4;

/// The instructions that somebody here asks for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Enter,
    Int3,
    Lea,
    Leave,
    Nop,
    Ret,
    Sti,
    Xbegin,
    /// `mov` to a segment register.
    MovSegment,
    /// `mov` of 32 bits from register or memory to register or memory.
    Mov32,
    /// `pop ss`.
    PopSs,
    Other,
}

/// Which one an instruction is.
pub(crate) const fn name(instruction: &Instruction) -> Name {
    of(instruction.code())
}

const fn of(code: Code) -> Name {
    match code {
        Code::Enterw_imm16_imm8 | Code::Enterd_imm16_imm8 | Code::Enterq_imm16_imm8 => Name::Enter,
        Code::Int3 => Name::Int3,
        Code::Lea_r16_m | Code::Lea_r32_m | Code::Lea_r64_m => Name::Lea,
        Code::Leavew | Code::Leaved | Code::Leaveq => Name::Leave,
        Code::Nopw | Code::Nopd | Code::Nopq | Code::Nop_rm16 | Code::Nop_rm32 | Code::Nop_rm64 => Name::Nop,
        Code::Retnw
        | Code::Retnd
        | Code::Retnq
        | Code::Retnw_imm16
        | Code::Retnd_imm16
        | Code::Retnq_imm16 => Name::Ret,
        Code::Sti => Name::Sti,
        Code::Xbegin_rel16 | Code::Xbegin_rel32 => Name::Xbegin,
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => Name::MovSegment,
        Code::Mov_rm32_r32 | Code::Mov_r32_rm32 => Name::Mov32,
        Code::Popw_SS | Code::Popd_SS => Name::PopSs,
        _ => Name::Other,
    }
}

/// Whether it has an operand that is written, or is a branch's target: `call f`, but not `syscall`.
pub(crate) fn has_operand(instruction: &Instruction) -> bool {
    instruction.op0_kind() != OpKind::Register || instruction.op0_register() != Register::None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86::decode::instruction;
    use crate::code::Mode;
    use iced_x86::Mnemonic;

    #[test]
    fn every_instruction_is_called_as_iced_calls_it() {
        for code in Code::values() {
            let known = match code.mnemonic() {
                Mnemonic::Enter => Name::Enter,
                Mnemonic::Int3 => Name::Int3,
                Mnemonic::Lea => Name::Lea,
                Mnemonic::Leave => Name::Leave,
                Mnemonic::Nop => Name::Nop,
                Mnemonic::Ret => Name::Ret,
                Mnemonic::Sti => Name::Sti,
                Mnemonic::Xbegin => Name::Xbegin,
                // Their forms are told apart here.
                Mnemonic::Mov | Mnemonic::Pop => continue,
                _ => Name::Other,
            };
            assert_eq!(of(code), known, "{code:?}");
        }
    }

    #[test]
    fn operands_that_are_not_there_are_no_memory_and_no_register() {
        let cases: [(Mode, &[u8], bool); 6] = [
            (Mode::Bits64, &[0x0f, 0x05], false),            // syscall
            (Mode::Bits64, &[0xe8, 0, 0, 0, 0], true),       // call f
            (Mode::Bits64, &[0xff, 0xd0], true),             // call rax
            (Mode::Bits64, &[0xff, 0x15, 0, 0, 0, 0], true), // call [rip]
            (Mode::Bits32, &[0x9a, 0, 0, 0, 0, 8, 0], true), // call 8:0
            (Mode::Bits64, &[0x0f, 0x01, 0xc1], false),      // vmcall
        ];
        for (mode, bytes, has) in cases {
            let decoded = instruction(mode, bytes, 0x1000).unwrap();
            let instruction = &decoded.instruction;
            assert_eq!(has_operand(instruction), has, "{bytes:x?}");
            for index in instruction.op_count()..OPERANDS {
                assert_eq!(instruction.op_kind(index), OpKind::Register);
                assert_eq!(instruction.op_register(index), Register::None);
            }
        }
    }
}
