//! Whether an address inside a function is one where an instruction begins.

use super::sequence::check_foreign;
use crate::arch::x86::classify::{Kind, classify, is_breakpoint};
use crate::arch::x86::decode::{Failure, Reader};
use crate::arch::x86::landing_pad;
use crate::code::{Code, Context};
use crate::refusal::Refusal;

/// Reads a function from its entry on, one instruction behind the other, up to `address`. `code` begins at the entry,
/// and holds the bytes that the function has without detours of one's own.
///
/// # Errors
/// [`Refusal::NotBoundary`] if the address is inside an instruction, and what keeps the reading from being believed:
/// [`Refusal::Undecodable`], [`Refusal::Truncated`], and the marks of others, behind which the instructions may be
/// other ones: [`Refusal::Breakpoint`], [`Refusal::Foreign`].
pub fn boundary(code: &Code<'_>, context: &Context<'_>, address: u64) -> Result<(), Refusal> {
    let (mode, bytes) = (code.mode(), code.bytes());
    let wanted = usize::try_from(mode.wrap(address.wrapping_sub(code.address()))).unwrap_or(usize::MAX);
    let pad = landing_pad(mode);
    let first = if bytes.starts_with(&pad) { pad.len() } else { 0 };
    let mut reader = Reader::new(mode, bytes, code.address());
    let mut at = 0;
    while at < wanted {
        let ip = mode.wrap(code.address().wrapping_add(at as u64));
        let rest = bytes.get(at..).unwrap_or(&[]);
        let decoded = reader.read_fields(at).map_err(|failure| match failure {
            Failure::NoMoreBytes => Refusal::Truncated { address: ip, have: rest.len() },
            Failure::Invalid => Refusal::Undecodable { address: ip },
        })?;
        if is_breakpoint(&decoded) {
            return Err(Refusal::Breakpoint { address: ip });
        }
        // What cannot be moved can be stepped over.
        let kind = classify(&decoded).map_or(Kind::Plain, |class| class.kind);
        check_foreign(&Code::in_mode(mode, ip, rest), at == first, kind, context)?;
        if wanted - at < decoded.len() {
            return Err(Refusal::NotBoundary { address, instruction: ip });
        }
        at += decoded.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_those_of_a_linear_reading() {
        // endbr64 / push rbp / mov rbp, rsp / ud2 / ret
        let bytes = [0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x0f, 0x0b, 0xc3];
        let code = Code::new(0x1000, &bytes);
        let at = |offset: u64| boundary(&code, &Context::default(), 0x1000 + offset);
        for (offset, instruction) in [(1, 0), (3, 0), (6, 5), (7, 5), (9, 8)] {
            let (address, instruction) = (0x1000 + offset, 0x1000 + instruction);
            assert_eq!(at(offset), Err(Refusal::NotBoundary { address, instruction }));
        }
        for offset in [0, 4, 5, 8, 10, 11] {
            assert_eq!(at(offset), Ok(()));
        }
        assert_eq!(at(12), Err(Refusal::Truncated { address: 0x100b, have: 0 }));
        assert!(matches!(at(1 << 40), Err(Refusal::Truncated { .. })));
    }

    #[test]
    fn marks_of_others_are_not_read_over() {
        let context = Context { image: Some((0x1000, 0x2000)), ..Context::default() };
        let at = |bytes: &[u8], offset: u64| boundary(&Code::new(0x1000, bytes), &context, 0x1000 + offset);
        // jmp out of the image, over push rbp / mov rbp, rsp / push r15
        let hooked = [0xe9, 0, 0, 0, 0x40, 0x57, 0x90];
        assert_eq!(at(&hooked, 6), Err(Refusal::Foreign { address: 0x1000, to: 0x4000_1005 }));
        assert_eq!(at(&[0x55, 0xcc, 0x89, 0xe5], 4), Err(Refusal::Breakpoint { address: 0x1001 }));
        assert_eq!(at(&[0x55, 0x06, 0x90], 3), Err(Refusal::Undecodable { address: 0x1001 }));
    }
}
