//! Looks through a whole function for branches into the window.

use super::classify::{self, Note};
use super::decode::{self, Decoded};
use crate::hazard::Hazard;
use crate::refusal::Refusal;
use iced_x86::FlowControl;

/// The window, as the scan asks about it.
#[derive(Clone, Copy)]
pub(crate) struct Forbidden {
    /// Start of the window.
    pub(crate) start: u64,
    /// One past its last byte.
    pub(crate) end: u64,
}

impl Forbidden {
    /// A jump to the window's start would enter the detour again; one further in would land in the middle of the
    /// patch. A call of the start is a new call of the function, and its address is the function's own; a label
    /// further in is there to be jumped to.
    fn hit(self, decoded: &Decoded<'_>) -> Option<u64> {
        let jumps = matches!(
            decoded.instruction.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend
        );
        classify::leads_to(decoded)
            .filter(|target| (self.start..self.end).contains(target))
            .filter(|&target| jumps || target != self.start)
    }
}

/// Decodes `bytes`, which begin at `address`, from one end to the other, and refuses at the first branch into the
/// window. From the first byte on that does not decode (data in the text), every byte is looked at as if an
/// instruction began there: too strict rather than too lax.
pub(crate) fn branches(
    bytes: &[u8],
    address: u64,
    forbidden: Forbidden,
    mut report: impl FnMut(Hazard),
) -> Result<(), Refusal> {
    let mut at = 0;
    let mut lost = false;
    let mut indirect = false;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let ip = address.wrapping_add(at as u64);
        let Ok(decoded) = decode::instruction(rest, ip) else {
            if !lost {
                lost = true;
                report(Hazard::Undecodable { address: ip });
            }
            at += 1;
            continue;
        };
        // Not by its class: an instruction that could not be moved may still branch.
        if let Some(into) = forbidden.hit(&decoded) {
            return Err(Refusal::BranchIntoWindow { from: ip, into });
        }
        let jumps_through_table =
            || classify::classify(&decoded).is_ok_and(|class| class.note == Note::IndirectJump);
        if !indirect && jumps_through_table() {
            indirect = true;
            report(Hazard::IndirectJump { address: ip });
        }
        at += if lost { 1 } else { decoded.len() };
    }
    Ok(())
}
