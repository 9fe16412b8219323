//! Images: made of bytes, real ones, damaged ones, and a kernel if there is one.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that finds other bytes than it made should fail there"
)]

mod elf;
mod hostile;
mod kernel;
mod made;
mod pe;
mod real;
#[cfg(windows)]
mod system;
