//! One attach, one detach, one attach again: alone, and beside callers of the same functions.

use crate::callers::{Callers, DETOURED};
use crate::functions::{self, Function};
use crate::system;
use crate::table::{Table, count, median, number, quantile};
use anyhow::{Result, ensure};
use kdetour::typed::{self, Detour};
use std::time::{Duration, Instant};

/// How many targets of each kind.
const TARGETS: usize = 400;

extern "C" fn replaced(of: u64) -> u64 {
    // What the target does with a number of its own is not known here: callers call one target.
    of + DETOURED + 1
}

/// The table.
pub(crate) fn measure() -> Result<Vec<Table>> {
    let columns =
        ["first", "90 %", "of it cpu", "detach", "90 %", "of it cpu", "again", "90 %", "of it cpu", "wrong"];
    let mut table = Table::new("one at a time, microseconds (typed::Detour, Exchange)", &columns);
    let dense = functions::dense();
    for (round, callers) in [0, 1, 2, 8].into_iter().enumerate() {
        // New targets each time, and far from each other.
        let targets = dense.iter().skip(round * 8 + 1).step_by(dense.len() / TARGETS);
        // SAFETY: functions of that type.
        let targets: Vec<Function> = targets.map(|&at| unsafe { functions::at(at) }).collect();
        let busy = Callers::start(callers, &[functions::first()], 0);
        let mut times: [Vec<Time>; 3] = Default::default();
        let mut detours = Vec::new();
        for &target in &targets {
            // SAFETY: both have one type, and stay.
            let (detour, time) = timed(|| unsafe { Detour::attach(target, replaced) })?;
            times[0].push(time);
            detours.push(detour);
        }
        for detour in &mut detours {
            times[1].push(timed(|| detour.detach())?.1);
        }
        for detour in &mut detours {
            // SAFETY: both have one type, and stay.
            times[2].push(timed(|| unsafe { detour.reattach() })?.1);
        }
        ensure!(targets.iter().all(|target| target(3) == 4 + DETOURED), "a detour is not called");
        drop(detours);
        let seen = busy.stop();
        let cells = times.iter().flat_map(|times| {
            let [mut wall, mut cpu] = [|time: &Time| time.wall, |time: &Time| time.cpu]
                .map(|of| times.iter().map(of).collect::<Vec<_>>());
            [number(median(&mut wall), 1), number(quantile(&mut wall, 0.9), 1), number(median(&mut cpu), 1)]
        });
        table.row(callers_shown(callers), cells.chain([count(seen.wrong)]));
        typed::reclaim(Duration::from_secs(5)).map_err(|error| anyhow::anyhow!("{error}"))?;
    }
    table.note("the callers call a neighbour of the targets; cpu: of the processor, for this thread");
    table.note("first: a target that was never attached before; again: as it was, after a detach");
    Ok(vec![table])
}

/// So many callers, in words.
pub(crate) fn callers_shown(callers: usize) -> String {
    match callers {
        0 => "idle".to_owned(),
        1 => "1 busy caller".to_owned(),
        _ => format!("{callers} busy callers"),
    }
}

/// Microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Time {
    /// On the clock: with what others did on the processor meanwhile.
    pub(crate) wall: f64,
    /// Of the processor, for this thread: without waiting. No number where the system does not tell.
    pub(crate) cpu: f64,
}

/// What it gives, and how long it took.
pub(crate) fn timed<R>(work: impl FnOnce() -> Result<R, kdetour::Error>) -> Result<(R, Time)> {
    let first = system::cpu_time();
    let begin = Instant::now();
    let outcome = work();
    let wall = microseconds(begin.elapsed());
    let cpu = system::cpu_time().zip(first).map_or(f64::NAN, |(last, first)| microseconds(last - first));
    Ok((outcome.map_err(|error| anyhow::anyhow!("{error}"))?, Time { wall, cpu }))
}

fn microseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}
