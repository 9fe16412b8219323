//! Functions that are one jump to another one.

use crate::host::{Host, View};
use crate::{Error, Kdetour};
use kdetour_plan::{Code, Mode, Thunk, thunk};

/// Who leads in a circle is not followed for ever.
const HOPS: usize = 16;
/// A landing pad, an instruction that does nothing, and the longest of these jumps.
const LONGEST: usize = 24;
/// The shortest jump by a pointer.
const SHORTEST: usize = 6;

impl<H: Host> Kdetour<H> {
    /// Where the code at `address` leads: through jumps by a pointer, as import thunks are, and with `direct` through direct ones, too, as
    /// thunks of incremental linking are. A detour's jump is not followed: neither one of these detours, nor with `direct` false one that somebody else
    /// has written as a direct jump. Code that is no such jump leads to itself.
    ///
    /// A thunk is a target like any other, by which not all callers of the function behind it come. Whoever wants all of them attaches there.
    ///
    /// # Errors
    /// [`Error::Unreadable`] if nothing can be read at `address`; what the host says when it is asked for a [view](Host::view).
    pub fn behind_thunks(&self, address: u64, direct: bool) -> Result<u64, Error> {
        let view = self.host().view()?;
        let mut at = address;
        for hop in 0..HOPS {
            let mut bytes = [0; LONGEST];
            let len = match view.read(at, &mut bytes) {
                Ok(()) => LONGEST,
                // Near the end of what can be read.
                Err(_) => match view.read(at, bytes.get_mut(..SHORTEST).unwrap_or_default()) {
                    Ok(()) => SHORTEST,
                    Err(error) if hop == 0 => return Err(error),
                    Err(_) => return Ok(at),
                },
            };
            let bytes = bytes.get(..len).unwrap_or_default();
            if self.detours_of(at).next().is_some() {
                return Ok(at);
            }
            at = match thunk(&Code::in_mode(view.mode(), at, bytes)) {
                Some(Thunk::Through(place)) => match pointer(&view, place) {
                    Some(to) => to,
                    None => return Ok(at),
                },
                Some(Thunk::To(to)) if direct => to,
                _ => return Ok(at),
            };
        }
        Ok(at)
    }
}

/// The pointer at an address, as wide as the code's are.
fn pointer(view: &impl View, place: u64) -> Option<u64> {
    match view.mode() {
        Mode::Bits32 => {
            let mut bytes = [0; 4];
            view.read(place, &mut bytes).ok()?;
            Some(u32::from_le_bytes(bytes).into())
        }
        _ => {
            let mut bytes = [0; 8];
            view.read(place, &mut bytes).ok()?;
            Some(u64::from_le_bytes(bytes))
        }
    }
}
