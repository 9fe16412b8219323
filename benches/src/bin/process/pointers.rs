//! Calls through a pointer that leads to a detour, and what exchanging it takes; beside the function itself detoured.

use crate::attach::{Time, timed};
use crate::functions::{self, Function, ONE_THREE_ONE, Place, Wrapper, placed, wrapper};
use crate::system;
use crate::table::{Table, median, number, quantile};
use anyhow::{Context as _, Result, ensure};
use kdetour::typed::set::{self, Member};
use kdetour::{Method, Protocol};
use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CALLS: u64 = 2_000;
const ROUNDS: usize = 301;
const TOGGLES: usize = 2_000;
const PAGE: usize = 4096;

/// A page of pointers.
fn page() -> Result<&'static [AtomicU64]> {
    let page = system::pages_anywhere(PAGE).context("no page for pointers")?;
    // SAFETY: it is mapped for ever, zero, and used as atomics only.
    Ok(unsafe { std::slice::from_raw_parts(page.cast::<AtomicU64>(), PAGE / 8) })
}

fn seal(page: &[AtomicU64]) -> Result<()> {
    // SAFETY: it is one page of pointers, which nobody but kdetour writes from now on.
    unsafe { system::protect(page.as_ptr().cast_mut().cast(), PAGE, system::Protection::ReadOnly) }
}

fn member(method: Method, target: u64, detour: Wrapper) -> Member {
    Member { method, target, detour: detour.address, cell: Some(detour.cell), ..Member::default() }
}

fn place(pointer: &AtomicU64) -> u64 {
    ptr::from_ref(pointer).expose_provenance() as u64
}

fn attach(member: Member) -> Result<kdetour::Handle, kdetour::Error> {
    // SAFETY: all are functions of one type, which stay.
    let handles = unsafe { set::attach(Protocol::Exchange, &[member]) }?;
    handles.first().copied().ok_or(kdetour::Error::NotAttached)
}

fn detach(handle: kdetour::Handle) -> Result<(), kdetour::Error> {
    Ok(set::detach(Protocol::Exchange, &[handle])?)
}

/// The tables.
pub(crate) fn measure() -> Result<Vec<Table>> {
    Ok(vec![calls()?, toggles()?])
}

fn calls() -> Result<Table> {
    let pointers = page()?;
    let target = || placed(ONE_THREE_ONE, Place::Near, 0x40);
    // The other tables take the first ones.
    let mut wrappers = (50..).map(wrapper);
    let mut next = || wrappers.next().context("too few wrappers")?;
    let names = ["function", "floor", "pointer detoured", "function detoured"];
    let targets = [target()?, target()?, target()?, target()?];
    for (pointer, target) in pointers.iter().zip(targets) {
        pointer.store(target, Ordering::Release);
    }
    let (floor, through, inline) = (next()?, next()?, next()?);
    floor.cell.store(targets[1], Ordering::Release);
    pointers[1].store(floor.address, Ordering::Release);
    let handles = [
        attach(member(Method::Pointer, place(&pointers[2]), through))?,
        attach(member(Method::Jump, targets[3], inline))?,
    ];
    let mut runs = vec![Vec::with_capacity(ROUNDS); names.len()];
    for pointer in pointers.iter().take(names.len()) {
        ensure!(call(pointer, 1000) == 1001, "a wrong result");
    }
    for _ in 0..ROUNDS {
        for (pointer, runs) in pointers.iter().zip(&mut runs) {
            runs.push(run(pointer));
        }
    }
    let mut table = Table::new("calls through a pointer, prologue 1+3+1, near", &["ns a call", "x floor"]);
    for (name, times) in names.into_iter().zip(&runs) {
        let mut ratios: Vec<f64> = times.iter().zip(&runs[1]).map(|(one, floor)| one / floor).collect();
        table.row(name, [number(median(&mut times.clone()), 2), number(median(&mut ratios), 2)]);
    }
    table.note("floor: the pointer leads to a hand-written wrapper, which calls the original by another one");
    for handle in handles {
        detach(handle)?;
    }
    set::drain(&handles, Duration::from_secs(5))?;
    Ok(table)
}

fn call(pointer: &AtomicU64, number: u64) -> u64 {
    // SAFETY: functions of this type are put there.
    let function: Function = unsafe { functions::at(pointer.load(Ordering::Acquire)) };
    function(number)
}

/// Nanoseconds for a call, each waiting for the one before.
#[inline(never)]
fn run(pointer: &AtomicU64) -> f64 {
    let mut number = 0;
    let begin = Instant::now();
    for _ in 0..CALLS {
        number = call(black_box(pointer), number);
    }
    let elapsed = begin.elapsed();
    black_box(number);
    elapsed.as_nanos() as f64 / CALLS as f64
}

fn toggles() -> Result<Table> {
    let columns = ["attach", "90 %", "of it cpu", "detach", "90 %", "of it cpu"];
    let mut table = Table::new("one at a time, idle, microseconds (typed::set, sessions of one)", &columns);
    let (writable, read_only) = (page()?, page()?);
    let target = placed(ONE_THREE_ONE, Place::Empty, 0x40)?;
    writable[0].store(target, Ordering::Release);
    read_only[0].store(target, Ordering::Release);
    seal(read_only)?;
    let detour = wrapper(60)?;
    let ways = [
        ("pointer, page writable", member(Method::Pointer, place(&writable[0]), detour)),
        ("pointer, page read-only", member(Method::Pointer, place(&read_only[0]), detour)),
        ("function, one byte", member(Method::Jump, target, detour)),
    ];
    for (name, mut member) in ways {
        let mut times: [Vec<Time>; 2] = Default::default();
        for round in 0..=TOGGLES {
            let (handle, attached) = timed(|| attach(member))?;
            ensure!(call(&writable[0], 1000) == 1001 && call(&read_only[0], 1000) == 1001, "a wrong result");
            let ((), detached) = timed(|| detach(handle))?;
            // The first one plans, or reads files.
            if round > 0 {
                times[0].push(attached);
                times[1].push(detached);
            }
            member.again = Some(handle);
        }
        set::drain(&member.again.into_iter().collect::<Vec<_>>(), Duration::from_secs(5))?;
        let cells = times.iter().flat_map(|times| {
            let [mut wall, mut cpu] = [|time: &Time| time.wall, |time: &Time| time.cpu]
                .map(|of| times.iter().map(of).collect::<Vec<_>>());
            [number(median(&mut wall), 1), number(quantile(&mut wall, 0.9), 1), number(median(&mut cpu), 1)]
        });
        table.row(name, cells);
    }
    table.note("attach: as it was before, after a detach");
    Ok(table)
}
