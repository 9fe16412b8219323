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
    Ok(Decoded {
        instruction,
        offsets,
        bytes,
    })
}
