//! One instruction from bytes, by iced-x86.

use crate::code::MAX_INSTRUCTION;
use iced_x86::{ConstantOffsets, Decoder, DecoderError, DecoderOptions, Instruction};

/// A decoded instruction with the bytes that it was decoded from.
pub(crate) struct Decoded<'a> {
    pub(crate) instruction: Instruction,
    pub(crate) offsets: ConstantOffsets,
    pub(crate) bytes: &'a [u8],
}

impl Decoded<'_> {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The opcode's last byte, for instructions whose only operand is a branch displacement.
    pub(crate) fn branch_opcode(&self) -> Option<u8> {
        let field = self.offsets.immediate_offset();
        self.bytes.get(field.checked_sub(1)?).copied()
    }

    /// The legacy and REX prefixes in front of the opcode.
    pub(crate) fn prefixes(&self) -> Prefixes {
        let count = self.bytes.iter().position(|&byte| !is_legacy_prefix(byte) && !is_rex(byte)).unwrap_or(0);
        let prefixes = self.bytes.get(..count).unwrap_or(&[]);
        // A REX prefix counts only if it is the last one (Intel SDM volume 2, section 2.2.1); W outweighs 66.
        let wide = prefixes.last().is_some_and(|&last| last & 0xf8 == 0x48);
        Prefixes {
            count,
            operand_size_16: prefixes.contains(&0x66) && !wide,
            address_size_32: prefixes.contains(&0x67),
        }
    }
}

/// The prefixes of an instruction without VEX, XOP or EVEX encoding.
#[derive(Clone, Copy)]
pub(crate) struct Prefixes {
    /// How many there are: the offset of the opcode.
    pub(crate) count: usize,
    /// The operand size is 16 bits, for processors that let it be so.
    pub(crate) operand_size_16: bool,
    /// The address size is 32 bits.
    pub(crate) address_size_32: bool,
}

/// Intel SDM volume 2, section 2.1.1.
fn is_legacy_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

/// Intel SDM volume 2, section 2.2.1.
fn is_rex(byte: u8) -> bool {
    byte & 0xf0 == 0x40
}

/// Why bytes are no instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// They end before the instruction does.
    NoMoreBytes,
    /// No instruction begins like this.
    Invalid,
}

/// The instruction that begins at `bytes[0]`, which is at address `ip`.
pub(crate) fn instruction(bytes: &[u8], ip: u64) -> Result<Decoded<'_>, Failure> {
    let bytes = bytes.get(..MAX_INSTRUCTION).unwrap_or(bytes);
    let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return Err(match decoder.last_error() {
            DecoderError::NoMoreBytes => Failure::NoMoreBytes,
            _ => Failure::Invalid,
        });
    }
    let offsets = decoder.get_constant_offsets(&instruction);
    let bytes = bytes.get(..instruction.len()).ok_or(Failure::NoMoreBytes)?;
    Ok(Decoded { instruction, offsets, bytes })
}
