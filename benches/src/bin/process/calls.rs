//! What a call costs: bare, through a hand-written wrapper, through kdetour's detours and through retour's.

use crate::functions::{self, Function, ONE_THREE_ONE, Place, SEVEN, Wrapper, placed, wrapper};
use crate::steps;
use crate::table::{Table, count, median, number, words};
use anyhow::{Context as _, Result, ensure};
use kdetour::typed::{self, Alone, Detour, with_process};
use kdetour::{Attach, Protocol};
use retour::RawDetour;
use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Calls in one run.
const CALLS: u64 = 2_000;
/// Runs of each way, one after the other.
const ROUNDS: usize = 301;

/// One way to call.
struct Way {
    name: String,
    function: Function,
}

/// What a call of it adds to its argument.
fn added(function: Function) -> u64 {
    function(1000) - 1000
}

static STATIC_FLOOR: AtomicU64 = AtomicU64::new(0);
static DETOUR: OnceLock<Detour<Function>> = OnceLock::new();

kdetour::detour! {
    static STATIC: extern "C" fn(u64) -> u64 = by_static => by_static;
}
kdetour::detour! {
    static CLOSURE: extern "C" fn(of: u64) -> u64 = by_static;
}

/// The wrapper as one writes it in Rust.
#[inline(never)]
extern "C" fn by_pointer(of: u64) -> u64 {
    // SAFETY: the target's address was stored.
    let original = unsafe { functions::at(STATIC_FLOOR.load(Ordering::Acquire)) };
    black_box(original(of))
}

#[inline(never)]
extern "C" fn by_static(of: u64) -> u64 {
    black_box(STATIC.original()(of))
}

#[inline(never)]
extern "C" fn by_detour(of: u64) -> u64 {
    DETOUR.get().map_or(0, |detour| black_box(detour.original()(of)))
}

/// All tables.
pub(crate) fn measure() -> Result<Vec<Table>> {
    let mut wrappers = (0..).map(wrapper);
    let mut next = || wrappers.next().context("too few wrappers")?;
    let mut tables = Vec::new();
    let mut kept = Vec::new();
    for code in [ONE_THREE_ONE, SEVEN] {
        let mut ways = Vec::new();
        for near in [true, false] {
            let side = if near { "near" } else { "far" };
            let place = || placed(code, if near { Place::Near } else { Place::Far }, 0x40);
            let (bare, floor) = (place()?, next()?);
            floor.cell.store(bare, Ordering::Release);
            ways.push(way(format!("{side} bare"), bare));
            ways.push(way(format!("{side} floor"), floor.address));
            let (target, detour) = (place()?, next()?);
            let shape = by_kdetour(Protocol::Exchange, target, detour)?;
            ways.push(way(format!("{side} kdetour ({shape})"), target));
            if near {
                let (target, detour) = (place()?, next()?);
                let shape = by_kdetour(Protocol::Local, target, detour)?;
                ways.push(way(format!("{side} kdetour, Local ({shape})"), target));
            }
            let (target, detour) = (place()?, next()?);
            match by_retour(target, detour) {
                Ok(hook) => {
                    kept.push(hook);
                    ways.push(way(format!("{side} retour"), target));
                }
                Err(error) => eprintln!("retour, {side} {}: {error}", code.name),
            }
        }
        tables.push(compared(&format!("calls, prologue {}: detours in assembler", code.name), &ways)?);
    }
    tables.push(typed_ways()?);
    // Their targets are never called again.
    std::mem::forget(kept);
    Ok(tables)
}

fn way(name: impl Into<String>, address: u64) -> Way {
    // SAFETY: a function that was placed, or a wrapper.
    Way { name: name.into(), function: unsafe { functions::at(address) } }
}

/// Attaches, and tells the shape.
fn by_kdetour(protocol: Protocol, target: u64, detour: Wrapper) -> Result<String> {
    with_process(|kdetour| {
        let attach = Attach { target, detour: detour.address, cell: Some(detour.cell), ..Attach::default() };
        // SAFETY: both are functions of one type, and stay.
        let session = unsafe { kdetour.session().attach(attach) };
        let handles = match protocol {
            Protocol::Local => {
                // SAFETY: there is no other thread.
                session.commit_local(&unsafe { Alone::promise() }, &mut |_, _| ())
            }
            _ => session.commit_exchange(&mut |_, _| ()),
        };
        let handles = handles.map_err(|failed| failed.error)?;
        let patch = handles.first().and_then(|&handle| kdetour.record(handle)?.patch);
        Ok(patch.map_or_else(String::new, |patch| {
            let relay = if patch.relay().is_some() { ", relay" } else { "" };
            format!("{}{relay}", patch.shape().name())
        }))
    })
    .map_err(|error| anyhow::anyhow!("{error}"))
}

fn by_retour(target: u64, detour: Wrapper) -> Result<RawDetour> {
    let [from, to] = [target, detour.address].map(|at| std::ptr::with_exposed_provenance(at as usize));
    // SAFETY: both are functions of one type, and no other thread runs.
    unsafe {
        let hook = RawDetour::new(from, to)?;
        detour.cell.store(std::ptr::from_ref(hook.trampoline()).addr() as u64, Ordering::Release);
        hook.enable()?;
        Ok(hook)
    }
}

/// The ways that one writes in Rust. They share the prologue 1+3+1, near.
fn typed_ways() -> Result<Table> {
    let place = || placed(ONE_THREE_ONE, Place::Near, 0x40);
    let plain = |error: kdetour::Error| anyhow::anyhow!("{error}");
    let mut ways = Vec::new();
    let bare = place()?;
    STATIC_FLOOR.store(bare, Ordering::Release);
    ways.push(way("near bare", bare));
    ways.push(Way { name: "near floor".to_owned(), function: by_pointer });
    let target = place()?;
    // SAFETY: both are functions of one type, and stay.
    unsafe { STATIC.attach_to(functions::at(target)) }.map_err(plain)?;
    ways.push(way("StaticDetour", target));
    let target = place()?;
    // SAFETY: as above.
    let detour = unsafe { Detour::attach(functions::at(target), by_detour as Function) }.map_err(plain)?;
    ensure!(DETOUR.set(detour).is_ok(), "the detour is set once");
    ways.push(way("Detour in a OnceLock", target));
    let target = place()?;
    // SAFETY: as above.
    unsafe {
        let to = functions::at(target);
        CLOSURE.attach_by(Protocol::Exchange, to, Box::new(|of| black_box(CLOSURE.original()(of))))
    }
    .map_err(plain)?;
    ways.push(way("closure", target));
    let mut table = compared("calls, prologue 1+3+1: detours in Rust", &ways)?;
    table.note("a closure counts the calls that are in flight: two locked instructions");
    STATIC.detach().map_err(plain)?;
    CLOSURE.detach().map_err(plain)?;
    typed::reclaim(Duration::from_secs(2)).map_err(plain)?;
    Ok(table)
}

/// Measures ways side by side: one run of each, again and again.
fn compared(title: &str, ways: &[Way]) -> Result<Table> {
    for way in ways {
        ensure!(added(way.function) == 1, "{}: a wrong result", way.name);
    }
    let mut runs = vec![Vec::with_capacity(ROUNDS); ways.len()];
    for _ in 0..ROUNDS {
        for (way, runs) in ways.iter().zip(&mut runs) {
            runs.push(run(way.function));
        }
    }
    let floors: Vec<(&str, usize)> = ways
        .iter()
        .enumerate()
        .filter_map(|(index, way)| Some((way.name.strip_suffix(" floor")?, index)))
        .collect();
    let mut table = Table::new(title, &["ns a call", "x floor", "instructions", "more than floor"]);
    for (index, way) in ways.iter().enumerate() {
        let side = floors.iter().find(|(side, _)| way.name.starts_with(side)).or(floors.first());
        let floor = side.map_or(0, |&(_, floor)| floor);
        let mut ratios: Vec<f64> =
            runs[index].iter().zip(&runs[floor]).map(|(one, floor)| one / floor).collect();
        let [steps, of_floor] = [way.function, ways[floor].function].map(steps::of_call);
        let (steps, of_floor) = (steps?, of_floor?);
        let cells = [
            number(median(&mut runs[index].clone()), 2),
            number(median(&mut ratios), 2),
            count(steps),
            words(format!("{:+}", steps.cast_signed() - of_floor.cast_signed())),
        ];
        table.row(way.name.clone(), cells);
    }
    Ok(table)
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
    elapsed.as_nanos() as f64 / CALLS as f64
}
