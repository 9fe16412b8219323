//! The bytes of the patch by shape, the cave, and the boundaries.

use crate::Given;
use crate::reader::{decode, is_fill, is_jump_to};
use crate::target::Target;
use iced_x86::Code as Opcode;
use kdetour_plan::{Cave, Plan, Shape, Traps};
use std::collections::BTreeSet;

/// Checks what is written at the target; `last_relay` is where the slot's last jump to the detour is, if any.
pub(crate) fn check(
    given: &Given<'_>,
    target: &Target<'_>,
    plan: &Plan,
    last_relay: Option<u64>,
) -> Result<(), String> {
    let patch = plan.patch();
    let (code, covered, len) = (target.code, target.covered, target.window_len);
    ensure!(patch.address() == target.window, "patch beside the window");
    ensure!(Some(patch.original_bytes()) == code.get(..covered), "original bytes differ");
    ensure!(Some(patch.window_bytes()) == code.get(..len), "window bytes differ");
    ensure!(patch.new_bytes().len() == len, "{} new bytes, not {len}", patch.new_bytes().len());
    let (patched, patched_len) = patch.patched_bytes();
    ensure!(patched_len == covered, "patched {patched_len} bytes, not {covered}");
    ensure!(patched.get(..len) == Some(patch.new_bytes()), "patched bytes differ");
    ensure!(patched.get(len..covered) == code.get(len..covered), "writes behind the window");
    ensure!(patch.detour() == given.detour, "another detour");
    ensure!(patch.shape() == target.shape, "another shape");
    ensure!(patch.cave().is_some() == (target.shape == Shape::ShortJump), "cave: {:?}", patch.cave());
    new_bytes(given, target, plan, last_relay.unwrap_or(given.detour))?;
    boundaries(target, plan)
}

/// Where the new code leads.
fn new_bytes(given: &Given<'_>, target: &Target<'_>, plan: &Plan, goes_to: u64) -> Result<(), String> {
    let (mode, patch) = (target.mode, plan.patch());
    let new = patch.new_bytes();
    let (jump, own) = decode(mode, new, target.window)?;
    let is_rel32 = |bytes: &[u8]| bytes.len() == 5 && bytes.first() == Some(&0xe9);
    match target.shape {
        Shape::WholeInstruction | Shape::Jump5 => {
            ensure!(is_rel32(own) && is_jump_to(mode, &jump, goes_to), "patch is {jump:?}, not {goes_to:#x}");
        }
        Shape::Jump5Kept | Shape::Jump5Trapped => {
            ensure!(
                is_rel32(own) && is_jump_to(mode, &jump, plan.slot()),
                "patch is {jump:?}, not to the relay"
            );
            ensure!(goes_to == given.detour, "two relays");
        }
        Shape::ShortJump => {
            let cave = patch.cave().ok_or("no cave")?;
            let at = cave.cave.address;
            ensure!(own.len() == 2 && is_jump_to(mode, &jump, at), "patch is {jump:?}, cave at {at:#x}");
            let (long, own) = decode(mode, &cave.new, at)?;
            ensure!(is_rel32(own) && is_jump_to(mode, &long, goes_to), "cave: {long:?}, not {goes_to:#x}");
            return proven(given, target, &cave.cave);
        }
        Shape::Jump14 => {
            let pointer = new.last_chunk().map(|pointer| u64::from_le_bytes(*pointer));
            ensure!(
                jump.code() == Opcode::Jmp_rm64 && jump.ip_rel_memory_address() == jump.next_ip(),
                "patch is {jump:?}"
            );
            ensure!(own.len() == 6 && pointer == Some(given.detour), "patch goes to {pointer:x?}");
        }
        Shape::Breakpoint => ensure!(new == [0xcc], "patch is {new:x?}"),
        other => return Err(format!("an unknown shape: {other}")),
    }
    interior(given, target, new)
}

/// A thread that stands on an interior boundary: on unchanged code, or on a byte that traps.
fn interior(given: &Given<'_>, target: &Target<'_>, new: &[u8]) -> Result<(), String> {
    match target.shape {
        Shape::Jump5Kept => {
            let first = if target.one_byte { Some(1) } else { target.interior().next() };
            let first = first.ok_or("no interior boundary")?;
            let (kept, was) = (new.get(first..), target.code.get(first..target.window_len));
            ensure!(kept == was, "keeps {kept:x?}, not {was:x?}");
        }
        Shape::Jump5Trapped => {
            for offset in target.interior() {
                let byte = new.get(offset).copied().unwrap_or(0);
                let rest = [byte, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90];
                // Neither int3 nor, with anything behind it, an instruction.
                let invalid = target.mode.bits() == 64
                    && given.options.traps == Traps::Invalid
                    && decode(target.mode, &rest, 0).is_err();
                ensure!(byte == 0xcc || invalid, "byte {byte:#x} at {offset} does not trap");
            }
        }
        _ => {}
    }
    Ok(())
}

/// The cave is padding, by what the survey was given.
fn proven(given: &Given<'_>, target: &Target<'_>, cave: &Cave) -> Result<(), String> {
    let padding = |bytes: &[u8]| {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match decode(target.mode, rest, 0) {
                Ok((one, own)) if is_fill(target.mode, &one) => at += own.len(),
                _ => return false,
            }
        }
        true
    };
    let all_int3 = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0xcc);
    if cave.address < target.entry {
        let before = given.context.before;
        ensure!(target.entry - cave.address == 5, "cave at {:#x}", cave.address);
        ensure!(before.last_chunk() == Some(&cave.expected), "the cave holds {:x?}", cave.expected);
        let dead = given.context.dead && padding(before);
        ensure!(all_int3(before) || dead, "a cave in what is no padding");
        return Ok(());
    }
    let length = target.length.ok_or("a cave behind an end that is not known")? as u64;
    let next =
        given.context.next_symbol.ok_or("a cave behind the function, and nobody knows what follows")?;
    let distance = target.distance(cave.address);
    ensure!(distance >= length && target.distance(next) >= distance + 5, "cave at {:#x}", cave.address);
    let distance = usize::try_from(distance).map_err(|_| "a far cave")?;
    ensure!(
        target.code.get(distance..distance + 5) == Some(&cave.expected[..]),
        "the cave holds other bytes"
    );
    ensure!(all_int3(&cave.expected), "a cave in what is no padding");
    Ok(())
}

/// Boundaries and map agree with each other, and are one to one.
fn boundaries(target: &Target<'_>, plan: &Plan) -> Result<(), String> {
    let (patch, map) = (plan.patch(), plan.ip_map());
    let found: Vec<_> = patch.boundaries().map(|one| usize::from(one.offset)).collect();
    let expected: Vec<_> = [0].into_iter().chain(target.interior()).collect();
    ensure!(found == expected, "boundaries {found:?}, decoded {expected:?}");
    for (resume, old) in patch.boundaries().zip(target.boundaries()) {
        ensure!(map.to_slot(old) == Some(resume.address), "map and boundary of {old:#x} differ");
    }
    let first = patch.boundaries().next().map(|one| one.address);
    ensure!(first == Some(patch.trampoline()), "original at {:#x}", patch.trampoline());
    let pairs = map.pairs();
    let old: BTreeSet<_> = pairs.iter().map(|pair| pair.0).collect();
    let new: BTreeSet<_> = pairs.iter().map(|pair| pair.1).collect();
    ensure!(old.len() == pairs.len() && new.len() == pairs.len(), "map is not one to one: {pairs:x?}");
    for &(old, new) in pairs {
        ensure!(map.to_original(new) == Some(old) && map.to_slot(old) == Some(new), "map does not lead back");
        let offset = new.wrapping_sub(plan.slot());
        ensure!(offset < plan.slot_bytes().len() as u64, "map leads out of the slot");
    }
    Ok(())
}
