//! Writing an instruction at another address so that it does what it did.
//!
//! | instruction | what is written in the slot | where 32 bits do not reach |
//! |---|---|---|
//! | no operand that depends on its address | the same bytes | the same |
//! | RIP-relative operand, any encoding | the same bytes with a new displacement | refused, but for: |
//! | `lea r, [rip+x]` | | `mov r, imm` |
//! | load into a whole register | | `mov r, imm64`, and the load from `[r]` |
//! | `jmp rel8/rel32` | `jmp rel32` | `jmp [rip+0]` and the address |
//! | `jcc rel8/rel32` | `jcc rel32` | the opposite `jcc` over such a jump |
//! | `loop*`, `j*cxz` | the same over `jmp short`, then `jmp rel32` | then such a jump |
//! | `xbegin rel32` | `xbegin` with a new displacement | `xbegin` to such a jump |
//! | `call rel32` | push of the original return address, `jmp rel32` | then such a jump |
//! | `call $+5` | push of the original return address: the program counter that it reads | the same |
//! | `call r/m` | push of the original return address, `jmp r/m` | a RIP-relative pointer is refused |
//!
//! A callee thus returns to the original code behind the window: nobody sleeps with an address of the slot on the
//! stack, and what it reads as its return address is what it was. With [`Returns::Slot`] calls stay calls instead.
//! Branches to a displaced instruction go to its copy. Nothing here changes a flag, a register that the instruction
//! does not, or anything below the stack pointer. What does not fit is a refusal.

use super::classify::{Far, Kind, Through};
use crate::code::Mode;
use crate::place::{displacement, is_near};
use crate::plan::Returns;
use crate::refusal::{Refusal, Unsupported};
use crate::slot_bytes::SlotBytes;

/// One instruction to be moved, and where to.
#[derive(Clone, Copy)]
pub(crate) struct Moved<'a> {
    pub(crate) mode: Mode,
    pub(crate) address: u64,
    pub(crate) bytes: &'a [u8],
    pub(crate) kind: Kind,
    /// Address of the slot's first byte.
    pub(crate) slot: u64,
    pub(crate) returns: Returns,
    /// It is copied by itself, and no part of a function that goes on elsewhere.
    pub(crate) alone: bool,
}

/// A jump that reaches any address takes so many bytes.
pub(crate) const FAR_JUMP: usize = 14;

impl Moved<'_> {
    fn next(&self) -> u64 {
        self.mode.wrap(self.address.wrapping_add(self.bytes.len() as u64))
    }

    fn near(&self, target: u64) -> bool {
        is_near(self.mode, self.slot, target)
    }

    /// A jump in the slot, to another place in it or outside.
    fn jump_len(&self, target: u64) -> usize {
        if self.near(target) { 5 } else { FAR_JUMP }
    }

    /// Whether a call stays a call. In 32-bit code the callee of a direct one may be there to tell its return
    /// address as the program counter; but where the code around the call is not copied with it, only the caller
    /// knows which one it means.
    pub(crate) fn stays_call(&self) -> bool {
        self.returns == Returns::Slot
            && match self.kind {
                Kind::Call { target } => (self.alone || self.mode == Mode::Bits64) && target != self.next(),
                Kind::IndirectCall { .. } => true,
                _ => false,
            }
    }

    /// Bytes that the copy takes. It depends on the instruction and the slot's address alone, so a layout can be
    /// made before anything is written. `resolve` says where a jump to an original address goes.
    pub(crate) fn copy_len(&self, resolve: impl Fn(u64) -> u64) -> usize {
        match self.kind {
            Kind::Plain => self.bytes.len(),
            Kind::RipRelative { target, .. } if self.near(target) => self.bytes.len(),
            Kind::RipRelative { far: Some(far), .. } => self.far_len(far),
            Kind::RipRelative { far: None, .. } => self.bytes.len(),
            Kind::Jump { target } => self.jump_len(resolve(target)),
            Kind::Condition { target, .. } => match self.jump_len(resolve(target)) {
                FAR_JUMP => 2 + FAR_JUMP,
                near => near + 1,
            },
            Kind::Transaction { target } => match self.jump_len(resolve(target)) {
                FAR_JUMP => 8 + FAR_JUMP,
                near => near + 1,
            },
            Kind::Loop { narrow, target, .. } => 4 + usize::from(narrow) + self.jump_len(resolve(target)),
            Kind::Call { target } if self.stays_call() => {
                if self.near(target) {
                    5
                } else {
                    16
                }
            }
            Kind::Call { target } if target == self.next() => self.push_len(),
            Kind::Call { target } => self.push_len() + self.jump_len(target),
            Kind::IndirectCall { .. } if self.stays_call() => self.bytes.len(),
            Kind::IndirectCall { .. } => self.push_len() + self.bytes.len(),
        }
    }

    /// Writes the copy, whose first byte will be at `slot + out.len()`. `resolve` says where a jump to an original
    /// address goes: to a copy in the slot, or to the address itself.
    pub(crate) fn write(&self, out: &mut SlotBytes, resolve: impl Fn(u64) -> u64) -> Result<(), Refusal> {
        match self.kind {
            Kind::Plain => out.put(self.bytes),
            Kind::RipRelative { field, target, far } => match far.filter(|_| !self.near(target)) {
                None => self.write_with_displacement(out, field, target),
                Some(far) => self.write_far(out, field, target, far),
            },
            Kind::Jump { target } => self.jump(out, resolve(target)),
            Kind::Condition { condition, target } => {
                let target = resolve(target);
                if self.near(target) {
                    out.put(&[0x0f, 0x80 | condition])?; // jcc rel32
                    return self.rel32(out, target);
                }
                out.put(&[0x70 | condition ^ 1, 14])?; // the opposite jcc, over the next instruction
                self.jump(out, target)
            }
            Kind::Loop { opcode, narrow, target } => {
                let target = resolve(target);
                if narrow {
                    out.put(&[0x67])?; // count in the narrower register
                }
                out.put(&[opcode, 0x02])?; // loop* or j*cxz over the next instruction
                out.put(&[0xeb, if self.near(target) { 5 } else { 14 }])?; // jmp short, over the one after it
                self.jump(out, target)
            }
            Kind::Transaction { target } => {
                let target = resolve(target);
                out.put(&[0xc7, 0xf8])?; // xbegin rel32
                if self.near(target) {
                    return self.rel32(out, target);
                }
                out.put(&[2, 0, 0, 0])?; // aborts to behind the next instruction
                out.put(&[0xeb, 14])?; // jmp short, over the one after it
                self.jump(out, target)
            }
            Kind::Call { target } if self.stays_call() => {
                if self.near(target) {
                    out.put(&[0xe8])?; // call rel32
                    return self.rel32(out, target);
                }
                out.put(&[0xff, 0x15, 2, 0, 0, 0])?; // call qword ptr [rip+2]
                out.put(&[0xeb, 8])?; // jmp short, over the address
                out.put(&target.to_le_bytes())
            }
            Kind::Call { target } => {
                self.push(out)?;
                if target == self.next() { Ok(()) } else { self.jump(out, target) }
            }
            Kind::IndirectCall { modrm, through } => self.indirect_call(out, modrm, through),
        }
    }

    fn indirect_call(&self, out: &mut SlotBytes, modrm: u8, through: Through) -> Result<(), Refusal> {
        let stays = self.stays_call();
        if !stays {
            if through == Through::Stack {
                let why = Unsupported::CallThroughStackPointer;
                return Err(Refusal::Unsupported { address: self.address, why });
            }
            self.push(out)?;
        }
        let start = out.len();
        match through {
            Through::Rip { field, target } => self.write_with_displacement(out, field, target)?,
            Through::Register | Through::Memory | Through::Stack => out.put(self.bytes)?,
        }
        if !stays {
            // FF /2 (call) becomes FF /4 (jmp): two bits of ModRM.reg.
            out.change(start + usize::from(modrm), |byte| (byte & 0b1100_0111) | (4 << 3));
        }
        Ok(())
    }

    /// The instruction's own bytes with the 32-bit displacement at `field` made to refer to `target` again.
    fn write_with_displacement(&self, out: &mut SlotBytes, field: u8, target: u64) -> Result<(), Refusal> {
        let field = usize::from(field);
        let (head, rest) = self.bytes.split_at_checked(field).unwrap_or((self.bytes, &[]));
        let trailing = rest.get(4..).unwrap_or(&[]);
        out.put(head)?;
        self.displacement(out, target, trailing.len())?;
        out.put(trailing)
    }

    fn far_len(&self, far: Far) -> usize {
        match far {
            Far::Address { .. } => 10,
            Far::Address32 { register } => 5 + usize::from(register >= 8),
            // mov r, imm64; then the load without its displacement, with a SIB or a disp8 where r asks for one.
            Far::Load { register } => 10 + self.bytes.len() - 4 + usize::from(matches!(register & 7, 4 | 5)),
        }
    }

    fn write_far(&self, out: &mut SlotBytes, field: u8, target: u64, far: Far) -> Result<(), Refusal> {
        let high = |register: u8| register >> 3 & 1;
        match far {
            Far::Address { register } | Far::Load { register } => {
                out.put(&[0x48 | high(register), 0xb8 | register & 7])?; // mov r64, imm64
                out.put(&target.to_le_bytes())?;
            }
            Far::Address32 { register } => {
                if register >= 8 {
                    out.put(&[0x41])?;
                }
                let [a, b, c, d, ..] = target.to_le_bytes();
                out.put(&[0xb8 | register & 7, a, b, c, d])?; // mov r32, imm32
            }
        }
        let Far::Load { register } = far else { return Ok(()) };
        let start = out.len();
        // Up to the ModRM byte, which stands in front of the displacement.
        out.put(self.bytes.get(..usize::from(field).saturating_sub(1)).unwrap_or(&[]))?;
        // The base is the register itself: REX.B is its fourth bit, and REX.X must not make an index of the SIB.
        // Where there is no REX, it needs none.
        out.change(start, |byte| if byte & 0xf0 == 0x40 { byte & !3 | high(register) } else { byte });
        let reg = (register & 7) << 3;
        match register & 7 {
            4 => out.put(&[reg | 4, 0x24]),        // [rsp] or [r12]: by a SIB
            5 => out.put(&[0x40 | reg | 5, 0x00]), // [rbp+0] or [r13+0]
            other => out.put(&[reg | other]),
        }
    }

    fn push_len(&self) -> usize {
        if self.mode == Mode::Bits32 || halves(self.next()).2 { 5 } else { 13 }
    }

    /// Pushes the original return address without touching a register, a flag or anything below the stack pointer.
    fn push(&self, out: &mut SlotBytes) -> Result<(), Refusal> {
        let (low, high, extends) = halves(self.next());
        out.put(&[0x68])?; // push imm32, sign-extended
        out.put(&low)?;
        if self.mode == Mode::Bits64 && !extends {
            out.put(&[0xc7, 0x44, 0x24, 0x04])?; // mov dword ptr [rsp+4], imm32
            out.put(&high)?;
        }
        Ok(())
    }

    /// A jump to `target`, wherever that is.
    pub(crate) fn jump(&self, out: &mut SlotBytes, target: u64) -> Result<(), Refusal> {
        if !self.near(target) {
            return far_jump(out, target);
        }
        out.put(&[0xe9])?; // jmp rel32
        self.rel32(out, target)
    }

    /// Writes a displacement as the last field of an instruction.
    fn rel32(&self, out: &mut SlotBytes, target: u64) -> Result<(), Refusal> {
        self.displacement(out, target, 0)
    }

    /// Writes a displacement that `trailing` more bytes of the same instruction follow.
    fn displacement(&self, out: &mut SlotBytes, target: u64, trailing: usize) -> Result<(), Refusal> {
        let end = self.slot.wrapping_add((out.len() + 4 + trailing) as u64);
        match displacement(self.mode, end, target) {
            Some(displacement) => out.put(&displacement.to_le_bytes()),
            None => Err(Refusal::OutOfReach { address: self.address, target }),
        }
    }
}

/// The low and the high half of a value, and whether a sign-extended push of the low half alone gives it.
fn halves(value: u64) -> ([u8; 4], [u8; 4], bool) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    let low = [a, b, c, d];
    (low, [e, f, g, h], i64::from(i32::from_le_bytes(low)).cast_unsigned() == value)
}

/// A jump to any address, without a register: `jmp qword ptr [rip+0]` and the address behind it.
pub(crate) fn far_jump(out: &mut SlotBytes, target: u64) -> Result<(), Refusal> {
    out.put(&[0xff, 0x25, 0, 0, 0, 0])?; // jmp qword ptr [rip+0]
    out.put(&target.to_le_bytes())
}

/// `jmp rel32` at `from`, as the bytes of a patch; none if `to` is out of reach.
pub(crate) fn near_jump(mode: Mode, from: u64, to: u64) -> Option<[u8; 5]> {
    let [a, b, c, d] = displacement(mode, from.wrapping_add(5), to)?.to_le_bytes();
    Some([0xe9, a, b, c, d]) // jmp rel32
}

/// `jmp rel8` at `from`; none if `to` is out of reach.
pub(crate) fn short_jump(mode: Mode, from: u64, to: u64) -> Option<[u8; 2]> {
    let displacement = displacement(mode, from.wrapping_add(2), to)?.cast_signed();
    let displacement = i8::try_from(displacement).ok()?;
    Some([0xeb, displacement.cast_unsigned()]) // jmp rel8
}

/// `jmp qword ptr [rip+0]` and the address, as the bytes of a patch.
pub(crate) fn absolute_jump(to: u64) -> [u8; FAR_JUMP] {
    let [a, b, c, d, e, f, g, h] = to.to_le_bytes();
    [0xff, 0x25, 0, 0, 0, 0, a, b, c, d, e, f, g, h]
}
