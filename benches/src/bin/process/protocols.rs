//! The protocols side by side: attach and detach without a pause, beside callers.

use crate::attach::callers_shown;
use crate::callers::{Callers, DETOURED};
use crate::functions::{self, ONE_THREE_ONE, Place, placed};
use crate::table::{Table, count, number, words};
use crate::toggle::{Change, change};
use anyhow::{Result, ensure};
use kdetour::plan::{Shape, Shapes};
use kdetour::typed::{self, with_process};
use kdetour::{AtomicAddress, Attach, Error, Protocol};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

static ORIGINAL: AtomicAddress = AtomicAddress::new(0);

/// The target's own result, and a mark.
extern "C" fn marked(of: u64) -> u64 {
    // SAFETY: it is called after an attach has stored the address.
    let original = unsafe { functions::at(ORIGINAL.load(Ordering::Acquire)) };
    original(of) + DETOURED
}

/// Each with the shapes that it is asked for.
const WAYS: [(Protocol, Option<Shape>); 7] = [
    (Protocol::Exchange, None),
    (Protocol::Exchange, Some(Shape::Jump5Trapped)),
    (Protocol::Live, None),
    (Protocol::Live, Some(Shape::Jump5)),
    (Protocol::Rendezvous, None),
    (Protocol::Rendezvous, Some(Shape::Jump5)),
    (Protocol::Local, Some(Shape::Jump5)),
];

/// The table.
pub(crate) fn measure(most: u64, seconds: f64) -> Result<Vec<Table>> {
    let columns = ["shape", "toggles", "a second", "given up", "calls", "wrong"];
    let mut table =
        Table::new("protocols: toggles beside callers, prologue 1+3+1, without a pause", &columns);
    for callers in [0, 1, 2] {
        for (protocol, shape) in WAYS {
            // By that one the caller promises that nobody runs there.
            if protocol == Protocol::Local && callers > 0 {
                continue;
            }
            let target = placed(ONE_THREE_ONE, Place::Empty, 0x40)?;
            // SAFETY: a function of that type.
            let busy = Callers::start(callers, &[unsafe { functions::at(target) }], 1);
            let outcome = toggled(protocol, target, shape, most, Duration::from_secs_f64(seconds));
            let seen = busy.stop();
            let name = format!("{}, {}", callers_shown(callers), protocol.name());
            match outcome {
                Ok(Outcome { shape, toggles, given_up, time }) => table.row(
                    name,
                    [
                        words(shape),
                        count(toggles),
                        number(toggles as f64 / time.as_secs_f64(), 0),
                        count(given_up),
                        count(seen.calls),
                        count(seen.wrong),
                    ],
                ),
                Err(error) => table.row(name, [words(format!("{error}"))]),
            }
            ensure!(seen.wrong == 0, "{} wrong results by {}", seen.wrong, protocol.name());
            typed::reclaim(Duration::from_secs(5)).map_err(|error| anyhow::anyhow!("{error}"))?;
        }
    }
    table.note("given up: somebody stood in the window or would return there, or did not answer in time; it is tried again");
    Ok(vec![table])
}

struct Outcome {
    shape: String,
    toggles: u64,
    given_up: u64,
    time: Duration,
}

fn toggled(
    protocol: Protocol,
    target: u64,
    shape: Option<Shape>,
    most: u64,
    time: Duration,
) -> Result<Outcome> {
    let detour = marked as *const () as u64;
    let shapes = shape.map(Shapes::only);
    let attach = Attach { target, detour, cell: Some(&ORIGINAL), shapes, ..Attach::default() };
    let mut given_up = 0;
    let mut until_done = |one: Change| loop {
        match change(protocol, one) {
            Err(Error::ThreadInWindow { .. } | Error::ThreadNotReached { .. }) => given_up += 1,
            outcome => break outcome.map_err(|error| anyhow::anyhow!("{error}")),
        }
    };
    let mut handle = until_done(Change::Attach(attach))?;
    let shape = with_process(|kdetour| {
        let patch = kdetour.record(handle).and_then(|record| record.patch);
        Ok(patch.map_or_else(String::new, |patch| patch.shape().name().to_owned()))
    })
    .map_err(|error| anyhow::anyhow!("{error}"))?;
    until_done(Change::Detach(handle))?;
    let (begin, mut toggles) = (Instant::now(), 0);
    while toggles < most && begin.elapsed() < time {
        handle = until_done(Change::Again(handle))?;
        until_done(Change::Detach(handle))?;
        toggles += 1;
    }
    Ok(Outcome { shape, toggles, given_up, time: begin.elapsed() })
}
