//! The survey of an address inside a function.
//!
//! What is different from an entry: somebody has to know where the function begins and ends, instructions have to
//! begin where they are said to, and far more may jump there. So besides the function itself, before and behind the
//! address, two other places are looked through: all other code of the image, for jumps of a part of the function that
//! the compiler has put elsewhere; and the image's data, for the jump tables of a `switch`. Where a computed jump
//! cannot be followed for all that, only shapes are accepted that change no interior boundary.
//!
//! Exception landing pads are not looked for. One could only matter strictly inside the window, on a boundary that
//! changes; compilers put them behind a call, a jump or a trap, and no window has one of these in front of a changed
//! boundary: a jump or a trap ends the sequence, a call that returns into the window is refused.

use super::survey::{Surveyor, read_prefix};
use crate::Error;
use crate::host::{Around, Span, View};
use alloc::vec::Vec;
use kdetour_plan::{
    Code, Context, MAX_BRANCH, MAX_INSTRUCTION, MAX_WINDOW, Options, Refusal, Region, Shape, Survey,
    boundary, branches_beside,
};

/// The longest function inside of which an address is surveyed.
const MAX_FUNCTION: usize = 16 << 20;
/// Bytes that are read behind a function, for its padding.
const BEHIND: usize = 64;
/// So much code is looked through at once.
const PIECE: usize = 64 << 10;
/// The most data that is read for jump tables.
const MAX_DATA: usize = 256 << 20;

/// Surveys the instruction at `address`, inside a function, and says how it may be detoured. `view` shows the code as it would
/// be without detours.
///
/// # Errors
/// What the host says about the address, or the survey's refusal.
#[inline(never)]
pub(super) fn survey<'a>(
    view: &impl View,
    address: u64,
    options: Options,
    surveyor: &'a mut Surveyor,
) -> Result<(&'a Survey, Options), Error> {
    let Surveyor { body, found } = surveyor;
    let unknown = Error::NotFunction { address, entry: 0 };
    let around = view.around(address)?;
    let Around { entry, ref function, .. } = around;
    let length = function.length.filter(|&length| length <= MAX_FUNCTION).ok_or(unknown)?;
    let offset = usize::try_from(address.wrapping_sub(entry)).map_err(|_| unknown)?;
    if offset >= length {
        return Err(unknown);
    }
    body.clear();
    body.try_reserve(length + BEHIND)?;
    body.resize(length + BEHIND, 0);
    let readable = read_prefix(view, entry, body)?;
    let bytes = body.get(..readable).unwrap_or(body);
    if readable < length {
        return Err(Error::Unreadable { address: entry.wrapping_add(readable as u64) });
    }

    let mut branch_targets = Vec::new();
    let mut context = Context {
        image: function.image,
        got: function.got,
        next_symbol: function.next_symbol,
        ..Context::default()
    };
    boundary(&Code::in_mode(view.mode(), entry, bytes).with_length(length), &context, address)?;
    branch_targets.try_reserve(function.branch_targets.len())?;
    branch_targets.extend_from_slice(&function.branch_targets);
    jumps_from_outside(view, &around, length, address, &mut branch_targets)?;

    let (before, behind) = bytes.split_at_checked(offset).ok_or(unknown)?;
    let code = Code::in_mode(view.mode(), address, behind).with_length(length - offset);
    let parts = [Code::in_mode(view.mode(), entry, before)];
    context.parts = &parts;
    context.branch_targets = &branch_targets;
    context.reserved = &function.reserved;
    found.look_at(&code, &context)?;
    let data;
    let regions;
    if found.computed_jump().is_some() {
        data = read_data(view, &around.data)?;
        regions = data.iter().map(|(address, bytes)| Region { address: *address, bytes }).collect::<Vec<_>>();
        context.data = &regions;
        found.look_at(&code, &context)?;
    }
    found.enter_each_time();
    let survey = &*found;
    let options = Options { reentry: true, ..options };
    let Some(jump) = survey.computed_jump() else {
        return Ok((survey, options));
    };
    // It may lead to any instruction, so no boundary may change.
    let shapes = options.shapes.without(Shape::Jump5).without(Shape::Jump5Trapped).without(Shape::Jump14);
    let kept = Options { shapes, ..options };
    if survey.best(&kept).is_err() {
        survey.best(&options)?;
        return Err(Refusal::ComputedJump { address: jump }.into());
    }
    Ok((survey, kept))
}

/// Looks through all code of the image but the function itself for jumps strictly inside the longest window.
fn jumps_from_outside(
    view: &impl View,
    around: &Around,
    length: usize,
    address: u64,
    found: &mut Vec<u64>,
) -> Result<(), Error> {
    const OVERLAP: usize = MAX_BRANCH - 1;
    // Behind a landing pad the window begins later.
    let first = address.wrapping_add(1);
    let end = address.wrapping_add((MAX_WINDOW + MAX_INSTRUCTION) as u64);
    let mut piece = Vec::new();
    piece.try_reserve_exact(PIECE + OVERLAP)?;
    let mut seeming = Vec::new();
    let mut noted = Ok(());
    for text in &around.text {
        let text_end = text.address.wrapping_add(text.len as u64);
        let mut at = text.address;
        while at < text_end {
            let len = usize::try_from(text_end - at).unwrap_or(usize::MAX).min(PIECE + OVERLAP);
            piece.resize(len, 0);
            view.read(at, &mut piece)?;
            branches_beside(&piece, at, first, end, |from, into| {
                // The function's own instructions are known, and are looked at one by one.
                let is_own = from.wrapping_sub(around.entry) < length as u64;
                if !is_own && noted.is_ok() {
                    noted = seeming.try_reserve(1).map(|()| seeming.push((from, into)));
                }
            });
            at = at.wrapping_add(len.min(PIECE) as u64);
        }
    }
    noted?;
    for (from, into) in seeming {
        if !is_no_instruction(view, from)? {
            found.try_reserve(1)?;
            found.push(into);
        }
    }
    Ok(())
}

/// Whether no instruction begins at `from`: it is in a function whose beginning is known, and is inside another
/// instruction of it.
fn is_no_instruction(view: &impl View, from: u64) -> Result<bool, Error> {
    let Ok(Around { entry, function, .. }) = view.around(from) else { return Ok(false) };
    let Some(length) = function.length.filter(|&length| length <= MAX_FUNCTION) else { return Ok(false) };
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length)?;
    bytes.resize(length, 0);
    if view.read(entry, &mut bytes).is_err() {
        return Ok(false);
    }
    let code = Code::in_mode(view.mode(), entry, &bytes).with_length(length);
    Ok(matches!(boundary(&code, &Context::default(), from), Err(Refusal::NotBoundary { .. })))
}

/// The data that can be read.
fn read_data(view: &impl View, spans: &[Span]) -> Result<Vec<(u64, Vec<u8>)>, Error> {
    let mut data = Vec::new();
    data.try_reserve_exact(spans.len())?;
    let mut left = MAX_DATA;
    for span in spans.iter().filter(|span| span.len <= MAX_DATA) {
        let mut bytes = Vec::new();
        let Some(rest) = left.checked_sub(span.len) else { continue };
        bytes.try_reserve_exact(span.len)?;
        bytes.resize(span.len, 0);
        // What cannot be read holds no jump table either.
        if view.read(span.address, &mut bytes).is_ok() {
            left = rest;
            data.push((span.address, bytes));
        }
    }
    Ok(data)
}
