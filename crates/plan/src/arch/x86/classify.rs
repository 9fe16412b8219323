//! What an instruction depends on that changes when it is moved.

use super::decode::Decoded;
use super::flow::flow_control;
use super::opcode::{Name, OPERANDS, has_operand, name};
use super::operand::memory_size;
use crate::code::Mode;
use crate::refusal::{Refusal, Unsupported};
use iced_x86::{Code, FlowControl, Instruction, OpKind, Register};

/// What an instruction depends on that changes when it is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: it is copied.
    Plain,
    /// A RIP-relative operand whose 32-bit displacement is `field` bytes into the instruction; `far` is what can
    /// be written where the displacement does not reach.
    RipRelative { field: u8, target: u64, far: Option<Far> },
    /// `jmp rel8` or `jmp rel32`.
    Jump { target: u64 },
    /// `jcc rel8` or `jcc rel32`; `condition` is the low nibble of its opcode.
    Condition { condition: u8, target: u64 },
    /// `loop*` or `j*cxz`, which only exist with a rel8; `narrow` if a prefix makes it count in the narrower
    /// register.
    Loop { opcode: u8, narrow: bool, target: u64 },
    /// `xbegin rel32`.
    Transaction { target: u64 },
    /// `call rel32`.
    Call { target: u64 },
    /// `call r/m`: `modrm` is the offset of its ModRM byte, `through` what its operand depends on.
    IndirectCall { modrm: u8, through: Through },
}

/// What the operand of an indirect call depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Through {
    /// A register that is not the stack pointer.
    Register,
    /// Memory, by registers or by an address of its own: an emulated push must not overwrite it.
    Memory,
    /// The stack pointer, which an emulated push would change.
    Stack,
    /// Its own address: the displacement is `field` bytes into the instruction.
    Rip { field: u8, target: u64 },
}

/// What stands for a RIP-relative instruction out of reach, without a flag, a further register or the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Far {
    /// `lea r64, [rip+x]`: the address becomes an immediate.
    Address { register: u8 },
    /// The same into a 32-bit register.
    Address32 { register: u8 },
    /// A load into a whole general register: the register takes the address first.
    Load { register: u8 },
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
    /// The processor remembers where the last one of these was.
    X87,
    /// It gives another register, or the stack, a copy of the stack pointer.
    CopiesStack,
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
            Self::RipRelative { target, .. }
            | Self::Call { target }
            | Self::IndirectCall { through: Through::Rip { target, .. }, .. } => Some(target),
            Self::Plain | Self::IndirectCall { .. } => None,
            Self::Jump { .. } | Self::Condition { .. } | Self::Loop { .. } | Self::Transaction { .. } => {
                self.jump_target()
            }
        }
    }

    /// The address that has to be within reach of a copy, because no form of it reaches any address.
    pub(crate) fn near_only(self) -> Option<u64> {
        match self {
            Self::RipRelative { target, far: None, .. } => Some(target),
            Self::IndirectCall { through: Through::Rip { target, .. }, .. } => Some(target),
            _ => None,
        }
    }
}

/// Classifies an instruction, or says why it cannot be moved.
pub(crate) fn classify(decoded: &Decoded<'_>) -> Result<Class, Refusal> {
    let instruction = &decoded.instruction;
    let address = instruction.ip();
    let unsupported = |why| Refusal::Unsupported { address, why };
    let flow_control = flow_control(instruction);
    let flow = match flow_control {
        FlowControl::UnconditionalBranch
        | FlowControl::IndirectBranch
        | FlowControl::Return
        | FlowControl::Exception => Flow::Ends,
        FlowControl::Interrupt if name(instruction) == Name::Int3 => Flow::Ends,
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
    if direct_or_call && has_operand(instruction) && decoded.prefixes().operand_size_16 {
        return Err(unsupported(Unsupported::OperandSize16));
    }
    // Its handler finds it by its address (Linux: WARN and BUG).
    if flow_control == FlowControl::Exception {
        return Err(unsupported(Unsupported::Trap));
    }
    let rip = rip_operand(decoded)?;
    let plain = match rip {
        Some((field, target)) => Kind::RipRelative { field, target, far: far_form(decoded) },
        None => Kind::Plain,
    };

    let (kind, note) = match flow_control {
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
            (direct_branch(decoded, near_target(decoded).map_err(unsupported)?)?, Note::None)
        }
        FlowControl::XbeginXabortXend
            if matches!(instruction.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32) =>
        {
            if instruction.code() != Code::Xbegin_rel32 {
                return Err(unsupported(Unsupported::OperandSize16));
            }
            (Kind::Transaction { target: instruction.near_branch_target() }, Note::None)
        }
        FlowControl::XbeginXabortXend if name(instruction) == Name::Xbegin => {
            return Err(unsupported(Unsupported::OperandSize16));
        }
        FlowControl::Call if has_operand(instruction) => match instruction.code() {
            Code::Call_rel32_64 | Code::Call_rel32_32 => {
                (Kind::Call { target: instruction.near_branch_target() }, Note::None)
            }
            Code::Call_rel16 => return Err(unsupported(Unsupported::OperandSize16)),
            _ => return Err(unsupported(Unsupported::FarTransfer)),
        },
        FlowControl::Call => (plain, Note::SystemCall),
        FlowControl::IndirectCall => (indirect_call(decoded, rip)?, Note::None),
        FlowControl::IndirectBranch => (plain, Note::IndirectJump),
        FlowControl::Interrupt => (plain, Note::SystemCall),
        _ if copies_stack_pointer(decoded) => (plain, Note::CopiesStack),
        _ if is_x87(decoded) => (plain, Note::X87),
        _ if casts_interrupt_shadow(decoded) => (plain, Note::InterruptShadow),
        _ => (plain, Note::None),
    };
    Ok(Class { kind, flow, note })
}

/// The target of a direct near branch with the ordinary operand size.
fn near_target(decoded: &Decoded<'_>) -> Result<u64, Unsupported> {
    match (decoded.instruction.op0_kind(), decoded.mode) {
        (OpKind::NearBranch64, Mode::Bits64) | (OpKind::NearBranch32, Mode::Bits32) => {
            Ok(decoded.instruction.near_branch_target())
        }
        (OpKind::NearBranch16 | OpKind::NearBranch32, _) => Err(Unsupported::OperandSize16),
        _ => Err(Unsupported::FarTransfer),
    }
}

fn direct_branch(decoded: &Decoded<'_>, target: u64) -> Result<Kind, Refusal> {
    let address = decoded.instruction.ip();
    match decoded.branch_opcode() {
        Some(0xe9 | 0xeb) => Ok(Kind::Jump { target }), // jmp rel32, jmp rel8
        Some(opcode @ (0x70..=0x8f)) => Ok(Kind::Condition { condition: opcode & 0x0f, target }),
        Some(opcode @ (0xe0..=0xe3)) => {
            Ok(Kind::Loop { opcode, narrow: decoded.prefixes().address_size, target })
        }
        _ => Err(Refusal::Unsupported { address, why: Unsupported::FarTransfer }),
    }
}

fn indirect_call(decoded: &Decoded<'_>, rip: Option<(u8, u64)>) -> Result<Kind, Refusal> {
    let instruction = &decoded.instruction;
    let unsupported = |why| Refusal::Unsupported { address: instruction.ip(), why };
    if !matches!(instruction.code(), Code::Call_rm64 | Code::Call_rm32) {
        let why = if instruction.code() == Code::Call_rm16 {
            Unsupported::OperandSize16
        } else {
            Unsupported::FarTransfer
        };
        return Err(unsupported(why));
    }
    // ESP cannot be an index; as a base or as the register itself it would see the emulated push.
    let through_stack = |register: Register| register.full_register() == Register::RSP;
    let through = match rip {
        Some((field, target)) => Through::Rip { field, target },
        None if through_stack(instruction.op0_register()) || through_stack(instruction.memory_base()) => {
            Through::Stack
        }
        None if instruction.op0_kind() == OpKind::Register => Through::Register,
        None => Through::Memory,
    };
    // FF /2: legacy prefixes and REX, then the opcode, then ModRM.
    let opcode = decoded.prefixes().count;
    match (decoded.bytes.get(opcode), u8::try_from(opcode + 1)) {
        (Some(0xff), Ok(modrm)) => Ok(Kind::IndirectCall { modrm, through }),
        _ => Err(unsupported(Unsupported::FarTransfer)),
    }
}

/// What can be written for a RIP-relative instruction out of reach. Prefixes other than REX are not rewritten.
fn far_form(decoded: &Decoded<'_>) -> Option<Far> {
    let instruction = &decoded.instruction;
    let rex_only = decoded.prefixes().count <= 1
        && decoded.bytes.first().is_some_and(|&first| first & 0xf0 == 0x40 || decoded.prefixes().count == 0);
    let register = u8::try_from(instruction.op0_register().number()).ok().filter(|_| rex_only)?;
    match instruction.code() {
        Code::Lea_r64_m => Some(Far::Address { register }),
        Code::Lea_r32_m => Some(Far::Address32 { register }),
        Code::Mov_r32_rm32
        | Code::Mov_r64_rm64
        | Code::Movzx_r32_rm8
        | Code::Movzx_r64_rm8
        | Code::Movzx_r32_rm16
        | Code::Movzx_r64_rm16
        | Code::Movsx_r32_rm8
        | Code::Movsx_r64_rm8
        | Code::Movsx_r32_rm16
        | Code::Movsx_r64_rm16
        | Code::Movsxd_r64_rm32
            // The stack pointer may not hold anything else, not even for one instruction.
            if register != 4 =>
        {
            Some(Far::Load { register })
        }
        _ => None,
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

/// Whether another register, or the stack, may have an address near the stack pointer's afterwards: the instruction
/// names it, in whichever direction.
fn copies_stack_pointer(decoded: &Decoded<'_>) -> bool {
    let instruction = &decoded.instruction;
    let is_stack = |register: Register| register.full_register() == Register::RSP;
    let named = (0..OPERANDS).any(|index| is_stack(instruction.op_register(index)));
    match name(instruction) {
        Name::Lea => named || is_stack(instruction.memory_base()),
        Name::Enter | Name::Leave => true,
        _ => named,
    }
}

/// Intel SDM volume 1, section 8.1.8: the opcodes D8 to DF.
fn is_x87(decoded: &Decoded<'_>) -> bool {
    matches!(decoded.bytes.get(decoded.prefixes().count), Some(0xd8..=0xdf))
}

/// Intel SDM volume 3, section 7.8.3.
fn casts_interrupt_shadow(decoded: &Decoded<'_>) -> bool {
    let instruction = &decoded.instruction;
    match name(instruction) {
        Name::Sti => true,
        Name::MovSegment => instruction.op0_register() == Register::SS,
        Name::PopSs => true,
        _ => false,
    }
}

/// Memory at an address that the instruction itself holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) address: u64,
    /// The most bytes that are read or written there; at least 1.
    pub(crate) size: u16,
}

/// The memory that an instruction reads or writes at an address of its own: RIP-relative or absolute.
pub(crate) fn memory(decoded: &Decoded<'_>) -> Option<Memory> {
    let instruction = &decoded.instruction;
    let address = own_address(instruction)?;
    if matches!(name(instruction), Name::Lea | Name::Nop) {
        return None;
    }
    Some(Memory { address, size: memory_size(instruction) })
}

/// The label whose address an instruction takes: by a `lea`, or as an immediate that is as wide as an address.
pub(crate) fn label(decoded: &Decoded<'_>) -> Option<u64> {
    let instruction = &decoded.instruction;
    if name(instruction) == Name::Lea {
        return own_address(instruction);
    }
    let wide = |&index: &u32| {
        matches!(
            instruction.op_kind(index),
            OpKind::Immediate32 | OpKind::Immediate64 | OpKind::Immediate32to64
        )
    };
    (0..OPERANDS).find(wide).map(|index| instruction.immediate(index))
}

/// The address of a memory operand without registers.
fn own_address(instruction: &Instruction) -> Option<u64> {
    let operand = (0..OPERANDS).any(|index| instruction.op_kind(index) == OpKind::Memory);
    let fixed = matches!(instruction.memory_base(), Register::RIP | Register::EIP | Register::None)
        && instruction.memory_index() == Register::None
        && !matches!(instruction.memory_segment(), Register::FS | Register::GS);
    (operand && fixed).then(|| instruction.memory_displacement64())
}

/// Where an instruction leads, whether or not it could be moved: a direct branch, or a label whose address it takes.
pub(crate) fn leads_to(decoded: &Decoded<'_>) -> Option<u64> {
    let instruction = &decoded.instruction;
    match instruction.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            Some(instruction.near_branch_target())
        }
        _ => label(decoded),
    }
}

/// Whether the instruction is `int3`, with or without prefixes.
pub(crate) fn is_breakpoint(decoded: &Decoded<'_>) -> bool {
    name(&decoded.instruction) == Name::Int3
}

/// Whether the instruction is one that compilers and linkers fill gaps with.
pub(crate) fn is_padding(decoded: &Decoded<'_>) -> bool {
    let instruction = &decoded.instruction;
    match name(instruction) {
        Name::Nop | Name::Int3 => true,
        // Assemblers fill 32-bit code with `lea esi, [esi+0]` of many lengths, and with `mov esi, esi`.
        Name::Lea if decoded.mode == Mode::Bits32 => {
            instruction.op0_register() == instruction.memory_base()
                && instruction.memory_index() == Register::None
                && instruction.memory_displacement64() == 0
        }
        Name::Mov32 if decoded.mode == Mode::Bits32 => {
            instruction.op1_kind() == OpKind::Register
                && instruction.op0_register() == instruction.op1_register()
                && instruction.op0_register().is_gpr32()
        }
        _ => false,
    }
}
