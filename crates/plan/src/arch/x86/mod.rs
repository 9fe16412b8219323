//! x86: reading instructions (`decode`), saying where each leads (`flow`) and what it depends on (`classify`), writing it elsewhere
//! (`relocate`), and looking for branches into the window in the rest of the function: first by a sieve over its
//! bytes (`sieve`), and only where something is caught by decoding it (`scan`) and reading its jump tables
//! (`tables`).

pub(crate) mod beside;
pub(crate) mod classify;
pub(crate) mod decode;
pub(crate) mod flow;
pub(crate) mod opcode;
pub(crate) mod operand;
pub(crate) mod relocate;
pub(crate) mod scan;
pub(crate) mod sieve;
pub(crate) mod single;
pub(crate) mod tables;
pub(crate) mod thunk;

use crate::code::Mode;

/// Makes the decoder build its tables now. They are built, and memory is allocated for them, when the first
/// instruction is decoded: call this once where allocation is allowed, before the first survey.
pub fn warm_up() {
    // 90                nop
    let _ = decode::instruction(Mode::Bits64, &[0x90], 0);
}

/// Where an indirect branch may land when the processor enforces it.
pub(crate) const fn landing_pad(mode: Mode) -> [u8; 4] {
    match mode {
        Mode::Bits64 => [0xf3, 0x0f, 0x1e, 0xfa], // endbr64
        Mode::Bits32 => [0xf3, 0x0f, 0x1e, 0xfb], // endbr32
    }
}
/// What Linux makes of an `endbr64` that nothing may branch to any more.
pub(crate) const SEALED_ENDBR: [u8; 4] = [0x66, 0x0f, 0x1f, 0x00]; // nop word ptr [rax]
/// The five-byte no-op of an idle ftrace site.
pub(crate) const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00]; // nop dword ptr [rax+rax*1+0]
/// First byte of `call rel32`: an ftrace site in use.
pub(crate) const CALL: u8 = 0xe8;
