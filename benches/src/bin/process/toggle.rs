//! Attach and detach without a pause, beside callers at full speed.

use crate::attach::callers_shown;
use crate::callers::{Callers, Clock, DETOURED, Seen};
use crate::functions::{self, Code, FOUR_ONE, Function, ONE_THREE_ONE, Place, SEVEN, TWO_TWO_TWO, placed};
use crate::system;
use crate::table::{Table, count, number, words};
use anyhow::Result;
use kdetour::plan::{Shape, Shapes};
use kdetour::typed::{self, Alone, with_process};
use kdetour::{AtomicAddress, Attach, Error, Handle, Protocol, SessionError};
use retour::RawDetour;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// The original of the one detour that there is.
static ORIGINAL: AtomicAddress = AtomicAddress::new(0);

/// The target's own result, and a mark.
extern "C" fn marked(of: u64) -> u64 {
    // SAFETY: it is called after an attach has stored the address.
    let original = unsafe { functions::at(ORIGINAL.load(Ordering::Acquire)) };
    original(of) + DETOURED
}

/// The table.
pub(crate) fn measure(most: u64, seconds: f64) -> Result<Vec<Table>> {
    let columns = [
        "written by",
        "toggles",
        "a second",
        "inside",
        "of cpu",
        "calls",
        "wrong",
        "99.99 % us",
        "longest us",
        "untouched: 99.99 %",
        "longest us",
    ];
    let mut table = Table::new(
        "toggles (one attach and one detach) beside callers (sessions of one, Exchange)",
        &columns,
    );
    let clock = Clock::measure();
    let time = Duration::from_secs_f64(seconds);
    for callers in [0, 1, 2, 8] {
        for code in [ONE_THREE_ONE, TWO_TWO_TWO, FOUR_ONE, SEVEN] {
            let exchanged =
                if code.name == SEVEN.name { Shape::WholeInstruction } else { Shape::Jump5Trapped };
            for shapes in [None, Some(Shapes::only(exchanged))] {
                for (place, offset) in [("aligned", 0x40), ("on a page border", 4096 - 2)] {
                    let target = placed(code, Place::Empty, offset)?;
                    // SAFETY: a function of that type.
                    let function = unsafe { functions::at(target) };
                    let untouched = alone(callers, function, time / 2);
                    let busy = Callers::start(callers, &[function], 1);
                    let outcome = toggled(target, shapes, most, time);
                    let seen = busy.stop();
                    let name = format!("{}, {} {place}", callers_shown(callers), code.name);
                    match outcome {
                        Ok(outcome) => row(&mut table, name, &outcome, &seen, &untouched, clock),
                        Err(error) => table.row(name, [words(format!("{error}"))]),
                    }
                    typed::reclaim(Duration::from_secs(5)).map_err(plain)?;
                }
            }
        }
    }
    for code in [ONE_THREE_ONE, SEVEN] {
        let outcome = by_retour(code, most, time)?;
        let seen = Callers::start(0, &[], 0).stop();
        row(&mut table, format!("retour, idle, {}", code.name), &outcome, &seen, &seen, clock);
    }
    table.note("inside: toggles in a second of the time inside kdetour's calls; of cpu: of that thread's processor time, which others on the machine do not lengthen");
    table.note("targets lie where any relay is free, so that the patch is one byte; `exchange` rows have that forbidden");
    table.note("a delay is the time between two calls of one thread: with more callers than processors most of it is the scheduler's");
    table.note("retour writes over what callers execute, and crashes beside them: it is measured without");
    Ok(vec![table])
}

struct Outcome {
    written: String,
    toggles: u64,
    wall: Duration,
    inside: Duration,
    /// Of the processor, for this thread, without the pauses; nothing where the system does not tell.
    cpu: Option<Duration>,
}

fn row(table: &mut Table, name: String, outcome: &Outcome, seen: &Seen, untouched: &Seen, clock: Clock) {
    let rate = |time: Option<Duration>| {
        number(time.map_or(f64::NAN, |time| outcome.toggles as f64 / time.as_secs_f64()), 0)
    };
    let mut cells = vec![
        words(outcome.written.clone()),
        count(outcome.toggles),
        rate(Some(outcome.wall)),
        rate(Some(outcome.inside)),
        rate(outcome.cpu),
        count(seen.calls),
        count(seen.wrong),
    ];
    for seen in [seen, untouched] {
        if seen.calls == 0 {
            cells.extend([words("-"), words("-")]);
        } else {
            let (nearly, longest) = seen.delays(clock);
            cells.extend([number(nearly, 2), number(longest, 0)]);
        }
    }
    table.row(name, cells);
}

/// Callers for themselves.
fn alone(callers: usize, function: Function, time: Duration) -> Seen {
    let busy = Callers::start(callers, &[function], 1);
    if callers > 0 {
        thread::sleep(time);
    }
    busy.stop()
}

fn plain(error: Error) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

/// A session of one change. By [`Protocol::Local`] nobody else may run.
pub(crate) fn change(protocol: Protocol, change: Change) -> Result<Handle, Error> {
    with_process(|kdetour| {
        let session = kdetour.session();
        let session = match change {
            // SAFETY: both have one type, and stay.
            Change::Attach(attach) => unsafe { session.attach(attach) },
            // SAFETY: as before.
            Change::Again(handle) => unsafe { session.reattach(handle, 0) },
            Change::Detach(handle) => session.detach(handle),
        };
        let handles = match protocol {
            Protocol::Live => session.commit_live(&mut |_, _| ()),
            Protocol::Rendezvous => session.commit_rendezvous(&mut |_, _| ()),
            // SAFETY: the caller's word.
            Protocol::Local => session.commit_local(&unsafe { Alone::promise() }, &mut |_, _| ()),
            _ => session.commit_exchange(&mut |_, _| ()),
        };
        handles.map_err(|SessionError { error, .. }| error)?.first().copied().ok_or(Error::NotAttached)
    })
}

#[derive(Clone, Copy)]
pub(crate) enum Change {
    Attach(Attach),
    Again(Handle),
    Detach(Handle),
}

fn toggled(target: u64, shapes: Option<Shapes>, most: u64, time: Duration) -> Result<Outcome> {
    let detour = marked as *const () as u64;
    let attach = Attach { target, detour, cell: Some(&ORIGINAL), shapes, ..Attach::default() };
    let mut handle = change(Protocol::Exchange, Change::Attach(attach)).map_err(plain)?;
    let written = with_process(|kdetour| {
        Ok(kdetour.record(handle).and_then(|record| record.patch).map_or_else(String::new, |patch| {
            let changed = patch.original_bytes().iter().zip(patch.patched_bytes().0);
            match changed.filter(|(old, new)| *old != new).count() {
                1 => "one byte".to_owned(),
                _ => format!("exchange ({})", patch.shape().name()),
            }
        }))
    })
    .map_err(plain)?;
    change(Protocol::Exchange, Change::Detach(handle)).map_err(plain)?;
    let (begin, first) = (Instant::now(), system::cpu_time());
    let (mut inside, mut pauses, mut toggles) = (Duration::ZERO, Duration::ZERO, 0);
    while toggles < most && begin.elapsed() < time {
        let start = Instant::now();
        handle = change(Protocol::Exchange, Change::Again(handle)).map_err(plain)?;
        let attached = Instant::now();
        pause();
        let again = Instant::now();
        change(Protocol::Exchange, Change::Detach(handle)).map_err(plain)?;
        inside += attached - start + again.elapsed();
        pause();
        pauses += 2 * PAUSE;
        toggles += 1;
    }
    let cpu = passed(first, pauses);
    Ok(Outcome { written, toggles, wall: begin.elapsed(), inside, cpu })
}

/// What this thread had of a processor since then, without its pauses.
fn passed(first: Option<Duration>, pauses: Duration) -> Option<Duration> {
    let (last, first) = system::cpu_time().zip(first)?;
    Some((last - first).saturating_sub(pauses))
}

/// So long the target stays as it is.
const PAUSE: Duration = Duration::from_micros(3);

fn pause() {
    let begin = Instant::now();
    while begin.elapsed() < PAUSE {
        std::hint::spin_loop();
    }
}

fn by_retour(code: Code, most: u64, time: Duration) -> Result<Outcome> {
    let from = std::ptr::with_exposed_provenance(placed(code, Place::Near, 0x40)? as usize);
    let (mut inside, mut toggles) = (Duration::ZERO, 0);
    // SAFETY: both have one type, and nobody calls them.
    let (begin, cpu) = unsafe {
        let hook = RawDetour::new(from, marked as *const ())?;
        let (begin, first) = (Instant::now(), system::cpu_time());
        while toggles < most && begin.elapsed() < time {
            let start = Instant::now();
            hook.enable()?;
            let enabled = Instant::now();
            pause();
            let again = Instant::now();
            hook.disable()?;
            inside += enabled - start + again.elapsed();
            pause();
            toggles += 1;
        }
        (begin, passed(first, 2 * PAUSE * u32::try_from(toggles)?))
    };
    Ok(Outcome { written: "mprotect, store".to_owned(), toggles, wall: begin.elapsed(), inside, cpu })
}
