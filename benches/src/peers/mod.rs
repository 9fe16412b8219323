//! Libraries over the same functions of the same copy of a file.
//!
//! Each works in a process of its own (`child`), since some of them panic or crash; a new process goes on behind the
//! function at which it happened (`compare`).

pub(crate) mod child;
pub(crate) mod compare;
mod ilhook;
mod kdetour;
mod record;
mod retour;

use crate::mapped::Mapped;
use crate::subject::{Target, Targets};
use record::Built;

/// One function.
pub(crate) struct Site<'t> {
    pub(crate) targets: &'t Targets<'t>,
    pub(crate) target: &'t Target<'t>,
}

/// Why a function was refused, in the library's words.
pub(crate) struct Failure(pub(crate) String);

/// A library that builds trampolines.
pub(crate) trait Peer {
    /// A detour that stays.
    type Kept;

    /// Builds a trampoline, and tells everything about it.
    fn examine(&mut self, site: &Site<'_>, mapped: &mut Mapped) -> Result<Built, Failure>;

    /// Builds a trampoline and forgets it: what is measured.
    fn build(&mut self, site: &Site<'_>, mapped: &mut Mapped) -> Result<(), Failure>;

    /// Builds a trampoline and keeps it; none if it cannot.
    fn keep(&mut self, site: &Site<'_>, mapped: &mut Mapped) -> Option<Result<Self::Kept, Failure>>;

    /// Executable memory that kept trampolines take, in bytes; 0 if that cannot be told.
    fn executable_in_use(&self) -> u64 {
        0
    }

    /// Lets go of what was built.
    fn forget(&mut self) {}

    /// Whether it can go on after a panic.
    fn survives_a_panic(&self) -> bool {
        true
    }

    /// Whether the speed of keeping is that of building.
    fn keeping_says_speed(&self) -> bool {
        true
    }
}

/// A library's name on the command line and in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Name {
    /// kdetour, with slots near the library, as the others have them.
    Kdetour,
    /// kdetour, with slots wherever a shape wants them.
    KdetourAnywhere,
    /// kdetour, shown no more than what the others look at: what looking through the whole function costs.
    KdetourWindow,
    /// The crate `retour`.
    Retour,
    /// The crate `ilhook`.
    Ilhook,
}

impl Name {
    pub(crate) const ALL: [Self; 5] =
        [Self::Kdetour, Self::KdetourAnywhere, Self::KdetourWindow, Self::Retour, Self::Ilhook];

    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Kdetour => "kdetour",
            Self::KdetourAnywhere => "kdetour-anywhere",
            Self::KdetourWindow => "kdetour-window",
            Self::Retour => "retour",
            Self::Ilhook => "ilhook",
        }
    }
}

/// The detour of every function: it is never reached.
extern "C" fn detour() {}

fn nowhere() -> u64 {
    detour as *const () as u64
}

/// Bytes of this process that are both writable and executable.
fn writable_code() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let sizes = maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (first, end) = range.split_once('-')?;
        let size = u64::from_str_radix(end, 16).ok()? - u64::from_str_radix(first, 16).ok()?;
        rest.starts_with("rwx").then_some(size)
    });
    sizes.sum()
}
