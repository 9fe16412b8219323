//! The same by `kdetour.h` and by the Rust library, in turns: what C's interface adds.

use crate::attach::{Time, timed};
use crate::functions;
use crate::table::{Table, median, number};
use anyhow::{Result, ensure};
use kdetour::typed::set::{self, Member};
use kdetour::{AtomicAddress, Protocol};
use kdetour_ffi::process::{Detour, kdetour_attach_all, kdetour_detach_all};
use std::ffi::c_int;
use std::ptr;
use std::time::Duration;

/// `KDETOUR_EXCHANGE`, `KDETOUR_NO_WAIT`.
const EXCHANGE: c_int = 3;
const NO_WAIT: u32 = u32::MAX;

/// How often each is attached and detached.
const ROUNDS: usize = 201;

extern "C" fn replaced(of: u64) -> u64 {
    of ^ 0x5555
}

/// The table.
pub(crate) fn measure() -> Result<Vec<Table>> {
    let columns = ["attach again", "by C", "ratio", "detach", "by C", "ratio"];
    let mut table = Table::new("kdetour.h beside Rust, microseconds a hook (Exchange)", &columns);
    for size in [1, 300] {
        let targets: Vec<u64> = functions::dense().into_iter().step_by(9).take(size).collect();
        one(&targets, &mut table)?;
    }
    table.note("Rust: typed::set; C: kdetour_attach_all and kdetour_detach_all with KDETOUR_NO_WAIT; medians of one after the other, 201 times; the ratio is that of the medians; of the processor, or where nobody tells that on the clock");
    table.note("a call of what is detoured goes through neither");
    Ok(vec![table])
}

fn one(targets: &[u64], table: &mut Table) -> Result<()> {
    let cells: &'static [AtomicAddress] =
        targets.iter().map(|_| AtomicAddress::new(0)).collect::<Vec<_>>().leak();
    let detour = replaced as *const () as u64;
    let mut members: Vec<Member> = targets
        .iter()
        .zip(cells)
        .map(|(&target, cell)| Member { target, detour, cell: Some(cell), ..Member::default() })
        .collect();
    let mut originals = vec![ptr::null_mut(); targets.len()];
    let mut structs: Vec<Detour> = targets
        .iter()
        .zip(&mut originals)
        .map(|(&target, original)| {
            Detour::new(ptr::with_exposed_provenance_mut(target as usize), replaced as *mut _, original)
        })
        .collect();
    let pointers: Vec<*mut Detour> = structs.iter_mut().map(ptr::from_mut).collect();
    let hooks = u32::try_from(pointers.len())?;
    // Attaching and detaching, by Rust and by C.
    let mut times: [[Vec<Time>; 2]; 2] = Default::default();
    for round in 0..=ROUNDS {
        // SAFETY: both have one type, and stay.
        let (handles, by_rust) = timed(|| Ok(unsafe { set::attach(Protocol::Exchange, &members) }?))?;
        let (_, back_by_rust) = timed(|| Ok(set::detach(Protocol::Exchange, &handles)?))?;
        for (member, handle) in members.iter_mut().zip(handles) {
            member.again = Some(handle);
        }
        // SAFETY: both have one type, and stay; so do the structs.
        let (failed, by_c) =
            timed(|| Ok(unsafe { kdetour_attach_all(pointers.as_ptr(), hooks, EXCHANGE, ptr::null_mut()) }))?;
        ensure!(failed == 0, "kdetour_attach_all: {failed}");
        let (failed, back_by_c) = timed(|| {
            // SAFETY: as above.
            Ok(unsafe { kdetour_detach_all(pointers.as_ptr(), hooks, EXCHANGE, NO_WAIT, ptr::null_mut()) })
        })?;
        ensure!(failed == 0, "kdetour_detach_all: {failed}");
        // The first time everything is planned.
        if round > 0 {
            times[0][0].push(by_rust);
            times[0][1].push(by_c);
            times[1][0].push(back_by_rust);
            times[1][1].push(back_by_c);
        }
    }
    let of_processor = |time: &Time| if time.cpu.is_nan() { time.wall } else { time.cpu } / f64::from(hooks);
    let cells = times.iter().flat_map(|pair| {
        let [rust, c] = [0, 1].map(|way| {
            let mut all: Vec<f64> = pair[way].iter().map(of_processor).collect();
            median(&mut all)
        });
        [number(rust, 2), number(c, 2), number(c / rust, 2)]
    });
    table.row(format!("{hooks} in a session"), cells);
    let handles: Vec<_> = members.iter().filter_map(|member| member.again).collect();
    set::drain(&handles, Duration::from_secs(5))?;
    // SAFETY: as above.
    let failed = unsafe { kdetour_detach_all(pointers.as_ptr(), hooks, EXCHANGE, 5000, ptr::null_mut()) };
    ensure!(failed == 0, "kdetour_detach_all: {failed}");
    Ok(())
}
