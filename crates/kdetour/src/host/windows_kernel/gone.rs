//! Detours of drivers that have gone.

use super::nt::{Nt, PASSIVE_LEVEL};
use super::{By, WindowsKernel};
use crate::host::{Host, View};
use crate::records::{Handle, State};
use crate::{Error, Kdetour, SessionError};
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
    /// [`Error::Changed`] if something else is there; whatever keeps it from being read but that no image, or no code, is there.
    #[inline(never)]
    pub fn forget_gone(&mut self, handle: Handle) -> Result<(), Error> {
        self.host().at(PASSIVE_LEVEL)?;
        let record = self.record(handle).filter(|record| record.state == State::Attached);
        let record = *record.ok_or(Error::NotAttached)?;
        let patch = record.patch.ok_or(Error::NotAttached)?;
        let mut found = [0; MAX_WINDOW];
        let (original, new) = (patch.window_bytes(), patch.new_bytes());
        let found = found.get_mut(..original.len()).unwrap_or_default();
        let is_there = match self.host().view()?.read(patch.address(), found) {
            Ok(()) => true,
            Err(Error::Unreadable { .. }) => false,
            Err(other) => return Err(other),
        };
        if is_there && found != original {
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

    /// Detaches those of these that are attached. Those whose driver has gone are [let go](Self::forget_gone), and the others detached.
    ///
    /// IRQL: `PASSIVE_LEVEL`.
    ///
    /// # Errors
    /// As of [`commit_parked`](crate::Session::commit_parked); the others are attached then, all of them.
    pub fn detach_or_forget(&mut self, handles: &[Handle], by: By) -> Result<(), SessionError> {
        loop {
            let attached = self.attached_of(handles).map_err(|error| SessionError { index: 0, error })?;
            if attached.is_empty() {
                return Ok(());
            }
            let session = attached.iter().fold(self.session(), |session, &one| session.detach(one));
            let Err(failed) = session.commit_parked(by, None, &mut |_, _| ()) else { return Ok(()) };
            // Looking at each target costs as much as a commit: so it is done when there is a reason only.
            let mut has_gone = false;
            for &one in attached.iter().filter(|_| may_be_gone(&failed.error)) {
                has_gone |= self.forget_gone(one).is_ok();
            }
            if !has_gone {
                return Err(failed);
            }
        }
    }

    #[inline(never)]
    fn attached_of(&self, handles: &[Handle]) -> Result<Vec<Handle>, Error> {
        let is_attached =
            |handle: &&Handle| self.record(**handle).is_some_and(|one| one.state == State::Attached);
        let mut attached = Vec::new();
        attached.try_reserve_exact(handles.len())?;
        attached.extend(handles.iter().filter(is_attached));
        Ok(attached)
    }

    /// Whether these are all detours that there are, none of them is attached, and none was attached again since it had its handle.
    pub fn are_all_detached(&self, handles: &[Handle]) -> bool {
        let drains = |&handle| self.record(handle).is_some_and(|one| one.state == State::Draining);
        self.len() == handles.len() && self.draining() == self.len() && handles.iter().all(drains)
    }
}

/// Whether a target that is not there any more can be the reason.
const fn may_be_gone(error: &Error) -> bool {
    use Error::{Changed, Discardable, NotCode, Pageable, Unreadable};
    matches!(
        error,
        NotCode { .. } | Unreadable { .. } | Changed { .. } | Discardable { .. } | Pageable { .. }
    )
}
