//! A Windows kernel, from inside a driver: NT 5.2 (Windows Server 2003) and later, 64 and 32 bits.
//!
//! * what is asked of NT is a trait, [`Nt`], with the IRQL of each call (`nt`); [`Ntoskrnl`] is the real one, and tests have another one;
//! * text is written through a second mapping of its pages, by an MDL (`text`); nothing is writable and executable at any time;
//! * all other processors are parked meanwhile, by an interrupt or by a deferred procedure call each, or there are none (`parking`);
//! * what lies where is asked of NT, and of the images' headers and tables (`image`, `view`);
//! * slots lie in a section of the driver's own (`slots`);
//! * a driver that goes waits until its detours are empty (`drain`), then gives back the padding that it has used (`caves`).
//!
//! There is no grace period, no look at where threads were preempted, and no breakpoint that would be answered: so a commit is
//! [`commit_parked`](crate::Session::commit_parked), which refuses a jump over several instructions unless the caller accepts the risk.
//!
//! Every call may be made at `PASSIVE_LEVEL` only, and says so by [`Error::Irql`] before it does anything, but for what only notes or
//! tells something (`session`, `attach`, `detach`, `record`), which may be called up to `DISPATCH_LEVEL`: it takes nonpaged memory at the most.
//!
//! Refused by name, and never worked around: a kernel whose code the hypervisor protects ([`Error::CodeIntegrity`]) or whose threads have
//! shadow stacks ([`Error::ShadowStack`]); code that kernel patch protection guards ([`Error::PatchGuard`]), in session space
//! ([`Error::SessionSpace`]), that is thrown away ([`Error::Discardable`]) or paged out ([`Error::Pageable`]).

mod caves;
mod drain;
mod gone;
mod image;
pub mod nt;
mod ntoskrnl;
mod parking;
mod slots;
#[cfg(test)]
mod tests;
mod text;
mod view;

pub use nt::Nt;
pub use ntoskrnl::Ntoskrnl;
pub use slots::DriverSlots;
pub use text::DriverText;
pub use view::DriverView;

use super::{Host, Park, Span, View};
use crate::Error;
use crate::commit::Protocol;
use core::time::Duration;
use kdetour_plan::{Options, Shape, Shapes};
use nt::PASSIVE_LEVEL;
use parking::Parking;

/// How long processors are waited for, unless that was [set](WindowsKernel::set_patience): some time at `DISPATCH_LEVEL` is what NT grants
/// to every driver.
const PATIENCE: Duration = Duration::from_millis(100);

/// How the others are kept from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// An interrupt that NT sends to all of them (`KeIpiGenericCall`).
    Ipi,
    /// A deferred procedure call of high importance for each of them.
    Dpc,
    /// There are none: one processor is active, and its interrupts are off.
    Local,
}

/// The host for a driver. A driver needs one.
pub struct WindowsKernel<N: Nt> {
    nt: N,
    room: Span,
    patience: Duration,
    parking: Parking,
}

impl<N: Nt> core::fmt::Debug for WindowsKernel<N> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("WindowsKernel").field("room", &self.room).finish_non_exhaustive()
    }
}

impl<N: Nt> WindowsKernel<N> {
    /// The running kernel. `room` is the memory for slots: part of a section of the driver's own image that is executable, nonpageable and
    /// not discardable, in which nothing else is.
    ///
    /// IRQL: `PASSIVE_LEVEL`.
    ///
    /// # Errors
    /// [`Error::Irql`]; [`Error::CodeIntegrity`] or [`Error::ShadowStack`] where no code of the kernel can be patched; what the section
    /// of the room is refused for.
    pub fn new(nt: N, room: Span) -> Result<Self, Error> {
        let host = Self { nt, room, patience: PATIENCE, parking: Parking::new() };
        host.may_patch()?;
        host.view()?.code(room)?;
        Ok(host)
    }

    /// How long processors are waited for until a commit gives up; 100 milliseconds if nothing is said. Any IRQL.
    pub const fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Makes sure that the caller runs at this level at the most.
    fn at(&self, most: u8) -> Result<(), Error> {
        let now = self.nt.irql();
        if now > most { Err(Error::Irql { now, most }) } else { Ok(()) }
    }

    /// Makes sure that code of this kernel can be patched at all.
    fn may_patch(&self) -> Result<(), Error> {
        self.at(PASSIVE_LEVEL)?;
        if self.nt.has_code_integrity() {
            return Err(Error::CodeIntegrity);
        }
        if self.nt.has_shadow_stacks() { Err(Error::ShadowStack) } else { Ok(()) }
    }

    fn is_slot(&self, address: u64) -> bool {
        address.checked_sub(self.room.address).is_some_and(|offset| offset < self.room.len as u64)
    }
}

impl<N: Nt> Host for WindowsKernel<N> {
    type Text = DriverText<N>;
    type View<'a>
        = DriverView<'a, N>
    where
        N: 'a;
    type Slots = DriverSlots;

    /// IRQL: any; what is above `PASSIVE_LEVEL` is told.
    fn ready(&self) -> Result<(), Error> {
        self.may_patch()
    }

    /// IRQL: `PASSIVE_LEVEL`.
    fn view(&self) -> Result<DriverView<'_, N>, Error> {
        self.at(PASSIVE_LEVEL)?;
        DriverView::new(self)
    }

    /// IRQL: up to `DISPATCH_LEVEL`.
    fn slots(&self) -> DriverSlots {
        DriverSlots::new(self.room)
    }

    /// IRQL: `PASSIVE_LEVEL`.
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.view()?.read(address, bytes)
    }

    /// IRQL: `PASSIVE_LEVEL`.
    fn open_text(&self, spans: &[Span]) -> Result<DriverText<N>, Error> {
        // An image may have gone since it was patched: what is not there any more is not touched.
        let view = self.view()?;
        spans.iter().filter(|span| span.len > 0).try_for_each(|&span| view.writable(span))?;
        // SAFETY: that is what was made sure of: sections of loaded images that are neither paged nor thrown away.
        unsafe { DriverText::open(&self.nt, spans) }
    }

    /// This core: the others are parked meanwhile, and fetch anew before they go on, or the caller has said that there are none.
    ///
    /// IRQL: any.
    fn sync_cores(&self) {
        parking::fetch_anew();
    }

    /// A jump over several instructions is planned, and refused by the commit unless it was accepted.
    ///
    /// IRQL: any.
    fn options(&self, _: Protocol) -> Options {
        let wanted = [Shape::WholeInstruction, Shape::Jump5Kept, Shape::ShortJump, Shape::Jump5];
        let shapes = wanted.iter().fold(Shapes::NONE, |shapes, &shape| shapes.with(shape));
        Options { shapes, ..Options::default() }
    }
}

impl<N: Nt> Park for WindowsKernel<N> {
    type By = By;

    fn protocol(by: By) -> Protocol {
        match by {
            By::Ipi | By::Dpc => Protocol::Rendezvous,
            By::Local => Protocol::Local,
        }
    }

    /// IRQL: `PASSIVE_LEVEL`.
    fn park(&self, by: By, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error> {
        self.at(PASSIVE_LEVEL)?;
        match by {
            By::Ipi => self.parking.by_ipi(&self.nt, self.patience, work),
            By::Dpc => self.parking.by_dpc(&self.nt, self.patience, work),
            By::Local => self.parking.alone(&self.nt, work),
        }
    }
}
