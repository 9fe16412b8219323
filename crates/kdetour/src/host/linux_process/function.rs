//! What the symbols say about a function, and where they do not, its unwind information.

use super::maps::Mapping;
use super::symbols::Symbols;
use super::unwind;
use crate::Error;
use crate::host::{Function, Span};
use arrayvec::ArrayVec;
use kdetour_plan::{MAX_INSTRUCTION, MAX_WINDOW};

/// Symbols so near behind the entry may lie inside the window, which begins behind a landing pad.
const NEAR: u64 = (MAX_INSTRUCTION + MAX_WINDOW) as u64;

/// The bounds of the function at `target`, which is in `mapping`.
///
/// # Errors
/// [`Error::NotFunction`] if it is inside a function, and no function begins there.
pub(super) fn describe(symbols: &Symbols, mapping: &Mapping, target: u64) -> Result<Function, Error> {
    let Some(bias) = symbols.bias(mapping) else {
        return Ok(Function::default());
    };
    let local = target.wrapping_sub(bias);
    let length = match symbols.function_at(local) {
        Some(size) => size,
        None => match symbols.function_around(local) {
            Some(entry) => {
                return Err(Error::NotFunction { address: target, entry: entry.wrapping_add(bias) });
            }
            None => 0,
        },
    };
    let mut function = Function {
        length: usize::try_from(length).ok().filter(|&length| length > 0),
        // A file that was stripped names some functions only: what follows this one need not be named.
        next_symbol: symbols.next(local.wrapping_add(length.max(1))).filter(|_| symbols.are_complete()),
        ..Function::default()
    };
    function.next_symbol = function.next_symbol.map(|next| next.wrapping_add(bias));
    function.branch_targets = labels_behind(symbols, mapping, target);
    for (address, size) in symbols.parts(local) {
        function.parts.try_reserve(1)?;
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        function.parts.push(Span { address: address.wrapping_add(bias), len });
    }
    Ok(function)
}

/// The bounds of a function of whose length nobody else tells, as the unwind information has them: a file that was stripped
/// still has that.
///
/// # Errors
/// [`Error::NotFunction`] if it says that the address is inside a function, and no symbol says that one begins there.
pub(super) fn unwound(
    function: Function,
    symbols: Option<&Symbols>,
    mapping: &Mapping,
    target: u64,
) -> Result<Function, Error> {
    if function.length.is_some() {
        return Ok(function);
    }
    let local = symbols.and_then(|symbols| Some((symbols, target.wrapping_sub(symbols.bias(mapping)?))));
    if local.is_some_and(|(symbols, local)| symbols.is_stub(local)) {
        return Ok(function);
    }
    match unwind::bounds(target) {
        Some(bounds) if bounds.start == target => {
            let length = usize::try_from(bounds.end.saturating_sub(target)).ok();
            Ok(Function { length, ..function })
        }
        Some(bounds) if local.is_none_or(|(symbols, local)| symbols.function_at(local).is_none()) => {
            Err(Error::NotFunction { address: target, entry: bounds.start })
        }
        _ => Ok(function),
    }
}

/// What has a name near behind an address.
pub(super) fn labels_behind(symbols: &Symbols, mapping: &Mapping, address: u64) -> ArrayVec<u64, 8> {
    let mut labels = ArrayVec::new();
    let Some(bias) = symbols.bias(mapping) else { return labels };
    let local = address.wrapping_sub(bias);
    for label in symbols.labels(local.wrapping_add(1), local.wrapping_add(NEAR)) {
        // The first one that lies in the window is enough to refuse.
        let _ = labels.try_push(label.wrapping_add(bias));
    }
    labels
}
