//! Instructions as text.

use iced_x86::{Formatter, Instruction, IntelFormatter};

/// An instruction as the cases and the records of plans write it.
pub fn text(one: &Instruction) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_space_after_operand_separator(true);
    options.set_small_hex_numbers_in_decimal(true);
    let mut text = String::new();
    formatter.format(one, &mut text);
    text
}
