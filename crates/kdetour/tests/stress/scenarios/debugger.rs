//! gdb attached: it sees no stop.

use crate::support::callers::Callers;
use crate::support::runner::{Clock, fail};
use crate::support::sites::{self, Site};
use crate::support::system::{fork, shared, wait_for};
use crate::support::targets::target;
use kdetour::{Protocol, typed};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

struct Table {
    ready: AtomicU32,
    toggles: AtomicU64,
}

fn is_traced() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
}

fn live(table: &'static Table, length: Duration) -> i32 {
    // SAFETY: gdb is no ancestor of this process.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    let call = target(0, 1);
    let callers = Callers::start(2, call, sites::either);
    // One byte, and pages.
    let mut all = [Site::adding::<0>(call), Site::adding::<1>(target(1, 7)).with(&sites::EXCHANGE_KEPT)];
    table.ready.store(1, SeqCst);
    wait_for("gdb", is_traced);
    let begin = Instant::now();
    while begin.elapsed() < length || table.toggles.load(SeqCst) < 500 {
        for site in &mut all {
            if let Err(error) = site.attach(Protocol::Exchange).and_then(|()| site.detach(Protocol::Exchange))
            {
                fail(&format!("under gdb: {error:?}"));
            }
            table.toggles.fetch_add(1, SeqCst);
        }
    }
    callers.stop();
    match typed::reclaim(Duration::from_secs(10)) {
        Ok(2) => 0,
        other => fail(&format!("under gdb: reclaim: {other:?}")),
    }
}

pub(crate) fn debugger(clock: &Clock) -> String {
    let table: &'static Table = shared();
    let length = clock.length() / 2;
    let child = fork(|| live(table, length)).expect("a process");
    wait_for("the child", || table.ready.load(SeqCst) == 1);
    let gdb =
        Command::new("gdb").args(["-nx", "-batch", "-p", &child.to_string(), "-ex", "continue"]).output();
    let gdb = gdb.unwrap_or_else(|error| panic!("gdb: {error}"));
    let said = String::from_utf8_lossy(&gdb.stdout).into_owned() + &String::from_utf8_lossy(&gdb.stderr);
    if said.contains("SIGTRAP") || !said.contains("exited normally") {
        // SAFETY: a child of this process.
        unsafe { libc::kill(child, libc::SIGKILL) };
        let last: Vec<&str> = said.lines().rev().take(6).collect();
        fail(&format!("gdb said: {last:?}"));
    }
    let ended = crate::support::system::wait(child);
    assert_eq!(ended, 0, "the child ended so (its code, or minus its signal)");
    format!("{} toggles", table.toggles.load(SeqCst))
}
