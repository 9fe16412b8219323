//! x86: reading instructions (`decode`), saying what each depends on (`classify`), writing it elsewhere
//! (`relocate`), and looking for branches into the window in the rest of the function (`scan`).

pub(crate) mod classify;
pub(crate) mod decode;
pub(crate) mod relocate;
pub(crate) mod scan;
pub(crate) mod thunk;

/// Makes the decoder build its tables now. They are built, and memory is allocated for them, when the first
/// instruction is decoded: call this once where allocation is allowed, before the first survey.
pub fn warm_up() {
    // 90                nop
    let _ = decode::instruction(&[0x90], 0);
}
