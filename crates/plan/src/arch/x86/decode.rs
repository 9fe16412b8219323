//! One instruction from bytes, by iced-x86.

use crate::code::{MAX_INSTRUCTION, Mode};
use iced_x86::{ConstantOffsets, Decoder, DecoderError, DecoderOptions, Instruction};

/// A decoded instruction with the bytes that it was decoded from.
pub(crate) struct Decoded<'a> {
    pub(crate) instruction: Instruction,
    /// Where its fields are, if they were asked for.
    pub(crate) offsets: ConstantOffsets,
    pub(crate) bytes: &'a [u8],
    pub(crate) mode: Mode,
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
        let rex = |byte| self.mode == Mode::Bits64 && is_rex(byte);
        let count = self.bytes.iter().position(|&byte| !is_legacy_prefix(byte) && !rex(byte)).unwrap_or(0);
        let prefixes = self.bytes.get(..count).unwrap_or(&[]);
        // A REX prefix counts only if it is the last one (Intel SDM volume 2, section 2.2.1); W outweighs 66.
        let wide = prefixes.last().is_some_and(|&last| rex(last) && last & 0x08 != 0);
        Prefixes {
            count,
            operand_size_16: prefixes.contains(&0x66) && !wide,
            address_size: prefixes.contains(&0x67),
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
    /// The address size is not the mode's own: 32 bits in 64-bit code, 16 in 32-bit code.
    pub(crate) address_size: bool,
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

/// Reads instructions out of a run of bytes, at any place in it.
pub(crate) struct Reader<'a> {
    decoder: Decoder<'a>,
    bytes: &'a [u8],
    address: u64,
    mode: Mode,
}

impl<'a> Reader<'a> {
    /// For `bytes`, which begin at `address`.
    pub(crate) fn new(mode: Mode, bytes: &'a [u8], address: u64) -> Self {
        let decoder = Decoder::with_ip(mode.bits(), bytes, address, DecoderOptions::NONE);
        Self { decoder, bytes, address, mode }
    }

    /// The instruction `at` bytes from the beginning, without the places of its fields.
    pub(crate) fn read(&mut self, at: usize) -> Result<Decoded<'a>, Failure> {
        if self.decoder.position() != at {
            self.decoder.set_position(at).map_err(|_| Failure::NoMoreBytes)?;
            self.decoder.set_ip(self.mode.wrap(self.address.wrapping_add(at as u64)));
        }
        let instruction = self.decoder.decode();
        if instruction.is_invalid() {
            return Err(match self.decoder.last_error() {
                DecoderError::NoMoreBytes => Failure::NoMoreBytes,
                _ => Failure::Invalid,
            });
        }
        let bytes = self.bytes.get(at..at + instruction.len()).ok_or(Failure::NoMoreBytes)?;
        Ok(Decoded { instruction, offsets: ConstantOffsets::default(), bytes, mode: self.mode })
    }

    /// The instruction `at` bytes from the beginning, with the places of its fields.
    pub(crate) fn read_fields(&mut self, at: usize) -> Result<Decoded<'a>, Failure> {
        let decoded = self.read(at)?;
        Ok(Decoded { offsets: self.decoder.get_constant_offsets(&decoded.instruction), ..decoded })
    }
}

/// The instruction that begins at `bytes[0]`, which is at address `ip`, without the places of its fields.
pub(crate) fn instruction(mode: Mode, bytes: &[u8], ip: u64) -> Result<Decoded<'_>, Failure> {
    let bytes = bytes.get(..MAX_INSTRUCTION).unwrap_or(bytes);
    Reader::new(mode, bytes, ip).read(0)
}
