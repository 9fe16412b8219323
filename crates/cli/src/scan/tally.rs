//! What a scan counts.

use crate::question::Answer;
use kdetour_plan::Shape;
use std::collections::BTreeMap;

/// A function that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Its name.
    pub(crate) name: String,
    /// Its entry.
    pub(crate) entry: u64,
    /// The refusal in words.
    pub(crate) text: String,
}

/// How often a reason was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reason {
    /// How often.
    pub(crate) count: usize,
    /// Some functions, or all if that is asked for, in the order of their addresses.
    pub(crate) functions: Vec<Refused>,
    /// What can be done about the first.
    pub(crate) advice: &'static str,
}

/// The counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    shapes: [usize; Shape::ALL.len()],
    /// By the refusal's name.
    pub(crate) refused: BTreeMap<&'static str, Reason>,
}

/// So many functions are kept as examples of a reason.
const EXAMPLES: usize = 3;

impl Tally {
    /// Counts an answer. Of refused functions some are kept, or all.
    pub(crate) fn add(&mut self, name: &str, answer: &Answer, all: bool) {
        match &answer.plan {
            Ok(plan) => {
                let shape = plan.shape();
                for (count, known) in self.shapes.iter_mut().zip(Shape::ALL) {
                    *count += usize::from(known == shape);
                }
            }
            Err(refusal) => {
                let reason = self.refused.entry(refusal.name()).or_default();
                reason.count += 1;
                if reason.functions.is_empty() {
                    reason.advice = crate::advice::advice(refusal);
                }
                if all || reason.functions.len() < EXAMPLES {
                    let (name, text) = (name.to_owned(), refusal.to_string());
                    reason.functions.push(Refused { name, entry: answer.entry, text });
                }
            }
        }
    }

    /// Adds the counts of the functions that come next.
    pub(crate) fn append(&mut self, next: Self, all: bool) {
        for (count, more) in self.shapes.iter_mut().zip(next.shapes) {
            *count += more;
        }
        for (name, more) in next.refused {
            let reason = self.refused.entry(name).or_default();
            if reason.functions.is_empty() {
                reason.advice = more.advice;
            }
            reason.count += more.count;
            reason.functions.extend(more.functions);
            if !all {
                reason.functions.truncate(EXAMPLES);
            }
        }
    }

    /// How many functions are accepted in each shape, the best shape first.
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (Shape, usize)> {
        Shape::ALL.into_iter().zip(self.shapes)
    }

    /// Functions that are accepted, whatever the shape.
    pub(crate) fn accepted(&self) -> usize {
        self.shapes.iter().sum()
    }

    /// Functions that only a breakpoint can detour; they are among the accepted ones.
    pub(crate) fn by_breakpoint(&self) -> usize {
        self.shapes().filter(|(shape, _)| *shape == Shape::Breakpoint).map(|(_, count)| count).sum()
    }

    /// Functions that are refused.
    pub(crate) fn refused(&self) -> usize {
        self.refused.values().map(|reason| reason.count).sum()
    }

    /// All functions.
    pub(crate) fn functions(&self) -> usize {
        self.accepted() + self.refused()
    }
}
