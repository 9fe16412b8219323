//! The crate `ilhook`: `Hooker::hook` builds a stub that saves the registers, and the trampoline behind it, on the
//! heap, then patches.
//!
//! Its callback before patching may decline. For the measuring it does, and memory protection is left alone: the
//! stub is built and nothing is patched. To learn what the patch would be, the private copy is hooked and unhooked.

use super::record::{Built, Copied, far_jump_target, jump_target};
use super::{Failure, Peer, Site};
use crate::mapped::{Mapped, read_mapped};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use ilhook::HookError;
use ilhook::x64::{CallbackOption, HookFlags, HookPoint, HookType, Hooker, Registers, ThreadCallback};
use kdetour_plan::Shape;

/// What it displaces at least: a far jump's length, always.
const MARGIN: usize = 14;
/// The heap block of a stub.
const BLOCK: usize = 1024;
/// Passed to the routine, and found again in the stub.
const MARK: usize = 0x6b64_6574_6f75_7221;

pub(crate) struct Ilhook;

struct Decline;

impl ThreadCallback for Decline {
    fn pre(&self) -> bool {
        false
    }

    fn post(&self) {}
}

unsafe extern "win64" fn routine(_registers: *mut Registers, _original: usize, _user: usize) -> usize {
    0
}

fn address(site: &Site<'_>) -> Result<usize, Failure> {
    usize::try_from(site.target.code.address()).map_err(|error| Failure(error.to_string()))
}

fn hook(site: &Site<'_>) -> Result<HookPoint, Failure> {
    let target = address(site)?;
    let hooker = Hooker::new(target, HookType::Retn(routine), CallbackOption::None, MARK, HookFlags::empty());
    // SAFETY: the target is the entry of a function in a private copy of a library in which nothing runs.
    unsafe { hooker.hook() }.map_err(|error| Failure(error.to_string()))
}

impl Peer for Ilhook {
    type Kept = HookPoint;

    fn examine(&mut self, site: &Site<'_>, mapped: &mut Mapped) -> Result<Built, Failure> {
        let strange = || Failure("trampoline not understood".to_owned());
        let entry = site.target.code.address();
        let before = mapped.read(entry, 64);
        let hooked = hook(site)?;
        let after = mapped.read(entry, 64);
        let near = jump_target(entry, &after);
        let stub = near.or_else(|| far_jump_target(&after)).ok_or_else(strange)?;
        let bytes = read_mapped(stub, BLOCK);
        drop(hooked);
        if mapped.read(entry, 64) != before {
            return Err(Failure("not restored".to_owned()));
        }
        let trampoline = trampoline(&bytes).ok_or_else(strange)?;
        let from = usize::try_from(trampoline - stub).map_err(|_| strange())?;
        let copies = bytes.get(from..).ok_or_else(strange)?;
        let (displaced, back_at) = align(entry, &before, trampoline, copies).ok_or_else(strange)?;
        let displaced_len: usize = displaced.iter().map(|copied| copied.bytes.len()).sum();
        let back_to = entry + displaced_len as u64;
        // The jump back, over the addresses that the copies refer to, if there are any.
        let over = jump_target(back_at, copies.get(offset(back_at, trampoline)..).ok_or_else(strange)?);
        let last = offset(over.unwrap_or(back_at), trampoline);
        if copies.get(last..).and_then(far_jump_target) != Some(back_to) {
            return Err(strange());
        }
        let patch_len = if near.is_some() { 5 } else { MARGIN };
        Ok(Built {
            shape: if near.is_some() { Shape::Jump5 } else { Shape::Jump14 },
            detour: stub,
            window: entry,
            expected: before.get(..displaced_len).ok_or_else(strange)?.to_vec(),
            new: after.get(..patch_len).ok_or_else(strange)?.to_vec(),
            cave: None,
            displaced,
            back: Some((back_to, back_at)),
            slot: trampoline,
            slot_bytes: copies.get(..last + 14).ok_or_else(strange)?.to_vec(),
            trampoline,
        })
    }

    fn build(&mut self, site: &Site<'_>, _mapped: &mut Mapped) -> Result<(), Failure> {
        let decline = CallbackOption::Some(Box::new(Decline));
        let flags = HookFlags::NOT_MODIFY_MEMORY_PROTECT;
        let hooker = Hooker::new(address(site)?, HookType::Retn(routine), decline, MARK, flags);
        // SAFETY: as in `hook`; and the callback declines, so that nothing is patched.
        match unsafe { hooker.hook() } {
            Err(HookError::PreHook) | Ok(_) => Ok(()),
            Err(error) => Err(Failure(error.to_string())),
        }
    }

    /// Really hooks: only where the patch touches neither the next function nor the next page, whose protection
    /// ilhook would not change.
    fn keep(&mut self, site: &Site<'_>, _mapped: &mut Mapped) -> Option<Result<Self::Kept, Failure>> {
        let address = site.target.code.address();
        let apart = !site.targets.neighbour_within(address, 64) && address & 0xfff < 0xf00;
        Some(if apart { hook(site) } else { Err(Failure("not tried".to_owned())) })
    }

    fn keeping_says_speed(&self) -> bool {
        false
    }
}

fn offset(address: u64, base: u64) -> usize {
    usize::try_from(address.wrapping_sub(base)).unwrap_or(usize::MAX)
}

/// `mov r8, MARK` / `mov rdx, trampoline` in the stub.
fn trampoline(stub: &[u8]) -> Option<u64> {
    let mut wanted = vec![0x49, 0xb8];
    wanted.extend(MARK.to_le_bytes());
    wanted.extend([0x48, 0xba]);
    let at = stub.windows(wanted.len()).position(|window| window == wanted)?;
    Some(u64::from_le_bytes(*stub.get(at + wanted.len()..)?.first_chunk()?))
}

/// The displaced instructions, and where the jump back stands, as ilhook lays them out far from the target.
fn align(entry: u64, text: &[u8], trampoline: u64, copies: &[u8]) -> Option<(Vec<Copied>, u64)> {
    let is_near = entry.abs_diff(trampoline) < 0x7fff_f000;
    let decoder = Decoder::with_ip(64, text.get(..30)?, entry, DecoderOptions::NONE);
    let (mut displaced, mut at, mut total) = (Vec::new(), trampoline, 0);
    for instruction in decoder {
        let bytes = text.get(total..total + instruction.len())?.to_vec();
        total += instruction.len();
        let text = format!("{:?}", instruction.mnemonic()).to_lowercase();
        displaced.push(Copied { address: instruction.ip(), bytes, text, copy: at });
        let rest = copies.get(offset(at, trampoline)..)?;
        // Near, iced's BlockEncoder lays it out: that never happens on Linux, where the heap is far from libraries.
        if is_near {
            return None;
        }
        at += far_copy(&instruction, rest)? as u64;
        if total >= MARGIN {
            return Some((displaced, at));
        }
    }
    None
}

/// How long the copy is that begins `rest`.
fn far_copy(instruction: &Instruction, rest: &[u8]) -> Option<usize> {
    let one = |skip: usize| {
        let mut decoder = Decoder::new(64, rest.get(skip..)?, DecoderOptions::NONE);
        let copy = decoder.decode();
        (!copy.is_invalid()).then(|| copy.len())
    };
    let rip_relative = instruction.is_ip_rel_memory_operand();
    Some(match instruction.flow_control() {
        FlowControl::UnconditionalBranch => 6,
        FlowControl::IndirectBranch if rip_relative => 23,
        FlowControl::ConditionalBranch if instruction.is_jcc_short_or_near() => 8,
        FlowControl::ConditionalBranch => one(0)? + 8,
        // `syscall` counts as a call there, and is copied as it is.
        FlowControl::Call if instruction.is_call_near() || instruction.is_call_far() => 6,
        FlowControl::IndirectCall if rip_relative => 36,
        _ if rip_relative && instruction.mnemonic() == Mnemonic::Lea => one(0)?,
        _ if rip_relative => 15 + one(15)? + 5,
        _ => one(0)?,
    })
}
