//! How many bytes an instruction reads or writes.
//!
//! As in [`flow`](super::flow): iced-x86 has that in two tables, 10 KB of a driver. Where it is built for one it is told here, in three steps:
//! never less than it is, and more where that only means that data in front of a function is taken for a part of it. A test compares both for
//! every instruction that such a decoder knows.

use iced_x86::{Code, Instruction};

/// Of an operand of unknown size (`xsave` ...), and of the states that are saved and restored as a whole.
const STATE: u16 = 4096;
/// The most of an SSE instruction, or of an x87 instruction, and their like.
const VECTOR: u16 = 64;
/// The most of another one.
const GENERAL: u16 = 8;

/// The bytes of an instruction's memory operand; 4096 where that is not known.
pub(crate) fn memory_size(instruction: &Instruction) -> u16 {
    if cfg!(feature = "legacy") {
        return at_most(instruction.code());
    }
    match instruction.memory_size().size() {
        0 => STATE,
        known => u16::try_from(known).unwrap_or(u16::MAX),
    }
}

const fn at_most(code: Code) -> u16 {
    match code {
        Code::Frstor_m94byte
        | Code::Frstor_m108byte
        | Code::Fnsave_m94byte
        | Code::Fsave_m94byte
        | Code::Fnsave_m108byte
        | Code::Fsave_m108byte
        | Code::Fxsave_m512byte
        | Code::Fxsave64_m512byte
        | Code::Fxrstor_m512byte
        | Code::Fxrstor64_m512byte
        | Code::Xsave_mem
        | Code::Xsave64_mem
        | Code::Xrstor_mem
        | Code::Xrstor64_mem
        | Code::Xsaveopt_mem
        | Code::Xsaveopt64_mem
        | Code::Xsavec_mem
        | Code::Xsavec64_mem
        | Code::Xsaves_mem
        | Code::Xsaves64_mem
        | Code::Xrstors_mem
        | Code::Xrstors64_mem
        | Code::Bndldx_bnd_mib
        | Code::Bndstx_mib_bnd
        | Code::Invlpg_m => STATE,
        Code::Call_m1664
        | Code::Jmp_m1664
        | Code::Sgdt_m1664
        | Code::Sidt_m1664
        | Code::Lgdt_m1664
        | Code::Lidt_m1664
        | Code::Lss_r64_m1664
        | Code::Lfs_r64_m1664
        | Code::Lgs_r64_m1664 => VECTOR,
        // iced numbers the one-byte opcodes first, the x87 ones among them, then those behind 0F; SSE has two ranges of these.
        _ if is_before(code, Code::Fldenv_m14byte) => GENERAL,
        _ if is_before(Code::Fbstp_m80bcd, code) && is_before(code, Code::Movups_xmm_xmmm128) => GENERAL,
        _ if is_before(Code::Movdqu_xmmm128_xmm, code) && is_before(code, Code::Cmpps_xmm_xmmm128_imm8) => {
            GENERAL
        }
        _ => VECTOR,
    }
}

const fn is_before(one: Code, other: Code) -> bool {
    (one as usize) < other as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::EncodingKind;
    use std::format;

    #[test]
    fn no_operand_is_larger_than_it_is_taken_for() {
        let legacy = Code::values().filter(|code| code.encoding() == EncodingKind::Legacy);
        let mut known = 0;
        for code in legacy {
            let bound = usize::from(at_most(code));
            let mut instruction = Instruction::default();
            instruction.set_code(code);
            match instruction.memory_size().size() {
                0 => {
                    // It has none, or one of unknown size.
                    let name = format!("{code:?}");
                    let unknown =
                        name.split('_').skip(1).any(|operand| matches!(operand, "m" | "mem" | "mib"));
                    // The address that `lea` is given is not read.
                    if unknown && !name.starts_with("Lea") {
                        assert_eq!(bound, usize::from(STATE), "{name}");
                    }
                }
                size => {
                    assert!(size <= bound, "{code:?}");
                    known += 1;
                }
            }
        }
        assert!(known > 1000, "{known}");
    }

    #[test]
    fn what_drivers_are_made_of_is_taken_for_eight_bytes() {
        for code in
            [Code::Mov_r64_rm64, Code::Mov_rm32_r32, Code::Cmp_rm8_imm8, Code::Call_rm64, Code::Movzx_r32_rm8]
        {
            assert_eq!(at_most(code), GENERAL, "{code:?}");
        }
    }
}
