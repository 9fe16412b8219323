//! From the bytes of a function to the exact bytes of a detour.
//!
//! Three pure steps, none of which touches memory that runs:
//!
//! ```text
//!   Code + Context --Survey::of--> Survey --Plan::new(slot, detour)--> Plan --.patch()--> Patch
//!   bytes, bounds                  what was found,                     bytes of the       fixed size, Copy,
//!                                  or a Refusal                        slot, IpMap        commit-ready
//! ```
//!
//! The disassembler lives here and nowhere else. What patches (the crate `kdetour`) sees only a [`Patch`]:
//! it may run with interrupts off, at a raised IRQL or with every other processor parked.
//!
//! ```
//! use kdetour_plan::{Code, Context, Plan, Shape, Slot, Survey};
//!
//! // push rbp / mov rbp, rsp / push r15 / ret
//! let bytes = [0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0xc3];
//! let code = Code::new(0x1000, &bytes).with_length(bytes.len());
//! let survey = Survey::of(&code, &Context::default())?;
//! let plan = Plan::new(&survey, Slot { address: 0x8000, capacity: 64 }, 0x9000)?;
//! assert_eq!(plan.shape(), Shape::Jump5);
//! assert_eq!(plan.displaced().count(), 3);
//! assert_eq!(plan.patch().new_bytes(), [0xe9, 0xfb, 0x7f, 0x00, 0x00]); // jmp 0x9000
//! # Ok::<(), kdetour_plan::Refusal>(())
//! ```
//!
//! The decoder is iced-x86. It builds its tables, and allocates, when it is first used: call [`warm_up`] once
//! where allocation is allowed. Nothing else in this crate allocates, but
//! [`Plan::unwind`].
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod arch;
mod code;
mod hazard;
mod ipmap;
mod patch;
mod place;
mod plan;
mod refusal;
mod room;
mod shape;
mod slot_bytes;
mod survey;
mod unwind;

pub use arch::x86::beside::{MAX_BRANCH, branches_beside};
pub use arch::x86::single::{Leads, Single};
pub use arch::x86::thunk::{Thunk, thunk};
pub use arch::x86::warm_up;
pub use code::{Code, Context, MAX_INSTRUCTION, Mode, Owner, Region, Reserved};
pub use hazard::Hazard;
pub use ipmap::IpMap;
pub use patch::{Cave, CavePatch, Lead, MAX_DISPLACED, MAX_WINDOW, Patch, Resume};
pub use place::{Allocator, Reach, Relays, Slot};
pub use plan::{MAX_SLOT, Options, Plan, Returns, Traps};
pub use refusal::{Refusal, Unsupported};
pub use room::PlanRoom;
pub use shape::{Shape, Shapes};
pub use survey::{Displaced, Explanation, Offer, Survey, boundary};
pub use unwind::{Convention, Frame, Kept, UnwindRow};
