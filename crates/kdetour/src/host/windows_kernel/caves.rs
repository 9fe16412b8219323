//! Padding that holds the long jumps of short ones, given back before the driver goes.
//!
//! A thread that was suspended on such a jump is missed by a drain, and would go on in the padding. So it is left alone for as long as the
//! driver stays, as the slots are.

use super::WindowsKernel;
use super::nt::{Nt, PASSIVE_LEVEL};
use crate::commit::restore_caves;
use crate::host::{Host, Span};
use crate::records::State;
use crate::{Error, Kdetour};
use alloc::vec::Vec;
use kdetour_plan::Patch;

impl<N: Nt> Kdetour<WindowsKernel<N>> {
    /// Gives the padding back that holds the long jumps of short ones, of all targets that have no attached detour. `DriverUnload`
    /// calls this last, when everything has been [drained](Self::drain). What is in an image that has gone, or has become somebody else's,
    /// is left as it is.
    ///
    /// IRQL: `PASSIVE_LEVEL`.
    ///
    /// # Errors
    /// [`Error::Irql`]; [`Error::OutOfMemory`]; what NT says. Some of it may have been given back: call it again.
    pub fn empty_caves(&mut self) -> Result<(), Error> {
        self.host().at(PASSIVE_LEVEL)?;
        let mut patches: Vec<Patch> = Vec::new();
        for record in self.records().filter(|record| record.state == State::Draining) {
            let site = self.sites.get(record.slot.address).filter(|site| !site.live);
            if let Some(site) = site.filter(|site| site.patch.cave().is_some()) {
                patches.try_reserve(1)?;
                patches.push(site.patch);
            }
        }
        for patch in &patches {
            let Some(cave) = patch.cave() else { continue };
            let span = Span { address: cave.cave.address, len: cave.new.len() };
            let mut text = match self.host().open_text(&[span]) {
                Ok(text) => text,
                Err(Error::NotCode { .. } | Error::Discardable { .. } | Error::Pageable { .. }) => continue,
                Err(other) => return Err(other),
            };
            match restore_caves(&mut text, core::iter::once(patch)) {
                Ok(()) | Err(Error::Changed { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }
}
