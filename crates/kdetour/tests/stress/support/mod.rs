//! What the scenarios share.

#[cfg(not(windows))]
pub(crate) mod built;
pub(crate) mod callers;
pub(crate) mod footprint;
pub(crate) mod helper;
#[cfg(not(windows))]
pub(crate) mod ptrace;
pub(crate) mod runner;
pub(crate) mod sites;
pub(crate) mod system;
pub(crate) mod targets;
