//! Nothing is written but the window, the cave and the slot, and none of them lies on another or on what belongs to
//! somebody else.

use crate::Given;
use crate::target::Target;
use kdetour_plan::{Plan, Shape, Survey};

/// First and one-past-last address, without a wrap.
type Range = (u128, u128);

fn range(address: u64, len: usize) -> Range {
    (u128::from(address), u128::from(address) + len as u128)
}

fn overlap(one: Range, other: Range) -> bool {
    one.0 < other.1 && other.0 < one.1
}

pub(crate) fn check(
    given: &Given<'_>,
    target: &Target<'_>,
    survey: &Survey,
    plan: &Plan,
) -> Result<(), String> {
    let end: u128 = 1 << target.mode.bits();
    ensure!(plan.slot() == given.slot.address, "another slot");
    let slot = range(plan.slot(), plan.slot_bytes().len());
    ensure!(plan.slot_bytes().len() <= given.slot.capacity, "more bytes than the slot has");
    ensure!(slot.1 <= end, "the slot goes round the end of the address space");
    ensure!(u128::from(given.detour) < end, "the detour lies beyond the end of the address space");
    let front = usize::try_from(target.window.wrapping_sub(target.entry)).unwrap_or(0);
    let displaced = range(target.entry, front + target.covered);
    ensure!(displaced.1 <= end, "the target goes round the end of the address space");
    ensure!(!overlap(slot, displaced), "the slot lies on the target");
    let detour = range(given.detour, 1);
    ensure!(
        !overlap(slot, detour) && !overlap(displaced, detour),
        "the detour lies on the target or the slot"
    );

    let cave = plan.patch().cave().map(|cave| range(cave.cave.address, cave.new.len()));
    if let Some(cave) = cave {
        ensure!(!overlap(cave, slot) && !overlap(cave, displaced), "the cave lies on the slot or the target");
        ensure!(!overlap(cave, detour), "the detour lies in the cave");
        if let Some(length) = target.length {
            ensure!(!overlap(cave, range(target.window, length)), "the cave lies in the function");
        }
        for known in given.context.branch_targets {
            ensure!(!overlap(cave, range(*known, 1)), "{known:#x} is jumped to, in the cave");
        }
    }
    let displaced = range(target.window, target.covered);
    for reserved in given.context.reserved.iter().filter(|reserved| reserved.len > 0) {
        let theirs = range(reserved.address, reserved.len as usize);
        ensure!(!overlap(theirs, displaced), "takes {reserved:x?}");
        ensure!(!cave.is_some_and(|cave| overlap(theirs, cave)), "a cave in {reserved:x?}");
    }
    relay_is_offered(given, target, survey, plan)
}

/// A slot that begins with the relay is where the offer allows it.
fn relay_is_offered(
    given: &Given<'_>,
    target: &Target<'_>,
    survey: &Survey,
    plan: &Plan,
) -> Result<(), String> {
    let offer = target.offer(given, survey).map_err(|refusal| refusal.to_string())?;
    let relays = offer.relays(&given.options).count();
    let begins = matches!(target.shape, Shape::Jump5Kept | Shape::Jump5Trapped);
    ensure!(begins == (relays > 0), "{relays} sets of relays for {}", target.shape);
    ensure!(!begins || offer.admits(plan.slot(), &given.options), "the offer does not admit the slot");
    Ok(())
}
