//! Bytes that nothing runs through.
//!
//! Five bytes of `int3` are no proof: they may be the operand of an instruction, or a function's own. Padding is
//! what decodes as padding from a known boundary to a known boundary.

use crate::arch::x86::classify::is_padding;
use crate::arch::x86::decode;
use crate::code::{Context, Mode};

/// What compilers align functions to.
const ALIGNMENT: u64 = 16;

/// How many bytes from `len` on, where the code of the function ends, are proven to be padding: they decode so, and
/// lie inside the function's symbol bounds, or in front of the next symbol. In the second case there may be a
/// function without a symbol before it, and that one may begin with a no-op: the padding must go on to the next
/// symbol or to an address that functions are aligned to.
pub(super) fn behind(
    bytes: &[u8],
    mode: Mode,
    window: u64,
    length: Option<usize>,
    len: usize,
    context: &Context<'_>,
) -> usize {
    let Some(length) = length else { return 0 };
    let next = context.next_symbol.map(|next| next.wrapping_sub(window)).filter(|&next| next <= 1 << 16);
    let mut proven = len;
    let mut at = len;
    while at < len + MAX_PADDING {
        let place = mode.wrap(window.wrapping_add(at as u64));
        let boundary = at <= length
            || next.is_some_and(|next| {
                at as u64 == next || (at as u64) < next && place.is_multiple_of(ALIGNMENT)
            });
        if boundary {
            proven = at;
        }
        if at >= length && next.is_none_or(|next| at as u64 >= next) {
            break;
        }
        let padding = bytes.get(at..).and_then(|rest| decode::instruction(mode, rest, place).ok());
        match padding.filter(is_padding) {
            Some(padding) => at += padding.len(),
            None => break,
        }
    }
    proven - len
}

/// How much padding is looked at.
const MAX_PADDING: usize = 64;

/// Whether the bytes in front of a function are padding from the end of the function before it: all `int3`, where
/// nothing can run through, or no-ops that the environment knows to be dead.
pub(super) fn before(bytes: &[u8], mode: Mode, entry: u64, dead: bool) -> bool {
    if bytes.iter().all(|&byte| byte == 0xcc) {
        return !bytes.is_empty();
    }
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let place = entry.wrapping_sub(rest.len() as u64);
        match decode::instruction(mode, rest, place).ok().filter(is_padding) {
            Some(padding) => at += padding.len(),
            None => return false,
        }
    }
    dead && at == bytes.len()
}
