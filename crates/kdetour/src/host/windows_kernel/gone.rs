//! Detours of drivers that have gone.

use super::WindowsKernel;
use super::nt::{Nt, PASSIVE_LEVEL};
use crate::host::{Host, View};
use crate::records::{Handle, State};
use crate::{Error, Kdetour};
use alloc::vec::Vec;
use kdetour_plan::MAX_WINDOW;

impl<N: Nt> Kdetour<WindowsKernel<N>> {
    /// Treats all detours of a target as detached whose driver was unloaded, or has put the original bytes back itself: a session would refuse
    /// to detach them. They drain from now on.
    ///
    /// IRQL: `PASSIVE_LEVEL`.
    ///
    /// # Errors
    /// [`Error::Irql`]; [`Error::NotAttached`]; [`Error::AlreadyDetoured`] if the patch is still there, which a session detaches;
    /// [`Error::Changed`] if something else is there.
    pub fn forget_gone(&mut self, handle: Handle) -> Result<(), Error> {
        self.host().at(PASSIVE_LEVEL)?;
        let record = self.record(handle).filter(|record| record.state == State::Attached);
        let record = *record.ok_or(Error::NotAttached)?;
        let patch = record.patch.ok_or(Error::NotAttached)?;
        let mut found = [0; MAX_WINDOW];
        let (original, new) = (patch.window_bytes(), patch.new_bytes());
        let found = found.get_mut(..original.len()).unwrap_or_default();
        if self.host().view()?.read(patch.address(), found).is_ok() && found != original {
            let mut bytes = new.iter().zip(found.iter()).enumerate();
            return Err(match bytes.find(|(_, (expected, found))| expected != found) {
                None => Error::AlreadyDetoured { target: record.target },
                Some((at, (&expected, &found))) => {
                    Error::Changed { address: patch.address().wrapping_add(at as u64), expected, found }
                }
            });
        }
        let slot = record.slot.address;
        let site = self.sites.get(slot).ok_or(Error::NotAttached)?;
        let mut users: Vec<Handle> = Vec::new();
        users.try_reserve_exact(site.users.len())?;
        users.extend_from_slice(&site.users);
        users.into_iter().for_each(|user| self.set_state(user, State::Draining));
        self.sites.set_live(slot, false);
        self.announce(slot, &mut |_, _| ());
        Ok(())
    }
}
