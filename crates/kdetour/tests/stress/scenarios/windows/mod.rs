//! What threads do on Windows.

pub(crate) mod halted;
pub(crate) mod library;
pub(crate) mod panics;
pub(crate) mod parked;
mod registers;
pub(crate) mod sleepers;
