//! Whether the registers that are told of a suspended thread are those with which it will go on.
//!
//! The kernel says so if it is asked (winnt.h, `CONTEXT_EXCEPTION_REQUEST`; since Windows 7): whether the thread is in one of its services, or an
//! exception is being told to it. In the latter case a copy of the registers is on its way to the thread's stack, and what is told may be
//! neither.
//!
//! In 32-bit code on a 64-bit system (WOW64) there is more. Every call of the kernel passes through 64-bit code of the process's own. On its way in that
//! puts the 32-bit registers aside, and what is told of a thread that is in 64-bit code is what was put aside: on the way in, for a few
//! instructions, what the call before has left there, its stack pointer and all. Only the thread's instruction pointer tells: that is behind the call
//! of the 64-bit code, in `ntdll.dll`.
//!
//! | a thread under WOW64 | in a service | instruction pointer behind a call in `ntdll.dll` | registers |
//! |---|---|---|---|
//! | runs 32-bit code | no | no | its own |
//! | waits in the kernel | yes | yes | those put aside, which are its own |
//! | is in 64-bit code | no | yes | perhaps of the call before: it is looked at again |
//! | has just returned from there, or from another call | no | yes | its own, but that cannot be told: it is looked at again |
//!
//! Where the system does not say that (Windows Vista) registers are taken as they are told.

use super::super::nt::Nt;
use super::super::regions::Region;
use super::stack::follows_call;

// winnt.h: `CONTEXT_...`.
const EXCEPTION_ACTIVE: u32 = 0x0800_0000;
const SERVICE_ACTIVE: u32 = 0x1000_0000;
const EXCEPTION_REQUEST: u32 = 0x4000_0000;
const EXCEPTION_REPORTING: u32 = 0x8000_0000;

/// What is asked together with the registers.
pub(super) const ASKED: u32 = EXCEPTION_REQUEST;

/// Whether a thread with these flags, which is at `ip`, goes on with the registers that were told.
pub(super) fn is_settled(nt: &Nt, flags: u32, ip: u64) -> bool {
    settled(flags, || {
        let is_in_ntdll = || Region::of(nt, ip).is_some_and(|region| region.allocation == nt.base());
        nt.is_wow64() && is_in_ntdll() && follows_call(nt, ip)
    })
}

fn settled(flags: u32, in_transition: impl FnOnce() -> bool) -> bool {
    if flags & EXCEPTION_REPORTING == 0 {
        return true;
    }
    flags & EXCEPTION_ACTIVE == 0 && (flags & SERVICE_ACTIVE != 0 || !in_transition())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_be_on_the_way_in_is_looked_at_again() {
        let reported = EXCEPTION_REQUEST | EXCEPTION_REPORTING;
        for (flags, in_transition, expected) in [
            (0, true, true),
            (reported, false, true),
            (reported, true, false),
            (reported | SERVICE_ACTIVE, true, true),
            (reported | EXCEPTION_ACTIVE, false, false),
            (reported | SERVICE_ACTIVE | EXCEPTION_ACTIVE, true, false),
        ] {
            assert_eq!(settled(flags, || in_transition), expected, "{flags:#x} {in_transition}");
        }
    }
}
