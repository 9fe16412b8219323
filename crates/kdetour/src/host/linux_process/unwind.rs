//! Telling the process's unwinder how to go on from a slot.
//!
//! The unwinder of GCC (`libgcc_s`, which Rust's library links on Linux with the GNU C library) reads `.eh_frame`
//! sections: those of the mapped files, which it finds by itself, and those that are registered with it. One is made
//! for each slot, in the words of the DWARF standard, section 6.4, and the LSB's chapter on `.eh_frame`.
//!
//! Each slot is registered by itself. Slots that were attached together are freed one by one; a section that held
//! several would either go on describing what is not there any more, or be away for a moment while it is replaced,
//! and an exception that came by then would end the process. Also libgcc takes the addresses from the first to the
//! last of a section to be that section's alone (since GCC 13).

pub(super) use crate::host::process::frames::bounds;

use super::arch::{self, DWARF_RETURN_ADDRESS as RETURN_ADDRESS, DWARF_STACK_POINTER};
use crate::Error;
use crate::address::narrow;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ffi::c_void;
use core::fmt;
use kdetour_plan::{Frame, Kept, UnwindRow};

// "DWARF Debugging Information Format", version 5, section 7.24.
const DW_CFA_ADVANCE_LOC1: u8 = 0x02;
const DW_CFA_SAME_VALUE: u8 = 0x08;
const DW_CFA_UNDEFINED: u8 = 0x07;
const DW_CFA_DEF_CFA: u8 = 0x0c;
const DW_CFA_OFFSET: u8 = 0x80;
const DW_CFA_NOP: u8 = 0;
/// Registers are saved at multiples of this, below the canonical frame address.
const WORD: u8 = arch::WORD as u8;
/// Minus that, as signed LEB128.
const DATA_ALIGNMENT: u8 = WORD.wrapping_neg() & 0x7f;
/// Bytes of the entry that is common to all, with its length.
const CIE: usize = 24;

/// The `.eh_frame` section of one slot: what is common to its entries, one entry, and the zero that ends it. None if
/// it cannot be had for want of memory.
pub(super) fn eh_frame(
    slot: u64,
    len: usize,
    rows: impl Iterator<Item = UnwindRow>,
) -> Result<Box<[u8]>, Error> {
    // Twenty bytes for each row is more than enough.
    let mut bytes = Vec::new();
    bytes.try_reserve(512)?;
    // Length, no earlier CIE, version 1, augmentation "zR", code in units of 1, data in units of a word downwards, the return
    // address's column, one byte of augmentation: addresses are absolute.
    bytes.extend_from_slice(&[
        CIE as u8 - 4,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        1,
        b'z',
        b'R',
        0,
        1,
        DATA_ALIGNMENT,
        RETURN_ADDRESS,
        1,
        0,
    ]);
    // At first the canonical frame address is a word above the stack pointer, and the return address is below it.
    bytes.extend_from_slice(&[DW_CFA_DEF_CFA, DWARF_STACK_POINTER, WORD, DW_CFA_OFFSET | RETURN_ADDRESS, 1]);
    bytes.resize(CIE, DW_CFA_NOP);
    // Length, which is known at the end, distance to the CIE, first address, length in bytes, no augmentation.
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(CIE as u32 + 4).to_le_bytes());
    bytes.extend_from_slice(&narrow(slot).to_le_bytes());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.push(0);
    let mut at = 0;
    let mut known = true;
    for row in rows {
        bytes.try_reserve(64)?;
        // No slot is longer than 255 bytes.
        let advance = u8::try_from(row.start.saturating_sub(at)).unwrap_or(u8::MAX);
        if advance > 0 {
            bytes.extend_from_slice(&[DW_CFA_ADVANCE_LOC1, advance]);
        }
        at = row.start;
        let described = row.frame.is_some_and(|frame| describe(&mut bytes, &frame));
        match (known, described) {
            // Who has no return address is the outermost frame: unwinders stop there.
            (true, false) => bytes.extend_from_slice(&[DW_CFA_UNDEFINED, RETURN_ADDRESS]),
            (false, true) => bytes.extend_from_slice(&[DW_CFA_OFFSET | RETURN_ADDRESS, 1]),
            _ => {}
        }
        known = described;
    }
    bytes.try_reserve(16)?;
    while !bytes.len().is_multiple_of(arch::WORD) {
        bytes.push(DW_CFA_NOP);
    }
    let entry = u32::try_from(bytes.len() - CIE - 4).unwrap_or(0).to_le_bytes();
    for (to, from) in bytes.iter_mut().skip(CIE).zip(entry) {
        *to = from;
    }
    bytes.extend_from_slice(&[0; 4]);
    Ok(bytes.into_boxed_slice())
}

/// Writes all that is known of a frame; false, and nothing, if it cannot be said in these words.
fn describe(bytes: &mut Vec<u8>, frame: &Frame) -> bool {
    let (register, distance) = frame.cfa();
    let in_words = |at: i32| {
        let words = u32::try_from(at.checked_neg()? / i32::from(WORD)).ok()?;
        (at % i32::from(WORD) == 0).then_some(words)
    };
    let can_be_said = |(_, kept)| !matches!(kept, Kept::At(at) if in_words(at).is_none());
    let Some(distance) = u32::try_from(distance).ok().filter(|_| frame.registers().all(can_be_said)) else {
        return false;
    };
    bytes.extend_from_slice(&[DW_CFA_DEF_CFA, register]);
    unsigned(bytes, distance);
    for (register, kept) in frame.registers() {
        match kept {
            Kept::InPlace => bytes.extend_from_slice(&[DW_CFA_SAME_VALUE, register]),
            Kept::Lost => bytes.extend_from_slice(&[DW_CFA_UNDEFINED, register]),
            Kept::At(at) => {
                bytes.push(DW_CFA_OFFSET | register);
                unsigned(bytes, in_words(at).unwrap_or(0));
            }
        }
    }
    true
}

/// A number as unsigned LEB128: seven bits in each byte, the lowest first.
fn unsigned(bytes: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}

/// A slot that the process's unwinder knows of. Dropping it withdraws the slot.
///
/// It has to exist before a thread can come to the slot, and until none can be there any more.
///
/// While it is registered and withdrawn, libgcc holds a lock: a signal handler that takes a backtrace in the same
/// thread just then (a sampling profiler) would wait for it for ever, so signals should be blocked.
pub(super) struct Frames {
    /// What was registered, by its address: libgcc reads it until it is withdrawn.
    section: *const [u8],
}

// SAFETY: the section is not written while it is registered, and libgcc, which reads it, locks.
unsafe impl Send for Frames {}
// SAFETY: nothing can be done with a shared reference.
unsafe impl Sync for Frames {}

impl Frames {
    /// Registers a slot of `len` bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn register(
        slot: u64,
        len: usize,
        rows: impl Iterator<Item = UnwindRow>,
    ) -> Result<Self, Error> {
        let section: *const [u8] = Box::into_raw(eh_frame(slot, len, rows)?);
        // SAFETY: a whole section with its end, which stays where it is until it is withdrawn.
        unsafe { __register_frame(section.cast()) };
        Ok(Self { section })
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // SAFETY: this very pointer was registered, once, and is withdrawn once.
        unsafe { __deregister_frame(self.section.cast()) };
        // SAFETY: it came out of a box, and nobody else has it any more.
        drop(unsafe { Box::from_raw(self.section.cast_mut()) });
    }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("section", &self.section).finish()
    }
}

// Only there is it known to be libgcc that unwinds. LLVM's unwinder, which musl is used with, has functions of the
// same names that take single entries.
#[cfg(target_env = "gnu")]
unsafe extern "C" {
    fn __register_frame(section: *const c_void);
    fn __deregister_frame(section: *const c_void);
}

#[cfg(not(target_env = "gnu"))]
unsafe fn __register_frame(_: *const c_void) {}
#[cfg(not(target_env = "gnu"))]
unsafe fn __deregister_frame(_: *const c_void) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::linux_process::LinuxProcess;
    use crate::host::process::frames::_Unwind_Find_FDE;
    use crate::host::{Host, Span, Text};
    use crate::slots::SlotMemory;
    use gimli::{
        BaseAddresses, CfaRule, EhFrame, LittleEndian, Register, RegisterRule, UnwindContext, UnwindSection,
    };
    use kdetour_plan::{Code, Context, Options, Plan, Reach, Returns, Shape, Shapes, Slot, Survey};

    const SLOT: u64 = 0x4800_0000;

    fn plan(bytes: &[u8], shape: Shape) -> Plan {
        let survey = Survey::of(
            &Code::in_mode(arch::MODE, 0x4000_1000, bytes).with_length(bytes.len()),
            &Context::default(),
        );
        let options = Options { shapes: Shapes::only(shape), ..Options::default() };
        Plan::with_options(&survey.unwrap(), Slot { address: SLOT, capacity: 160 }, 0x4100_0000, options)
            .unwrap()
    }

    #[cfg(target_arch = "x86_64")]
    #[rustfmt::skip]
    const PROLOGUE: (&[u8], Shape) = (&[
        0x55,                                   // push rbp
        0x48, 0x89, 0xe5,                       // mov rbp, rsp
        0x41, 0x54,                             // push r12
        0x4d, 0x31, 0xe4,                       // xor r12, r12
        0x48, 0x81, 0xec, 0x00, 0x10, 0, 0,     // sub rsp, 4096
        0x48, 0x83, 0xe4, 0xe0,                 // and rsp, -32
        0xc3,                                   // ret
    ], Shape::Jump14);
    #[cfg(target_arch = "x86")]
    #[rustfmt::skip]
    const PROLOGUE: (&[u8], Shape) = (&[
        0x55,                                   // push ebp
        0x89, 0xe5,                             // mov ebp, esp
        0x53,                                   // push ebx
        0x83, 0xe4, 0xe0,                       // and esp, -32
        0x31, 0xdb,                             // xor ebx, ebx
        0xc3,                                   // ret
    ], Shape::Jump5);

    #[test]
    fn a_section_says_what_the_rows_say() {
        let (bytes, shape) = PROLOGUE;
        let plan = plan(bytes, shape);
        let len = plan.slot_bytes().len();
        let section = eh_frame(SLOT, len, plan.unwind()).unwrap();
        let section = EhFrame::new(&section, LittleEndian);
        let bases = BaseAddresses::default();
        let mut context = UnwindContext::new();
        for row in plan.unwind() {
            for at in row.start..row.end {
                let address = SLOT + at as u64;
                let fde = section.fde_for_address(&bases, address, EhFrame::cie_from_offset).unwrap();
                assert_eq!((fde.initial_address(), fde.len()), (SLOT, len as u64));
                let found = fde.unwind_info_for_address(&section, &bases, &mut context, address).unwrap();
                let frame = row.frame.unwrap();
                let (register, offset) = frame.cfa();
                let cfa =
                    CfaRule::RegisterAndOffset { register: Register(register.into()), offset: offset.into() };
                assert_eq!(*found.cfa(), cfa);
                assert_eq!(
                    found.register(Register(RETURN_ADDRESS.into())),
                    Some(RegisterRule::Offset(-i64::from(WORD)))
                );
                for (register, kept) in frame.registers() {
                    let rule = match kept {
                        Kept::InPlace => Some(RegisterRule::SameValue),
                        Kept::At(at) => Some(RegisterRule::Offset(at.into())),
                        Kept::Lost => None,
                    };
                    assert_eq!(found.register(Register(register.into())), rule, "{at}");
                }
            }
        }
        assert!(section.fde_for_address(&bases, SLOT + len as u64, EhFrame::cie_from_offset).is_err());
    }

    #[test]
    fn where_nothing_is_known_the_stack_ends() {
        #[cfg(target_arch = "x86_64")]
        let code = [0x58, 0x48, 0x8d, 0x40, 0x01, 0x50, 0xc3]; // pop rax ..
        #[cfg(target_arch = "x86")]
        let code = [0x58, 0x8d, 0x40, 0x01, 0x90, 0x50, 0xc3]; // pop eax ..
        let plan = plan(&code, Shape::Jump5);
        let section = eh_frame(SLOT, 20, plan.unwind()).unwrap();
        let section = EhFrame::new(&section, LittleEndian);
        let mut context = UnwindContext::new();
        let bases = BaseAddresses::default();
        let mut rule = |at| {
            let fde = section.fde_for_address(&bases, SLOT + at, EhFrame::cie_from_offset).unwrap();
            let row = fde.unwind_info_for_address(&section, &bases, &mut context, SLOT + at).unwrap();
            row.register(Register(RETURN_ADDRESS.into()))
        };
        assert_eq!(
            (rule(0), rule(1)),
            (Some(RegisterRule::Offset(-i64::from(WORD))), Some(RegisterRule::Undefined))
        );
    }

    #[test]
    fn the_unwinder_knows_a_slot_until_it_is_dropped() {
        let found = |address: u64| {
            let mut bases = [core::ptr::null(); 3];
            // SAFETY: it has room for what is written.
            unsafe { _Unwind_Find_FDE(narrow(address) as *const c_void, &raw mut bases) }
        };
        #[cfg(target_arch = "x86_64")]
        let code = [0x53, 0x48, 0x83, 0xec, 0x10, 0xc3];
        #[cfg(target_arch = "x86")]
        let code = [0x53, 0x83, 0xec, 0x10, 0x90, 0xc3];
        let plan = plan(&code, Shape::Jump5);
        // No memory is there, which nobody looks at.
        let slots = [0x2_0000_u64, 0x2_0040, 0x2_1000];
        let register = |&slot| Frames::register(slot, 40, plan.unwind()).unwrap();
        let mut frames: Vec<_> = slots.iter().map(register).collect();
        assert!(slots.iter().all(|&slot| !found(slot).is_null() && !found(slot + 39).is_null()));
        assert!(found(slots[0] + 40).is_null());
        frames.remove(1);
        assert!(!found(slots[0]).is_null() && found(slots[1]).is_null() && !found(slots[2]).is_null());
        let again = register(&slots[1]);
        assert!(!found(slots[1]).is_null());
        drop((frames, again));
        assert!(slots.iter().all(|&slot| found(slot).is_null()));
    }

    /// A slot in whose copy of a call the callee is: [`Returns::Slot`](kdetour_plan::Returns::Slot).
    fn calls_its_argument() -> Plan {
        #[cfg(target_arch = "x86_64")]
        #[rustfmt::skip]
        let bytes = [
            0x48, 0x83, 0xec, 0x08,     // sub rsp, 8
            0xff, 0xd7,                 // call rdi
            0x48, 0x83, 0xc4, 0x08,     // add rsp, 8
            0xc3,                       // ret
        ];
        #[cfg(target_arch = "x86")]
        #[rustfmt::skip]
        let bytes = [
            0x83, 0xec, 0x0c,           // sub esp, 12
            0xff, 0x54, 0x24, 0x10,     // call dword ptr [esp + 16]
            0x83, 0xc4, 0x0c,           // add esp, 12
            0xc3,                       // ret
        ];
        let host = LinuxProcess::new().unwrap();
        let somewhere = Reach { first: 0x1000_0000, last: 0x7000_0000 };
        // Never given back: it is the text of a function.
        let Span { address, len } = host.slots().near(256, somewhere).unwrap();
        let survey = Survey::of(
            &Code::in_mode(arch::MODE, address, &bytes).with_length(bytes.len()),
            &Context::default(),
        );
        let options =
            Options { returns: Returns::Slot, shapes: Shapes::only(Shape::Jump5), ..Options::default() };
        let slot = Slot { address: address + 128, capacity: 128 };
        let plan = Plan::with_options(&survey.unwrap(), slot, address + 1024, options).unwrap();
        assert!(plan.returns_to_slot());
        let mut text = host.open_text(&[Span { address, len }]).unwrap();
        text.write(address, &bytes).unwrap();
        text.write(plan.slot(), plan.slot_bytes()).unwrap();
        plan
    }

    #[test]
    fn a_panic_passes_through_a_call_in_a_slot() {
        extern "C-unwind" fn panics() {
            std::panic::resume_unwind(Box::new(7));
        }
        let plan = calls_its_argument();
        let _frames = Frames::register(plan.slot(), plan.slot_bytes().len(), plan.unwind()).unwrap();
        // SAFETY: the copy of this function, which calls its argument, is there for ever.
        let call = unsafe {
            core::mem::transmute::<usize, extern "C-unwind" fn(extern "C-unwind" fn())>(narrow(
                plan.trampoline(),
            ))
        };
        let caught = std::panic::catch_unwind(|| call(panics)).unwrap_err();
        assert_eq!(caught.downcast_ref(), Some(&7));
    }
}
