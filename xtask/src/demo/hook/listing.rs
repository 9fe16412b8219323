//! Machine code as lines of address, bytes and instruction.

use iced_x86::{Code, Decoder, DecoderOptions, Formatter as _, IntelFormatter, SymbolResolver, SymbolResult};
use std::ops::Range;

/// One line of a listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Of the first byte.
    pub(super) address: u64,
    /// The instruction's, or those of data.
    pub(super) bytes: Vec<u8>,
    /// The instruction in Intel syntax.
    pub(super) text: String,
}

/// Names for addresses that instructions refer to.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(pub(super) Vec<(u64, String)>);

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        _: &iced_x86::Instruction,
        _: u32,
        _: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let (at, name) = self.0.iter().find(|(at, _)| *at == address)?;
        Some(SymbolResult::with_str(*at, name.as_str()))
    }
}

/// Lists `bytes` found at `address`; an instruction cut off at the end is left out.
pub(super) fn listing(bytes: &[u8], address: u64, names: &Names) -> Vec<Line> {
    let mut formatter = IntelFormatter::with_options(Some(Box::new(names.clone())), None);
    formatter.options_mut().set_hex_prefix("0x");
    formatter.options_mut().set_hex_suffix("");
    formatter.options_mut().set_space_after_operand_separator(true);
    formatter.options_mut().set_branch_leading_zeros(false);
    formatter.options_mut().set_uppercase_hex(false);
    formatter.options_mut().set_rip_relative_addresses(false);
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let mut lines = Vec::new();
    while decoder.can_decode() {
        let start = decoder.position();
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        let here = instruction.ip();
        lines.push(Line { address: here, bytes: bytes[start..decoder.position()].to_vec(), text });
        // `jmp [rip+0]` carries its target right behind it.
        let behind = decoder.position()..decoder.position() + 8;
        if instruction.code() == Code::Jmp_rm64
            && instruction.is_ip_rel_memory_operand()
            && instruction.ip_rel_memory_address() == instruction.next_ip()
            && let Some(&target) = bytes.get(behind.clone()).and_then(|b| b.first_chunk::<8>())
        {
            let text = format!(".quad {:#x}", u64::from_le_bytes(target));
            lines.push(Line { address: instruction.next_ip(), bytes: target.to_vec(), text });
            if decoder.set_position(behind.end).is_err() {
                break;
            }
            decoder.set_ip(instruction.next_ip() + 8);
        }
    }
    lines
}

/// Lists a patched function: the first instruction of `window`, then what is left of the window as
/// bytes that nobody reaches, then the rest.
pub(super) fn patched(bytes: &[u8], address: u64, window: Range<u64>, names: &Names) -> Vec<Line> {
    let inside =
        |at: u64| at.checked_sub(address).and_then(|o| usize::try_from(o).ok()).filter(|o| *o <= bytes.len());
    let (Some(from), Some(to)) = (inside(window.start), inside(window.end)) else {
        return listing(bytes, address, names);
    };
    let mut lines = listing(&bytes[..from], address, names);
    let jump: Vec<Line> = listing(&bytes[from..], window.start, names).into_iter().take(1).collect();
    let end = from + jump.first().map_or(0, |line| line.bytes.len());
    lines.extend(jump);
    if end < to {
        let left = bytes[end..to].to_vec();
        lines.push(Line {
            address: address + end as u64,
            bytes: left,
            text: "(rest of the displaced instruction, never reached)".to_owned(),
        });
    }
    let rest = end.max(to);
    lines.extend(listing(&bytes[rest..], address + rest as u64, names));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn a_cut_instruction_is_left_out() {
        // endbr64; nop dword ptr [rax+rax]; mov rbp, (cut)
        let bytes = [0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0x48, 0x89];
        let lines = listing(&bytes, 0x1000, &Names::default());
        assert_eq!(texts(&lines), ["endbr64", "nop [rax+rax]"]);
        assert_eq!(lines[1].address, 0x1004);
    }

    #[test]
    fn what_the_jump_does_not_cover_is_bytes() {
        // jmp detour; one byte of the displaced instruction; ret
        let bytes = [0xe9, 0x0b, 0x00, 0x00, 0x00, 0xe5, 0xc3];
        let names = Names(vec![(0x1010, "detour".to_owned())]);
        let lines = patched(&bytes, 0x1000, 0x1000..0x1006, &names);
        assert_eq!(
            texts(&lines),
            ["jmp detour", "(rest of the displaced instruction, never reached)", "ret"]
        );
    }

    #[test]
    fn an_absolute_jump_carries_its_target() {
        // jmp [rip+0]; .quad 0x1122; ret
        let bytes = [0xff, 0x25, 0, 0, 0, 0, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 0xc3];
        let lines = listing(&bytes, 0x1000, &Names::default());
        assert_eq!(texts(&lines)[1..], [".quad 0x1122", "ret"]);
    }
}
