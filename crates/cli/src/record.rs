//! An answer as JSON: one object, with the same keys whether the target is accepted or refused.
//!
//! Addresses are strings `"0x..."`, bytes are strings of digits without spaces.

use crate::asm::Disassembler;
use crate::hex::{Address, Bytes};
use crate::question::Answer;
use kdetour_plan::{Hazard, Mode, Plan};
use serde::Serialize;

/// The object that `inspect --json` prints, and `scan --plans` writes for each function.
#[derive(Serialize)]
pub(crate) struct Record<'a> {
    name: Option<&'a str>,
    mode: u32,
    entry: Address,
    detour: Address,
    accepted: bool,
    refusal: Option<RefusalRecord>,
    shape: Option<&'static str>,
    window: Option<Window>,
    displaced: Vec<Instruction<'a>>,
    slot: Option<SlotRecord<'a>>,
    patch: Option<Change<'a>>,
    cave: Option<Cave>,
    ip_map: Vec<[Address; 2]>,
    hazards: Vec<HazardRecord>,
}

#[derive(Serialize)]
struct RefusalRecord {
    reason: &'static str,
    address: Address,
}

#[derive(Serialize)]
struct Window {
    address: Address,
    len: usize,
}

#[derive(Serialize)]
struct Instruction<'a> {
    address: Address,
    bytes: Bytes<'a>,
    text: String,
}

#[derive(Serialize)]
struct SlotRecord<'a> {
    address: Address,
    bytes: Bytes<'a>,
    trampoline_offset: usize,
}

#[derive(Serialize)]
struct Change<'a> {
    address: Address,
    expected: Bytes<'a>,
    new: Bytes<'a>,
}

#[derive(Serialize)]
struct Cave {
    address: Address,
    expected: String,
    new: String,
}

#[derive(Serialize)]
struct HazardRecord {
    kind: &'static str,
    address: Option<Address>,
    #[serde(skip_serializing_if = "Option::is_none")]
    returns_to: Option<Address>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'static str>,
    text: String,
}

impl<'a> Record<'a> {
    /// The object for an answer about the function called `name`.
    pub(crate) fn new(
        name: Option<&'a str>,
        mode: Mode,
        answer: &'a Answer,
        disassembler: &mut Disassembler,
    ) -> Self {
        let plan = answer.plan.as_ref().ok();
        let refusal = answer.plan.as_ref().err();
        Self {
            name,
            mode: mode.bits(),
            entry: Address(answer.entry),
            detour: Address(answer.detour),
            accepted: plan.is_some(),
            refusal: refusal.map(|refusal| RefusalRecord {
                reason: refusal.name(),
                address: Address(answer.refused_at(refusal)),
            }),
            shape: plan.map(|plan| plan.shape().name()),
            window: plan.map(|plan| Window {
                address: Address(plan.patch().address()),
                len: plan.shape().window_len(),
            }),
            displaced: plan.map_or_else(Vec::new, |plan| displaced(plan, mode, disassembler)),
            slot: plan.map(|plan| SlotRecord {
                address: Address(plan.slot()),
                bytes: Bytes(plan.slot_bytes()),
                trampoline_offset: plan.trampoline_offset(),
            }),
            patch: plan.map(|plan| Change {
                address: Address(plan.patch().address()),
                expected: Bytes(plan.patch().window_bytes()),
                new: Bytes(plan.patch().new_bytes()),
            }),
            cave: plan.and_then(|plan| plan.patch().cave()).map(|patch| Cave {
                address: Address(patch.cave.address),
                expected: Bytes(&patch.cave.expected).to_string(),
                new: Bytes(&patch.new).to_string(),
            }),
            ip_map: plan.map_or_else(Vec::new, |plan| {
                plan.ip_map().pairs().iter().map(|&(old, new)| [Address(old), Address(new)]).collect()
            }),
            hazards: answer.hazards.iter().copied().map(HazardRecord::new).collect(),
        }
    }
}

fn displaced<'a>(plan: &'a Plan, mode: Mode, disassembler: &mut Disassembler) -> Vec<Instruction<'a>> {
    let record = |instruction: kdetour_plan::Displaced<'a>| Instruction {
        address: Address(instruction.address()),
        bytes: Bytes(instruction.bytes()),
        text: disassembler.text(mode, instruction.address(), instruction.bytes()),
    };
    plan.displaced().map(record).collect()
}

impl HazardRecord {
    fn new(hazard: Hazard) -> Self {
        let owner = match hazard {
            Hazard::Rewritten { owner, .. } => Some(owner.text()),
            _ => None,
        };
        let returns_to = match hazard {
            Hazard::Call { returns_to, .. } => Some(returns_to),
            _ => None,
        };
        Self {
            kind: hazard.name(),
            address: hazard.address().map(Address),
            returns_to: returns_to.map(Address),
            owner,
            text: hazard.to_string(),
        }
    }
}
