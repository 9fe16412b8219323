//! What a caller can do about a refusal.

use kdetour_plan::{Owner, Refusal, Unsupported};

/// In one or two sentences.
pub(crate) const fn advice(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Truncated { .. } => "Give more of the function's bytes; the file may be cut off.",
        Refusal::Undecodable { .. } => {
            "Is the address the start of a function, and the mode right? Data among the code looks like this too."
        }
        Refusal::TooShort { .. } => {
            "Say how long the function is and where the next one starts, so that padding can be proven; or allow \
             Breakpoint; or detour its callers."
        }
        Refusal::BranchIntoWindow { .. } => {
            "Allow Jump5Kept, which keeps the instructions that are jumped to, or a smaller window (ShortJump, \
             Breakpoint); or detour the callers instead."
        }
        Refusal::BranchToStart { .. } => {
            "Allow re-entry (--reentry) if the detour may run once per round, or detour the callers instead."
        }
        Refusal::ReturnIntoWindow { .. } => {
            "A call would return into changed bytes. Take a shape that needs no quiesce, or a smaller window."
        }
        Refusal::Breakpoint { .. } => "Remove the kprobe or the debugger's breakpoint first.",
        Refusal::Foreign { .. } => {
            "Another hook is at the entry, or it is a thunk: detour the function it jumps to."
        }
        Refusal::Reserved { owner, .. } => match owner {
            Owner::Kprobe => "Remove the kprobe first.",
            Owner::Ftrace => "Give the function's own ftrace site (--fentry): the window is put behind it.",
            Owner::ExceptionTable | Owner::BugTable => {
                "The kernel knows this instruction by its address. Detour a caller instead."
            }
            _ => "The kernel rewrites this instruction itself. Detour a caller instead.",
        },
        Refusal::NotFentry { .. } => "Leave the ftrace site out, or give its right address.",
        Refusal::NotBoundary { .. } => "Take the start of an instruction.",
        Refusal::ComputedJump { .. } => {
            "Allow Jump5Kept, which keeps the instructions that may be jumped to."
        }
        Refusal::Unsupported { why, .. } => match why {
            Unsupported::CallThroughStackPointer => {
                "Take the policy --returns slot: the call then stays a call."
            }
            Unsupported::Trap => "The function begins with a trap. Detour its callers instead.",
            Unsupported::InterruptShadow => "Take another shape: the window then ends elsewhere.",
            _ => {
                "Take a shape with a smaller window, which displaces fewer instructions, or detour the callers."
            }
        },
        Refusal::OutOfReach { .. } => {
            "Take a slot within 2 GiB of the target, at an address that the shape allows: without --slot one is found."
        }
        Refusal::SlotOverlaps { .. } => "Take another slot, or another address for the detour.",
        Refusal::InteriorBoundary { .. } => "Allow one of the Jump5 shapes, or Breakpoint.",
        Refusal::NoInterior { .. } => "Allow WholeInstruction: it is the same jump.",
        Refusal::NoCave { .. } => {
            "Give the bytes in front of the entry (--before) or the next symbol (--next), if there is padding."
        }
        Refusal::NotInMode { .. } => "Allow other shapes.",
        Refusal::NoSlot { .. } => {
            "Make memory available nearer to the target, at an address that the shape allows; or allow other shapes."
        }
        Refusal::SlotTooSmall { .. } => "Take a bigger slot.",
        _ => "See the documentation of the refusal.",
    }
}
