//! Which image of the process is meant.

/// Which image of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image<'a> {
    /// The program itself.
    Program,
    /// The shared object of this path, or of this file name: `libc.so.6`. On Windows the library that `GetModuleHandle` knows by it, whatever
    /// the case: `kernel32.dll`.
    Named(&'a str),
    /// The one in which this address lies.
    Holding(u64),
}
