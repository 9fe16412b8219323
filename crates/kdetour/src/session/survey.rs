//! What a host's knowledge and its bytes say about a target.

use super::place::is_in_place;
use super::restored::Restored;
use crate::commit::Protocol;
use crate::host::{Host, View};
use crate::{Error, Kdetour};
use alloc::vec::Vec;
use kdetour_plan::{Code, Context, Options, Refusal, Survey};

/// The longest function whose branches are looked at.
const MAX_FUNCTION: usize = 1 << 20;
/// Bytes that are read of a function whose length is unknown.
const UNKNOWN_LENGTH: usize = 64;

/// How trampolines have to look for this host, in the shapes that the protocol can commit.
pub fn accepted<H: Host>(host: &H, protocol: Protocol) -> Options {
    let options = host.options(protocol);
    Options { shapes: options.shapes.and(protocol.shapes()), ..options }
}

/// Surveys the function at `target` as a host sees it. `body` is scratch space that a caller keeps for the next
/// one.
///
/// # Errors
/// What the host says about the target, or the survey's refusal.
pub fn survey(view: &impl View, target: u64, body: &mut Vec<u8>) -> Result<Survey, Error> {
    let function = view.function(target)?;
    let wanted = function.length.unwrap_or(UNKNOWN_LENGTH).clamp(UNKNOWN_LENGTH, MAX_FUNCTION);
    body.clear();
    let others = function.parts.iter().map(|part| part.len.min(MAX_FUNCTION)).sum();
    body.try_reserve(wanted)?;
    body.resize(wanted, 0);
    let mut elsewhere = Vec::new();
    elsewhere.try_reserve_exact(others)?;
    let readable = read_prefix(view, target, body)?;
    let bytes = body.get(..readable).unwrap_or(body);
    let mut code = Code::new(target, bytes);
    if let Some(length) = function.length {
        code = code.with_length(length);
    }
    for part in &function.parts {
        let start = elsewhere.len();
        elsewhere.resize(start + part.len.min(MAX_FUNCTION), 0);
        view.read(part.address, elsewhere.get_mut(start..).unwrap_or_default())?;
    }
    let mut parts = Vec::new();
    parts.try_reserve_exact(function.parts.len())?;
    let mut rest = elsewhere.as_slice();
    for part in &function.parts {
        let (bytes, next) = rest.split_at_checked(part.len.min(MAX_FUNCTION)).unwrap_or((rest, &[]));
        parts.push(Code::new(part.address, bytes));
        rest = next;
    }
    let context = Context {
        fentry: function.fentry,
        next_symbol: function.next_symbol,
        image: function.image,
        parts: &parts,
        branch_targets: &function.branch_targets,
        reserved: &function.reserved,
        ..Context::default()
    };
    Survey::of(&code, &context).map_err(|refusal| match refusal {
        Refusal::Truncated { address, have: 0 } => Error::Unreadable { address },
        other => other.into(),
    })
}

impl<H: Host> Kdetour<H> {
    /// Surveys the function at `target` as it would be without what is attached. `body` as in [`survey`].
    ///
    /// # Errors
    /// As for [`survey`]; [`Error::Changed`] if the target is detoured and somebody has written over that since.
    pub fn survey(&self, target: u64, body: &mut Vec<u8>) -> Result<Survey, Error> {
        let view = self.host.view()?;
        if let Some(site) = self.sites.of_target(target).filter(|site| site.live && site.method.writes()) {
            is_in_place(&view, &site.patch)?;
        }
        survey(&Restored { view: &view, sites: &self.sites }, target, body)
    }
}

/// Reads as much as can be read of `bytes`: all of it, or up to the first page that cannot.
pub(super) fn read_prefix(view: &impl View, target: u64, bytes: &mut [u8]) -> Result<usize, Error> {
    const PAGE: u64 = 4096;
    if view.read(target, bytes).is_ok() {
        return Ok(bytes.len());
    }
    let mut done = 0;
    while done < bytes.len() {
        let at = target.wrapping_add(done as u64);
        let len = usize::try_from(PAGE - at % PAGE).unwrap_or(1).min(bytes.len() - done);
        let part = bytes.get_mut(done..done + len).unwrap_or_default();
        match view.read(at, part) {
            Ok(()) => done += len,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}
