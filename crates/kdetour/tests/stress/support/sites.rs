//! Detours by sessions, with a protocol and shapes of one's choice.

use super::targets::{Target, expected, function};
use kdetour::commit::Exchange;
use kdetour::host::{BreakpointHook, Quiesce, Rendezvous};
use kdetour::plan::{Shape, Shapes};
use kdetour::typed::{Function, with_process};
use kdetour::{AtomicAddress, Attach, Error, Handle, Method, Protocol, Session};
use std::sync::atomic::Ordering;

/// How something is attached.
#[derive(Clone, Copy)]
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    pub(crate) protocol: Protocol,
    /// The only shape, if it is forced.
    pub(crate) shape: Option<Shape>,
    pub(crate) method: Method,
}

impl Mode {
    pub(crate) const fn new(name: &'static str, protocol: Protocol, shape: Option<Shape>) -> Self {
        Self { name, protocol, shape, method: Method::Jump }
    }

    /// The same by a method that has but one shape.
    const fn by(name: &'static str, method: Method) -> Self {
        Self { name, protocol: Protocol::Exchange, shape: Some(Shape::Breakpoint), method }
    }

    pub(crate) fn shapes(&self) -> Option<Shapes> {
        self.shape.map(Shapes::only)
    }
}

pub(crate) const EXCHANGE: Mode = Mode::new("Exchange", Protocol::Exchange, None);
pub(crate) const EXCHANGE_WHOLE: Mode =
    Mode::new("Exchange WholeInstruction", Protocol::Exchange, Some(Shape::WholeInstruction));
pub(crate) const EXCHANGE_KEPT: Mode =
    Mode::new("Exchange Jump5Kept", Protocol::Exchange, Some(Shape::Jump5Kept));
pub(crate) const EXCHANGE_TRAPPED: Mode =
    Mode::new("Exchange Jump5Trapped", Protocol::Exchange, Some(Shape::Jump5Trapped));
pub(crate) const LIVE: Mode = Mode::new("Live", Protocol::Live, None);
pub(crate) const LIVE_WHOLE: Mode =
    Mode::new("Live WholeInstruction", Protocol::Live, Some(Shape::WholeInstruction));
pub(crate) const LIVE_KEPT: Mode = Mode::new("Live Jump5Kept", Protocol::Live, Some(Shape::Jump5Kept));
pub(crate) const LIVE_TRAPPED: Mode =
    Mode::new("Live Jump5Trapped", Protocol::Live, Some(Shape::Jump5Trapped));
pub(crate) const LIVE_JUMP: Mode = Mode::new("Live Jump5", Protocol::Live, Some(Shape::Jump5));
pub(crate) const LIVE_BREAKPOINT: Mode =
    Mode::new("Live Breakpoint", Protocol::Live, Some(Shape::Breakpoint));
pub(crate) const BREAKPOINT: Mode = Mode::by("Exchange Breakpoint", Method::Breakpoint);
pub(crate) const REGISTER: Mode = Mode::by("Exchange DebugRegister", Method::DebugRegister);
pub(crate) const RENDEZVOUS: Mode = Mode::new("Rendezvous", Protocol::Rendezvous, None);
pub(crate) const RENDEZVOUS_JUMP: Mode =
    Mode::new("Rendezvous Jump5", Protocol::Rendezvous, Some(Shape::Jump5));

const CELLS: usize = 64;

static ORIGINALS: [AtomicAddress; CELLS] = [const { AtomicAddress::new(0) }; CELLS];

/// Where the original of the detour with this number is kept.
pub(crate) fn cell(number: usize) -> &'static AtomicAddress {
    &ORIGINALS[number]
}

/// The original of the detour with this number.
pub(crate) fn original<const N: usize>() -> Target {
    function(ORIGINALS[N].load(Ordering::Acquire))
}

/// What [`adding`] adds.
const ADDED: u64 = 1 << 44;

/// A detour that calls the original and adds something.
pub(crate) extern "C" fn adding<const N: usize>(first: u64, second: u64) -> u64 {
    original::<N>()(first, second).wrapping_add(ADDED)
}

/// Whether the answer is the original's, or that of [`adding`].
pub(crate) fn either(first: u64, second: u64, answer: u64) -> bool {
    is_original(first, second, answer) || is_detoured(first, second, answer)
}

pub(crate) fn is_original(first: u64, second: u64, answer: u64) -> bool {
    answer == expected(first, second)
}

pub(crate) fn is_detoured(first: u64, second: u64, answer: u64) -> bool {
    answer == expected(first, second).wrapping_add(ADDED)
}

/// A target and its detour.
#[derive(Clone, Copy)]
pub(crate) struct Site {
    pub(crate) target: u64,
    pub(crate) detour: u64,
    pub(crate) number: usize,
    /// Where its original is kept, if not in [`cell`].
    pub(crate) cell: Option<&'static AtomicAddress>,
    pub(crate) shapes: Option<Shapes>,
    pub(crate) method: Method,
    pub(crate) chain: bool,
    pub(crate) handle: Option<Handle>,
}

impl Site {
    /// A target with the detour [`adding`].
    pub(crate) fn adding<const N: usize>(target: Target) -> Self {
        Self::new(target.address(), (adding::<N> as Target).address(), N)
    }

    pub(crate) fn new(target: u64, detour: u64, number: usize) -> Self {
        let (cell, shapes, method, handle) = (None, None, Method::Jump, None);
        Self { target, detour, number, cell, shapes, method, chain: false, handle }
    }

    pub(crate) fn with(self, mode: &Mode) -> Self {
        Self { shapes: mode.shapes(), method: mode.method, ..self }
    }

    fn request(&self) -> Attach {
        Attach {
            target: self.target,
            detour: self.detour,
            cell: Some(self.cell.unwrap_or_else(|| cell(self.number))),
            shapes: self.shapes,
            method: self.method,
            chain: self.chain,
            ..Attach::default()
        }
    }

    /// Attaches it: as it was, if it was attached before and is not freed yet.
    pub(crate) fn attach(&mut self, protocol: Protocol) -> Result<(), Error> {
        attach(&mut [self], protocol)
    }

    pub(crate) fn detach(&mut self, protocol: Protocol) -> Result<(), Error> {
        detach(&[self], protocol)
    }

    /// The shape that it has.
    pub(crate) fn shape(&self) -> Option<Shape> {
        let patch =
            |handle| with_process(|kdetour| Ok(kdetour.record(handle).and_then(|record| record.patch)));
        patch(self.handle?).ok().flatten().map(|patch| patch.shape())
    }
}

/// Attaches all of them in one session.
pub(crate) fn attach(sites: &mut [&mut Site], protocol: Protocol) -> Result<(), Error> {
    let handles = with_process(|kdetour| {
        let mut again = Vec::with_capacity(sites.len());
        for site in sites.iter() {
            again.push(site.handle.filter(|&handle| kdetour.record(handle).is_some()));
        }
        let mut session = kdetour.session();
        for (site, again) in sites.iter().zip(&again) {
            // SAFETY: the detours have their targets' signature, and are functions of this program.
            session = unsafe {
                match again {
                    Some(handle) => session.reattach(*handle, 0),
                    None => session.attach(site.request()),
                }
            };
        }
        commit(session, protocol)
    })?;
    for (site, handle) in sites.iter_mut().zip(handles) {
        site.handle = Some(handle);
    }
    Ok(())
}

/// Detaches all of them in one session.
pub(crate) fn detach(sites: &[&mut Site], protocol: Protocol) -> Result<(), Error> {
    with_process(|kdetour| {
        let mut session = kdetour.session();
        for handle in sites.iter().filter_map(|site| site.handle) {
            session = session.detach(handle);
        }
        commit(session, protocol).map(drop)
    })
}

fn commit<H: Exchange + BreakpointHook + Quiesce + Rendezvous>(
    session: Session<'_, H>,
    protocol: Protocol,
) -> Result<Vec<Handle>, Error> {
    let committed = match protocol {
        Protocol::Exchange => session.commit_exchange(&mut |_, _| ()),
        Protocol::Live => session.commit_live(&mut |_, _| ()),
        Protocol::Rendezvous => session.commit_rendezvous(&mut |_, _| ()),
        other => panic!("{other:?} is not for these tests"),
    };
    committed.map_err(|failure| failure.error)
}
