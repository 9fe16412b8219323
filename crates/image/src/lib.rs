//! From a file to every function of it, with what a survey should know.
//!
//! ```text
//!   bytes --format?--> ELF        symbols, .eh_frame, landing pads, relocations --\
//!                      PE         exports, COFF symbols, .pdata, relocations -----+--> starts --> functions
//!                      vmlinuz -> vmlinux: kallsyms, tables of patched sites -----/               + facts
//! ```
//! A reader of a format collects *starts*: addresses at which something begins, what it is, what says so, and
//! where it ends if that is said. Then all code is decoded once, for branches from one function into another.
//! Last, the starts that share an address become one [`Function`], or a reason to be [left out](Image::left_out).
//!
//! ```
//! use kdetour_image::Image;
//! use kdetour_plan::Survey;
//!
//! let image = Image::open("/proc/self/exe")?;
//! let accepted = image.functions().iter().filter(|function| {
//!     let facts = image.facts(function);
//!     Survey::of(&image.code(function), &facts.context()).is_ok()
//! });
//! assert!(accepted.count() > 0);
//! # Ok::<(), kdetour_image::Error>(())
//! ```
//!
//! # What is a function
//! * A symbol of a function, a global symbol without a type in code, an export, and the first address of unwind
//!   information. One for each address: further names are [aliases](Image::aliases).
//! * Not an entry of the procedure linkage table, and not a part (`foo.cold`, chained `.pdata`): a part is
//!   [given](kdetour_plan::Context::parts) to its function.
//! * A label without a size inside a function is a branch target of that function. A symbol *with* a size inside
//!   another one is a function, and a branch target of the other.
//!
//! # Files that are damaged, or made to deceive
//! Every table is read as far as it makes sense, and the rest is [left out](Image::left_out) with a reason.
//! Nothing panics. The file is kept once; all tables together are smaller than it, but for those of files below
//! some megabytes. A compressed kernel is unpacked and then counts as the file.
#![forbid(unsafe_code)]

mod assemble;
mod branches;
mod bytes;
mod elf;
mod error;
mod facts;
mod function;
mod image;
mod kernel;
mod left_out;
mod memory;
mod names;
mod pe;
mod starts;

pub use error::Error;
pub use facts::Facts;
pub use function::{Function, Source};
pub use image::{Image, Kind, Options};
pub use left_out::{LeftOut, Reason};
pub use memory::Segment;
