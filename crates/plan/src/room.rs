//! Room for a plan, kept by who plans where there is little stack.

use crate::place::Allocator;
use crate::plan::{Options, Plan, reaches_further};
use crate::refusal::Refusal;
use crate::survey::Survey;

/// Room for one plan after the other, for who has little stack: a plan takes hundreds of bytes, and is made in place.
#[derive(Debug)]
pub struct PlanRoom {
    pub(crate) plan: Plan,
    is_made: bool,
}

impl PlanRoom {
    /// Nothing is planned.
    pub const fn new() -> Self {
        Self { plan: Plan::none(), is_made: false }
    }

    /// What was planned last; none if that was refused.
    pub fn last(&self) -> Option<&Plan> {
        self.is_made.then_some(&self.plan)
    }

    /// As [`Plan::best`], in this room.
    ///
    /// # Errors
    /// As [`Plan::best`].
    pub fn best(
        &mut self,
        survey: &Survey,
        allocator: &mut impl Allocator,
        detour: u64,
        options: Options,
    ) -> Result<&Plan, Refusal> {
        self.is_made = false;
        let mut refused = None;
        for offer in survey.offers(&options) {
            let slot = if offer.shape.begins_with_relay() {
                offer.relays(&options).find_map(|relays| allocator.at(relays, offer.reach(), offer.need()))
            } else {
                allocator.near(offer.reach(), offer.need())
            };
            let Some(slot) = slot else { continue };
            match self.plan.make(survey, &offer, slot, detour, options) {
                Err(refusal) if reaches_further(refusal, offer.shape) => {
                    refused = refused.or(Some(refusal));
                }
                Err(refusal) => return Err(refusal),
                Ok(()) => {
                    self.is_made = true;
                    return Ok(&self.plan);
                }
            }
        }
        Err(match survey.best(&options) {
            Ok(_) => refused.unwrap_or(Refusal::NoSlot { address: survey.window() }),
            Err(refusal) => refusal,
        })
    }
}

impl Default for PlanRoom {
    fn default() -> Self {
        Self::new()
    }
}
