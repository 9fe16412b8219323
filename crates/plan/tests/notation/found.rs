//! What the crate makes of a case, in the notation of the cases.

use super::Case;
use iced_x86::{Decoder, DecoderOptions};
use kdetour_oracle::Given;
use kdetour_plan::{
    Allocator, Hazard, Mode, Plan, Reach, Refusal, Relays, Shape, Slot, Survey, Thunk, thunk,
};
use std::fmt::Write as _;

/// What comes of a case, as lines of an expectation.
///
/// # Panics
/// If the oracle disagrees with the plan.
pub fn outcome(case: &Case) -> Vec<String> {
    let mut lines = match plan(case) {
        Ok(lines) => lines,
        Err(refusal) => vec![refused(&refusal)],
    };
    if case.expected.iter().any(|line| line.starts_with("thunk")) {
        lines.push(match thunk(&case.code()) {
            Some(Thunk::To(target)) => format!("thunk To {target:#x}"),
            Some(Thunk::Through(pointer)) => format!("thunk Through {pointer:#x}"),
            None => "thunk none".into(),
        });
    }
    lines
}

fn plan(case: &Case) -> Result<Vec<String>, Refusal> {
    let lists = case.lists();
    let context = case.context(&lists);
    let survey = Survey::of(&case.code(), &context)?;
    let mut lines = Vec::new();
    if case.offers {
        lines.extend(case.options.shapes.iter().map(|shape| offer(case, &survey, shape)));
    }
    let planned = match case.room.is_empty() {
        true => Plan::with_options(&survey, case.slot, case.detour, case.options),
        false => Plan::best(&survey, &mut Room(&case.room), case.detour, case.options),
    };
    let plan = match planned {
        Err(refusal) => {
            lines.push(refused(&refusal));
            return Ok(lines);
        }
        Ok(plan) => plan,
    };
    let capacity = if case.room.is_empty() { case.slot.capacity } else { plan.slot_bytes().len() };
    let slot = Slot { address: plan.slot(), capacity };
    let given = Given { code: case.code(), context, slot, detour: case.detour, options: case.options };
    if let Err(why) = kdetour_oracle::check(&given, &survey, &plan) {
        panic!("case {}: the oracle disagrees: {why}", case.name);
    }

    lines.push(format!("window {:#x} {}", survey.window(), plan.shape()));
    let window = survey.window();
    let interior = plan.patch().boundaries().skip(1);
    let interior: Vec<_> = interior.map(|one| format!("{:#x}", window + u64::from(one.offset))).collect();
    if !interior.is_empty() {
        lines.push(format!("interior {}", interior.join(" ")));
    }
    let texts = |bytes: &[u8], at| {
        listing(case.mode, bytes, at).into_iter().map(|line| line.1).collect::<Vec<_>>().join(" / ")
    };
    let patch = plan.patch();
    lines.push(format!("patch {}", texts(patch.new_bytes(), window)));
    if matches!(plan.shape(), Shape::Jump5Kept | Shape::Jump5Trapped) {
        let bytes: Vec<_> = patch.new_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push(format!("bytes {}", bytes.join(" ")));
    }
    if let Some(cave) = patch.cave() {
        let at = cave.cave.address;
        lines.push(format!("cave {at:#x} {}", texts(&cave.new, at)));
    }
    if plan.trampoline_offset() > 0 {
        lines.push(format!("trampoline {:#x}", plan.trampoline()));
    }
    for (address, text) in listing(case.mode, plan.slot_bytes(), plan.slot()) {
        lines.push(format!("=> {address:#x} {text}"));
    }
    if let Ok(offer) = survey.offer(plan.shape(), &case.options) {
        lines.extend(survey.hazards(&offer).map(|found| hazard(&found)));
    }
    Ok(lines)
}

fn offer(case: &Case, survey: &Survey, shape: Shape) -> String {
    let offer = match survey.offer(shape, &case.options) {
        Ok(offer) => offer,
        Err(refusal) => return format!("offer {shape} {}", refused(&refusal)),
    };
    let Reach { first, last } = offer.reach();
    let mut line = format!("offer {shape} need {} reach {first:#x} {last:#x}", offer.need());
    for relays in offer.relays(&case.options) {
        let _ = write!(line, " relays {:#010x} {:#010x}", relays.mask, relays.value);
    }
    line
}

/// Has room in ranges `(first, last)`, and takes the lowest address that will do.
struct Room<'a>(&'a [(u64, u64)]);

impl Allocator for Room<'_> {
    fn near(&mut self, reach: Reach, len: usize) -> Option<Slot> {
        let fits = |&(first, last): &(u64, u64)| {
            let address = first.max(reach.first);
            (address <= reach.last && address.checked_add(len as u64 - 1)? <= last).then_some(address)
        };
        self.0.iter().find_map(fits).map(|address| Slot { address, capacity: len })
    }

    fn at(&mut self, relays: Relays, reach: Reach, len: usize) -> Option<Slot> {
        relays.ranges().find_map(|(first, last)| {
            self.near(Reach { first: first.max(reach.first), last: last.min(reach.last) }, len)
        })
    }
}

fn refused(refusal: &Refusal) -> String {
    let mut line = format!("refused {} {:#x}", refusal.name(), refusal.address());
    let _ = match refusal {
        Refusal::Unsupported { why, .. } => write!(line, " {why:?}"),
        Refusal::Reserved { owner, .. } => write!(line, " {owner:?}"),
        Refusal::BranchIntoWindow { from, .. } | Refusal::BranchToStart { from, .. } => {
            write!(line, " from {from:#x}")
        }
        Refusal::SlotTooSmall { needed, .. } => write!(line, " needs {needed}"),
        _ => Ok(()),
    };
    line
}

fn hazard(hazard: &Hazard) -> String {
    match hazard {
        Hazard::LengthUnknown => "hazard LengthUnknown".into(),
        Hazard::NotWhollyRead { address } => format!("hazard NotWhollyRead {address:#x}"),
        Hazard::Call { address, returns_to } => format!("hazard Call {address:#x} returns {returns_to:#x}"),
        Hazard::IndirectJump { address } => format!("hazard IndirectJump {address:#x}"),
        Hazard::SystemCall { address } => format!("hazard SystemCall {address:#x}"),
        Hazard::Undecodable { address } => format!("hazard Undecodable {address:#x}"),
        Hazard::ReturnsToSlot { address } => format!("hazard ReturnsToSlot {address:#x}"),
        Hazard::LoopToStart { address } => format!("hazard LoopToStart {address:#x}"),
        Hazard::X87 { address } => format!("hazard X87 {address:#x}"),
        Hazard::Rewritten { address, owner } => format!("hazard Rewritten {address:#x} {owner:?}"),
        other => format!("hazard {other:?}"),
    }
}

/// Disassembles; eight bytes that a RIP-relative jump or call among them reads are an address.
fn listing(mode: Mode, bytes: &[u8], address: u64) -> Vec<(u64, String)> {
    let mut decoder = Decoder::with_ip(mode.bits(), bytes, address, DecoderOptions::NONE);
    let (mut lines, mut pointers) = (Vec::new(), Vec::new());
    while decoder.can_decode() {
        if pointers.contains(&decoder.ip()) {
            let at = decoder.position();
            let pointer = bytes[at..at + 8].try_into().map(u64::from_le_bytes).expect("eight bytes");
            lines.push((decoder.ip(), format!("dq {pointer:#x}")));
            decoder.set_position(at + 8).expect("behind the address");
            decoder.set_ip(address + at as u64 + 8);
            continue;
        }
        let one = decoder.decode();
        lines.push((one.ip(), kdetour_oracle::text(&one)));
        if one.is_ip_rel_memory_operand() {
            pointers.push(one.ip_rel_memory_address());
        }
    }
    lines
}
