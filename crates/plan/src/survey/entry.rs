//! What stands in front of the window: a landing pad, and the function's own ftrace site.

use crate::arch::x86::{CALL, NOP5, SEALED_ENDBR, landing_pad};
use crate::code::{Context, Mode};
use crate::refusal::Refusal;

/// Bytes between the entry and the window.
pub(super) fn skip(bytes: &[u8], mode: Mode, entry: u64, context: &Context<'_>) -> Result<usize, Refusal> {
    let endbr = landing_pad(mode);
    let pad = if bytes.starts_with(&endbr) { endbr.len() } else { 0 };
    let Some(site) = context.fentry else {
        return Ok(pad);
    };
    let not_fentry = Refusal::NotFentry { address: site };
    let before = usize::try_from(site.wrapping_sub(entry)).map_err(|_| not_fentry)?;
    // Between the entry and the site: nothing, an ENDBR, or one that the kernel has sealed.
    let between = bytes.get(..before).ok_or(not_fentry)?;
    let at = bytes.get(before..).ok_or(not_fentry)?;
    let pad_only = between.is_empty() || between == endbr || between == SEALED_ENDBR;
    let is_site = at.starts_with(&NOP5) || (at.first() == Some(&CALL) && at.len() >= NOP5.len());
    if pad_only && is_site { Ok(before + NOP5.len()) } else { Err(not_fentry) }
}
