//! Five bytes of proven padding within reach of a short jump at the window: in front of the function, or behind it.

use super::landings::Function;
use super::padding;
use crate::arch::x86::scan::{self, Found};
use crate::arch::x86::sieve::Sieve;
use crate::arch::x86::tables::Tables;
use crate::code::{Code, Context, Reserved};
use crate::patch::{Cave, MAX_WINDOW};
use arrayvec::ArrayVec;

/// How far back a short jump goes from its end.
const BACK: u64 = 128;
/// How far forth a short jump goes from its start.
const FORTH: usize = 127 + 2;

/// The first cave that nobody owns and nobody branches to.
#[inline(never)]
pub(super) fn find(function: &Function<'_>, context: &Context<'_>) -> Option<Cave> {
    let free = |cave: &Cave| !is_owned(function, context, cave) && !is_reached(function, context, cave);
    before(function, context).filter(free).or_else(|| behind(function, context).filter(free))
}

fn before(function: &Function<'_>, context: &Context<'_>) -> Option<Cave> {
    let expected = context.before.last_chunk::<5>()?;
    let address = function.entry.checked_sub(5)?;
    let reached = function.window.wrapping_add(2).wrapping_sub(address) <= BACK;
    let proven = reached && padding::before(context.before, function.mode, function.entry, context.dead);
    proven.then_some(Cave { address, expected: *expected })
}

/// Behind the function nothing says that its last instruction does not run on; it would run into `int3`.
fn behind(function: &Function<'_>, context: &Context<'_>) -> Option<Cave> {
    let length = function.length.filter(|length| (MAX_WINDOW..=FORTH).contains(length))?;
    let next = usize::try_from(context.next_symbol?.checked_sub(function.window)?).ok()?;
    let gap = function.bytes.get(length..next)?;
    let expected = gap.first_chunk::<5>()?;
    let address = function.window.checked_add(length as u64)?;
    gap.iter().all(|&byte| byte == 0xcc).then_some(Cave { address, expected: *expected })
}

fn is_owned(function: &Function<'_>, context: &Context<'_>, cave: &Cave) -> bool {
    let end = cave.address.saturating_add(5);
    let overlaps = |reserved: &Reserved| {
        reserved.address < end && reserved.address.saturating_add(u64::from(reserved.len)) > cave.address
    };
    let landed = |target: &u64| function.mode.wrap(target.wrapping_sub(cave.address)) < 5;
    context.reserved.iter().any(overlaps) || context.branch_targets.iter().any(landed)
}

/// Whether the function itself branches to the cave.
fn is_reached(function: &Function<'_>, context: &Context<'_>, cave: &Cave) -> bool {
    let mode = function.mode;
    let sieve = Sieve { start: cave.address, len: 5, starts: 0, mode };
    let nothing = Context::default();
    let mut tables =
        Tables { mode, context: &nothing, function: (0, 0), read: 0, found: 0, places: ArrayVec::new() };
    let end = function.length.unwrap_or(function.bytes.len()).min(function.bytes.len());
    let own = Code::in_mode(mode, function.window, function.bytes.get(..end).unwrap_or(function.bytes));
    let mut reached = false;
    for part in context.parts.iter().chain([&own]) {
        scan::branches(part.bytes(), part.address(), sieve, &mut tables, |found| {
            reached |= matches!(found, Found::Branch { .. });
        });
    }
    reached
}
