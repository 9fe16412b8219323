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

mod effect;

use crate::arch::x86::decode::{Decoded, Reader};
use crate::code::Mode;
use crate::plan::{MAX_SLOT, Plan};
use arrayvec::ArrayVec;
use effect::Effect;
use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, OpKind, Register};

/// The most instructions of a slot: a relay, a landing pad, up to four for each copy, the jump back, a relay.
const MAX_PLACES: usize = 64;
/// Whose functions the code is of: which registers they preserve for their callers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Convention {
    /// The System V ABI's. In 32-bit code Windows has the same registers.
    #[default]
    SystemV,
    /// Microsoft's "x64 calling convention": RSI and RDI, too. XMM6 to XMM15, which it preserves as well, are not followed.
    Windows,
}

impl Convention {
    /// How many of [`preserved`] are.
    const fn count(self, mode: Mode) -> usize {
        match (mode, self) {
            (Mode::Bits64, Self::SystemV) => 6,
            (Mode::Bits64, Self::Windows) => 8,
            (Mode::Bits32, _) => 4,
        }
    }
}

/// The most registers that are followed.
const MOST: usize = 8;

/// The registers that a function preserves for its caller, with their DWARF numbers. RSI and RDI are such by one convention.
const PRESERVED_64: [(Register, u8); MOST] = [
    (Register::RBX, 3),
    (Register::RBP, 6),
    (Register::R12, 12),
    (Register::R13, 13),
    (Register::R14, 14),
    (Register::R15, 15),
    (Register::RSI, 4),
    (Register::RDI, 5),
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
    convention: Convention,
    stack: Option<i32>,
    frame: Option<i32>,
    registers: [Kept; MOST],
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
        let count = self.convention.count(self.mode);
        preserved(self.mode).iter().map(|&(_, number)| number).zip(self.registers).take(count)
    }
}

impl Plan {
    /// Where the caller's frame is, for every byte of the slot: rows in the order of their addresses, without gaps.
    ///
    /// It is for a target that is entered at its window by a call. Allocates.
    pub fn unwind(&self) -> impl Iterator<Item = UnwindRow> + use<> {
        self.unwind_in(Convention::SystemV)
    }

    /// The same for a function of another convention.
    pub fn unwind_in(&self, convention: Convention) -> impl Iterator<Item = UnwindRow> + use<> {
        let mut slot = Places::of(self);
        slot.follow(self);
        slot.rows(self.slot_bytes().len(), convention).into_iter()
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
    registers: [Saved; MOST],
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
        Self { stack: Some(word(mode)), frame: None, registers: [Saved { intact: true, at: None }; MOST] }
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

    fn frame(self, mode: Mode, convention: Convention) -> Frame {
        let mut registers = [Kept::InPlace; MOST];
        // What is not preserved makes no two frames different.
        for (kept, saved) in registers.iter_mut().zip(self.registers).take(convention.count(mode)) {
            *kept = saved.kept();
        }
        Frame { mode, convention, stack: self.stack, frame: self.frame, registers }
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

    fn rows(&self, len: usize, convention: Convention) -> ArrayVec<UnwindRow, MAX_PLACES> {
        let mut rows = ArrayVec::<UnwindRow, MAX_PLACES>::new();
        for (index, place) in self.places.iter().enumerate() {
            let end = self.places.get(index + 1).map_or(len, |next| usize::from(next.at));
            let frame = match place.reached {
                Reached::With(state) => Some(state.frame(self.mode, convention)),
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
