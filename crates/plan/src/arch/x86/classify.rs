//! What an instruction depends on that changes when it is moved.

use super::decode::Decoded;
use crate::refusal::{Refusal, Unsupported};
use iced_x86::{Code, FlowControl, Mnemonic, OpKind, Register};

/// What an instruction depends on that changes when it is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: it is copied.
    Plain,
    /// A RIP-relative operand whose 32-bit displacement is `field` bytes into the instruction.
    RipRelative { field: u8, target: u64 },
    /// `jmp rel8` or `jmp rel32`.
    Jump { target: u64 },
    /// `jcc rel8` or `jcc rel32`; `condition` is the low nibble of its opcode.
    Condition { condition: u8, target: u64 },
    /// `loop*` or `j*cxz`, which only exist with a rel8; `narrow` if it counts in ECX.
    Loop { opcode: u8, narrow: bool, target: u64 },
    /// `xbegin rel32`.
    Transaction { target: u64 },
    /// `call rel32`.
    Call { target: u64 },
    /// `call r/m64`: `modrm` is the offset of its ModRM byte, `rip` the field and target of a RIP-relative operand.
    IndirectCall { modrm: u8, rip: Option<(u8, u64)> },
}

/// Whether the code goes on behind an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The next instruction may be reached from this one.
    On,
    /// It may not: jump, return, trap.
    Ends,
}

/// What makes an instruction worth a word to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    None,
    IndirectJump,
    SystemCall,
    /// No interrupt comes between it and the next instruction: `sti; hlt`, `mov ss; mov rsp`.
    InterruptShadow,
}

/// The whole answer about one instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Class {
    pub(crate) kind: Kind,
    pub(crate) flow: Flow,
    pub(crate) note: Note,
}

impl Kind {
    /// Where a direct branch (not a call) goes.
    pub(crate) fn jump_target(self) -> Option<u64> {
        match self {
            Self::Jump { target }
            | Self::Condition { target, .. }
            | Self::Loop { target, .. }
            | Self::Transaction { target } => Some(target),
            Self::Plain | Self::RipRelative { .. } | Self::Call { .. } | Self::IndirectCall { .. } => None,
        }
    }

    /// The address outside the instruction that it refers to, of whatever kind.
    pub(crate) fn target(self) -> Option<u64> {
        match self {
            Self::Plain | Self::IndirectCall { rip: None, .. } => None,
            Self::RipRelative { target, .. }
            | Self::Call { target }
            | Self::IndirectCall { rip: Some((_, target)), .. } => Some(target),
            Self::Jump { .. } | Self::Condition { .. } | Self::Loop { .. } | Self::Transaction { .. } => {
                self.jump_target()
            }
        }
    }
}

/// Classifies an instruction, or says why it cannot be moved.
pub(crate) fn classify(decoded: &Decoded<'_>) -> Result<Class, Refusal> {
    let instruction = &decoded.instruction;
    let address = instruction.ip();
    let unsupported = |why| Refusal::Unsupported { address, why };
    let flow_control = instruction.flow_control();
    let flow = match flow_control {
        FlowControl::UnconditionalBranch
        | FlowControl::IndirectBranch
        | FlowControl::Return
        | FlowControl::Exception => Flow::Ends,
        FlowControl::Interrupt if instruction.mnemonic() == Mnemonic::Int3 => Flow::Ends,
        _ => Flow::On,
    };
    let direct_or_call = matches!(
        flow_control,
        FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch
            | FlowControl::Call
            | FlowControl::IndirectCall
    );
    // AMD truncates the instruction pointer and reads a rel16, Intel ignores the prefix (SDM volume 2, "JMP").
    if direct_or_call && instruction.op_count() == 1 && decoded.prefixes().operand_size_16 {
        return Err(unsupported(Unsupported::OperandSize16));
    }
    // Its handler finds it by its address (Linux: WARN and BUG).
    if flow_control == FlowControl::Exception {
        return Err(unsupported(Unsupported::Trap));
    }
    let rip = rip_operand(decoded)?;
    let plain = match rip {
        Some((field, target)) => Kind::RipRelative { field, target },
        None => Kind::Plain,
    };

    let (kind, note) = match flow_control {
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
            (direct_branch(decoded, near_target(decoded).map_err(unsupported)?)?, Note::None)
        }
        FlowControl::XbeginXabortXend if matches!(instruction.op0_kind(), OpKind::NearBranch64) => {
            if instruction.code() != Code::Xbegin_rel32 {
                return Err(unsupported(Unsupported::OperandSize16));
            }
            (Kind::Transaction { target: instruction.near_branch_target() }, Note::None)
        }
        FlowControl::XbeginXabortXend if instruction.mnemonic() == Mnemonic::Xbegin => {
            return Err(unsupported(Unsupported::OperandSize16));
        }
        FlowControl::Call if instruction.op_count() == 1 => match instruction.code() {
            Code::Call_rel32_64 => (Kind::Call { target: instruction.near_branch_target() }, Note::None),
            Code::Call_rel16 => return Err(unsupported(Unsupported::OperandSize16)),
            _ => return Err(unsupported(Unsupported::FarTransfer)),
        },
        FlowControl::Call => (plain, Note::SystemCall),
        FlowControl::IndirectCall => (indirect_call(decoded, rip)?, Note::None),
        FlowControl::IndirectBranch => (plain, Note::IndirectJump),
        FlowControl::Interrupt => (plain, Note::SystemCall),
        _ if casts_interrupt_shadow(decoded) => (plain, Note::InterruptShadow),
        _ => (plain, Note::None),
    };
    Ok(Class { kind, flow, note })
}

/// The target of a direct near branch with the ordinary operand size.
fn near_target(decoded: &Decoded<'_>) -> Result<u64, Unsupported> {
    match decoded.instruction.op0_kind() {
        OpKind::NearBranch64 => Ok(decoded.instruction.near_branch_target()),
        OpKind::NearBranch16 | OpKind::NearBranch32 => Err(Unsupported::OperandSize16),
        _ => Err(Unsupported::FarTransfer),
    }
}

fn direct_branch(decoded: &Decoded<'_>, target: u64) -> Result<Kind, Refusal> {
    let address = decoded.instruction.ip();
    match decoded.branch_opcode() {
        Some(0xe9 | 0xeb) => Ok(Kind::Jump { target }), // jmp rel32, jmp rel8
        Some(opcode @ (0x70..=0x8f)) => Ok(Kind::Condition { condition: opcode & 0x0f, target }),
        Some(opcode @ (0xe0..=0xe3)) => {
            Ok(Kind::Loop { opcode, narrow: decoded.prefixes().address_size_32, target })
        }
        _ => Err(Refusal::Unsupported { address, why: Unsupported::FarTransfer }),
    }
}

fn indirect_call(decoded: &Decoded<'_>, rip: Option<(u8, u64)>) -> Result<Kind, Refusal> {
    let instruction = &decoded.instruction;
    let unsupported = |why| Refusal::Unsupported { address: instruction.ip(), why };
    if !matches!(instruction.code(), Code::Call_rm64) {
        let why = if instruction.code() == Code::Call_rm16 {
            Unsupported::OperandSize16
        } else {
            Unsupported::FarTransfer
        };
        return Err(unsupported(why));
    }
    // ESP cannot be an index; as a base or as the register itself it would see the emulated push.
    let through_stack = |register: Register| register.full_register() == Register::RSP;
    if through_stack(instruction.op0_register()) || through_stack(instruction.memory_base()) {
        return Err(unsupported(Unsupported::CallThroughStackPointer));
    }
    // FF /2: legacy prefixes and REX, then the opcode, then ModRM.
    let opcode = decoded.prefixes().count;
    match (decoded.bytes.get(opcode), u8::try_from(opcode + 1)) {
        (Some(0xff), Ok(modrm)) => Ok(Kind::IndirectCall { modrm, rip }),
        _ => Err(unsupported(Unsupported::FarTransfer)),
    }
}

/// The displacement field and the target of a RIP-relative operand.
fn rip_operand(decoded: &Decoded<'_>) -> Result<Option<(u8, u64)>, Refusal> {
    let instruction = &decoded.instruction;
    if !instruction.is_ip_rel_memory_operand() {
        return Ok(None);
    }
    let unsupported = Refusal::Unsupported { address: instruction.ip(), why: Unsupported::EipRelative };
    if instruction.memory_base() != Register::RIP || decoded.offsets.displacement_size() != 4 {
        return Err(unsupported);
    }
    let field = u8::try_from(decoded.offsets.displacement_offset()).map_err(|_| unsupported)?;
    Ok(Some((field, instruction.ip_rel_memory_address())))
}

/// Intel SDM volume 3, section 7.8.3.
fn casts_interrupt_shadow(decoded: &Decoded<'_>) -> bool {
    let instruction = &decoded.instruction;
    match instruction.mnemonic() {
        Mnemonic::Sti => true,
        Mnemonic::Mov | Mnemonic::Pop => instruction.op0_register() == Register::SS,
        _ => false,
    }
}

/// Where an instruction leads, whether or not it could be moved: a direct branch, or the label whose address a
/// `lea` takes.
pub(crate) fn leads_to(decoded: &Decoded<'_>) -> Option<u64> {
    let instruction = &decoded.instruction;
    match instruction.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            Some(instruction.near_branch_target())
        }
        _ => label(decoded),
    }
}

/// The label whose address a `lea` takes.
pub(crate) fn label(decoded: &Decoded<'_>) -> Option<u64> {
    let instruction = &decoded.instruction;
    (instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand())
        .then(|| instruction.ip_rel_memory_address())
}

/// Whether the instruction reads or writes memory at a RIP-relative address inside `[start, end)`.
pub(crate) fn touches(decoded: &Decoded<'_>, start: u64, end: u64) -> bool {
    let instruction = &decoded.instruction;
    if !instruction.is_ip_rel_memory_operand()
        || matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop)
    {
        return false;
    }
    let first = instruction.ip_rel_memory_address();
    // An operand of unknown size (fxsave, xsave ...) is taken for a large one.
    let size = match instruction.memory_size().size() {
        0 => 4096,
        known => known as u64,
    };
    first < end && first.saturating_add(size) > start
}

/// Whether the instruction is `int3`, with or without prefixes.
pub(crate) fn is_breakpoint(decoded: &Decoded<'_>) -> bool {
    decoded.instruction.mnemonic() == Mnemonic::Int3
}

/// Whether the instruction is one that compilers and linkers fill gaps with.
pub(crate) fn is_padding(decoded: &Decoded<'_>) -> bool {
    matches!(decoded.instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)
}
