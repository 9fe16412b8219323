//! Writing an instruction at another address so that it does what it did.
//!
//! | instruction | what is written in the slot |
//! |---|---|
//! | no operand that depends on its address | the same bytes |
//! | RIP-relative operand, any encoding | the same bytes with a new displacement |
//! | `jmp rel8/rel32` | `jmp rel32` |
//! | `jcc rel8/rel32` | `jcc rel32` |
//! | `loop*`, `j*cxz` | the same over `jmp short +5`, then `jmp rel32` |
//! | `xbegin rel32` | `xbegin` with a new displacement |
//! | `call rel32` | push of the original return address, `jmp rel32` |
//! | `call $+5` | push of the original return address: the program counter that it reads |
//! | `call r/m64` | push of the original return address, `jmp r/m64` |
//!
//! A callee thus returns to the original code behind the window: nobody sleeps with an address of the slot on the
//! stack, and what it reads as its return address is what it was. Branches to a displaced instruction go to its
//! copy. Displacements that do not fit are a refusal.

use super::classify::Kind;
use crate::plan::SlotBytes;
use crate::refusal::Refusal;

/// One instruction to be moved.
#[derive(Clone, Copy)]
pub(crate) struct Moved<'a> {
    pub(crate) address: u64,
    pub(crate) bytes: &'a [u8],
    pub(crate) kind: Kind,
}

impl Moved<'_> {
    fn next(&self) -> u64 {
        self.address.wrapping_add(self.bytes.len() as u64)
    }

    /// Bytes that the copy takes. It depends on the instruction alone, so a layout can be made before anything is
    /// written.
    pub(crate) fn copy_len(&self) -> usize {
        match self.kind {
            Kind::Plain | Kind::RipRelative { .. } => self.bytes.len(),
            Kind::Jump { .. } => 5,
            Kind::Condition { .. } | Kind::Transaction { .. } => 6,
            Kind::Loop { narrow, .. } => 9 + usize::from(narrow),
            Kind::Call { target } if target == self.next() => push_len(self.next()),
            Kind::Call { .. } => push_len(self.next()) + 5,
            Kind::IndirectCall { .. } => push_len(self.next()) + self.bytes.len(),
        }
    }

    /// Writes the copy, whose first byte will be at `slot + out.len()`. `resolve` says where a jump to an original
    /// address goes: to a copy in the slot, or to the address itself.
    pub(crate) fn write(
        &self,
        slot: u64,
        out: &mut SlotBytes,
        resolve: impl Fn(u64) -> u64,
    ) -> Result<(), Refusal> {
        let refer = Refer { slot, address: self.address };
        match self.kind {
            Kind::Plain => out.put(self.bytes),
            Kind::RipRelative { field, target } => self.write_with_displacement(refer, out, field, target),
            Kind::Jump { target } => {
                out.put(&[0xe9])?; // jmp rel32
                refer.rel32(out, resolve(target))
            }
            Kind::Condition { condition, target } => {
                out.put(&[0x0f, 0x80 | condition])?; // jcc rel32
                refer.rel32(out, resolve(target))
            }
            Kind::Loop { opcode, narrow, target } => {
                if narrow {
                    out.put(&[0x67])?; // count in ECX
                }
                out.put(&[opcode, 0x02])?; // loop* or j*cxz over the next instruction
                out.put(&[0xeb, 0x05])?; // jmp short, over the one after it
                out.put(&[0xe9])?; // jmp rel32
                refer.rel32(out, resolve(target))
            }
            Kind::Transaction { target } => {
                out.put(&[0xc7, 0xf8])?; // xbegin rel32
                refer.rel32(out, resolve(target))
            }
            Kind::Call { target } => {
                push(out, self.next())?;
                if target == self.next() {
                    return Ok(());
                }
                out.put(&[0xe9])?; // jmp rel32
                refer.rel32(out, target)
            }
            Kind::IndirectCall { modrm, rip } => {
                push(out, self.next())?;
                let start = out.len();
                match rip {
                    Some((field, target)) => self.write_with_displacement(refer, out, field, target)?,
                    None => out.put(self.bytes)?,
                }
                // FF /2 (call) becomes FF /4 (jmp): two bits of ModRM.reg.
                out.change(start + usize::from(modrm), |byte| (byte & 0b1100_0111) | (4 << 3));
                Ok(())
            }
        }
    }

    /// The instruction's own bytes with the 32-bit displacement at `field` made to refer to `target` again.
    fn write_with_displacement(
        &self,
        refer: Refer,
        out: &mut SlotBytes,
        field: u8,
        target: u64,
    ) -> Result<(), Refusal> {
        let field = usize::from(field);
        let (head, rest) = self.bytes.split_at_checked(field).unwrap_or((self.bytes, &[]));
        let trailing = rest.get(4..).unwrap_or(&[]);
        out.put(head)?;
        refer.displacement(out, target, trailing.len())?;
        out.put(trailing)
    }
}

/// How the slot refers to addresses outside it.
#[derive(Clone, Copy)]
pub(crate) struct Refer {
    /// Address of the slot's first byte.
    pub(crate) slot: u64,
    /// The original instruction, named in a refusal.
    pub(crate) address: u64,
}

impl Refer {
    /// Writes a displacement as the last field of an instruction.
    pub(crate) fn rel32(self, out: &mut SlotBytes, target: u64) -> Result<(), Refusal> {
        self.displacement(out, target, 0)
    }

    /// Writes a displacement that `trailing` more bytes of the same instruction follow.
    fn displacement(self, out: &mut SlotBytes, target: u64, trailing: usize) -> Result<(), Refusal> {
        let end = self.slot.wrapping_add((out.len() + 4 + trailing) as u64);
        match i32::try_from(target.wrapping_sub(end).cast_signed()) {
            Ok(displacement) => out.put(&displacement.to_le_bytes()),
            Err(_) => Err(Refusal::OutOfReach { address: self.address, target }),
        }
    }
}

/// The low and the high half of a value, and whether a sign-extended push of the low half alone gives it.
fn halves(value: u64) -> ([u8; 4], [u8; 4], bool) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    let low = [a, b, c, d];
    (low, [e, f, g, h], i64::from(i32::from_le_bytes(low)).cast_unsigned() == value)
}

fn push_len(value: u64) -> usize {
    if halves(value).2 { 5 } else { 13 }
}

/// Pushes a 64-bit constant without touching a register, a flag or anything below the stack pointer.
fn push(out: &mut SlotBytes, value: u64) -> Result<(), Refusal> {
    let (low, high, extends) = halves(value);
    out.put(&[0x68])?; // push imm32, sign-extended
    out.put(&low)?;
    if !extends {
        out.put(&[0xc7, 0x44, 0x24, 0x04])?; // mov dword ptr [rsp+4], imm32
        out.put(&high)?;
    }
    Ok(())
}

/// A jump to any address, without a register: `jmp qword ptr [rip+0]` and the address behind it.
pub(crate) fn far_jump(out: &mut SlotBytes, target: u64) -> Result<(), Refusal> {
    out.put(&[0xff, 0x25, 0, 0, 0, 0])?; // jmp qword ptr [rip+0]
    out.put(&target.to_le_bytes())
}

/// `jmp rel32` at `from`, as the bytes of a patch; none if `to` is out of reach.
pub(crate) fn near_jump(from: u64, to: u64) -> Option<[u8; 5]> {
    let displacement = i32::try_from(to.wrapping_sub(from.wrapping_add(5)).cast_signed()).ok()?;
    let [a, b, c, d] = displacement.to_le_bytes();
    Some([0xe9, a, b, c, d]) // jmp rel32
}

/// Where an indirect branch may land when the processor enforces it.
pub(crate) const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa]; // endbr64
/// What Linux makes of an `endbr64` that nothing may branch to any more.
pub(crate) const SEALED_ENDBR: [u8; 4] = [0x66, 0x0f, 0x1f, 0x00]; // nop word ptr [rax]
/// The five-byte no-op of an idle ftrace site.
pub(crate) const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00]; // nop dword ptr [rax+rax*1+0]
/// First byte of `call rel32`: an ftrace site in use.
pub(crate) const CALL: u8 = 0xe8;
