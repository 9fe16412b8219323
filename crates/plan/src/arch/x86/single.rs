//! One instruction by itself: how long it is, where it leads, and what it is at another address.

use super::classify::{Kind, classify};
use super::decode::{Decoded, Failure, Reader};
use super::flow::flow_control;
use super::opcode::{Name, has_operand, name};
use super::relocate::Moved;
use crate::code::{Code, MAX_INSTRUCTION, Mode};
use crate::place::is_near;
use crate::plan::Returns;
use crate::refusal::{Refusal, Unsupported};
use crate::slot_bytes::SlotBytes;
use iced_x86::{Code as Opcode, FlowControl, OpKind, Register};

/// Where an instruction leads, besides on to the next one.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leads {
    /// Nowhere, or back to whoever called.
    Nowhere,
    /// To this address: a direct branch or call.
    To(u64),
    /// To where the pointer at this address leads: a jump or call through memory that the instruction itself names.
    Through(u64),
    /// That is not known before it is executed: through a register, by an interrupt, to another segment.
    Unknown,
}

/// One instruction.
///
/// ```
/// use kdetour_plan::{Code, Leads, Single};
///
/// let code = Code::new(0x1000, &[0xeb, 0x0e]); // jmp short 0x1010
/// let jump = Single::of(&code)?;
/// assert_eq!((jump.length(), jump.leads()), (2, Leads::To(0x1010)));
/// let mut copy = [0; 16];
/// let length = jump.copy(0x2000, &mut copy)?;
/// assert_eq!(copy[..length], [0xe9, 0x0b, 0xf0, 0xff, 0xff]); // jmp 0x1010
/// assert_eq!(length, jump.copy_length());
/// # Ok::<(), kdetour_plan::Refusal>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Single<'a> {
    mode: Mode,
    address: u64,
    bytes: &'a [u8],
    /// Or why it cannot be moved.
    kind: Result<Kind, Refusal>,
    leads: Leads,
}

impl<'a> Single<'a> {
    /// The instruction that the code begins with.
    ///
    /// # Errors
    /// [`Refusal::Truncated`] if it does not end within the bytes, [`Refusal::Undecodable`] if it is none.
    pub fn of(code: &Code<'a>) -> Result<Self, Refusal> {
        let (mode, address) = (code.mode(), code.address());
        let bytes = code.bytes().get(..MAX_INSTRUCTION).unwrap_or(code.bytes());
        let decoded = Reader::new(mode, bytes, address).read_fields(0).map_err(|failure| match failure {
            Failure::NoMoreBytes if bytes.len() < MAX_INSTRUCTION => {
                Refusal::Truncated { address, have: bytes.len() }
            }
            _ => Refusal::Undecodable { address },
        })?;
        let kind = match classify(&decoded) {
            Ok(class) => Ok(class.kind),
            // For a displaced instruction where it traps matters; by itself it is its bytes.
            Err(Refusal::Unsupported { why: Unsupported::Trap, .. }) => Ok(Kind::Plain),
            Err(refusal) => Err(refusal),
        };
        Ok(Self { mode, address, bytes: decoded.bytes, kind, leads: leads(&decoded) })
    }

    /// How many bytes it has.
    pub const fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Where it leads.
    pub const fn leads(&self) -> Leads {
        self.leads
    }

    /// How many bytes it has at another address: short branches become near ones, and `loop*` and `j*cxz` jump to such a one.
    pub fn copy_length(&self) -> usize {
        self.kind.map_or(self.bytes.len(), |kind| {
            // As it is where what it refers to is near.
            self.moved(kind, kind.target().unwrap_or(self.address)).copy_len(|target| target)
        })
    }

    /// Writes what does the same at the address `to`; how many bytes that are. Calls stay calls: a callee that tells its return address
    /// as the program counter, as 32-bit code has them, tells that of the copy; `call $+5` tells the original's.
    ///
    /// # Errors
    /// [`Refusal::OutOfReach`] if what it refers to is more than 2 GiB from there, [`Refusal::Unsupported`] if it cannot be moved,
    /// [`Refusal::SlotTooSmall`] if the copy does not fit: nothing has been written then.
    pub fn copy(&self, to: u64, copy: &mut [u8]) -> Result<usize, Refusal> {
        let kind = self.kind?;
        if let Some(target) = kind.target().filter(|&target| !is_near(self.mode, to, target)) {
            return Err(Refusal::OutOfReach { address: self.address, target });
        }
        let mut out = SlotBytes::none();
        self.moved(kind, to).write(&mut out, |target| target)?;
        let (needed, capacity) = (out.len(), copy.len());
        let place = copy.get_mut(..needed).ok_or(Refusal::SlotTooSmall { needed, capacity })?;
        place.copy_from_slice(out.as_slice());
        Ok(needed)
    }

    const fn moved(&self, kind: Kind, slot: u64) -> Moved<'a> {
        Moved {
            mode: self.mode,
            address: self.address,
            bytes: self.bytes,
            kind,
            slot,
            returns: Returns::Slot,
            alone: true,
        }
    }
}

fn leads(decoded: &Decoded<'_>) -> Leads {
    let instruction = &decoded.instruction;
    let direct =
        matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    match flow_control(instruction) {
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::Call if direct => {
            Leads::To(instruction.near_branch_target())
        }
        FlowControl::XbeginXabortXend if direct => Leads::To(instruction.near_branch_target()),
        // System calls count as calls, and come back.
        FlowControl::Call if !has_operand(instruction) => Leads::Nowhere,
        FlowControl::IndirectBranch | FlowControl::IndirectCall => {
            let near = matches!(
                instruction.code(),
                Opcode::Jmp_rm64 | Opcode::Call_rm64 | Opcode::Jmp_rm32 | Opcode::Call_rm32
            );
            let absolute = instruction.op0_kind() == OpKind::Memory
                && matches!(instruction.memory_base(), Register::None | Register::RIP | Register::EIP)
                && instruction.memory_index() == Register::None
                && !matches!(instruction.memory_segment(), Register::FS | Register::GS);
            match near && absolute {
                true => Leads::Through(instruction.memory_displacement64()),
                false => Leads::Unknown,
            }
        }
        FlowControl::Return if name(instruction) == Name::Ret => Leads::Nowhere,
        FlowControl::Next | FlowControl::XbeginXabortXend | FlowControl::Exception => Leads::Nowhere,
        _ => Leads::Unknown,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    const AT: u64 = 0x40_1000;
    const TO: u64 = 0x50_0000;

    /// The instruction's length, where it leads, and its copy at `TO`, whose length is always foretold.
    fn copied(bytes: &[u8]) -> (usize, Leads, Result<Vec<u8>, Refusal>) {
        let single = Single::of(&Code::new(AT, bytes)).unwrap();
        let mut copy = [0xaa; 32];
        let outcome = single.copy(TO, &mut copy);
        if let Ok(length) = outcome {
            assert_eq!(length, single.copy_length(), "{bytes:02x?}");
            assert!(copy[length..].iter().all(|&byte| byte == 0xaa));
        }
        (single.length(), single.leads(), outcome.map(|length| copy[..length].to_vec()))
    }

    #[test]
    fn what_depends_on_its_address_is_adjusted() {
        // Each is followed by what is not part of it.
        let by = |more: i64| (0x40_1000 - 0x50_0000 + more) as i32;
        let with = |head: &[u8], displacement: i32| [head, &displacement.to_le_bytes()].concat();
        let cases: [(&[u8], usize, Leads, Vec<u8>); 11] = [
            (&[0x55, 0xc3], 1, Leads::Nowhere, [0x55].into()), // push rbp
            (&[0xc3, 0x90], 1, Leads::Nowhere, [0xc3].into()), // ret
            (&[0xeb, 0x10, 0x90], 2, Leads::To(AT + 0x12), with(&[0xe9], by(0x12 - 5))), // jmp short
            (&[0xe9, 0, 1, 0, 0, 0x90], 5, Leads::To(AT + 0x105), with(&[0xe9], by(0x100))), // jmp
            (&[0x74, 0xfe, 0x90], 2, Leads::To(AT), with(&[0x0f, 0x84], by(-6))), // je
            (&[0x0f, 0x85, 0, 1, 0, 0, 0x90], 6, Leads::To(AT + 0x106), with(&[0x0f, 0x85], by(0x100))), // jne
            (&[0xe8, 0, 1, 0, 0, 0x90], 5, Leads::To(AT + 0x105), with(&[0xe8], by(0x100))), // call
            // jmp [rip+0x100]; call [rip+0x100]; mov rax, [rip+0x100]
            (&[0xff, 0x25, 0, 1, 0, 0], 6, Leads::Through(AT + 0x106), with(&[0xff, 0x25], by(0x100))),
            (&[0xff, 0x15, 0, 1, 0, 0], 6, Leads::Through(AT + 0x106), with(&[0xff, 0x15], by(0x100))),
            (&[0x48, 0x8b, 0x05, 0, 1, 0, 0], 7, Leads::Nowhere, with(&[0x48, 0x8b, 0x05], by(0x100))),
            // loop: over a short jump, to a near one
            (&[0xe2, 0x10], 2, Leads::To(AT + 0x12), with(&[0xe2, 0x02, 0xeb, 0x05, 0xe9], by(0x12 - 9))),
        ];
        for (bytes, length, leads, copy) in cases {
            assert_eq!(copied(bytes), (length, leads, Ok(copy)), "{bytes:02x?}");
        }
    }

    #[test]
    fn calls_stay_calls_in_32_bit_code() {
        let copied = |bytes: &[u8]| {
            let single = Single::of(&Code::in_mode(Mode::Bits32, AT, bytes)).unwrap();
            let mut copy = [0; 32];
            let length = single.copy(TO, &mut copy).unwrap();
            assert_eq!(length, single.copy_length());
            copy[..length].to_vec()
        };
        let by = (AT.wrapping_add(0x100).wrapping_sub(TO) as i32).to_le_bytes();
        assert_eq!(copied(&[0xe8, 0, 1, 0, 0]), [&[0xe8][..], &by].concat()); // call
        // call $+5, which asks for its own address: push of that.
        assert_eq!(copied(&[0xe8, 0, 0, 0, 0]), [&[0x68][..], &(AT as u32 + 5).to_le_bytes()].concat());
        assert_eq!(copied(&[0xff, 0x15, 1, 2, 3, 4]), [0xff, 0x15, 1, 2, 3, 4]); // call [0x4030201]
    }

    #[test]
    fn where_it_leads_may_be_unknown() {
        let unknown: [&[u8]; 9] = [
            &[0xff, 0xe0],                            // jmp rax
            &[0xff, 0x10],                            // call [rax]
            &[0xcc],                                  // int3
            &[0xcd, 0x80],                            // int 0x80
            &[0x48, 0xcf],                            // iretq
            &[0xcb],                                  // retf
            &[0x64, 0xff, 0x24, 0x25, 0x10, 0, 0, 0], // jmp fs:[0x10]
            &[0xff, 0x2d, 0, 0, 0, 0],                // jmp far [rip+0]
            &[0x65, 0xff, 0x15, 0, 0, 0, 0],          // call gs:[rip+0]
        ];
        for bytes in unknown {
            assert_eq!(copied(bytes).1, Leads::Unknown, "{bytes:02x?}");
        }
        // syscall; ud2: the next instruction, or none.
        for bytes in [[0x0f, 0x05], [0x0f, 0x0b]] {
            assert_eq!(copied(&bytes), (2, Leads::Nowhere, Ok(bytes.into())));
        }
    }

    #[test]
    fn what_does_not_reach_is_refused() {
        let code = Code::new(AT, &[0xeb, 0x10]);
        let jump = Single::of(&code).unwrap();
        let mut copy = [0; 15];
        let far = jump.copy(AT + (3 << 30), &mut copy);
        assert_eq!(far, Err(Refusal::OutOfReach { address: AT, target: AT + 0x12 }));
        assert_eq!(jump.copy(TO, &mut copy[..4]), Err(Refusal::SlotTooSmall { needed: 5, capacity: 4 }));
        assert_eq!(copy, [0; 15]);
        let plain = Single::of(&Code::new(AT, &[0x55])).unwrap();
        assert_eq!(plain.copy(AT + (3 << 30), &mut copy), Ok(1));
    }

    #[test]
    fn what_is_no_instruction_is_none() {
        let of = |bytes: &[u8]| Single::of(&Code::new(AT, bytes)).map(|single| single.length());
        assert_eq!(of(&[0x06; 15]), Err(Refusal::Undecodable { address: AT })); // push es, in 64-bit code
        assert_eq!(of(&[0x48, 0x8b]), Err(Refusal::Truncated { address: AT, have: 2 }));
        assert_eq!(of(&[]), Err(Refusal::Truncated { address: AT, have: 0 }));
        assert_eq!(of(&[0x66; 20]), Err(Refusal::Undecodable { address: AT }));
    }
}
