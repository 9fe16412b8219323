//! Sessions of many: microseconds a hook, shapes, and executable memory.

use crate::attach::{Time, timed};
use crate::callers::Callers;
use crate::functions::{self, Function};
use crate::system::{self, Mapped};
use crate::table::{Cell, Table, count, number, words};
use anyhow::{Result, ensure};
use kdetour::plan::Shape;
use kdetour::typed::{self, with_process};
use kdetour::{Attach, Handle, SessionError};
use retour::RawDetour;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;

extern "C" fn replaced(of: u64) -> u64 {
    of ^ 0x5555
}

/// One measurement.
struct Set {
    name: String,
    targets: Vec<u64>,
    callers: usize,
}

/// Both tables.
pub(crate) fn measure() -> Result<Vec<Table>> {
    let mut times = Table::new(
        "sessions, microseconds a hook (Exchange)",
        &["first", "cpu", "detach", "cpu", "again", "cpu", "one byte", "kept", "whole", "trapped", "other"],
    );
    let mut memory = Table::new(
        "sessions, executable memory",
        &["bytes", "pages", "mappings", "all mappings", "of the most", "reclaim ms", "left", "mappings left"],
    );
    let most = system::most_mappings()?;
    let (dense, sparse) = (functions::dense(), functions::sparse());
    let mut sets = Vec::new();
    for callers in [0, 1] {
        for count in [10, 100, 1_000, 10_000] {
            sets.push(Set {
                name: format!("{count}"),
                targets: dense.iter().take(count).copied().collect(),
                callers,
            });
        }
        sets.push(Set { name: format!("{}, one a page", sparse.len()), targets: sparse.clone(), callers });
    }
    for set in &sets {
        one(set, most, &mut times, &mut memory)?;
    }
    times.note("first: survey, plan, slots and commit; again: what was detached and not reclaimed; the best of five for both of the latter; cpu: of the processor, for this thread");
    memory.note("for each hook, but for `all mappings`, which the process has with that session; `left` is what is mapped after the reclaim and was not before: executable pages without a file, and mappings of any kind, such as text that was exchanged");
    Ok(vec![times, memory, by_retour(&dense[..1_000])?])
}

fn one(set: &Set, most: Option<u64>, times: &mut Table, memory: &mut Table) -> Result<()> {
    let Set { name, targets, callers } = set;
    let hooks = targets.len() as f64;
    // SAFETY: functions of that type.
    let called: Vec<Function> = targets.iter().take(64).map(|&at| unsafe { functions::at(at) }).collect();
    let before = Mapped::now()?;
    let busy = Callers::start(*callers, &called, 0);
    let (handles, first) = timed(|| {
        with_process(|kdetour| {
            let mut session = kdetour.session();
            for &target in targets {
                let detour = replaced as *const () as u64;
                // SAFETY: both have one type, and stay.
                session = unsafe { session.attach(Attach { target, detour, ..Attach::default() }) };
            }
            session.commit_exchange(&mut |_, _| ()).map_err(why)
        })
    })?;
    check(targets, true)?;
    let with = Mapped::now()?;
    let (bytes, shapes) = with_process(|kdetour| {
        let records = || handles.iter().filter_map(|&handle| kdetour.record(handle));
        let bytes: usize = records().map(|record| record.slot.len).sum();
        let mut shapes = [0_u32; 5];
        for record in records() {
            let Some(patch) = &record.patch else { continue };
            let changed = patch
                .original_bytes()
                .iter()
                .zip(patch.patched_bytes().0)
                .filter(|(old, new)| *old != new)
                .count();
            let class = match (changed, patch.shape()) {
                (1, _) => 0,
                (_, Shape::Jump5Kept) => 1,
                (_, Shape::WholeInstruction) => 2,
                (_, Shape::Jump5Trapped) => 3,
                _ => 4,
            };
            shapes[class] += 1;
        }
        Ok((bytes, shapes))
    })
    .map_err(plain)?;
    let (mut handles, mut detach, mut again) = (handles, Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        detach.push(timed(|| detach_all(&handles))?.1);
        check(targets, false)?;
        let (renewed, time) = timed(|| {
            with_process(|kdetour| {
                let mut session = kdetour.session();
                for &handle in &handles {
                    // SAFETY: as before.
                    session = unsafe { session.reattach(handle, 0) };
                }
                session.commit_exchange(&mut |_, _| ()).map_err(why)
            })
        })?;
        handles = renewed;
        again.push(time);
        check(targets, true)?;
    }
    detach_all(&handles).map_err(plain)?;
    check(targets, false)?;
    busy.stop();
    let (_, reclaim) = timed(|| typed::reclaim(Duration::from_secs(10)))?;
    let after = Mapped::now()?;
    let shown = if *callers == 0 { name.clone() } else { format!("{name}, 1 busy caller") };
    let best = |times: &[Time]| {
        let of = |of: fn(&Time) -> f64| times.iter().map(of).fold(f64::NAN, f64::min) / hooks;
        [number(of(|time| time.wall), 2), number(of(|time| time.cpu), 2)]
    };
    let mut cells: Vec<Cell> = [best(&[first]), best(&detach), best(&again)].into_iter().flatten().collect();
    cells.extend(shapes.map(|class| words(format!("{:.1} %", f64::from(class) * 100.0 / hooks))));
    times.row(shown.clone(), cells);
    if *callers == 0 {
        let (pages, mappings) = (
            with.executable_pages.saturating_sub(before.executable_pages),
            with.executable_mappings.saturating_sub(before.executable_mappings),
        );
        let left = after.executable_pages.saturating_sub(before.executable_pages);
        memory.row(
            shown,
            [
                number(bytes as f64 / hooks, 1),
                number(pages as f64 / hooks, 3),
                number(mappings as f64 / hooks, 3),
                count(with.mappings),
                most.map_or(words("-"), |most| {
                    words(format!("{:.1} %", with.mappings as f64 * 100.0 / most as f64))
                }),
                number(reclaim.wall / 1000.0, 2),
                words(format!("{left} pages")),
                count(after.mappings.saturating_sub(before.mappings)),
            ],
        );
        ensure!(left == 0, "{left} executable pages were not given back");
    }
    Ok(())
}

fn detach_all(handles: &[Handle]) -> Result<(), kdetour::Error> {
    with_process(|kdetour| {
        let session = handles.iter().fold(kdetour.session(), |session, &handle| session.detach(handle));
        session.commit_exchange(&mut |_, _| ()).map(drop).map_err(why)
    })
}

fn why(failed: SessionError) -> kdetour::Error {
    failed.error
}

fn plain(error: kdetour::Error) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

/// Calls every target.
fn check(targets: &[u64], attached: bool) -> Result<()> {
    for (number, &target) in targets.iter().enumerate() {
        // SAFETY: a function of that type.
        let found = unsafe { functions::at(target) }(9);
        let wanted = if attached { 9 ^ 0x5555 } else { 9 + number as u64 };
        ensure!(found == wanted, "function {number} gives {found}, not {wanted}");
    }
    Ok(())
}

/// retour, alone in the process: it patches one function after the other.
fn by_retour(targets: &[u64]) -> Result<Table> {
    let mut table = Table::new(
        "retour, no other thread, microseconds a hook",
        &["build", "enable", "disable", "enable", "refused"],
    );
    let mut hooks = Vec::new();
    let mut refused = 0;
    let begin = Instant::now();
    for &target in targets {
        let from = std::ptr::with_exposed_provenance(target as usize);
        // SAFETY: both have one type, and nobody calls them.
        match std::panic::catch_unwind(|| unsafe { RawDetour::new(from, replaced as *const ()) }) {
            Ok(Ok(hook)) => hooks.push(hook),
            _ => refused += 1,
        }
    }
    let each = |begin: Instant| number(begin.elapsed().as_nanos() as f64 / 1000.0 / hooks.len() as f64, 2);
    let mut cells = vec![each(begin)];
    for enabled in [true, false, true] {
        let begin = Instant::now();
        for hook in &hooks {
            // SAFETY: nobody calls them.
            unsafe { if enabled { hook.enable() } else { hook.disable() } }?;
        }
        cells.push(each(begin));
    }
    for hook in &hooks {
        // SAFETY: nobody calls them.
        unsafe { hook.disable() }?;
    }
    cells.push(count(refused));
    table.row(format!("{}", targets.len()), cells);
    Ok(table)
}
