//! How a session ends: its commit has succeeded, or everything is taken back.

use super::{Preparation, Undo};
use crate::host::Host;
use crate::kdetour::Kdetour;
use crate::records::{Handle, State};
use crate::session::Announce;
use alloc::vec::Vec;
use hashbrown::HashMap;

impl Preparation {
    /// The commit has succeeded: the sites are as planned.
    #[inline(never)]
    pub(in crate::session) fn finish<H: Host>(mut self, kdetour: &mut Kdetour<H>) -> Vec<Handle> {
        kdetour.surveyor.release();
        for touched in &self.touched {
            if let Some(site) = kdetour.sites.get_mut(touched.slot) {
                // It is attached by a session now.
                site.planned = false;
            }
            match touched.after {
                Some(_) if !touched.leads_elsewhere => {}
                Some(detour) => {
                    // It could be led there when the changes were found.
                    if let Some(site) = kdetour.sites.get_mut(touched.slot)
                        && let Ok(patch) = site.patch.leading_to(detour)
                    {
                        site.patch = patch;
                    }
                }
                None => kdetour.sites.set_live(touched.slot, false),
            }
        }
        let mut renewed = HashMap::new();
        let mixed = self.undo.iter().any(|undo| matches!(undo, Undo::Detached { .. }));
        for undo in &self.undo {
            let again = match *undo {
                Undo::Again { slot, handle, request, .. } => {
                    Some((handle, kdetour.renew(slot, handle), request))
                }
                Undo::AgainAtPointer { place, handle, request, .. } => {
                    Some((handle, kdetour.renew_pointer(place, handle), request))
                }
                _ => None,
            };
            if let Some((handle, new, request)) = again {
                if let Some(one) = self.handles.get_mut(request) {
                    *one = new;
                }
                // It may be named more than once.
                if mixed && new != handle && renewed.try_reserve(1).is_ok() {
                    renewed.insert(handle, new);
                }
            }
        }
        for handle in self.handles.iter_mut().filter(|_| !renewed.is_empty()) {
            *handle = renewed.get(handle).copied().unwrap_or(*handle);
        }
        self.handles
    }

    /// Leaves the records as they were before the session. A slot that a thread may already have been sent to is
    /// kept, with a record that drains: these are answered, in the order of their requests.
    #[inline(never)]
    pub(in crate::session) fn take_back<H: Host>(
        mut self,
        kdetour: &mut Kdetour<H>,
        announce: Announce<'_>,
        written: bool,
    ) -> Vec<Handle> {
        kdetour.surveyor.release();
        // There is room: each of them is a request's.
        let mut left = core::mem::take(&mut self.handles);
        left.clear();
        for undo in self.undo.iter().rev() {
            match *undo {
                Undo::Added { handle, .. } | Undo::AddedToPointer { handle, .. } if written => {
                    kdetour.set_state(handle, State::Draining);
                    left.push(handle);
                }
                Undo::Added { slot, handle } => kdetour.forget_user(slot, handle),
                Undo::AddedToPointer { place, handle } => kdetour.forget_pointer(place, handle),
                Undo::Detached { handle } => kdetour.set_state(handle, State::Attached),
                // What is planned keeps its original there, until it is given up.
                Undo::Held { .. } if written && self.alone => {}
                Undo::Held { handle, before } => kdetour.records.give_cell_back(handle, before),
                Undo::Again { slot, handle, position, .. } => {
                    kdetour.set_state(handle, State::Draining);
                    if let Some(tail) =
                        kdetour.sites.get_mut(slot).and_then(|site| site.users.get_mut(position..))
                    {
                        tail.rotate_right(1);
                    }
                }
                Undo::AgainAtPointer { place, handle, position, .. } => {
                    kdetour.set_state(handle, State::Draining);
                    if let Some(tail) =
                        kdetour.pointers.get_mut(place).and_then(|one| one.users.get_mut(position..))
                    {
                        tail.rotate_right(1);
                    }
                }
            }
        }
        for touched in &self.touched {
            kdetour.sites.set_live(touched.slot, touched.was_live);
            if let Some(site) = kdetour.sites.get_mut(touched.slot) {
                site.planned |= written && self.alone;
            }
        }
        // Whoever was attached before goes on with the original that it had.
        if self.announced {
            self.announce(kdetour, announce);
        }
        left.reverse();
        left
    }
}
