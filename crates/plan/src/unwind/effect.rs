//! What one instruction does to the frame.

use super::{Saved, State, is_call, preserved, returned, word};
use crate::arch::x86::decode::Decoded;
use crate::code::Mode;
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedMemory};

/// What is below the stack pointer by no more than this is not overwritten by signal handlers (System V ABI, x86-64,
/// section 3.2.2).
const RED_ZONE: i32 = 128;

/// What instructions do to what is known.
pub(super) struct Effect {
    pub(super) mode: Mode,
    pub(super) state: State,
}

impl Effect {
    /// What is known behind an instruction.
    pub(super) fn of(&self, decoded: &Decoded<'_>, effects: &mut InstructionInfoFactory) -> Option<State> {
        let instruction = &decoded.instruction;
        if is_call(instruction) {
            return returned(self.mode, self.state);
        }
        let info = effects.info(instruction);
        let mut after = self.state;
        for memory in info.used_memory().iter().filter(|memory| writes(memory.access())) {
            self.write(&mut after, memory)?;
        }
        for used in info.used_registers().iter().filter(|used| writes(used.access())) {
            match used.register().full_register() {
                Register::RSP => after.stack = None,
                Register::RBP => after.frame = None,
                _ => {}
            }
            if let Some(saved) = self.saved(&mut after, used.register()) {
                saved.intact = false;
            }
        }
        self.pointers(&mut after, instruction);
        self.saves(&mut after, instruction);
        self.forget_what_was_popped(&mut after);
        // Without the return address nobody finds the caller.
        let has_return = after.stack.is_none_or(|stack| stack >= word(self.mode));
        after.if_known().filter(|_| has_return)
    }

    /// A store by the stack or the frame pointer. None if the return address is overwritten.
    fn write(&self, after: &mut State, memory: &UsedMemory) -> Option<()> {
        let Some(pointer) = self.pointer(memory.base()) else { return Some(()) };
        if memory.index() != Register::None {
            return Some(());
        }
        let from = i64::from(self.displacement(memory.displacement())?) - i64::from(pointer);
        let size = match memory.memory_size().size() {
            // Of unknown size: xsave and its like.
            0 => 4096,
            size => i64::try_from(size).unwrap_or(i64::MAX),
        };
        let word = i64::from(word(self.mode));
        let hits = |at: i64| from < at + word && at < from + size;
        for saved in &mut after.registers {
            saved.at = saved.at.filter(|&at| !hits(i64::from(at)));
        }
        (!hits(-word)).then_some(())
    }

    /// The stack pointer and the frame pointer, where what they become is certain.
    fn pointers(&self, after: &mut State, instruction: &Instruction) {
        let word = word(self.mode);
        let to = instruction.op0_register();
        let value = match instruction.mnemonic() {
            Mnemonic::Mov => self.pointer(instruction.op1_register()),
            Mnemonic::Lea if instruction.memory_index() == Register::None => {
                let base = self.pointer(instruction.memory_base());
                base.zip(self.displacement(instruction.memory_displacement64()))
                    .and_then(|(base, displacement)| base.checked_sub(displacement))
            }
            Mnemonic::Add => self.pointer(to).zip(immediate(instruction)).and_then(|(a, b)| a.checked_sub(b)),
            Mnemonic::Sub => self.pointer(to).zip(immediate(instruction)).and_then(|(a, b)| a.checked_add(b)),
            _ => None,
        };
        if self.is_word(to) {
            match to.full_register() {
                Register::RSP if value.is_some() => after.stack = value,
                Register::RBP if value.is_some() => after.frame = value,
                _ => {}
            }
        }
        match instruction.mnemonic() {
            Mnemonic::Leave => after.stack = self.state.frame.and_then(|frame| frame.checked_sub(word)),
            Mnemonic::Push
            | Mnemonic::Pushf
            | Mnemonic::Pushfd
            | Mnemonic::Pushfq
            | Mnemonic::Popf
            | Mnemonic::Popfd
            | Mnemonic::Popfq => after.stack = self.moved(instruction),
            // Into memory by the stack pointer: which one, before or after, is not looked into.
            Mnemonic::Pop
                if to.full_register() != Register::RSP
                    && self.pointer(instruction.memory_base()).is_none() =>
            {
                after.stack = self.moved(instruction);
            }
            _ => {}
        }
    }

    fn moved(&self, instruction: &Instruction) -> Option<i32> {
        self.state.stack.and_then(|stack| stack.checked_sub(instruction.stack_pointer_increment()))
    }

    /// Registers that are saved, or given back.
    fn saves(&self, after: &mut State, instruction: &Instruction) {
        let operand = || {
            let base = self.pointer(instruction.memory_base())?;
            let plain = instruction.memory_index() == Register::None;
            let displacement = self.displacement(instruction.memory_displacement64())?;
            displacement.checked_sub(base).filter(|_| plain)
        };
        let whole = |register: Register| self.is_word(register).then_some(register);
        match instruction.mnemonic() {
            Mnemonic::Push => {
                let at = after.stack.and_then(i32::checked_neg);
                self.save(after, whole(instruction.op0_register()), at);
            }
            Mnemonic::Pop => {
                let at = self.state.stack.and_then(i32::checked_neg);
                self.restore(after, whole(instruction.op0_register()), at);
            }
            Mnemonic::Leave => {
                let at = self.state.frame.and_then(i32::checked_neg);
                self.restore(after, Some(Register::RBP), at);
            }
            Mnemonic::Mov if instruction.op0_kind() == OpKind::Memory => {
                self.save(after, whole(instruction.op1_register()), operand());
            }
            Mnemonic::Mov if instruction.op1_kind() == OpKind::Memory => {
                self.restore(after, whole(instruction.op0_register()), operand());
            }
            _ => {}
        }
    }

    fn save(&self, after: &mut State, register: Option<Register>, at: Option<i32>) {
        let saved = register.and_then(|register| self.saved(after, register));
        if let Some(saved) = saved.filter(|saved| saved.intact && saved.at.is_none()) {
            saved.at = at;
        }
    }

    fn restore(&self, after: &mut State, register: Option<Register>, at: Option<i32>) {
        let saved = register.and_then(|register| self.saved(after, register));
        if let Some(saved) = saved.filter(|saved| saved.at.is_some() && saved.at == at) {
            saved.intact = true;
        }
    }

    /// What lies below the stack pointer once something was taken off the stack is nobody's.
    fn forget_what_was_popped(&self, after: &mut State) {
        let Some(stack) = after.stack else { return };
        let fell = self.state.stack.is_none_or(|before| stack < before);
        let lowest = if fell { -i64::from(stack) } else { -i64::from(stack) - i64::from(RED_ZONE) };
        for saved in &mut after.registers {
            saved.at = saved.at.filter(|&at| i64::from(at) >= lowest);
        }
    }

    /// From a register up to the canonical frame address.
    fn pointer(&self, register: Register) -> Option<i32> {
        if !self.is_word(register) {
            return None;
        }
        match register.full_register() {
            Register::RSP => self.state.stack,
            Register::RBP => self.state.frame,
            _ => None,
        }
    }

    fn is_word(&self, register: Register) -> bool {
        i32::try_from(register.size()) == Ok(word(self.mode))
    }

    /// A displacement, which is one of 32 bits at most.
    fn displacement(&self, displacement: u64) -> Option<i32> {
        match self.mode {
            Mode::Bits64 => i32::try_from(displacement.cast_signed()).ok(),
            Mode::Bits32 => u32::try_from(displacement).ok().map(u32::cast_signed),
        }
    }

    fn saved<'s>(&self, state: &'s mut State, register: Register) -> Option<&'s mut Saved> {
        let full = register.full_register();
        let index = preserved(self.mode).iter().position(|&(preserved, _)| preserved == full)?;
        state.registers.get_mut(index)
    }
}

/// The second operand, if it is a number.
fn immediate(instruction: &Instruction) -> Option<i32> {
    let kind = instruction.op1_kind();
    let wide = matches!(
        kind,
        OpKind::Immediate8to32 | OpKind::Immediate8to64 | OpKind::Immediate32 | OpKind::Immediate32to64
    );
    if instruction.op_count() != 2 || !wide {
        return None;
    }
    // All of them have 32 significant bits at most, sign-extended or not.
    let [a, b, c, d, ..] = instruction.immediate(1).to_le_bytes();
    Some(i32::from_le_bytes([a, b, c, d]))
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}
