//! Code that is not patched: what runs while a page cannot be executed.
//!
//! That is `ntdll.dll`, by which exceptions come to the handler and pages change their protection, and the page that holds the handler and the
//! writer themselves ([`flip`](super::flip)). Somebody who has put a hook of his own into `ntdll.dll` has added to it: what such a hook runs
//! through must not be detoured, and that cannot be seen.

use super::nt::Nt;
use super::{arch, memory};
use crate::Error;
use crate::host::image::Headers;
use core::ops::Range;

/// Addresses that are not patched.
#[derive(Clone, Debug)]
pub(super) struct Guarded {
    system: Range<u64>,
    own: Range<u64>,
}

impl Guarded {
    /// Where these lie in this process.
    ///
    /// # Errors
    /// [`Error::Unreadable`] if the headers of `ntdll.dll` cannot be read.
    pub(super) fn find(nt: &Nt) -> Result<Self, Error> {
        let base = nt.base();
        let headers = Headers::read(&|address, bytes| memory::read(nt, address, bytes), base)?
            .ok_or(Error::Unreadable { address: base })?;
        Ok(Self { system: base..headers.end(), own: arch::own_pages() })
    }

    /// Makes sure that none of these bytes is among them.
    ///
    /// # Errors
    /// [`Error::Forbidden`].
    pub(super) fn check(&self, address: u64, len: usize) -> Result<(), Error> {
        let end = address.saturating_add(len as u64);
        let meets = |range: &Range<u64>| address < range.end && range.start < end;
        if meets(&self.system) || meets(&self.own) {
            return Err(Error::Forbidden { address });
        }
        Ok(())
    }
}
