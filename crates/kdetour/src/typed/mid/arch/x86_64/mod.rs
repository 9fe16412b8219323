//! x86-64.

mod registers;
mod thunk;

pub use registers::Registers;
pub(in crate::typed::mid) use thunk::{stub, thunk};
