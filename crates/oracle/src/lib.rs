//! An independent reading of a plan: decodes the original and the slot afresh and says where they differ.
//!
//! It shares no code with `kdetour-plan`. Everything that it knows about a copy comes from the bytes in the slot,
//! everything that it knows about the target from the bytes that the survey was given: it decodes the whole function
//! where the survey only sieves it, and it lets iced's `BlockEncoder` move the same instructions for a second
//! opinion. [`check`] reads
//!
//! | file | what is read |
//! |---|---|
//! | `target` | the window, and which instructions a patch of the plan's shape displaces |
//! | `landings` | who branches to the window: every instruction of the function and of its parts |
//! | `copies`, `calls` | the slot: relay, landing pad, every copy, the jump back, the relay at the end |
//! | `patch` | the bytes of the patch and of the cave, and the boundaries |
//! | `places` | that nothing else is written, and that nothing lies on anything |
//! | `text` | nothing: how all tests write an instruction |
//! | `second` | what `BlockEncoder` makes of the displaced instructions |
//!
//! An error is a sentence for whoever reads the failing test.

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

mod calls;
mod copies;
mod landings;
mod patch;
mod places;
mod reader;
mod second;
mod target;
mod text;

use kdetour_plan::{Code, Context, Options, Plan, Slot, Survey};
use target::Target;
pub use text::text;

/// What a plan was made from.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The function.
    pub code: Code<'a>,
    /// What the environment knew about it.
    pub context: Context<'a>,
    /// Where the trampoline was to be put.
    pub slot: Slot,
    /// Where the detour is.
    pub detour: u64,
    /// The choices.
    pub options: Options,
}

/// Checks everything that can be read from the bytes.
///
/// # Errors
/// Says what is wrong with the plan.
pub fn check(given: &Given<'_>, survey: &Survey, plan: &Plan) -> Result<(), String> {
    let target = Target::read(given, plan.shape(), plan.patch().new_bytes())?;
    target.agrees(given, survey, plan)?;
    landings::check(given, &target)?;
    let last_relay = copies::check(given, &target, plan)?;
    patch::check(given, &target, plan, last_relay)?;
    places::check(given, &target, survey, plan)?;
    second::check(given, &target, plan)
}
