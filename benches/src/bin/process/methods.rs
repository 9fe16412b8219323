//! The methods side by side: a jump, a breakpoint, a debug register.

use crate::functions::{self, Function, ONE_THREE_ONE, Place, Wrapper, placed, wrapper};
use crate::table::{Table, median, number};
use anyhow::{Context as _, Result, ensure};
use kdetour::typed::{self, with_process};
use kdetour::{Attach, Error, Method};
use std::hint::black_box;
use std::time::{Duration, Instant};

const METHODS: [Method; 3] = [Method::Jump, Method::Breakpoint, Method::DebugRegister];
/// Calls in one run.
const CALLS: u32 = 500;
/// Runs of each method, one after the other.
const ROUNDS: usize = 51;
/// How many targets are attached and detached, one at a time.
const TARGETS: usize = 64;

/// The table.
pub(crate) fn measure() -> Result<Vec<Table>> {
    let columns = ["ns a call", "x jump", "attach us", "x jump", "detach us", "x jump"];
    let mut table = Table::new("methods, prologue 1+3+1, by Exchange", &columns);
    let mut wrappers = (0..).map(wrapper);
    let mut next = || wrappers.next().context("too few wrappers")?;
    let mut ways = Vec::new();
    for method in METHODS {
        let (target, detour) = (placed(ONE_THREE_ONE, Place::Near, 0x40)?, next()?);
        match attach(method, target, detour) {
            Ok(_) => {
                // SAFETY: a function was placed there.
                let function = unsafe { functions::at(target) };
                ensure!(function(1000) == 1001, "{method:?}: a wrong result");
                ways.push((method, function, next()?));
            }
            // What this machine does not have is not measured, and said so.
            Err(error) => table.note(format!("{}: {error}", method.name())),
        }
    }
    let mut runs = vec![Vec::with_capacity(ROUNDS); ways.len()];
    for _ in 0..ROUNDS {
        for ((_, function, _), runs) in ways.iter().zip(&mut runs) {
            runs.push(run(*function));
        }
    }
    let mut changes: Vec<[Vec<f64>; 2]> = vec![Default::default(); ways.len()];
    for _ in 0..TARGETS {
        // One after the other on the same function, each planned anew.
        let target = placed(ONE_THREE_ONE, Place::Near, 0x40)?;
        for ((method, _, detour), changes) in ways.iter().zip(&mut changes) {
            let begin = Instant::now();
            let handle = attach(*method, target, *detour).map_err(|error| anyhow::anyhow!("{error}"))?;
            let attached = begin.elapsed();
            let detached = with_process(|kdetour| {
                Ok(kdetour.session().detach(handle).commit_exchange(&mut |_, _| ())?)
            });
            let both = begin.elapsed();
            detached.map_err(|error| anyhow::anyhow!("{error}"))?;
            for (times, time) in changes.iter_mut().zip([attached, both - attached]) {
                times.push(time.as_nanos() as f64 / 1000.0);
            }
        }
    }
    typed::reclaim(Duration::from_secs(5)).map_err(|error| anyhow::anyhow!("{error}"))?;
    let figures: Vec<[f64; 3]> = runs
        .iter_mut()
        .zip(&mut changes)
        .map(|(calls, [attach, detach])| [median(calls), median(attach), median(detach)])
        .collect();
    for ((method, ..), figures_of_it) in ways.iter().zip(&figures) {
        let of_jump = figures.first().unwrap_or(figures_of_it);
        let cells = figures_of_it
            .iter()
            .zip(of_jump)
            .flat_map(|(one, jump)| [number(*one, if *one < 100.0 { 2 } else { 0 }), number(one / jump, 1)]);
        table.row(method.name(), cells);
    }
    table.note(
        "a call of a detour that calls the original; attach: planned anew, one target at a time, one thread",
    );
    Ok(vec![table])
}

fn attach(method: Method, target: u64, detour: Wrapper) -> Result<kdetour::Handle, Error> {
    with_process(|kdetour| {
        let (detour, cell) = (detour.address, Some(detour.cell));
        let attach = Attach { target, detour, cell, method, ..Attach::default() };
        // SAFETY: both are functions of one type, and stay.
        let session = unsafe { kdetour.session().attach(attach) };
        let handles = session.commit_exchange(&mut |_, _| ())?;
        handles.first().copied().ok_or(Error::NotAttached)
    })
}

/// Nanoseconds for a call, each waiting for the one before.
#[inline(never)]
fn run(function: Function) -> f64 {
    let mut number = 0;
    let begin = Instant::now();
    for _ in 0..CALLS {
        number = function(number);
    }
    let elapsed = begin.elapsed();
    black_box(number);
    elapsed.as_nanos() as f64 / f64::from(CALLS)
}
