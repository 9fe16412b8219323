//! What a host's knowledge and its bytes say about a target.

use super::place::is_in_place;
use super::restored::Restored;
use crate::commit::Protocol;
use crate::host::{Function, Host, View};
use crate::{Error, Kdetour};
use alloc::vec::Vec;
use kdetour_plan::{Code, Context, Mode, Options, Refusal, Survey};

/// The longest function whose branches are looked at.
const MAX_FUNCTION: usize = 1 << 20;
/// Bytes that are read of a function whose length is unknown.
const UNKNOWN_LENGTH: usize = 64;

/// How trampolines have to look for this host, in the shapes that the protocol can commit.
pub fn accepted<H: Host>(host: &H, protocol: Protocol) -> Options {
    let options = host.options(protocol);
    Options { shapes: options.shapes.and(protocol.shapes()), ..options }
}

/// What surveys need room for, one after the other: more than a kernel's stack has to spare.
#[derive(Debug)]
pub struct Surveyor {
    /// The function's bytes.
    pub(super) body: Vec<u8>,
    /// What was found last.
    pub(super) found: Survey,
}

impl Surveyor {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { body: Vec::new(), found: Survey::none() }
    }

    /// Gives back the memory of the bytes, which may be those of a very long function.
    pub(super) fn release(&mut self) {
        self.body = Vec::new();
    }
}

impl Default for Surveyor {
    fn default() -> Self {
        Self::new()
    }
}

/// What is known of a function, and the bytes of its other pieces.
struct Looked {
    function: Function,
    /// So many of the bytes at its entry can be read.
    readable: usize,
    elsewhere: Vec<u8>,
    /// The bytes in front of the entry that are nobody's.
    before: Vec<u8>,
}

/// Surveys the function at `target` as a host sees it. What looks and what surveys are not on the stack together.
///
/// # Errors
/// What the host says about the target, or the survey's refusal.
pub fn survey<'a>(view: &impl View, target: u64, surveyor: &'a mut Surveyor) -> Result<&'a Survey, Error> {
    let Surveyor { body, found } = surveyor;
    let looked = look(view, target, body)?;
    let mode = view.mode();
    let parts = parts(&looked, mode)?;
    let mut code = Code::in_mode(mode, target, body.get(..looked.readable).unwrap_or(body));
    if let Some(length) = looked.function.length {
        code = code.with_length(length);
    }
    match of(&looked, &code, &parts, found) {
        Ok(()) => Ok(found),
        Err(Refusal::Truncated { address, have: 0 }) => Err(Error::Unreadable { address }),
        Err(other) => Err(other.into()),
    }
}

/// Asks the host, and reads the function into `body`.
#[inline(never)]
fn look(view: &impl View, target: u64, body: &mut Vec<u8>) -> Result<Looked, Error> {
    let function = view.function(target)?;
    let wanted = function.length.unwrap_or(UNKNOWN_LENGTH).clamp(UNKNOWN_LENGTH, MAX_FUNCTION);
    body.clear();
    let others = function.parts.iter().map(|part| part.len.min(MAX_FUNCTION)).sum();
    body.try_reserve(wanted)?;
    body.resize(wanted, 0);
    let mut elsewhere = Vec::new();
    elsewhere.try_reserve_exact(others)?;
    let readable = read_prefix(view, target, body)?;
    for part in &function.parts {
        let start = elsewhere.len();
        elsewhere.resize(start + part.len.min(MAX_FUNCTION), 0);
        view.read(part.address, elsewhere.get_mut(start..).unwrap_or_default())?;
    }
    let mut before = Vec::new();
    before.try_reserve_exact(function.gap)?;
    before.resize(function.gap, 0);
    // What cannot be read is not known.
    if view.read(target.wrapping_sub(function.gap as u64), &mut before).is_err() {
        before.clear();
    }
    Ok(Looked { function, readable, elsewhere, before })
}

/// The function's other pieces.
fn parts(looked: &Looked, mode: Mode) -> Result<Vec<Code<'_>>, Error> {
    let mut parts = Vec::new();
    parts.try_reserve_exact(looked.function.parts.len())?;
    let mut rest = looked.elsewhere.as_slice();
    for part in &looked.function.parts {
        let (bytes, next) = rest.split_at_checked(part.len.min(MAX_FUNCTION)).unwrap_or((rest, &[]));
        parts.push(Code::in_mode(mode, part.address, bytes));
        rest = next;
    }
    Ok(parts)
}

#[inline(never)]
fn of(looked: &Looked, code: &Code<'_>, parts: &[Code<'_>], into: &mut Survey) -> Result<(), Refusal> {
    let Looked { function, before, .. } = looked;
    let context = Context {
        fentry: function.fentry,
        next_symbol: function.next_symbol,
        image: function.image,
        parts,
        before,
        dead: function.dead,
        branch_targets: &function.branch_targets,
        reserved: &function.reserved,
        ..Context::default()
    };
    into.look_at(code, &context)
}

impl<H: Host> Kdetour<H> {
    /// Surveys the function at `target` as it would be without what is attached. `surveyor` may be kept for the next one.
    ///
    /// # Errors
    /// What the host says about the target, or the survey's refusal; [`Error::Changed`] if the target is detoured and somebody has written over that since.
    pub fn survey<'a>(&self, target: u64, surveyor: &'a mut Surveyor) -> Result<&'a Survey, Error> {
        let view = self.host.view()?;
        if let Some(site) = self.sites.of_target(target).filter(|site| site.live && site.method.writes()) {
            is_in_place(&view, &site.patch)?;
        }
        survey(&Restored { view: &view, sites: &self.sites, cave: None }, target, surveyor)
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
