//! kdetour itself, over the same functions.

use super::record::Built;
use super::{Failure, Peer, Site, nowhere};
use crate::mapped::Mapped;
use crate::model::Model;
use kdetour_plan::{Allocator, Code, Context, Options, Plan, Reach, Slot, Survey};

/// Slots one behind the other in memory near the library; their bytes are written there.
pub(crate) struct Near {
    arena: Arena,
    window_only: bool,
}

/// What the others read of a function, at most.
const SEEN_BY_OTHERS: usize = 30;

struct Arena {
    first: u64,
    next: u64,
    end: u64,
}

impl Near {
    /// With `window_only` it is shown no more of a function than the others look at, and nothing else that the file
    /// knows: it can then prove nothing about branches.
    pub(crate) fn new(mapped: &Mapped, window_only: bool) -> Self {
        let first = mapped.arena();
        Self { arena: Arena { first, next: first, end: mapped.arena_end() }, window_only }
    }

    fn plan(&mut self, site: &Site<'_>) -> Result<Plan, Failure> {
        let code = &site.target.code;
        let survey = if self.window_only {
            let seen = code.bytes().get(..SEEN_BY_OTHERS).unwrap_or(code.bytes());
            Survey::of(&Code::in_mode(code.mode(), code.address(), seen), &Context::default())
        } else {
            Survey::of(code, &site.targets.context(site.target))
        };
        let plan =
            survey.and_then(|survey| Plan::best(&survey, &mut self.arena, nowhere(), Options::default()));
        let plan = plan.map_err(|refusal| Failure(refusal.name().to_owned()))?;
        // What of the slot is not needed is given back.
        self.arena.next = plan.slot() + (plan.slot_bytes().len() as u64).next_multiple_of(16);
        Ok(plan)
    }
}

impl Allocator for Arena {
    fn near(&mut self, reach: Reach, len: usize) -> Option<Slot> {
        let fits = reach.contains(self.next) && self.next + len as u64 <= self.end;
        fits.then_some(Slot { address: self.next, capacity: len })
    }
}

impl Peer for Near {
    type Kept = ();

    fn examine(&mut self, site: &Site<'_>, mapped: &mut Mapped) -> Result<Built, Failure> {
        let plan = self.plan(site)?;
        mapped.put(plan.slot(), plan.slot_bytes());
        Ok(Built::from_plan(&plan))
    }

    fn build(&mut self, site: &Site<'_>, mapped: &mut Mapped) -> Result<(), Failure> {
        if self.arena.end - self.arena.next < 4096 {
            self.arena.next = self.arena.first;
        }
        let plan = self.plan(site)?;
        mapped.put(plan.slot(), plan.slot_bytes());
        Ok(())
    }

    fn keep(&mut self, site: &Site<'_>, mapped: &mut Mapped) -> Option<Result<Self::Kept, Failure>> {
        Some(self.build(site, mapped))
    }

    fn executable_in_use(&self) -> u64 {
        self.arena.next - self.arena.first
    }

    fn forget(&mut self) {
        self.arena.next = self.arena.first;
    }
}

/// Slots wherever a shape wants them, as a process can map them; no bytes are written.
pub(crate) struct Anywhere {
    model: Model,
}

impl Anywhere {
    pub(crate) fn new(first: u64, end: u64) -> Self {
        Self { model: Model::Process { bits: 64, first, end } }
    }

    fn plan(&mut self, site: &Site<'_>) -> Result<Plan, Failure> {
        let options = self.model.options();
        Survey::of(&site.target.code, &site.targets.context(site.target))
            .and_then(|survey| Plan::best(&survey, &mut self.model, nowhere(), options))
            .map_err(|refusal| Failure(refusal.name().to_owned()))
    }
}

impl Peer for Anywhere {
    type Kept = ();

    fn examine(&mut self, site: &Site<'_>, _mapped: &mut Mapped) -> Result<Built, Failure> {
        Ok(Built::from_plan(&self.plan(site)?))
    }

    fn build(&mut self, site: &Site<'_>, _mapped: &mut Mapped) -> Result<(), Failure> {
        std::hint::black_box(self.plan(site)?);
        Ok(())
    }

    fn keep(&mut self, _site: &Site<'_>, _mapped: &mut Mapped) -> Option<Result<Self::Kept, Failure>> {
        None
    }
}
