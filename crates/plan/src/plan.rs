//! The exact bytes of a detour.

use crate::arch::x86::relocate::{ENDBR64, Refer, far_jump, near_jump};
use crate::ipmap::IpMap;
use crate::patch::{MAX_BOUNDARIES, Patch, Resume};
use crate::refusal::Refusal;
use crate::survey::Survey;
use arrayvec::ArrayVec;

/// The most bytes that any slot takes.
pub const MAX_SLOT: usize = 128;

/// Executable memory that will hold the trampoline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its first byte; inside the survey's [`reach`](Survey::reach).
    pub address: u64,
    /// How many bytes it has.
    pub capacity: usize,
}

/// Choices about the trampoline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Begin the trampoline with ENDBR64, so that it may be reached by an indirect call where the processor
    /// enforces landing pads (Linux with IBT). Costs four bytes and one instruction.
    pub landing_pad: bool,
}

/// The exact bytes of the slot and of the patch, and which old address is which new one.
///
/// It exists only for bytes that were surveyed, and is bound to them: a commit compares them first.
#[derive(Clone, Debug)]
pub struct Plan {
    slot: u64,
    bytes: SlotBytes,
    ip_map: IpMap,
    patch: Patch,
}

impl Plan {
    /// Plans a detour of the surveyed target to `detour`, with its trampoline in `slot` and no landing pad.
    ///
    /// # Errors
    /// [`Refusal::OutOfReach`], [`Refusal::SlotTooSmall`] or [`Refusal::SlotOverlaps`]: another slot may do.
    /// [`Refusal::BranchIntoWindow`]: the detour lies on the target itself.
    pub fn new(survey: &Survey, slot: Slot, detour: u64) -> Result<Self, Refusal> {
        Self::with_options(survey, slot, detour, Options::default())
    }

    /// As [`new`](Self::new), with choices.
    ///
    /// # Errors
    /// [`Refusal::OutOfReach`], [`Refusal::SlotTooSmall`] or [`Refusal::SlotOverlaps`]: another slot may do.
    /// [`Refusal::BranchIntoWindow`]: the detour lies on the target itself.
    pub fn with_options(survey: &Survey, slot: Slot, detour: u64, options: Options) -> Result<Self, Refusal> {
        let entry_bytes = survey.entry()..survey.displaced_end();
        // Not from the window on: a landing pad in front of it leads back into the window.
        if entry_bytes.contains(&detour) {
            return Err(Refusal::BranchIntoWindow { from: survey.window(), into: detour });
        }
        let mut bytes = SlotBytes::default();
        if options.landing_pad {
            bytes.put(&ENDBR64)?;
        }
        let ip_map = layout(survey, slot.address, bytes.len());
        // A branch to a displaced instruction goes to its copy, every other one where it went.
        let resolve = |target| {
            let displaced = survey.displaced().iter().any(|displaced| displaced.address() == target);
            ip_map.to_slot(target).filter(|_| displaced).unwrap_or(target)
        };
        for displaced in survey.displaced() {
            displaced.moved().write(slot.address, &mut bytes, resolve)?;
        }
        if let Some(resume) = survey.resume() {
            bytes.put(&[0xe9])?; // jmp rel32, back to the original
            Refer { slot: slot.address, address: resume }.rel32(&mut bytes, resume)?;
        }
        let new = match near_jump(survey.window(), detour) {
            Some(jump) => jump,
            None => {
                let relay = slot.address.wrapping_add(bytes.len() as u64);
                far_jump(&mut bytes, detour)?;
                near_jump(survey.window(), relay)
                    .ok_or(Refusal::OutOfReach { address: survey.window(), target: relay })?
            }
        };
        // No slot goes round the end of the address space.
        let room = usize::try_from(u64::MAX - slot.address).unwrap_or(usize::MAX);
        let capacity = slot.capacity.min(room);
        if bytes.len() > capacity {
            return Err(Refusal::SlotTooSmall { needed: bytes.len(), capacity });
        }
        let slot_end = slot.address.wrapping_add(bytes.len() as u64);
        let on_entry = slot.address < entry_bytes.end && slot_end > entry_bytes.start;
        if on_entry || (slot.address..slot_end).contains(&detour) {
            return Err(Refusal::SlotOverlaps { address: slot.address });
        }
        let patch = patch(survey, &ip_map, new, detour);
        Ok(Self { slot: slot.address, bytes, ip_map, patch })
    }

    /// Address of the slot's first byte: what the detour calls as the original.
    pub const fn trampoline(&self) -> u64 {
        self.slot
    }

    /// The bytes to put into the slot.
    pub fn slot_bytes(&self) -> &[u8] {
        &self.bytes.0
    }

    /// Old instruction pointers against addresses in the slot.
    pub const fn ip_map(&self) -> &IpMap {
        &self.ip_map
    }

    /// What the commit needs.
    pub const fn patch(&self) -> &Patch {
        &self.patch
    }
}

/// Where each copy will begin, and the jump back.
fn layout(survey: &Survey, slot: u64, start: usize) -> IpMap {
    let mut map = IpMap::default();
    let mut at = slot.wrapping_add(start as u64);
    for displaced in survey.displaced() {
        let _ = map.push(displaced.address(), at);
        at = at.wrapping_add(displaced.moved().copy_len() as u64);
    }
    if let Some(resume) = survey.resume() {
        let _ = map.push(resume, at);
    }
    map
}

fn patch(survey: &Survey, ip_map: &IpMap, new: [u8; 5], detour: u64) -> Patch {
    let (original, displaced_len) = survey.original_array();
    let mut boundaries = [Resume::default(); MAX_BOUNDARIES];
    for (boundary, (displaced, pair)) in
        boundaries.iter_mut().zip(survey.displaced().iter().zip(ip_map.pairs()))
    {
        let offset = displaced.address().wrapping_sub(survey.window());
        *boundary = Resume { offset: u8::try_from(offset).unwrap_or(u8::MAX), address: pair.1 };
    }
    Patch {
        address: survey.window(),
        shape: survey.shape(),
        displaced_len,
        original,
        new,
        boundary_count: u8::try_from(survey.displaced().len()).unwrap_or(0),
        boundaries,
        detour,
    }
}

/// Bytes written one after the other into a slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlotBytes(ArrayVec<u8, MAX_SLOT>);

impl SlotBytes {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let needed = self.0.len() + bytes.len();
        self.0.try_extend_from_slice(bytes).map_err(|_| Refusal::SlotTooSmall { needed, capacity: MAX_SLOT })
    }

    pub(crate) fn change(&mut self, at: usize, change: impl Fn(u8) -> u8) {
        if let Some(byte) = self.0.get_mut(at) {
            *byte = change(*byte);
        }
    }
}
