//! `.eh_frame`: where functions begin and end, and where exceptions land.

use super::lsda;
use super::{LE, Section};
use crate::function::Source;
use crate::left_out::Reason;
use crate::names::Name;
use crate::starts::{Found, Start, What};
use gimli::{
    BaseAddresses, CallFrameInstruction, CieOrFde, CommonInformationEntry, EhFrame, EhFrameHdr, EndianSlice,
    FrameDescriptionEntry, LittleEndian, Pointer, UnwindSection,
};
use kdetour_plan::Mode;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};
use std::collections::HashMap;

/// Linkers share what is common to functions: there are few kinds of it.
const MAX_CIES: usize = 1024;

type Slice<'f> = EndianSlice<'f, LittleEndian>;

/// Takes what the unwind information says. Says whether there was any.
pub(super) fn read<Elf: FileHeader<Endian = object::LittleEndian>>(
    found: &mut Found,
    file: &[u8],
    sections: &[Section<'_>],
    programs: &[Elf::ProgramHeader],
) -> bool {
    let mut any = false;
    let named = sections.iter().filter(|section| section.name == b".eh_frame");
    for section in named {
        match section.bytes(file) {
            Some(bytes) => any |= read_frames(found, file, section.address, bytes, true),
            None => found.tally.add(Reason::Table(".eh_frame"), section.address),
        }
    }
    if any {
        return true;
    }
    let header = programs.iter().find(|program| program.p_type(LE) == elf::PT_GNU_EH_FRAME);
    let Some(header) = header else { return false };
    let address: u64 = header.p_vaddr(LE).into();
    let Some(frames) = frames_of_header(found, file, address) else {
        found.tally.add(Reason::Table(".eh_frame_hdr"), address);
        return false;
    };
    let bytes = found.memory.bytes(file, frames);
    // It is followed by other things; it ends with a zero.
    read_frames(found, file, frames, bytes, !sections.is_empty())
}

fn address_size(found: &Found) -> u8 {
    if found.mode == Mode::Bits32 { 4 } else { 8 }
}

/// Where `.eh_frame` is, as `.eh_frame_hdr` says.
fn frames_of_header(found: &Found, file: &[u8], address: u64) -> Option<u64> {
    let bases = BaseAddresses::default().set_eh_frame_hdr(address);
    let header = EhFrameHdr::new(found.memory.bytes(file, address), LittleEndian);
    match header.parse(&bases, address_size(found)).ok()?.eh_frame_ptr() {
        Pointer::Direct(frames) => Some(frames),
        Pointer::Indirect(_) => None,
    }
}

/// Takes the unwind information in `bytes`, which are at `address`; says whether there was any. Without section
/// headers it is not known where the procedure linkage table is.
pub(crate) fn read_frames(
    found: &mut Found,
    file: &[u8],
    address: u64,
    bytes: &[u8],
    plt_known: bool,
) -> bool {
    let mut section = EhFrame::new(bytes, LittleEndian);
    section.set_address_size(address_size(found));
    let bases = BaseAddresses::default().set_eh_frame(address).set_text(0);
    let mut entries = section.entries(&bases);
    let mut cies: HashMap<usize, CommonInformationEntry<Slice<'_>>> = HashMap::new();
    // A function may have one set of landing pads. Damaged files may say that all functions share a large one.
    let mut effort = bytes.len().saturating_add(file.len());
    let mut any = false;
    loop {
        let partial = match entries.next() {
            Ok(Some(CieOrFde::Fde(partial))) => partial,
            Ok(Some(CieOrFde::Cie(_))) => continue,
            Ok(None) => break,
            Err(_) => {
                found.tally.add(Reason::Table(".eh_frame"), address);
                break;
            }
        };
        let fde = partial.parse(|section, bases, offset| {
            if let Some(cie) = cies.get(&offset.0) {
                return Ok(cie.clone());
            }
            let cie = section.cie_from_offset(bases, offset)?;
            if cies.len() < MAX_CIES {
                cies.insert(offset.0, cie.clone());
            } else {
                effort = effort.saturating_sub(cie.entry_len());
            }
            Ok(cie)
        });
        let Ok(fde) = fde else {
            found.tally.add(Reason::Table(".eh_frame"), address);
            continue;
        };
        if effort == 0 {
            found.tally.add(Reason::TooMany(".eh_frame"), address);
            break;
        }
        any = true;
        read_frame(found, file, &fde, &section, &bases, plt_known, &mut effort);
    }
    any
}

fn read_frame(
    found: &mut Found,
    file: &[u8],
    fde: &FrameDescriptionEntry<Slice<'_>>,
    section: &EhFrame<Slice<'_>>,
    bases: &BaseAddresses,
    plt_known: bool,
    effort: &mut usize,
) {
    let address = fde.initial_address();
    // A linker that drops a function leaves its unwind information at 0, or empty.
    if fde.len() == 0 || address == 0 {
        return;
    }
    if fde.is_signal_trampoline() {
        // It begins in front of the function, so that a return address of a signal is found.
        found.tally.add(Reason::SignalFrame, address);
        return;
    }
    if !plt_known && is_plt(found.memory.bytes(file, address), fde.len()) {
        found.tally.add(Reason::Plt, address);
        return;
    }
    let what =
        if begins_at_entry(fde, section, bases, address_size(found)) { What::Unwind } else { What::Piece };
    let size = u32::try_from(fde.len()).unwrap_or(u32::MAX);
    let start = Start { address, size, name: Name::NONE, what, source: Source::EhFrame, rank: 9 };
    found.push(start);
    if let Some(Pointer::Direct(lsda)) = fde.lsda() {
        lsda::read(found, file, lsda, address, effort);
    }
}

/// Whether the stack is, at the first instruction, as a call leaves it. It is not where the compiler has moved the
/// cold part of a function.
fn begins_at_entry(
    fde: &FrameDescriptionEntry<Slice<'_>>,
    section: &EhFrame<Slice<'_>>,
    bases: &BaseAddresses,
    word: u8,
) -> bool {
    let mut instructions = fde.instructions(section, bases);
    // What is said of the first instruction is said in a few words.
    for _ in 0..32 {
        match instructions.next() {
            Ok(Some(
                CallFrameInstruction::DefCfaOffset { offset } | CallFrameInstruction::DefCfa { offset, .. },
            )) => {
                if offset != u64::from(word) {
                    return false;
                }
            }
            Ok(Some(
                CallFrameInstruction::DefCfaRegister { .. } | CallFrameInstruction::DefCfaExpression { .. },
            )) => return false,
            Ok(
                Some(CallFrameInstruction::AdvanceLoc { .. } | CallFrameInstruction::SetLoc { .. }) | None,
            )
            | Err(_) => return true,
            Ok(Some(_)) => {}
        }
    }
    true
}

/// Without section headers only its look tells an entry of the procedure linkage table.
fn is_plt(code: &[u8], len: u64) -> bool {
    let landing_pad = [[0xf3, 0x0f, 0x1e, 0xfa], [0xf3, 0x0f, 0x1e, 0xfb]];
    let behind = landing_pad.iter().find_map(|pad| code.strip_prefix(pad));
    // The table is described as a whole, 8 or 16 bytes for an entry.
    len.is_multiple_of(8) && is_stub(behind.unwrap_or(code))
}

/// `jmp [..]` or `push [..]; jmp [..]`, through the global offset table.
fn is_stub(code: &[u8]) -> bool {
    let code = code.strip_prefix(&[0xf2]).unwrap_or(code);
    matches!(code, [0xff, 0x25 | 0xa3, ..])
        || matches!(code, [0xff, 0x35 | 0xb3, _, _, _, _, 0xff | 0xf2, ..])
}
