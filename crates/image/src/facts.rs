//! What an image knows about one function.

use arrayvec::ArrayVec;
use kdetour_plan::{Code, Context, Region, Reserved};

/// More read-only ranges than this are not given to a survey: the largest count.
pub(crate) const MAX_REGIONS: usize = 8;

/// What an image knows about one function. It borrows from the image; only parts, which few functions have, are
/// collected. [`context`](Self::context) is what a survey takes.
#[derive(Clone, Debug)]
pub struct Facts<'i> {
    pub(crate) fentry: Option<u64>,
    pub(crate) next_symbol: Option<u64>,
    pub(crate) before: &'i [u8],
    pub(crate) dead: bool,
    pub(crate) image: Option<(u64, u64)>,
    pub(crate) parts: Vec<Code<'i>>,
    pub(crate) branch_targets: &'i [u64],
    pub(crate) reserved: &'i [Reserved],
    pub(crate) rewritten: &'i [Reserved],
    pub(crate) data: ArrayVec<Region<'i>, MAX_REGIONS>,
    pub(crate) got: Option<u64>,
}

impl Facts<'_> {
    /// The same for [`Survey::of`](kdetour_plan::Survey::of).
    pub fn context(&self) -> Context<'_> {
        Context {
            fentry: self.fentry,
            next_symbol: self.next_symbol,
            before: self.before,
            dead: self.dead,
            image: self.image,
            parts: &self.parts,
            branch_targets: self.branch_targets,
            reserved: self.reserved,
            rewritten: self.rewritten,
            data: &self.data,
            got: self.got,
        }
    }
}
