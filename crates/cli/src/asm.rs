//! Disassembly, in Intel's notation.

use iced_x86::{Decoder, DecoderOptions, Formatter as _, IntelFormatter, OpKind, Register};
use kdetour_plan::Mode;

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Of the first byte.
    pub(crate) address: u64,
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
    /// The instruction, or what the bytes are instead.
    pub(crate) text: String,
    /// Where it jumps to or calls, if it says so itself.
    pub(crate) target: Option<u64>,
}

impl Line {
    /// One past the last byte.
    pub(crate) const fn end(&self) -> u64 {
        self.address.wrapping_add(self.bytes.len() as u64)
    }
}

/// The addresses that the instructions of `bytes` name: where they jump to, call, read and write.
pub(crate) fn named(mode: Mode, address: u64, bytes: &[u8]) -> Vec<u64> {
    let mut named = Vec::new();
    for instruction in &mut Decoder::with_ip(mode.bits(), bytes, address, DecoderOptions::NONE) {
        let absolute =
            instruction.memory_base() == Register::None && instruction.memory_index() == Register::None;
        let memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory)
            && (instruction.is_ip_rel_memory_operand() || absolute);
        let addresses =
            [instruction.near_branch_target(), if memory { instruction.memory_displacement64() } else { 0 }];
        named.extend(addresses.into_iter().filter(|&address| address != 0));
    }
    named
}

/// Makes text of bytes.
pub(crate) struct Disassembler {
    formatter: IntelFormatter,
}

impl Disassembler {
    /// With lower-case hexadecimal numbers that begin with `0x`.
    pub(crate) fn new() -> Self {
        let mut formatter = IntelFormatter::new();
        let options = formatter.options_mut();
        options.set_hex_prefix("0x");
        options.set_hex_suffix("");
        options.set_uppercase_hex(false);
        options.set_space_after_operand_separator(true);
        options.set_branch_leading_zeros(false);
        options.set_displacement_leading_zeros(false);
        options.set_leading_zeros(false);
        options.set_small_hex_numbers_in_decimal(true);
        options.set_show_branch_size(false);
        Self { formatter }
    }

    /// The text of one instruction.
    pub(crate) fn text(&mut self, mode: Mode, address: u64, bytes: &[u8]) -> String {
        self.instruction(mode, address, bytes).text
    }

    /// The first instruction of `bytes`; one byte of data where none decodes.
    pub(crate) fn instruction(&mut self, mode: Mode, address: u64, bytes: &[u8]) -> Line {
        let decoded = Decoder::with_ip(mode.bits(), bytes, address, DecoderOptions::NONE).decode();
        if decoded.is_invalid() {
            let first = bytes.get(..1).unwrap_or(&[]);
            let text = first.first().map_or_else(String::new, |byte| format!("db {byte:#04x}"));
            return Line { address, bytes: first.to_vec(), text, target: None };
        }
        let mut text = String::with_capacity(32);
        self.formatter.format(&decoded, &mut text);
        let target = match decoded.near_branch_target() {
            0 => None,
            target => Some(target),
        };
        let bytes = bytes.get(..decoded.len()).unwrap_or(bytes);
        Line { address, bytes: bytes.to_vec(), text, target }
    }

    /// All of `bytes`, one instruction after the other. The address behind a `jmp [rip+0]`, or behind the jump over it
    /// that follows a `call [rip+2]`, is one line of data: so does a plan write them where 32 bits do not reach.
    pub(crate) fn listing(&mut self, mode: Mode, address: u64, bytes: &[u8]) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let place = mode.wrap(address.wrapping_add(at as u64));
            let pointer = rest.first_chunk::<8>().filter(|_| mode == Mode::Bits64 && expects_pointer(&lines));
            let line = match pointer {
                Some(pointer) => {
                    let target = u64::from_le_bytes(*pointer);
                    let text = format!("dq {target:#x}");
                    Line { address: place, bytes: pointer.to_vec(), text, target: Some(target) }
                }
                None => self.instruction(mode, place, rest),
            };
            at += line.bytes.len().max(1);
            lines.push(line);
        }
        lines
    }
}

/// Whether an address comes next.
fn expects_pointer(lines: &[Line]) -> bool {
    match lines {
        // jmp qword ptr [rip+0]
        [.., last] if last.bytes == [0xff, 0x25, 0, 0, 0, 0] => true,
        // call qword ptr [rip+2] / jmp short over the address
        [.., call, last] => call.bytes == [0xff, 0x15, 2, 0, 0, 0] && last.bytes == [0xeb, 8],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_jumps_are_read_with_their_address() {
        // push rbp / jmp [rip+0] 0x1122334455667788 / ret
        let bytes = [0x55, 0xff, 0x25, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xc3];
        let lines = Disassembler::new().listing(Mode::Bits64, 0x1000, &bytes);
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["push rbp", "jmp qword ptr [0x1007]", "dq 0x1122334455667788", "ret"]);
    }

    #[test]
    fn what_code_names() {
        // call 0x402000 / mov rax, [rip+0x10] / mov rax, rbx / ret
        let bytes = [0xe8, 0xfb, 0x0f, 0, 0, 0x48, 0x8b, 0x05, 0x10, 0, 0, 0, 0x48, 0x89, 0xd8, 0xc3];
        assert_eq!(named(Mode::Bits64, 0x40_1000, &bytes), [0x40_2000, 0x40_101c]);
    }

    #[test]
    fn what_does_not_decode_is_data() {
        // 06 is no instruction in 64-bit code, and push es in 32-bit code.
        let mut disassembler = Disassembler::new();
        assert_eq!(disassembler.text(Mode::Bits64, 0, &[0x06]), "db 0x06");
        assert_eq!(disassembler.text(Mode::Bits32, 0, &[0x06]), "push es");
        assert_eq!(disassembler.text(Mode::Bits32, 0, &[]), "");
        assert_eq!(disassembler.text(Mode::Bits64, 0x1000, &[0xe9, 0xfb, 0, 0, 0]), "jmp 0x1100");
    }
}
