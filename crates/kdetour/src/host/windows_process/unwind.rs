//! Telling the system's unwinder how to go on from a slot; and what it knows about code in no image.
//!
//! On x86-64 the unwinder finds a function by its address and reads what its prologue did to the stack (Microsoft, "x64 exception handling").
//! A slot is no function with a prologue: it is the first instructions of one, and at each the frame is another. So each row of
//! [`Plan::unwind`] becomes a function of its own, whose prologue is over before it begins: so far is the return address from the stack pointer, and
//! there are the registers that have been saved.
//!
//! What these descriptions do not tell: XMM6 to XMM15, which a displaced instruction would have to save and another one to change; and the jump at the
//! slot's end, which the unwinder takes for the end of an epilogue, as if the stack pointer were at the return
//! address. Nobody sleeps there and nothing there raises an exception; a profiler that stops a thread exactly there goes astray for that one sample.
//! A row of which nothing is known is not described, and is taken for a leaf function.
//!
//! Everything is told by 32-bit distances from one base. So the descriptions lie in memory near the slot, which is never executable.
//!
//! On x86-32 the system needs not be told: handlers are in a list on the stack. GNU's compilers and Rust's for them unwind by DWARF's information, and know
//! nothing of a slot: an exception of theirs does not pass through a call that was displaced.

#[cfg(target_arch = "x86")]
pub(super) use none::{Described, bounds};
#[cfg(target_arch = "x86_64")]
pub(super) use tables::{Described, bounds};

#[cfg(target_arch = "x86")]
mod none {
    pub(in super::super) use crate::host::process::frames::bounds;

    use super::super::nt::Nt;
    use crate::Error;
    use kdetour_plan::Plan;

    #[derive(Debug, Default)]
    pub(in super::super) struct Described;

    impl Described {
        pub(in super::super) const fn of(&mut self, _: &'static Nt, _: &Plan) -> Result<(), Error> {
            Ok(())
        }

        pub(in super::super) const fn withdraw(&mut self, _: u64) {}
    }
}

#[cfg(target_arch = "x86_64")]
mod tables {
    use super::super::arena::{Arena, Holds};
    use super::super::nt::Nt;
    use crate::Error;
    use crate::address::narrow;
    use crate::host::Span;
    use crate::slots::SlotMemory;
    use alloc::boxed::Box;
    use alloc::vec::Vec;
    use arrayvec::ArrayVec;
    use core::fmt;
    use core::ops::Range;
    use core::ptr;
    use kdetour_plan::{Convention, Frame, Kept, Plan, Reach};
    use std::collections::HashMap;
    use windows_sys::Win32::System::Diagnostics::Debug::{
        IMAGE_RUNTIME_FUNCTION_ENTRY, IMAGE_RUNTIME_FUNCTION_ENTRY_0, RtlAddFunctionTable,
        RtlDeleteFunctionTable, RtlLookupFunctionEntry,
    };

    /// So far from a slot its descriptions are at the most.
    const NEAR: u64 = 1 << 30;
    /// The most bytes of one: the header, eight registers, the frame pointer, the distance, and one to make them even.
    const LONGEST: usize = 4 + 2 * (8 * 2 + 1 + 2 + 1);

    // `UNWIND_CODE`s.
    const ALLOC_LARGE: u8 = 1;
    const ALLOC_SMALL: u8 = 2;
    const SET_FPREG: u8 = 3;
    const SAVE_NONVOL: u8 = 4;
    /// Their numbers.
    const RBP: u8 = 5;
    const RSI: u8 = 6;
    const RDI: u8 = 7;

    /// The slots that the unwinder has been told of.
    #[derive(Debug, Default)]
    pub(in super::super) struct Described {
        tables: HashMap<u64, Table>,
        data: Option<Arena>,
    }

    /// What the unwinder reads as long as it knows of a slot.
    struct Table {
        entries: Box<[IMAGE_RUNTIME_FUNCTION_ENTRY]>,
        data: Span,
    }

    impl fmt::Debug for Table {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Table").field("entries", &self.entries.len()).finish_non_exhaustive()
        }
    }

    impl Described {
        /// Tells of a slot that is planned.
        ///
        /// # Errors
        /// [`Error::OutOfMemory`].
        pub(in super::super) fn of(&mut self, nt: &'static Nt, plan: &Plan) -> Result<(), Error> {
            let slot = plan.slot();
            self.withdraw(slot);
            let mut rows = Vec::new();
            for row in plan.unwind_in(Convention::Windows) {
                if let Some(info) = row.frame.as_ref().and_then(info) {
                    rows.try_reserve(1)?;
                    rows.push((row, info));
                }
            }
            if rows.is_empty() {
                return Ok(());
            }
            self.tables.try_reserve(1)?;
            let len = rows.iter().map(|(_, info)| info.len()).sum();
            let data = self.data.get_or_insert_with(|| Arena::new(nt, Holds::Data));
            let reach = Reach { first: slot.saturating_sub(NEAR), last: slot.saturating_add(NEAR) };
            let place = data.near(len, reach).ok_or(Error::OutOfMemory)?;
            let base = slot.min(place.address);
            let distance = |address: u64| u32::try_from(address.wrapping_sub(base)).unwrap_or_default();
            let mut entries = Vec::new();
            if let Err(error) = entries.try_reserve_exact(rows.len()) {
                data.free(place);
                return Err(error.into());
            }
            let mut at = place.address;
            for (row, info) in &rows {
                // SAFETY: so many bytes were taken for all of them, of data that nobody else has.
                unsafe {
                    let to = ptr::with_exposed_provenance_mut::<u8>(narrow(at));
                    to.copy_from_nonoverlapping(info.as_ptr(), info.len());
                }
                entries.push(IMAGE_RUNTIME_FUNCTION_ENTRY {
                    BeginAddress: distance(slot.wrapping_add(row.start as u64)),
                    EndAddress: distance(slot.wrapping_add(row.end as u64)),
                    Anonymous: IMAGE_RUNTIME_FUNCTION_ENTRY_0 { UnwindInfoAddress: distance(at) },
                });
                at = at.wrapping_add(info.len() as u64);
            }
            let entries = entries.into_boxed_slice();
            let count = u32::try_from(entries.len()).unwrap_or_default();
            // SAFETY: sorted entries, which stay where they are until they are taken back, as does what they lead to.
            let told = unsafe { RtlAddFunctionTable(entries.as_ptr(), count, base) };
            if !told {
                data.free(place);
                return Err(Error::OutOfMemory);
            }
            self.tables.insert(slot, Table { entries, data: place });
            Ok(())
        }

        /// Takes back what was told of a slot.
        pub(in super::super) fn withdraw(&mut self, slot: u64) {
            let Some(table) = self.tables.remove(&slot) else { return };
            // SAFETY: it was added so, and is taken back once.
            let _ = unsafe { RtlDeleteFunctionTable(table.entries.as_ptr()) };
            if let Some(data) = &mut self.data {
                data.free(table.data);
            }
        }
    }

    /// A function whose prologue is over, with this frame; none if that cannot be said.
    fn info(frame: &Frame) -> Option<ArrayVec<u8, LONGEST>> {
        let (above, pointer) = match (frame.above_stack_pointer(), frame.above_frame_pointer()) {
            (Some(above), _) => (above, false),
            (None, above) => (above?, true),
        };
        // In words: from the register up to the return address.
        let words =
            |bytes: i32| u16::try_from(bytes).ok().filter(|bytes| bytes % 8 == 0).map(|bytes| bytes / 8);
        let size = words(above.checked_sub(8)?)?;
        let mut codes = ArrayVec::<u8, LONGEST>::new();
        let mut code = |op: u8, info: u8, more: Option<u16>| {
            // How far the prologue had come: it is over.
            codes.try_extend_from_slice(&[0, op | info << 4]).ok()?;
            let more = more.map(u16::to_le_bytes);
            codes.try_extend_from_slice(more.as_ref().map_or(&[], |more| &more[..])).ok()
        };
        for (register, kept) in frame.registers() {
            if let Kept::At(at) = kept {
                code(SAVE_NONVOL, number(register)?, Some(words(above.checked_add(at)?)?))?;
            }
        }
        if pointer {
            code(SET_FPREG, 0, None)?;
        }
        match size {
            0 => {}
            1..=16 => code(ALLOC_SMALL, u8::try_from(size - 1).ok()?, None)?,
            _ => code(ALLOC_LARGE, 0, Some(size))?,
        }
        let count = u8::try_from(codes.len() / 2).ok()?;
        let mut info = ArrayVec::new();
        // Version 1, no handler; no prologue; the codes; the frame register, at distance 0.
        info.try_extend_from_slice(&[1, 0, count, if pointer { RBP } else { 0 }]).ok()?;
        info.try_extend_from_slice(&codes).ok()?;
        // Of codes there is an even number, and the next one begins at a multiple of four.
        if count % 2 != 0 {
            info.try_extend_from_slice(&[0, 0]).ok()?;
        }
        Some(info)
    }

    /// The number of a register by its DWARF number.
    fn number(dwarf: u8) -> Option<u8> {
        match dwarf {
            3 => Some(3),
            4 => Some(RSI),
            5 => Some(RDI),
            6 => Some(RBP),
            8..=15 => Some(dwarf),
            _ => None,
        }
    }

    /// The bounds of the function at `address`, as the unwinder has them.
    pub(in super::super) fn bounds(address: u64) -> Option<Range<u64>> {
        let mut base = 0;
        // SAFETY: it looks the address up, whatever it is; a table of what was looked up before is not given.
        let entry = unsafe { RtlLookupFunctionEntry(address, &raw mut base, ptr::null_mut()) };
        // SAFETY: none, or an entry of an image that holds the address, or of a table that somebody has registered for it.
        let entry = unsafe { entry.as_ref() }?;
        Some(base.wrapping_add(entry.BeginAddress.into())..base.wrapping_add(entry.EndAddress.into()))
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use kdetour_plan::{Code, Context, Options, Shape, Slot, Survey};

        /// The information of each row of a function's slot.
        fn infos(bytes: &[u8]) -> Vec<(usize, Option<Vec<u8>>)> {
            let code = Code::new(0x1_4000_1000, bytes).with_length(bytes.len());
            let survey = Survey::of(&code, &Context::default()).unwrap();
            let slot = Slot { address: 0x1_4001_0000, capacity: 160 };
            let plan =
                Plan::in_shape(&survey, Shape::Jump5, slot, 0x1_4000_2000, Options::default()).unwrap();
            plan.unwind_in(Convention::Windows)
                .map(|row| (row.start, row.frame.and_then(|frame| info(&frame).map(|info| info.to_vec()))))
                .collect()
        }

        #[test]
        fn each_row_is_a_function_whose_prologue_is_over() {
            // push rbp / mov rbp, rsp / push rbx / ret
            let rows = infos(&[0x55, 0x48, 0x89, 0xe5, 0x53, 0xc3]);
            let info = |at: usize| rows.iter().rev().find(|(start, _)| *start <= at).unwrap().1.clone();
            assert_eq!(info(0), Some(vec![1, 0, 0, 0]));
            // RBP is pushed and still what it was.
            assert_eq!(info(1), Some(vec![1, 0, 1, 0, 0, ALLOC_SMALL, 0, 0]));
            // RBP is what the stack pointer was; RBX is pushed, too.
            let both = vec![1, 0, 3, 0, 0, SAVE_NONVOL | RBP << 4, 1, 0, 0, ALLOC_SMALL | 1 << 4, 0, 0];
            assert_eq!(info(5), Some(both));
        }

        #[test]
        fn rsi_and_rdi_are_preserved_here() {
            // push rsi / push rdi / mov rsi, rcx / ret
            let rows = infos(&[0x56, 0x57, 0x48, 0x89, 0xce, 0xc3]);
            let info = |at: usize| rows.iter().rev().find(|(start, _)| *start <= at).unwrap().1.clone();
            // Pushed, and still in place.
            assert_eq!(info(2), Some(vec![1, 0, 1, 0, 0, ALLOC_SMALL | 1 << 4, 0, 0]));
            // RSI has been changed: it is in the second word, below the return address.
            let saved = vec![1, 0, 3, 0, 0, SAVE_NONVOL | RSI << 4, 1, 0, 0, ALLOC_SMALL | 1 << 4, 0, 0];
            assert_eq!(info(5), Some(saved));
        }

        use std::vec;
    }
}
