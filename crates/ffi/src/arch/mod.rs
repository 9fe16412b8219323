//! What differs by processor, in a process.
//!
//! ```text
//!   elf    the images that run here, on Linux: their class, their machine, the relocations of functions' slots
//!   pe     the images that run here, on Windows: their class, their machine
//!   Jump   a jump through such a slot, as tables of stubs (the PLT) have them
//!   kdetour_detach_all, which has to know where its caller's frame ends
//! ```

#[cfg(target_arch = "x86")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86")]
use x86 as this;
#[cfg(target_arch = "x86_64")]
use x86_64 as this;

#[cfg(not(windows))]
pub(crate) use this::elf;
pub use this::kdetour_detach_all;
#[cfg(windows)]
pub(crate) use this::pe;
pub(crate) use this::{Jump, MODE};

/// What such a jump begins with: the processor's landing pad, and `bnd`.
fn behind_prefixes(bytes: &[u8], pad: [u8; 4]) -> usize {
    let mut at = 0;
    for prefix in [&pad[..], &[0xf2]] {
        if bytes.get(at..).is_some_and(|rest| rest.starts_with(prefix)) {
            at += prefix.len();
        }
    }
    at
}

/// The displacement of a jump through memory that begins with this opcode and ModRM.
fn displacement(jump: &[u8], opcode: [u8; 2]) -> Option<i32> {
    let displacement = jump.strip_prefix(&opcode)?.first_chunk()?;
    Some(i32::from_le_bytes(*displacement))
}
