//! Instructions in words, where nothing can be waited for and nothing be allocated.
//!
//! ```text
//!   words          bytes -> the text of one instruction
//!   arena          all memory that there is: given once, at the start
//!   linux_kernel   the Rust half of kdetour_words.ko: what its C half calls (kernel/linux/words_rust.h)
//! ```
//!
//! iced-x86 makes its tables when they are first used, and writes into a `String`. So whoever is to be quick later
//! uses both once at the start, and keeps [`Line`]s, which never grow. `tests/all.rs` has every instruction
//! told, by an allocator that has ended.
#![no_std]

extern crate alloc;

pub mod arena;
pub mod linux_kernel;
mod words;

pub use words::{LINE, Line, NoWords, TEXT, words};
