//! Looks through a whole function for branches into the window.

use super::classify::{self, Kind, Note};
use super::decode;
use crate::hazard::Hazard;
use crate::refusal::Refusal;

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
    /// patch. A call of the start is a new call of the function.
    fn hit(self, kind: Kind) -> Option<u64> {
        let inside = |target: &u64| (self.start..self.end).contains(target);
        match kind {
            Kind::Call { target } => Some(target).filter(|&target| target != self.start && inside(&target)),
            _ => kind.jump_target().filter(inside),
        }
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
        // An instruction that could not be moved may still branch: only its target matters here.
        if let Ok(class) = classify::classify(&decoded) {
            if let Some(into) = forbidden.hit(class.kind) {
                return Err(Refusal::BranchIntoWindow { from: ip, into });
            }
            if class.note == Note::IndirectJump && !indirect {
                indirect = true;
                report(Hazard::IndirectJump { address: ip });
            }
        }
        at += if lost { 1 } else { decoded.len() };
    }
    Ok(())
}
