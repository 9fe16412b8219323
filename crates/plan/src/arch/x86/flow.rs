//! How an instruction changes the flow of control.
//!
//! iced-x86 has that in a table with much besides, 39 KB of a driver that may have 200. Here is this part of it alone; a test
//! compares both for every instruction that there is.

use iced_x86::{Code, FlowControl, Instruction};

/// As [`Instruction::flow_control`].
pub(crate) const fn flow_control(instruction: &Instruction) -> FlowControl {
    of(instruction.code())
}

const fn of(code: Code) -> FlowControl {
    if is_conditional(code) {
        return FlowControl::ConditionalBranch;
    }
    match code {
        Code::Jmp_rel16
        | Code::Jmp_rel32_32
        | Code::Jmp_rel32_64
        | Code::Jmp_ptr1616
        | Code::Jmp_ptr1632
        | Code::Jmp_rel8_16
        | Code::Jmp_rel8_32
        | Code::Jmp_rel8_64
        | Code::Jmpe_disp16
        | Code::Jmpe_disp32 => FlowControl::UnconditionalBranch,
        Code::Jmp_rm16
        | Code::Jmp_rm32
        | Code::Jmp_rm64
        | Code::Jmp_m1616
        | Code::Jmp_m1632
        | Code::Jmp_m1664
        | Code::Jmpe_rm16
        | Code::Jmpe_rm32
        | Code::Altinst => FlowControl::IndirectBranch,
        Code::Call_rm16
        | Code::Call_rm32
        | Code::Call_rm64
        | Code::Call_m1616
        | Code::Call_m1632
        | Code::Call_m1664 => FlowControl::IndirectCall,
        Code::Call_ptr1616
        | Code::Call_ptr1632
        | Code::Call_rel16
        | Code::Call_rel32_32
        | Code::Call_rel32_64
        | Code::Vmcall
        | Code::Vmlaunch
        | Code::Vmresume
        | Code::Vmrunw
        | Code::Vmrund
        | Code::Vmrunq
        | Code::Vmmcall
        | Code::Syscall
        | Code::Sysenter
        | Code::Vmgexit
        | Code::Tdcall
        | Code::Seamret
        | Code::Seamcall
        | Code::Vmgexit_F2 => FlowControl::Call,
        Code::Retnw_imm16
        | Code::Retnd_imm16
        | Code::Retnq_imm16
        | Code::Retnw
        | Code::Retnd
        | Code::Retnq
        | Code::Retfw_imm16
        | Code::Retfd_imm16
        | Code::Retfq_imm16
        | Code::Retfw
        | Code::Retfd
        | Code::Retfq
        | Code::Iretw
        | Code::Iretd
        | Code::Iretq
        | Code::Skinit
        | Code::Sysretd
        | Code::Sysretq
        | Code::Sysexitd
        | Code::Sysexitq
        | Code::Rsm
        | Code::Rdm
        | Code::Uiret
        | Code::Eretu
        | Code::Erets => FlowControl::Return,
        Code::Int3
        | Code::Int_imm8
        | Code::Into
        | Code::Int1
        | Code::Smint
        | Code::Dmint
        | Code::Smint_0F7E => FlowControl::Interrupt,
        Code::Xbegin_rel16 | Code::Xbegin_rel32 => FlowControl::XbeginXabortXend,
        Code::INVALID
        | Code::DeclareByte
        | Code::DeclareWord
        | Code::DeclareDword
        | Code::DeclareQword
        | Code::Ud2
        | Code::Ud1_r16_rm16
        | Code::Ud1_r32_rm32
        | Code::Ud1_r64_rm64
        | Code::Ud0_r16_rm16
        | Code::Ud0_r32_rm32
        | Code::Ud0_r64_rm64
        | Code::Ud0 => FlowControl::Exception,
        _ => FlowControl::Next,
    }
}

/// `jcc`, `loop`, `jcxz`, and those of Knights Corner: iced numbers each group without a gap.
const fn is_conditional(code: Code) -> bool {
    const GROUPS: [(Code, Code); 5] = [
        (Code::Jo_rel8_16, Code::Jg_rel8_64),
        (Code::Loopne_rel8_16_CX, Code::Jrcxz_rel8_64),
        (Code::Jo_rel16, Code::Jg_rel32_64),
        (Code::VEX_KNC_Jkzd_kr_rel8_64, Code::VEX_KNC_Jknzd_kr_rel8_64),
        (Code::VEX_KNC_Jkzd_kr_rel32_64, Code::VEX_KNC_Jknzd_kr_rel32_64),
    ];
    let [short, loops, near, knights_short, knights_near] = GROUPS;
    is_in(code, short)
        || is_in(code, loops)
        || is_in(code, near)
        || is_in(code, knights_short)
        || is_in(code, knights_near)
}

const fn is_in(code: Code, (first, last): (Code, Code)) -> bool {
    first as usize <= code as usize && code as usize <= last as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_is_as_iced_has_it() {
        for code in Code::values() {
            assert_eq!(of(code), code.flow_control(), "{code:?}");
        }
    }
}
