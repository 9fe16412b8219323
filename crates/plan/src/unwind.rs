//! Where the caller's frame is, for each place in a slot.
//!
//! An unwinder whose instruction pointer is in a slot (a profiler's signal, a debugger, an exception that passes
//! through a call that stays a call) has to find the caller. The target's own unwind information is about other
//! addresses, so that of the slot is worked out from its instructions: what each of them does to the stack pointer
//! and the frame pointer, and to the registers that a callee preserves. Only what is certain is followed. From the
//! first instruction on whose effect is not, the rows say so, and an unwinder stops instead of going astray.
//!
//! What is taken for granted: the window begins as a function does, with the return address on top of the stack
//! (a landing pad and an ftrace site in front of it change nothing); what a call in 64-bit code calls returns with
//! the stack pointer as it was; and no store through another register than the stack and the frame pointer, nor an
//! indexed one, hits what the function itself has saved. Not seen is that a system call gave a new thread another stack.

use crate::arch::x86::decode::{Decoded, Reader};
use crate::code::Mode;
use crate::plan::{MAX_SLOT, Plan};
use arrayvec::ArrayVec;
use iced_x86::{
    FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedMemory,
};

/// The most instructions of a slot: a relay, a landing pad, up to four for each copy, the jump back, a relay.
const MAX_PLACES: usize = 64;
/// What is below the stack pointer by no more than this is not overwritten by signal handlers (System V ABI, x86-64,
/// section 3.2.2).
const RED_ZONE: i32 = 128;

/// The registers that a function preserves for its caller, with their DWARF numbers.
const PRESERVED_64: [(Register, u8); 6] = [
    (Register::RBX, 3),
    (Register::RBP, 6),
    (Register::R12, 12),
    (Register::R13, 13),
    (Register::R14, 14),
    (Register::R15, 15),
];
const PRESERVED_32: [(Register, u8); 4] =
    [(Register::RBX, 3), (Register::RBP, 5), (Register::RSI, 6), (Register::RDI, 7)];

const fn preserved(mode: Mode) -> &'static [(Register, u8)] {
    match mode {
        Mode::Bits64 => &PRESERVED_64,
        Mode::Bits32 => &PRESERVED_32,
    }
}

/// Bytes of a slot that have one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnwindRow {
    /// Distance of the first byte from the slot's.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// The frame before an instruction that begins here is executed; none where it is not known.
    pub frame: Option<Frame>,
}

/// Where the caller's frame is: everything relative to the canonical frame address, which is the stack pointer's
/// value in front of the call that entered the function. The return address is in the word below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    mode: Mode,
    stack: Option<i32>,
    frame: Option<i32>,
    registers: [Kept; 6],
}

/// Where the caller's value of a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In the register.
    InPlace,
    /// In memory, at this distance from the canonical frame address.
    At(i32),
    /// Nobody knows.
    Lost,
}

impl Frame {
    /// The canonical frame address: the DWARF number of the register that it is told by, and how far it is above it.
    pub fn cfa(&self) -> (u8, i32) {
        let (stack, frame) = match self.mode {
            Mode::Bits64 => (7, 6),
            Mode::Bits32 => (4, 5),
        };
        match (self.stack, self.frame) {
            (Some(distance), _) => (stack, distance),
            // A frame in which neither is known does not exist.
            (None, distance) => (frame, distance.unwrap_or(0)),
        }
    }

    /// How far the canonical frame address is above the stack pointer, if that is known.
    pub const fn above_stack_pointer(&self) -> Option<i32> {
        self.stack
    }

    /// How far the canonical frame address is above RBP, if RBP is used as a frame pointer.
    pub const fn above_frame_pointer(&self) -> Option<i32> {
        self.frame
    }

    /// The registers that a function preserves for its caller, by their DWARF numbers.
    pub fn registers(&self) -> impl Iterator<Item = (u8, Kept)> {
        preserved(self.mode).iter().map(|&(_, number)| number).zip(self.registers)
    }
}

impl Plan {
    /// Where the caller's frame is, for every byte of the slot: rows in the order of their addresses, without gaps.
    ///
    /// It is for a target that is entered at its window by a call. Allocates.
    pub fn unwind(&self) -> impl Iterator<Item = UnwindRow> + use<> {
        let mut slot = Places::of(self);
        slot.follow(self);
        slot.rows(self.slot_bytes().len()).into_iter()
    }
}

/// What is known in front of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    /// From the stack pointer up to the canonical frame address.
    stack: Option<i32>,
    /// From the frame pointer up to it, if that was made from the stack pointer.
    frame: Option<i32>,
    /// In the order of [`preserved`].
    registers: [Saved; 6],
}

/// What became of the caller's value of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Saved {
    /// The register still has it.
    intact: bool,
    /// A copy of it is in memory, so far from the canonical frame address.
    at: Option<i32>,
}

impl Saved {
    /// What is in its place is looked for there, wherever else it is.
    const fn kept(self) -> Kept {
        match self {
            Self { intact: true, .. } => Kept::InPlace,
            Self { at: Some(at), .. } => Kept::At(at),
            Self { at: None, .. } => Kept::Lost,
        }
    }
}

impl State {
    /// As a call leaves it.
    const fn entry(mode: Mode) -> Self {
        Self { stack: Some(word(mode)), frame: None, registers: [Saved { intact: true, at: None }; 6] }
    }

    /// What is true in both.
    fn join(self, other: Self) -> Option<Self> {
        let agreed = |one: Option<i32>, two: Option<i32>| one.filter(|_| one == two);
        let mut registers = self.registers;
        for (register, other) in registers.iter_mut().zip(other.registers) {
            register.intact &= other.intact;
            register.at = agreed(register.at, other.at);
        }
        let (stack, frame) = (agreed(self.stack, other.stack), agreed(self.frame, other.frame));
        Self { stack, frame, registers }.if_known()
    }

    const fn frame(self, mode: Mode) -> Frame {
        let [a, b, c, d, e, f] = self.registers;
        let registers = [a.kept(), b.kept(), c.kept(), d.kept(), e.kept(), f.kept()];
        Frame { mode, stack: self.stack, frame: self.frame, registers }
    }

    fn if_known(self) -> Option<Self> {
        (self.stack.is_some() || self.frame.is_some()).then_some(self)
    }
}

/// Bytes of an address.
const fn word(mode: Mode) -> i32 {
    match mode {
        Mode::Bits64 => 8,
        Mode::Bits32 => 4,
    }
}

/// How a place can be come to, as far as was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reached {
    Not,
    Unknown,
    With(State),
}

/// An instruction of the slot, and the address that stands behind it, if one does.
#[derive(Clone, Copy)]
struct Place {
    at: u8,
    reached: Reached,
}

/// The instructions of a slot.
struct Places {
    mode: Mode,
    places: ArrayVec<Place, MAX_PLACES>,
}

impl Places {
    fn of(plan: &Plan) -> Self {
        let mut slot = Self { mode: plan.mode(), places: ArrayVec::new() };
        let mut reader = Reader::new(plan.mode(), plan.slot_bytes(), plan.slot());
        let (mut at, mut data) = (0, Data::None);
        while let Ok(decoded) = reader.read(at) {
            let place = Place { at: u8::try_from(at).unwrap_or(u8::MAX), reached: Reached::Not };
            if slot.places.try_push(place).is_err() {
                break;
            }
            at += decoded.len();
            data = data.behind(decoded.bytes);
            if data == Data::Here {
                at += 8;
            }
        }
        slot
    }

    /// Follows every way through the slot, until nothing new is found.
    fn follow(&mut self, plan: &Plan) {
        let mut reader = Reader::new(self.mode, plan.slot_bytes(), plan.slot());
        let mut effects = InstructionInfoFactory::new();
        let entry = Some(State::entry(self.mode));
        self.reach(0, entry);
        self.reach(plan.trampoline_offset(), entry);
        loop {
            // What leads on is seen in this very pass; what leads back asks for another one.
            let mut again = false;
            for index in 0..self.places.len() {
                let Some(&Place { at, reached }) = self.places.get(index) else { continue };
                let next = self.places.get(index + 1).map(|next| usize::from(next.at));
                let Ok(decoded) = reader.read(usize::from(at)) else { continue };
                let state = match reached {
                    // Nothing leads here from inside the slot: it is a relay, which the patch leads to.
                    Reached::Not => {
                        if is_last(plan, usize::from(at)) {
                            self.reach(usize::from(at), entry);
                        }
                        continue;
                    }
                    Reached::Unknown => None,
                    Reached::With(state) => Some(state),
                };
                let after =
                    state.and_then(|state| Effect { mode: self.mode, state }.of(&decoded, &mut effects));
                if let Some(target) = branch_target(&decoded, plan) {
                    // The flags decide; the stack is not touched.
                    again |= self.reach(target, after) && target <= usize::from(at);
                }
                let Some(next) = next else { continue };
                if goes_on(&decoded.instruction) {
                    self.reach(next, after);
                } else if let Some(call) = self.emulated_call(plan, usize::from(at), next) {
                    self.reach(next, call);
                }
            }
            if !again {
                return;
            }
        }
    }

    /// Takes down that a place can be come to with a state; says whether that was new.
    fn reach(&mut self, at: usize, state: Option<State>) -> bool {
        let Some(place) = self.places.iter_mut().find(|place| usize::from(place.at) == at) else {
            return false;
        };
        let joined = match (place.reached, state) {
            (Reached::Not, state) => state,
            (Reached::With(before), Some(state)) => before.join(state),
            (Reached::Unknown, _) | (_, None) => None,
        };
        let joined = joined.map_or(Reached::Unknown, Reached::With);
        let new = joined != place.reached;
        place.reached = joined;
        new
    }

    /// If the jump at `at` ends the copy of a call, and `next` begins the copy behind it: the state with which a
    /// thread comes there that stood behind the call in the original.
    fn emulated_call(&self, plan: &Plan, at: usize, next: usize) -> Option<Option<State>> {
        let address = |at: usize| plan.slot().wrapping_add(at as u64);
        let pairs = plan.ip_map().pairs();
        let index = pairs.iter().position(|&(_, copy)| copy == address(next))?;
        let (original, copy) = *pairs.get(index.checked_sub(1)?)?;
        let displaced = plan.displaced().find(|displaced| displaced.address() == original)?;
        let mut reader = Reader::new(self.mode, displaced.bytes(), original);
        let is_call = reader.read(0).is_ok_and(|decoded| is_call(&decoded.instruction));
        if !is_call || address(at) < copy {
            return None;
        }
        let before = self.places.iter().find(|place| address(usize::from(place.at)) == copy)?;
        Some(match before.reached {
            Reached::With(state) => returned(self.mode, state),
            Reached::Not | Reached::Unknown => None,
        })
    }

    fn rows(&self, len: usize) -> ArrayVec<UnwindRow, MAX_PLACES> {
        let mut rows = ArrayVec::<UnwindRow, MAX_PLACES>::new();
        for (index, place) in self.places.iter().enumerate() {
            let end = self.places.get(index + 1).map_or(len, |next| usize::from(next.at));
            let frame = match place.reached {
                Reached::With(state) => Some(state.frame(self.mode)),
                Reached::Not | Reached::Unknown => None,
            };
            match rows.last_mut() {
                Some(row) if row.frame == frame => row.end = end,
                _ => rows.push(UnwindRow { start: usize::from(place.at), end, frame }),
            }
        }
        rows
    }
}

/// Whether the slot's last instruction, which is a relay if nothing leads there, begins at `at`.
fn is_last(plan: &Plan, at: usize) -> bool {
    // jmp qword ptr [rip+0]: `far_jump`, which writes the relay.
    const FAR: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
    let rest = plan.slot_bytes().get(at..).unwrap_or(&[]);
    rest.len() == FAR.len() + 8 && rest.starts_with(&FAR)
}

/// Addresses among the instructions, which `relocate` writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    None,
    /// Behind the next instruction.
    Next,
    Here,
}

impl Data {
    fn behind(self, instruction: &[u8]) -> Self {
        match instruction {
            [0xff, 0x25, 0, 0, 0, 0] => Self::Here,        // jmp qword ptr [rip+0]
            [0xff, 0x15, 2, 0, 0, 0] => Self::Next,        // call qword ptr [rip+2]
            [0xeb, 8] if self == Self::Next => Self::Here, // jmp short, over the address
            _ => Self::None,
        }
    }
}

/// Where a branch leads, if it stays in the slot.
fn branch_target(decoded: &Decoded<'_>, plan: &Plan) -> Option<usize> {
    let instruction = &decoded.instruction;
    let near =
        matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    if !near || is_call(instruction) {
        return None;
    }
    let distance = plan.mode().wrap(instruction.near_branch_target().wrapping_sub(plan.slot()));
    usize::try_from(distance).ok().filter(|&distance| distance < MAX_SLOT)
}

fn is_call(instruction: &Instruction) -> bool {
    // A system call is one without an operand.
    matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
        && instruction.op_count() == 1
}

fn goes_on(instruction: &Instruction) -> bool {
    !matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
    )
}

/// Behind a call: in 32-bit code the callee may have taken its arguments off the stack.
fn returned(mode: Mode, state: State) -> Option<State> {
    match mode {
        Mode::Bits64 => Some(state),
        Mode::Bits32 => State { stack: None, ..state }.if_known(),
    }
}

/// What instructions do to what is known.
struct Effect {
    mode: Mode,
    state: State,
}

impl Effect {
    /// What is known behind an instruction.
    fn of(&self, decoded: &Decoded<'_>, effects: &mut InstructionInfoFactory) -> Option<State> {
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
