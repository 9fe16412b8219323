//! The slot: relay, landing pad, a copy of each displaced instruction, the jump back, a relay.

use crate::Given;
use crate::calls;
use crate::reader::{Reader, is_jump_to, is_near_branch, is_wide_branch};
use crate::target::{Original, Target};
use iced_x86::{Code as Opcode, ConditionCode, Decoder, DecoderOptions, Instruction, Mnemonic, Register};
use kdetour_plan::{Mode, Plan, Shape};

/// Checks the slot's bytes; answers where the relay at their end is, if there is one.
pub(crate) fn check(given: &Given<'_>, target: &Target<'_>, plan: &Plan) -> Result<Option<u64>, String> {
    let mode = target.mode;
    let mut slot = Reader::new(mode, plan.slot_bytes(), plan.slot());
    if matches!(target.shape, Shape::Jump5Kept | Shape::Jump5Trapped) {
        let to = slot.jump()?;
        ensure!(to == given.detour, "the relay goes to {to:#x}");
        let room = if given.options.roomy && mode.bits() == 64 { 14 } else { 0 };
        while slot.offset() < room {
            let (pad, _) = slot.next()?;
            ensure!(pad.mnemonic() == Mnemonic::Int3, "{pad:?} in the relay's room");
        }
    }
    ensure!(plan.trampoline_offset() == slot.offset(), "trampoline at +{}", plan.trampoline_offset());
    ensure!(plan.trampoline() == slot.at(), "trampoline at {:#x}", plan.trampoline());
    if given.options.landing_pad {
        let (pad, _) = slot.next()?;
        let expected = if mode.bits() == 32 { Mnemonic::Endbr32 } else { Mnemonic::Endbr64 };
        ensure!(pad.mnemonic() == expected, "no landing pad: {pad:?}");
    }
    let map = plan.ip_map();
    let resolve = |to: u64| -> Result<u64, String> {
        if target.boundaries().any(|boundary| boundary == to) {
            return map.to_slot(to).ok_or_else(|| format!("no copy of {to:#x}"));
        }
        let distance = target.distance(to);
        ensure!(distance >= target.covered as u64, "branch to {to:#x}, no boundary of the displaced bytes");
        ensure!(
            given.options.reentry || !target.is_in_front(to),
            "branch to {to:#x} enters the detour again"
        );
        Ok(to)
    };
    for original in &target.originals {
        let ip = original.one.ip();
        ensure!(map.to_slot(ip) == Some(slot.at()), "copy of {ip:#x} is not at {:#x}", slot.at());
        copy(given, original, &mut slot, &resolve).map_err(|why| format!("{ip:#x}: {why}"))?;
    }
    if let Some(resume) = target.resume() {
        ensure!(target.code_len >= target.window_len, "jumps back into the window");
        ensure!(map.to_slot(resume) == Some(slot.at()), "jump back is not in the map");
        let to = slot.jump()?;
        ensure!(to == resume, "jumps back to {to:#x}, not to {resume:#x}");
    }
    let pairs = target.originals.len() + usize::from(target.resume().is_some());
    ensure!(map.pairs().len() == pairs, "{} pairs in the map, not {pairs}", map.pairs().len());
    let stays =
        |original: &Original<'_>| calls::is_call(&original.one) && calls::is_to_stay(given, &original.one);
    let returns_to_slot = target.originals.iter().any(stays);
    ensure!(plan.returns_to_slot() == returns_to_slot, "returns to the slot: {}", plan.returns_to_slot());
    let relay = slot.at();
    if slot.rest().is_empty() {
        return Ok(None);
    }
    let to = slot.jump()?;
    ensure!(to == given.detour, "the relay goes to {to:#x}");
    ensure!(slot.rest().is_empty(), "{} more bytes behind the relay", slot.rest().len());
    Ok(Some(relay))
}

fn copy(
    given: &Given<'_>,
    original: &Original<'_>,
    slot: &mut Reader<'_>,
    resolve: &impl Fn(u64) -> Result<u64, String>,
) -> Result<(), String> {
    let one = &original.one;
    if calls::is_call(one) {
        return calls::check(given, original, slot);
    }
    if !is_near_branch(one) {
        return plain(original, slot);
    }
    ensure!(is_wide_branch(slot.mode, one), "a branch with another operand size was moved");
    let to = resolve(one.near_branch_target())?;
    if one.mnemonic() == Mnemonic::Jmp {
        let goes = slot.jump()?;
        ensure!(goes == to, "goes to {goes:#x}, not {to:#x}");
        return Ok(());
    }
    let (copy, _) = slot.next()?;
    ensure!(is_wide_branch(slot.mode, &copy), "copied as {copy:?}");
    let taken = copy.near_branch_target();
    if one.is_loop() || one.is_loopcc() || one.is_jcx_short() {
        ensure!(copy.code() == one.code(), "counts in another register: {copy:?}");
        return around_a_jump(slot, taken, to);
    }
    if one.mnemonic() == Mnemonic::Xbegin {
        ensure!(copy.code() == Opcode::Xbegin_rel32, "copied as {copy:?}");
        return if taken == to { Ok(()) } else { around_a_jump(slot, taken, to) };
    }
    if copy.mnemonic() == one.mnemonic() {
        ensure!(taken == to, "branches to {taken:#x}, not {to:#x}");
        return Ok(());
    }
    // The opposite condition over a jump that reaches.
    let mut opposite = *one;
    opposite.negate_condition_code();
    ensure!(
        one.condition_code() != ConditionCode::None && copy.condition_code() == opposite.condition_code(),
        "copied as {copy:?}"
    );
    let goes = slot.jump()?;
    ensure!(taken == slot.at() && goes == to, "not taken goes to {taken:#x}, taken to {goes:#x}");
    Ok(())
}

/// Not taken, over the next jump; taken (`taken` is where the branch goes), by it.
fn around_a_jump(slot: &mut Reader<'_>, taken: u64, to: u64) -> Result<(), String> {
    let (over, _) = slot.next()?;
    ensure!(taken == slot.at(), "taken, goes to {taken:#x}");
    let goes = slot.jump()?;
    ensure!(goes == to, "taken, goes on to {goes:#x}");
    ensure!(is_jump_to(slot.mode, &over, slot.at()), "not taken, goes to {over:?}");
    Ok(())
}

/// An instruction that does not branch: the same, or what stands for it where its operand is out of reach.
fn plain(original: &Original<'_>, slot: &mut Reader<'_>) -> Result<(), String> {
    let one = &original.one;
    let (copy, bytes) = slot.next()?;
    // Compares everything but address and length; a RIP-relative displacement is the address that it means.
    if copy == *one && bytes.len() == original.bytes.len() {
        let at = displacement_of(slot.mode, original);
        let differs = bytes.iter().zip(original.bytes).enumerate().find(|(index, (copy, original))| {
            copy != original && !at.is_some_and(|at| (at..at + 4).contains(index))
        });
        ensure!(differs.is_none(), "byte {differs:?} of the copy differs");
        return Ok(());
    }
    ensure!(slot.mode.bits() == 64 && one.is_ip_rel_memory_operand(), "copied as {copy:?}");
    far(one, &copy, slot)
}

/// A RIP-relative operand out of reach.
fn far(one: &Instruction, first: &Instruction, slot: &mut Reader<'_>) -> Result<(), String> {
    let address = one.ip_rel_memory_address();
    let register = one.op0_register();
    ensure!(one.memory_segment() == Register::DS && !one.has_lock_prefix(), "{one:?} has no far form");
    match one.code() {
        Opcode::Lea_r64_m => {
            let value = first.immediate(1);
            ensure!(first.code() == Opcode::Mov_r64_imm64 && first.op0_register() == register, "{first:?}");
            ensure!(value == address, "takes the address {value:#x}, not {address:#x}");
            return Ok(());
        }
        Opcode::Lea_r32_m => {
            let value = u64::from(first.immediate32());
            ensure!(first.code() == Opcode::Mov_r32_imm32 && first.op0_register() == register, "{first:?}");
            ensure!(value == address & 0xffff_ffff, "takes the address {value:#x}, not {address:#x}");
            return Ok(());
        }
        _ => {}
    }
    // A load that writes the whole register, through the register itself.
    ensure!(is_whole_load(one), "{one:?} has no far form");
    let whole = register.full_register();
    ensure!(whole != Register::RSP, "the stack pointer holds an address");
    ensure!(first.code() == Opcode::Mov_r64_imm64 && first.op0_register() == whole, "address by {first:?}");
    ensure!(first.immediate64() == address, "address {:#x}, not {address:#x}", first.immediate64());
    let (load, _) = slot.next()?;
    ensure!(load.code() == one.code() && load.op0_register() == register, "loads by {load:?}");
    ensure!(
        load.memory_base() == whole
            && load.memory_index() == Register::None
            && load.memory_displacement64() == 0
            && !matches!(load.memory_segment(), Register::FS | Register::GS),
        "loads from {load:?}"
    );
    Ok(())
}

/// Writes its whole first operand, a general register of 32 or 64 bits, and reads nothing but memory.
fn is_whole_load(one: &Instruction) -> bool {
    let moves =
        matches!(one.mnemonic(), Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd);
    moves && (one.op0_register().is_gpr32() || one.op0_register().is_gpr64())
}

/// Where the displacement of a RIP-relative operand stands in the instruction's bytes.
fn displacement_of(mode: Mode, original: &Original<'_>) -> Option<usize> {
    let one = &original.one;
    let mut decoder = Decoder::with_ip(mode.bits(), original.bytes, one.ip(), DecoderOptions::NONE);
    let again = decoder.decode();
    let offsets = decoder.get_constant_offsets(&again);
    one.is_ip_rel_memory_operand().then(|| offsets.displacement_offset())
}
