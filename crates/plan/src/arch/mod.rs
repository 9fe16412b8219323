//! One folder per architecture: how its instructions are read, classified and moved.

pub(crate) mod x86;
