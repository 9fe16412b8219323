//! The text of one instruction.

use alloc::string::String;
use iced_x86::{
    Decoder, DecoderError, DecoderOptions, FastFormatterOptions, SpecializedFormatter,
    SpecializedFormatterTraitOptions,
};

/// Bytes of an instruction (Intel SDM volume 2, section 2.3.11).
const MAX_INSTRUCTION: usize = 15;
/// What the formatter asks a string to have room for, whatever the instruction: its `MAX_FMT_INSTR_LEN`.
pub const LINE: usize = 300;
/// No instruction has a longer text, with the NUL behind it. `KDETOUR_WORDS_TEXT` of kdetour_words.h.
pub const TEXT: usize = 96;

/// Intel's order of operands. Addresses are absolute, so that they can be looked up.
struct Style;

impl SpecializedFormatterTraitOptions for Style {
    fn space_after_operand_separator(_: &FastFormatterOptions) -> bool {
        true
    }

    fn rip_relative_addresses(_: &FastFormatterOptions) -> bool {
        false
    }

    fn uppercase_hex(_: &FastFormatterOptions) -> bool {
        false
    }
}

/// Room for one text at a time.
#[derive(Debug)]
pub struct Line(String);

impl Line {
    /// Allocates it, and what iced-x86 makes when it is first used.
    pub fn new() -> Self {
        let mut line = Self(String::with_capacity(LINE));
        // A NOP; its text does not matter.
        words(&[0x90], 0, &mut line).ok();
        line
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

/// Why bytes have no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWords {
    /// The instruction does not end within them, or they end before it can be told that they are none.
    Cut,
    /// They are no instruction of 64-bit code.
    Invalid,
}

/// How many bytes the instruction has that `code` begins with, and its text; near branches and operands relative to RIP by their addresses, if
/// it lies at `address`. Allocates nothing.
///
/// ```
/// use kdetour_words::{Line, words};
///
/// let mut line = Line::new();
/// let code = [0x0f, 0x84, 0x0a, 0, 0, 0, 0x90]; // je to 10 bytes behind it; nop
/// assert_eq!(words(&code, 0xffff_ffff_8100_0000, &mut line), Ok((6, "je 0xffffffff81000010")));
/// ```
///
/// # Errors
/// [`NoWords`].
pub fn words<'l>(code: &[u8], address: u64, line: &'l mut Line) -> Result<(usize, &'l str), NoWords> {
    let code = code.get(..MAX_INSTRUCTION).unwrap_or(code);
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        let cut = decoder.last_error() == DecoderError::NoMoreBytes && code.len() < MAX_INSTRUCTION;
        return Err(if cut { NoWords::Cut } else { NoWords::Invalid });
    }
    line.0.clear();
    SpecializedFormatter::<Style>::new().format(&instruction, &mut line.0);
    Ok((instruction.len(), &line.0))
}
