//! The command as others use it.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets something else fails"
)]

mod command;
mod draw;
mod inspect;
mod run;
mod scan;
