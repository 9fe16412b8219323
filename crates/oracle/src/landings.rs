//! Who branches to the window. Everything is decoded, so that the survey's sieve is held against it.

use crate::Given;
use crate::reader::{decode, is_near_branch};
use crate::target::Target;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use kdetour_plan::Shape;

/// No instruction of the function or of its parts, and nobody else, goes where the patch has changed a byte.
pub(crate) fn check(given: &Given<'_>, target: &Target<'_>) -> Result<(), String> {
    let changed = Changed::by(given, target);
    if target.shape == Shape::Jump5Kept {
        // What is kept stays live: who returns or jumps there runs on, in the function and not in the slot.
        for kept in target.originals.iter().skip(1).map(|original| &original.one) {
            if is_near_branch(kept) && kept.mnemonic() != Mnemonic::Call {
                let to = kept.near_branch_target();
                ensure!(!changed.is_hit(target, to, true), "{:#x} is kept, and goes to {to:#x}", kept.ip());
            }
        }
    }
    let Some(length) = target.length else {
        return Ok(());
    };
    for &known in given.context.branch_targets {
        ensure!(!changed.is_hit(target, known, true), "{known:#x} is jumped to, inside the window");
    }
    // No function goes round the end of the address space.
    let last = if target.mode.bits() == 32 { u64::from(u32::MAX) } else { u64::MAX };
    let room = usize::try_from(last - target.window).unwrap_or(usize::MAX);
    let end = length.min(target.code.len()).min(room);
    let rest = target.code.get(target.code_len..end).unwrap_or(&[]);
    look_through(target, rest, target.window.wrapping_add(target.code_len as u64), &changed)?;
    for part in given.context.parts {
        look_through(target, part.bytes(), part.address(), &changed)?;
    }
    Ok(())
}

/// Which bytes of the window a branch may not go to, by their distance from its start.
struct Changed {
    /// One past the last of them.
    end: u64,
    /// The start may be branched to: it enters the detour again, and that was asked for.
    reentry: bool,
}

impl Changed {
    fn by(given: &Given<'_>, target: &Target<'_>) -> Self {
        let end = match target.shape {
            Shape::Jump5Kept if target.one_byte => 1,
            // From the first interior boundary on the bytes are what they were.
            Shape::Jump5Kept => target.interior().next().unwrap_or(target.window_len),
            _ => target.window_len,
        };
        Self { end: end as u64, reentry: given.options.reentry }
    }

    fn is_hit(&self, target: &Target<'_>, to: u64, jump: bool) -> bool {
        match target.distance(to) {
            0 => jump && !self.reentry,
            _ if target.is_in_front(to) => jump && !self.reentry,
            distance => distance < self.end,
        }
    }
}

/// Reads from one end to the other. From the first byte on that does not decode, an instruction may begin anywhere.
fn look_through(target: &Target<'_>, bytes: &[u8], address: u64, changed: &Changed) -> Result<(), String> {
    let mut at = 0;
    let mut lost = false;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let ip = address.wrapping_add(at as u64);
        let Ok((one, own)) = decode(target.mode, rest, ip) else {
            lost = true;
            at += 1;
            continue;
        };
        if is_near_branch(&one) {
            let to = one.near_branch_target();
            let jump = one.mnemonic() != Mnemonic::Call;
            ensure!(!changed.is_hit(target, to, jump), "{ip:#x} branches into the window, to {to:#x}");
        }
        if let Some(label) = label(&one) {
            ensure!(
                !changed.is_hit(target, label, false),
                "{ip:#x} takes an address in the window: {label:#x}"
            );
        }
        at += if lost { 1 } else { own.len() };
    }
    Ok(())
}

/// The address of a label, as it is taken to be jumped to later.
fn label(one: &Instruction) -> Option<u64> {
    let fixed = matches!(one.memory_base(), Register::None | Register::RIP)
        && one.memory_index() == Register::None
        && !matches!(one.memory_segment(), Register::FS | Register::GS);
    match one.mnemonic() {
        Mnemonic::Lea if fixed => Some(one.memory_displacement64()),
        Mnemonic::Push => match one.op0_kind() {
            OpKind::Immediate32 | OpKind::Immediate32to64 => Some(one.immediate(0)),
            _ => None,
        },
        Mnemonic::Mov if one.op0_kind() == OpKind::Register => match one.op1_kind() {
            OpKind::Immediate32 | OpKind::Immediate64 | OpKind::Immediate32to64 => Some(one.immediate(1)),
            _ => None,
        },
        _ => None,
    }
}
