//! Looks through the rest of a function, and its other parts, for branches into the window.

use super::classify;
use super::decode::{Decoded, Reader};
use super::flow::flow_control;
use super::sieve::Sieve;
use super::tables::Tables;
use crate::code::Mode;
use iced_x86::{FlowControl, OpKind};

/// What a scan finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// `from` leads to `into`, which the sieve asks about.
    Branch { from: u64, into: u64 },
    /// An entry of a jump table does.
    TableEntry { into: u64 },
    /// A jump through a register or table.
    IndirectJump { address: u64 },
    /// The first byte that does not decode, before something that the sieve caught.
    Undecodable { address: u64 },
}

/// Looks through `bytes`, which begin at `address`, and reports what leads to the sieve's addresses.
///
/// Only what the sieve catches is decoded, from the beginning on. From the first byte on that does not decode (data
/// in the text), every byte is looked at as if an instruction began there: too strict rather than too lax.
pub(crate) fn branches(
    bytes: &[u8],
    address: u64,
    sieve: Sieve,
    tables: &mut Tables<'_>,
    mut report: impl FnMut(Found),
) {
    let mode = sieve.mode;
    let caught = sieve.caught(bytes, address);
    if caught == 0 {
        return;
    }
    let mut reader = Reader::new(mode, bytes, address);
    let mut at = 0;
    let mut lost = false;
    while at < caught {
        let ip = mode.wrap(address.wrapping_add(at as u64));
        let Ok(decoded) = reader.read(at) else {
            if !lost {
                lost = true;
                report(Found::Undecodable { address: ip });
            }
            at += 1;
            continue;
        };
        // Not by its class: an instruction that could not be moved may still branch.
        if let Some(into) = hit(sieve, &decoded) {
            report(Found::Branch { from: ip, into });
        }
        tables.look(&decoded.instruction, |into| {
            if sieve.holds(into) {
                report(Found::TableEntry { into });
            }
        });
        if is_computed_jump(mode, &decoded) {
            report(Found::IndirectJump { address: ip });
        }
        at += if lost { 1 } else { decoded.len() };
    }
}

/// A jump to the function's start would enter the detour again; one further in would land in the middle of the
/// patch. A call of the start is a new call of the function, and its address is the function's own; a label further
/// in is there to be jumped to.
fn hit(sieve: Sieve, decoded: &Decoded<'_>) -> Option<u64> {
    let jumps = matches!(
        flow_control(&decoded.instruction),
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend
    );
    classify::leads_to(decoded)
        .filter(|&target| sieve.holds(target))
        .filter(|&target| jumps || !sieve.is_start(target))
}

/// A jump through a register or through a table: not one through a pointer at an address of its own, which is how
/// functions of other images are reached.
fn is_computed_jump(mode: Mode, decoded: &Decoded<'_>) -> bool {
    let instruction = &decoded.instruction;
    if flow_control(instruction) != FlowControl::IndirectBranch {
        return false;
    }
    let pointer = instruction.op0_kind() == OpKind::Memory
        && (instruction.is_ip_rel_memory_operand() || mode == Mode::Bits32)
        && classify::memory(decoded).is_some();
    !pointer
}
