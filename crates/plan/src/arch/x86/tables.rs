//! Jump tables: where an indirect jump of the function can go.
//!
//! A compiler's table is a run of entries that all lead into the function. Where it begins is told by the
//! instruction that reads it, where it ends by nobody: the first entry that leads elsewhere. That is one entry too
//! many at worst, never one too few.

use crate::code::{Context, Mode, Region};
use arrayvec::ArrayVec;
use iced_x86::{Instruction, OpKind, Register};

/// How many entries are read for one survey; hostile bytes could name tables without end.
const MAX_ENTRIES: usize = 1 << 14;

/// The jump tables of one function.
pub(crate) struct Tables<'a> {
    pub(crate) mode: Mode,
    pub(crate) context: &'a Context<'a>,
    /// First and one-past-last address of the function.
    pub(crate) function: (u64, u64),
    /// Entries read so far.
    pub(crate) read: usize,
    /// Tables found so far, and where the first of them are.
    pub(crate) found: usize,
    pub(crate) places: ArrayVec<u64, 32>,
}

impl Tables<'_> {
    /// Looks whether the instruction names a jump table; every entry's target is given to `target`.
    pub(crate) fn look(&mut self, instruction: &Instruction, mut target: impl FnMut(u64)) {
        if self.context.data.is_empty() {
            return;
        }
        let has_memory = (0..super::opcode::OPERANDS).any(|at| instruction.op_kind(at) == OpKind::Memory);
        if !has_memory {
            return;
        }
        let place = instruction.memory_displacement64();
        match (
            self.mode,
            instruction.memory_base(),
            instruction.memory_index(),
            instruction.memory_index_scale(),
        ) {
            // lea r, [rip+table]: entries of 32 bits, relative to the table.
            (Mode::Bits64, Register::RIP, _, _) => self.relative(place, place, &mut target),
            // jmp [table+index*8]: addresses.
            (Mode::Bits64, Register::None, index, 8) if index != Register::None => {
                self.absolute::<8>(place, &mut target);
            }
            // jmp [table+index*4]: addresses.
            (Mode::Bits32, Register::None, index, 4) if index != Register::None => {
                self.absolute::<4>(place, &mut target);
            }
            // mov r, [got+index*4+table-got]: entries relative to the global offset table.
            (Mode::Bits32, _, index, 4) if index != Register::None => {
                if let Some(got) = self.context.got {
                    self.relative(self.mode.wrap(got.wrapping_add(place)), got, &mut target);
                }
            }
            // lea r, [got+table-got]
            (Mode::Bits32, base, Register::None, _) if base != Register::None => {
                if let Some(got) = self.context.got {
                    let place = self.mode.wrap(got.wrapping_add(place));
                    self.relative(place, got, &mut target);
                    self.relative(place, place, &mut target);
                }
            }
            _ => {}
        }
    }

    fn relative(&mut self, place: u64, base: u64, target: &mut impl FnMut(u64)) {
        self.entries::<4>(place, target, |entry| {
            base.wrapping_add_signed(i64::from(i32::from_le_bytes(entry)))
        });
    }

    fn absolute<const SIZE: usize>(&mut self, place: u64, target: &mut impl FnMut(u64)) {
        self.entries::<SIZE>(place, target, |entry| {
            entry.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
        });
    }

    fn entries<const SIZE: usize>(
        &mut self,
        place: u64,
        target: &mut impl FnMut(u64),
        address: impl Fn([u8; SIZE]) -> u64,
    ) {
        // Several instructions may name one table; it is one for all that.
        let known = self.places.contains(&place);
        let mut bytes = behind(self.context.data, place);
        let before = self.read;
        while let Some((entry, rest)) = bytes.split_first_chunk::<SIZE>() {
            let into = self.mode.wrap(address(*entry));
            if !self.in_function(into) || self.read >= MAX_ENTRIES {
                break;
            }
            target(into);
            self.read += 1;
            bytes = rest;
        }
        if self.read > before && !known {
            // Where there are more than are remembered, one may count twice as a table not found.
            self.found += usize::from(self.places.try_push(place).is_ok());
        }
    }

    fn in_function(&self, address: u64) -> bool {
        let (start, end) = self.function;
        let in_part =
            |part: &crate::code::Code<'_>| address.wrapping_sub(part.address()) < part.bytes().len() as u64;
        (start..end).contains(&address) || self.context.parts.iter().any(in_part)
    }

    /// Whether more entries were named than are read.
    pub(crate) const fn exhausted(&self) -> bool {
        self.read >= MAX_ENTRIES
    }
}

/// The bytes of read-only data from `address` on.
fn behind<'a>(data: &'a [Region<'a>], address: u64) -> &'a [u8] {
    let index = data.partition_point(|region| region.address <= address);
    index
        .checked_sub(1)
        .and_then(|index| data.get(index))
        .and_then(|region| {
            let offset = usize::try_from(address.wrapping_sub(region.address)).ok()?;
            region.bytes.get(offset..)
        })
        .unwrap_or(&[])
}
