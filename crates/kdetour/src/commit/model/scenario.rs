//! What happens to one site: a life in which commits follow each other.

use super::super::simulated::{Event, Faults, Machine};
use super::super::sites::Site;
use super::super::{Change, CommitError, Protocol, restore_caves};
use super::{ORIGINAL, Step, World};
use kdetour_plan::Shape;
use std::collections::BTreeMap;
use std::string::String;
use std::vec::Vec;

/// What a commit is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Act {
    Attach,
    Detach,
    /// The patch leads to this detour.
    Retarget(u64),
}

/// A site and everything that has happened to it.
pub(super) struct Life {
    pub(super) protocol: Protocol,
    pub(super) steps: Vec<Step>,
    machine: Machine,
    site: Site,
    /// The site with each patch that it had.
    patches: Vec<Site>,
    attached: bool,
}

impl Life {
    pub(super) fn new(site: &Site, protocol: Protocol) -> Self {
        Self {
            protocol,
            steps: Vec::new(),
            machine: Machine::new(&site.memory),
            site: site.clone(),
            patches: [site.clone()].to_vec(),
            attached: false,
        }
    }

    /// What breakpoints are answered, as the records of a session are.
    fn answers(site: &Site, attached: bool) -> BTreeMap<u64, u64> {
        let patch = &site.patch;
        let resume = if attached { patch.detour() } else { patch.trampoline() };
        let mut answers = BTreeMap::from([(patch.address(), resume)]);
        // Its jump is only there to be met while it is attached, or on the way to it.
        answers.entry(patch.lead().address).or_insert(patch.detour());
        if patch.shape() == Shape::Jump5Trapped {
            let interior = patch.boundaries().skip(1);
            answers.extend(interior.map(|one| (patch.address() + u64::from(one.offset), one.address)));
        }
        answers
    }

    /// The change, and what the site and its state are after it; none if the patch cannot lead there.
    fn change(&self, act: Act) -> Option<(Change, Site, bool)> {
        Some(match act {
            Act::Attach => (self.site.attach(), self.site.clone(), true),
            Act::Detach => (self.site.detach(), self.site.clone(), false),
            Act::Retarget(detour) => {
                let other = self.site.leading_to(detour)?;
                (Change::retarget(self.site.patch, other.patch), other, self.attached)
            }
        })
    }

    /// Commits; returns the position of the first step and of the one behind the last that the commit did. None if the
    /// patch cannot lead there.
    pub(super) fn commit(&mut self, act: Act) -> Option<(usize, usize)> {
        let (change, site, attached) = self.change(act)?;
        self.steps.push(Step::Answer(Self::answers(&site, attached)));
        let start = self.steps.len();
        let (events, outcome) = self.machine.commit(self.protocol, &[change]);
        outcome.unwrap();
        self.steps.extend(events.into_iter().map(Step::Did));
        let end = self.steps.len();
        self.patches.push(site.clone());
        (self.site, self.attached) = (site, attached);
        self.steps.push(self.expectation());
        Some((start, end))
    }

    /// Commits while something goes wrong; none if nothing did. The records then are as they were.
    pub(super) fn fail(&mut self, act: Act, faults: Faults) -> Option<CommitError> {
        let (change, site, attached) = self.change(act)?;
        self.steps.push(Step::Answer(Self::answers(&site, attached)));
        self.machine.fail(faults);
        let (events, outcome) = self.machine.commit(self.protocol, &[change]);
        self.machine.fail(Faults::default());
        self.steps.extend(events.into_iter().map(Step::Did));
        self.patches.push(site);
        self.steps.push(Step::Answer(Self::answers(&self.site, self.attached)));
        outcome.err()
    }

    /// Where a call gets now.
    pub(super) fn expectation(&self) -> Step {
        Step::Expect(if self.attached { self.site.patch.detour() } else { ORIGINAL })
    }

    /// A detour to which the patch does not lead any more is freed.
    pub(super) fn free_detour(&mut self, detour: u64) {
        self.steps.extend([Step::Drain, Step::FreeDetour(detour)]);
    }

    /// Everything is freed, and the cave given back. Where that begins.
    pub(super) fn reclaim(&mut self) -> usize {
        let start = self.steps.len();
        self.steps.push(Step::Drain);
        self.machine.take_log();
        let patches = [self.site.patch];
        restore_caves(&mut self.machine.text(), patches.iter()).unwrap();
        self.steps.extend(self.machine.take_log().into_iter().map(Step::Did));
        self.steps.push(Step::FreeSlot);
        self.steps.push(Step::FreeDetour(self.site.patch.detour()));
        self.steps.push(Step::Expect(ORIGINAL));
        start
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(super) fn site(&self) -> &Site {
        &self.site
    }

    pub(super) fn explore(&self) -> Result<(), String> {
        self.explore_other(&self.steps)
    }

    /// The same world, but other steps.
    pub(super) fn explore_other(&self, steps: &[Step]) -> Result<(), String> {
        World::new(&self.patches[0], &self.patches).explore(steps)
    }
}

/// What a write of a commit is for.
pub(super) fn role(event: &Event, site: &Site) -> Option<&'static str> {
    let Event::Write { address, bytes } = event else { return None };
    let patch = &site.patch;
    let lead = patch.lead().address;
    let offset = address.wrapping_sub(patch.address());
    let boundary = |offset: u64| patch.boundaries().skip(1).any(|one| u64::from(one.offset) == offset);
    Some(if patch.cave().is_some_and(|cave| cave.cave.address == *address) && bytes.len() == 5 {
        "the cave"
    } else if *address == patch.address() || *address == lead {
        if *bytes == [0xcc] && patch.shape() != Shape::Breakpoint { "the INT3" } else { "the first byte" }
    } else if patch.shape() == Shape::Jump5Trapped && boundary(offset) {
        "a boundary"
    } else {
        "the others"
    })
}
