//! Copies of calls: the callee sees the original return address, or the call stays a call.

use crate::Given;
use crate::reader::{Reader, is_jump_to, is_wide_branch};
use crate::target::Original;
use iced_x86::{Code as Opcode, Instruction, Register};
use kdetour_plan::Returns;

/// A near call, direct or not.
pub(crate) fn is_call(one: &Instruction) -> bool {
    one.is_call_near() || one.is_call_near_indirect()
}

pub(crate) fn check(given: &Given<'_>, original: &Original<'_>, slot: &mut Reader<'_>) -> Result<(), String> {
    let one = &original.one;
    let is64 = slot.mode.bits() == 64;
    let direct = one.is_call_near();
    ensure!(
        if direct {
            is_wide_branch(slot.mode, one)
        } else {
            one.code() == if is64 { Opcode::Call_rm64 } else { Opcode::Call_rm32 }
        },
        "an unknown call"
    );
    if is_to_stay(given, one) {
        return stays(original, slot, direct);
    }
    pushes(slot, one.next_ip())?;
    if direct {
        // `call $+5` goes on to the next copy.
        if one.near_branch_target() != one.next_ip() {
            let to = slot.jump()?;
            ensure!(to == one.near_branch_target(), "calls {to:#x}");
        }
        return Ok(());
    }
    let stack = |register: Register| register.full_register() == Register::RSP;
    ensure!(
        !stack(one.op0_register()) && !stack(one.memory_base()),
        "reads its target from the stack that the push has moved"
    );
    let (jump, _) = slot.next()?;
    ensure!(jump.code() == if is64 { Opcode::Jmp_rm64 } else { Opcode::Jmp_rm32 }, "calls by {jump:?}");
    ensure!(operand(one) == operand(&jump), "calls through {jump:?}");
    Ok(())
}

/// Whether a call has to stay one. What may read its return address as the program counter is given the original.
pub(crate) fn is_to_stay(given: &Given<'_>, one: &Instruction) -> bool {
    let is64 = given.code.mode().bits() == 64;
    let reads_pc = one.is_call_near() && (!is64 || one.near_branch_target() == one.next_ip());
    given.options.returns == Returns::Slot && !reads_pc
}

/// The call stays what it is, and returns to the slot.
fn stays(original: &Original<'_>, slot: &mut Reader<'_>, direct: bool) -> Result<(), String> {
    let one = &original.one;
    let (call, bytes) = slot.next()?;
    if !direct {
        ensure!(call == *one && bytes.len() == original.bytes.len(), "calls by {call:?}");
        return Ok(());
    }
    let to = one.near_branch_target();
    if call.is_call_near() {
        ensure!(call.near_branch_target() == to, "calls {:#x}", call.near_branch_target());
        return Ok(());
    }
    // call qword ptr [rip+2] / jmp over the address / the address
    ensure!(call.code() == Opcode::Call_rm64 && call.is_ip_rel_memory_operand(), "calls by {call:?}");
    let (over, _) = slot.next()?;
    ensure!(call.ip_rel_memory_address() == slot.at(), "calls through {:#x}", call.ip_rel_memory_address());
    let pointer = slot.pointer()?;
    ensure!(pointer == to, "calls {pointer:#x}, not {to:#x}");
    ensure!(is_jump_to(slot.mode, &over, slot.at()), "goes on by {over:?}");
    Ok(())
}

/// The return address is pushed, and nothing else happens.
fn pushes(slot: &mut Reader<'_>, returns_to: u64) -> Result<(), String> {
    let (push, _) = slot.next()?;
    if slot.mode.bits() == 32 {
        ensure!(push.code() == Opcode::Pushd_imm32, "pushes by {push:?}");
        let pushed = u64::from(push.immediate32());
        ensure!(pushed == returns_to, "pushes {pushed:#x}, not {returns_to:#x}");
        return Ok(());
    }
    ensure!(push.code() == Opcode::Pushq_imm32, "pushes by {push:?}");
    let mut pushed = push.immediate32to64().cast_unsigned();
    if pushed != returns_to {
        let (high, _) = slot.next()?;
        ensure!(
            high.code() == Opcode::Mov_rm32_imm32
                && high.memory_base() == Register::RSP
                && high.memory_index() == Register::None
                && high.memory_displacement64() == 4,
            "completes the return address by {high:?}"
        );
        pushed = pushed & 0xffff_ffff | u64::from(high.immediate32()) << 32;
    }
    ensure!(pushed == returns_to, "pushes {pushed:#x}, not {returns_to:#x}");
    Ok(())
}

/// Everything about an operand; for a register the memory fields say nothing, and both are the same anyway.
fn operand(one: &Instruction) -> impl PartialEq + use<> {
    (
        (one.op0_kind(), one.op0_register()),
        (one.memory_base(), one.memory_index(), one.memory_index_scale()),
        one.memory_displacement64(),
        // `notrack` is a segment prefix too.
        (one.memory_segment(), one.segment_prefix()),
    )
}
