//! Functions that are nothing but a jump: import and incremental-link thunks.

use super::decode;
use super::relocate::ENDBR64;
use crate::code::Code;
use iced_x86::FlowControl;

/// Where a function that begins with a jump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thunk {
    /// A direct jump to this address.
    To(u64),
    /// A jump through the pointer at this address.
    Through(u64),
}

/// If the code is a thunk, where it goes; a caller that wants the function behind it surveys that one instead.
pub fn thunk(code: &Code<'_>) -> Option<Thunk> {
    let (bytes, skipped) = match code.bytes().strip_prefix(&ENDBR64) {
        Some(rest) => (rest, ENDBR64.len()),
        None => (code.bytes(), 0),
    };
    let decoded = decode::instruction(bytes, code.address().wrapping_add(skipped as u64)).ok()?;
    let instruction = &decoded.instruction;
    match instruction.flow_control() {
        FlowControl::UnconditionalBranch if matches!(decoded.bytes.first(), Some(0xe9 | 0xeb)) => {
            Some(Thunk::To(instruction.near_branch_target()))
        }
        FlowControl::IndirectBranch if instruction.is_ip_rel_memory_operand() => {
            Some(Thunk::Through(instruction.ip_rel_memory_address()))
        }
        _ => None,
    }
}
