//! Whether a function jumps into the bytes that a patch overwrites: read by a linear decode of its own, and asked of
//! kdetour's survey.

use crate::subject::{Target, Targets};
use iced_x86::{Decoder, DecoderOptions, OpKind};
use kdetour_plan::{Options, Refusal, Shape, Shapes, Survey};
use std::fmt;

/// Whether an instruction of the function behind the `displaced` bytes jumps into the `len` overwritten ones, behind
/// the first.
pub(crate) fn by_decoding(target: &Target<'_>, len: usize, displaced: usize) -> bool {
    let code = &target.code;
    let Some(length) = code.length() else { return false };
    let bytes = code.bytes().get(..length).unwrap_or(code.bytes());
    let entry = code.address();
    let inside = entry + 1..entry + len as u64;
    let decoder = Decoder::with_ip(code.mode().bits(), bytes, entry, DecoderOptions::NONE);
    decoder.into_iter().any(|instruction| {
        let is_branch = matches!(instruction.op0_kind(), OpKind::NearBranch32 | OpKind::NearBranch64);
        let behind = instruction.ip() >= entry + displaced as u64;
        is_branch && behind && inside.contains(&instruction.near_branch_target())
    })
}

/// What the survey says about a jump of that length there.
pub(crate) enum Says {
    /// Nothing forbids it.
    Nothing,
    /// Something branches into it.
    BranchIntoWindow(Refusal),
    /// Something else forbids it.
    Other(Refusal),
    /// Behind the landing pad it is another window.
    AnotherWindow,
}

/// Asks for it.
pub(crate) fn by_survey(targets: &Targets<'_>, target: &Target<'_>, len: usize) -> Says {
    let shape = match len {
        0..=2 => return Says::Nothing,
        3..=5 => Shape::Jump5,
        _ => Shape::Jump14,
    };
    let options = Options { shapes: Shapes::only(shape), reentry: true, ..Options::default() };
    let refusal = match Survey::of(&target.code, &targets.context(target)) {
        Ok(survey) if survey.window() != survey.entry() => return Says::AnotherWindow,
        Ok(survey) => survey.offer(shape, &options).err(),
        Err(refusal) => Some(refusal),
    };
    match refusal {
        None => Says::Nothing,
        Some(refusal @ Refusal::BranchIntoWindow { .. }) => Says::BranchIntoWindow(refusal),
        Some(refusal) => Says::Other(refusal),
    }
}

impl fmt::Display for Says {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::BranchIntoWindow(refusal) | Self::Other(refusal) => write!(f, "{refusal}"),
            Self::AnotherWindow => f.write_str("another window, behind the landing pad"),
        }
    }
}
