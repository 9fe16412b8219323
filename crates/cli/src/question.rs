//! One question, one answer: how can this code be detoured?

use crate::model::Model;
use kdetour_plan::{Code, Context, Hazard, MAX_SLOT, Options, Plan, Refusal, Slot, Survey};

/// The choices that go with a question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    /// The memory around the target.
    pub(crate) model: &'a Model,
    /// The slot that the plan has to use; the model's, if none is given.
    pub(crate) slot: Option<u64>,
    /// The detour; the model's, if none is given.
    pub(crate) detour: Option<u64>,
    /// What the plan may do.
    pub(crate) options: Options,
}

/// What was found, and the plan or why there is none.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The function's entry.
    pub(crate) entry: u64,
    /// Where the detour is.
    pub(crate) detour: u64,
    /// What was found; none if not even the first instruction can be displaced.
    pub(crate) survey: Option<Survey>,
    /// The plan, or the refusal.
    pub(crate) plan: Result<Plan, Refusal>,
    /// What a caller wants to know: of the plan, or of the best that is offered where only a slot is missing.
    pub(crate) hazards: Vec<Hazard>,
}

impl Question<'_> {
    /// Surveys and plans.
    pub(crate) fn ask(&self, code: &Code<'_>, context: &Context<'_>) -> Answer {
        let entry = code.address();
        let detour = code.mode().wrap(self.detour.unwrap_or(self.model.detour()));
        let survey = match Survey::of(code, context) {
            Ok(survey) => survey,
            Err(refusal) => {
                return Answer { entry, detour, survey: None, plan: Err(refusal), hazards: Vec::new() };
            }
        };
        let plan = match self.slot {
            Some(address) => {
                let slot = Slot { address: code.mode().wrap(address), capacity: MAX_SLOT };
                Plan::with_options(&survey, slot, detour, self.options)
            }
            None => Plan::best(&survey, &mut &*self.model, detour, self.options),
        };
        let offer = match &plan {
            Ok(plan) => survey.offer(plan.shape(), &self.options),
            Err(_) => survey.best(&self.options),
        };
        let hazards = offer.map_or_else(|_| Vec::new(), |offer| survey.hazards(&offer).collect());
        Answer { entry, detour, survey: Some(survey), plan, hazards }
    }
}

impl Answer {
    /// The address that a refusal is about.
    pub(crate) fn refused_at(&self, refusal: &Refusal) -> u64 {
        match refusal {
            // It names none.
            Refusal::SlotTooSmall { .. } => self.survey.as_ref().map_or(self.entry, Survey::window),
            _ => refusal.address(),
        }
    }
}
