//! What the tests that execute code have in common: cases as data, addresses for slots, and plans written down for
//! the programs that run them.
#![expect(clippy::panic, reason = "test code: it may fail")]

pub mod case;
pub mod item;
pub mod places;
pub mod record;
