//! A second opinion: iced's `BlockEncoder` moves the same instructions to the same place, and what it makes of
//! their operands means the same.

use crate::Given;
use crate::calls::is_call;
use crate::reader::{decode, is_near_branch};
use crate::target::Target;
use iced_x86::{BlockEncoder, BlockEncoderOptions, Instruction, InstructionBlock, Register};
use kdetour_plan::Plan;

pub(crate) fn check(given: &Given<'_>, target: &Target<'_>, plan: &Plan) -> Result<(), String> {
    let mode = target.mode;
    let originals: Vec<Instruction> = target.originals.iter().map(|original| original.one).collect();
    // It copies calls as calls, to which the callee returns elsewhere.
    if originals.iter().any(is_call) {
        return Ok(());
    }
    let start = given.slot.address;
    let block = InstructionBlock::new(&originals, start);
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    // It cannot write a RIP-relative operand that is out of reach.
    let Ok(encoded) = BlockEncoder::encode(mode.bits(), block, options) else {
        return Ok(());
    };
    let depends = |one: &Instruction| is_near_branch(one) || one.is_ip_rel_memory_operand();
    for (one, &offset) in originals.iter().zip(&encoded.new_instruction_offsets) {
        // What does not depend on its address is copied, and needs no encoder: iced's loses the REX prefix of 3DNow!.
        if !depends(one) {
            continue;
        }
        // It has no offset for what it wrote as several instructions.
        let Some(bytes) = encoded.code_buffer.get(offset as usize..) else { continue };
        let (theirs, _) = decode(mode, bytes, start.wrapping_add(u64::from(offset)))?;
        let Some(copy) = plan.ip_map().to_slot(one.ip()) else { continue };
        let at = usize::try_from(copy.wrapping_sub(plan.slot())).unwrap_or(usize::MAX);
        let (ours, _) = decode(mode, plan.slot_bytes().get(at..).unwrap_or(&[]), copy)?;
        // Loops and far forms go on over jumps of our own, which the copies' check follows.
        let is_loop = one.is_loop() || one.is_loopcc() || one.is_jcx_short();
        if is_loop || ours.mnemonic() != theirs.mnemonic() {
            continue;
        }
        if is_near_branch(one) {
            if !is_near_branch(&theirs) || !is_near_branch(&ours) {
                continue;
            }
            // Who branches to where the slot is now says nothing.
            let in_slot = |to: u64| to.wrapping_sub(start) < 256;
            if in_slot(one.near_branch_target()) {
                continue;
            }
            // Back to what is meant by it: an instruction's copy, or an address.
            let copies = originals.iter().zip(&encoded.new_instruction_offsets);
            let theirs = theirs.near_branch_target();
            let is_copy = |offset: u32| start.wrapping_add(u64::from(offset)) == theirs;
            let mut copies = copies.filter(|(_, offset)| is_copy(**offset)).map(|(one, _)| one.ip());
            let theirs = copies.next().unwrap_or(theirs);
            let ours = ours.near_branch_target();
            let ours = plan.ip_map().to_original(ours).unwrap_or(ours);
            let several = encoded.new_instruction_offsets.contains(&u32::MAX);
            let xbegin = ours != theirs && one.mnemonic() == iced_x86::Mnemonic::Xbegin;
            ensure!(
                several || xbegin || ours == theirs,
                "{:#x}: branches to {ours:#x}, not {theirs:#x}",
                one.ip()
            );
            continue;
        }
        // It may write what is out of reach with an EIP-relative operand, or we as something else.
        if one.is_ip_rel_memory_operand()
            && (theirs.memory_base() != Register::RIP || ours.code() != one.code())
        {
            continue;
        }
        // It takes the address of an instruction of the block for that of the copy; a plan keeps the original's.
        let operand = one.is_ip_rel_memory_operand().then(|| one.ip_rel_memory_address());
        if originals.iter().any(|other| Some(other.ip()) == operand) {
            continue;
        }
        ensure!(ours == theirs, "{:#x}: {ours:?}, and BlockEncoder writes {theirs:?}", one.ip());
    }
    Ok(())
}
