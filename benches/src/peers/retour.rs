//! The crate `retour`: `RawDetour::new` builds the trampoline and writes it near the target; nothing is patched.
//!
//! To learn what the patch would be, it is put into the private copy and taken out again, apart from the measuring.

use super::record::{Built, Cave, Copied, far_jump_target, jump_target};
use super::{Failure, Peer, Site, nowhere, writable_code};
use crate::mapped::{Mapped, read_mapped};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use kdetour_plan::Shape;
use retour::RawDetour;

/// Bytes of a `jmp rel32`: what retour wants to displace at least.
const MARGIN: usize = 5;
/// More than any of its trampolines.
const LONGEST: usize = 192;

pub(crate) struct Retour;

fn new(site: &Site<'_>) -> Result<RawDetour, Failure> {
    let (target, detour) = (site.target.code.address() as *const (), nowhere() as *const ());
    // SAFETY: the target is the entry of a function in a private copy of a library in which nothing runs; the detour
    // is a function of this program, and is never reached.
    unsafe { RawDetour::new(target, detour) }.map_err(|error| Failure(error.to_string()))
}

impl Peer for Retour {
    type Kept = RawDetour;

    fn examine(&mut self, site: &Site<'_>, mapped: &mut Mapped) -> Result<Built, Failure> {
        let entry = site.target.code.address();
        let detour = new(site)?;
        let pad = entry - MARGIN as u64;
        let before = mapped.read(pad, 64);
        // SAFETY: nothing runs in the copy.
        unsafe { detour.enable() }.map_err(|error| Failure(format!("enable: {error}")))?;
        let after = mapped.read(pad, 64);
        // SAFETY: as above.
        unsafe { detour.disable() }.map_err(|error| Failure(format!("disable: {error}")))?;
        if mapped.read(pad, 64) != before {
            return Err(Failure("not restored".to_owned()));
        }
        let trampoline = std::ptr::from_ref(detour.trampoline()) as u64;
        let bytes = read_mapped(trampoline, LONGEST);
        let strange = || Failure("trampoline not understood".to_owned());
        let (pad_before, text_before) = before.split_at_checked(MARGIN).ok_or_else(strange)?;
        let (pad_after, text_after) = after.split_at_checked(MARGIN).ok_or_else(strange)?;
        let hot = pad_before != pad_after;
        let patch_len = if hot { 2 } else { MARGIN };
        let long_jump = if hot { (pad, pad_after) } else { (entry, text_after) };
        let reached = jump_target(long_jump.0, long_jump.1).ok_or_else(strange)?;
        let Layout { displaced, back } = align(entry, text_before, trampoline);
        let copied: usize = match back {
            Some((to, at)) => {
                let at = usize::try_from(at - trampoline).map_err(|_| strange())?;
                if bytes.get(at..).and_then(far_jump_target) != Some(to) {
                    return Err(strange());
                }
                at + 14
            }
            None => displaced.last().map_or(0, |last: &(Copied, usize)| {
                usize::try_from(last.0.copy - trampoline).unwrap_or(0) + last.1
            }),
        };
        let expected_len = patch_len.max(displaced.iter().map(|one| one.0.bytes.len()).sum());
        Ok(Built {
            shape: if hot { Shape::ShortJump } else { Shape::Jump5 },
            detour: reached,
            window: entry,
            expected: text_before.get(..expected_len).ok_or_else(strange)?.to_vec(),
            new: text_after.get(..patch_len).ok_or_else(strange)?.to_vec(),
            cave: hot.then(|| Cave { address: pad, expected: pad_before.to_vec(), new: pad_after.to_vec() }),
            displaced: displaced.into_iter().map(|one| one.0).collect(),
            back,
            slot: trampoline,
            slot_bytes: bytes.get(..copied).ok_or_else(strange)?.to_vec(),
            trampoline,
        })
    }

    fn build(&mut self, site: &Site<'_>, _mapped: &mut Mapped) -> Result<(), Failure> {
        new(site).map(drop)
    }

    fn keep(&mut self, site: &Site<'_>, _mapped: &mut Mapped) -> Option<Result<Self::Kept, Failure>> {
        Some(new(site))
    }

    fn executable_in_use(&self) -> u64 {
        writable_code()
    }

    /// A panic leaves its pool's mutex poisoned: every later call would panic as well.
    fn survives_a_panic(&self) -> bool {
        false
    }
}

/// How retour lays a trampoline out.
struct Layout {
    /// The displaced instructions, with the lengths of their copies.
    displaced: Vec<(Copied, usize)>,
    /// Where the jump back leads, and where it stands; none where the copies end the function.
    back: Option<(u64, u64)>,
}

/// Follows its rules.
fn align(entry: u64, text: &[u8], trampoline: u64) -> Layout {
    let decoder = Decoder::with_ip(64, text.get(..MARGIN + 15).unwrap_or(text), entry, DecoderOptions::NONE);
    let (mut displaced, mut at, mut total) = (Vec::new(), trampoline, 0);
    let mut branch = None;
    for instruction in decoder {
        if instruction.is_invalid() {
            break;
        }
        let offset = total;
        total += instruction.len();
        let in_branch = |branch: Option<u64>| branch.is_some_and(|branch| instruction.ip() < branch);
        let (mut len, mut finished) = (instruction.len(), false);
        let is_jump = instruction.mnemonic() == Mnemonic::Jmp;
        if rip_relative(&instruction) {
            finished = is_jump;
        } else if matches!(
            instruction.op0_kind(),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        ) {
            let to = instruction.near_branch_target();
            if instruction.mnemonic() == Mnemonic::Call {
                len = 16;
            } else if (entry..entry + MARGIN as u64).contains(&to) {
                branch = Some(to);
            } else if is_jump {
                (len, finished) = (14, !in_branch(branch));
            } else {
                len = 16;
            }
        } else if instruction.mnemonic() == Mnemonic::Ret {
            finished = !in_branch(branch);
        }
        let bytes = text.get(offset..total).unwrap_or(&[]).to_vec();
        let text = format!("{:?}", instruction.mnemonic()).to_lowercase();
        displaced.push((Copied { address: instruction.ip(), bytes, text, copy: at }, len));
        at += len as u64;
        if finished {
            break;
        }
        if total >= MARGIN {
            return Layout { displaced, back: Some((instruction.next_ip(), at)) };
        }
    }
    Layout { displaced, back: None }
}

fn rip_relative(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory) && instruction.memory_base() == Register::RIP
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lengths of the copies, and how far behind the trampoline's start the jump back stands.
    fn laid_out(text: &[u8]) -> (Vec<usize>, Option<u64>) {
        let mut bytes = text.to_vec();
        bytes.resize(64, 0xcc);
        let layout = align(0x1000, &bytes, 0x9000);
        let lengths = layout.displaced.iter().map(|one| one.1).collect();
        (lengths, layout.back.map(|back| back.1 - 0x9000))
    }

    #[test]
    fn layouts_are_followed() {
        // 55 / 48 89 e5 / 41 57            push rbp / mov rbp, rsp / push r15
        assert_eq!(laid_out(&[0x55, 0x48, 0x89, 0xe5, 0x41, 0x57]), (vec![1, 3, 2], Some(6)));
        // 85 ff / 74 20 / 50               test edi, edi / je +32 / push rax
        assert_eq!(laid_out(&[0x85, 0xff, 0x74, 0x20, 0x50]), (vec![2, 16, 1], Some(19)));
        // e8 00 01 00 00                   call +256
        assert_eq!(laid_out(&[0xe8, 0x00, 0x01, 0x00, 0x00]), (vec![16], Some(16)));
        // 31 c0 / c3                       xor eax, eax / ret
        assert_eq!(laid_out(&[0x31, 0xc0, 0xc3]), (vec![2, 1], None));
    }
}
