//! What the compiler has moved away of a function whose file names it no more: where the function jumps to, outside of itself.

use super::arch::MODE;
use kdetour_plan::{Code, Leads, MAX_INSTRUCTION, Single};

/// Where the jumps of a function at `entry` with these bytes lead, outside of it; one address may come several times.
///
/// Tail calls look the same: who asks cannot tell the function that is called from a piece of this one.
pub(super) fn jumped_to(entry: u64, body: &[u8]) -> impl Iterator<Item = u64> {
    let end = entry.saturating_add(body.len() as u64);
    let mut rest = body;
    core::iter::from_fn(move || {
        while !rest.is_empty() {
            let bytes = rest.get(..MAX_INSTRUCTION).unwrap_or(rest);
            let at = end.saturating_sub(rest.len() as u64);
            let single = Single::of(&Code::in_mode(MODE, at, bytes)).ok();
            // Bytes that are no instruction are data, and nobody knows where instructions go on.
            let length = single.map_or(1, |single| single.length().max(1));
            rest = rest.get(length..).unwrap_or_default();
            if let Some(Leads::To(to)) = single.map(|single| single.leads())
                && !(entry..end).contains(&to)
                && !is_call(bytes)
            {
                return Some(to);
            }
        }
        None
    })
}

/// Whether a direct branch is a call. Linkers write some with a prefix that does nothing.
fn is_call(bytes: &[u8]) -> bool {
    let is_prefix = |byte: &&u8| matches!(byte, 0x66 | 0x67 | 0xf2 | 0x2e | 0x3e) || matches!(byte, 0x48);
    bytes.iter().find(|byte| !is_prefix(byte)) == Some(&0xe8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn jumps_that_leave_are_found() {
        // jne 0x1000 / call 0x9000 / jne 0x3000 / no instruction / addr32 call / jmp 0x5000 / jmp to the end
        let mut body = Vec::from([0x75, 0xfe, 0xe8, 0xf9, 0x7f, 0, 0, 0x0f, 0x85, 0xf3, 0x1f, 0, 0]);
        body.extend([0x0f, 0xff, 0x67, 0xe8, 0, 0x10, 0, 0]);
        body.extend([0xe9, 0xe6, 0x3f, 0, 0, 0xeb, 0]);
        let end = 0x1000 + body.len() as u64;
        assert_eq!(jumped_to(0x1000, &body).collect::<Vec<_>>(), [0x3000, 0x5000, end]);
    }
}
