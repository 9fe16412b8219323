//! gdb attached: it sees no stop. gdb and perf know the names of slots; gdb knows who called them, too.

use crate::support::callers::Callers;
use crate::support::runner::{Clock, fail};
use crate::support::sites::{self, Site};
use crate::support::system::{fork, shared, wait, wait_for};
use crate::support::targets::{Target, target};
use kdetour::host::linux_process::Tell;
use kdetour::typed::{Function, with_process};
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

/// What gdb says of a process that it attaches to, and then does this with.
fn gdb(process: i32, commands: &[&str]) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-p", &process.to_string()]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let said = gdb.output().unwrap_or_else(|error| panic!("gdb: {error}"));
    String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr)
}

fn unexpected(said: &str, child: i32) -> ! {
    // SAFETY: a child of this process.
    unsafe { libc::kill(child, libc::SIGKILL) };
    let lines: Vec<&str> = said.lines().collect();
    fail(&format!("gdb said: {:?}", &lines[lines.len().saturating_sub(12)..]));
}

pub(crate) fn toggles(clock: &Clock) -> String {
    let table: &'static Table = shared();
    let length = clock.length() / 2;
    let child = fork(|| live(table, length)).expect("a process");
    wait_for("the child", || table.ready.load(SeqCst) == 1);
    let said = gdb(child, &["continue"]);
    if said.contains("SIGTRAP") || !said.contains("exited normally") {
        unexpected(&said, child);
    }
    let ended = wait(child);
    assert_eq!(ended, 0, "the child ended so (its code, or minus its signal)");
    format!("{} toggles", table.toggles.load(SeqCst))
}

/// Calls a detoured function for ever; says where its trampoline is.
fn named(table: &'static Table) -> i32 {
    // SAFETY: gdb is no ancestor of this process.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    let told = with_process(|kdetour| {
        kdetour.host().tell(Tell { debugger: true, profiler: true, ..Tell::default() });
        Ok(())
    });
    told.expect("told");
    let call = target(0, 1);
    let mut site = Site::adding::<0>(call);
    site.attach(Protocol::Exchange).expect("attaches");
    table.toggles.store(sites::cell(0).load(SeqCst), SeqCst);
    table.ready.store(1, SeqCst);
    loop {
        for_a_debugger(call);
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn for_a_debugger(call: Target) {
    assert!(sites::is_detoured(1, 2, call(1, 2)));
    std::hint::black_box(());
}

pub(crate) fn gdb_names(_: &Clock) -> String {
    let table: &'static Table = shared();
    let child = fork(|| named(table)).expect("a process");
    wait_for("the child", || table.ready.load(SeqCst) == 1);
    let (trampoline, target) = (table.toggles.load(SeqCst), target(0, 1).address());
    let here = format!("break *{trampoline:#x}");
    // Second instruction: behind the push of the target's frame pointer.
    let said = gdb(child, &[&here, "continue", "info symbol $pc", "stepi", "backtrace", "kill"]);
    let name = format!("kdetour:{target:#x}");
    let in_order = ["#0 ", &name, "#1 ", "adding", "#2 ", "for_a_debugger"];
    let mut rest = said.as_str();
    let found = in_order.iter().all(|word| {
        let at = rest.find(word);
        rest = rest.get(at.unwrap_or(0)..).unwrap_or_default();
        at.is_some()
    });
    if !found || !said.contains(&format!("{name} in section .text")) && !said.contains(&format!("{name} + "))
    {
        unexpected(&said, child);
    }
    assert_eq!(wait(child), -libc::SIGKILL, "gdb has ended it");
    let _ = fs::remove_file(format!("/tmp/perf-{child}.map"));
    format!("a breakpoint in {name} at {trampoline:#x}; a backtrace from there")
}

pub(crate) fn perf_names(_: &Clock) -> String {
    let table: &'static Table = shared();
    let child = fork(|| named(table)).expect("a process");
    wait_for("the child", || table.ready.load(SeqCst) == 1);
    let data = format!("/tmp/kdetour-stress-{child}.data");
    let perf = |arguments: &[&str]| {
        let said =
            Command::new("perf").args(arguments).output().unwrap_or_else(|error| panic!("perf: {error}"));
        String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr)
    };
    // A clock of the kernel: virtual machines often have no counters of cycles.
    let process = child.to_string();
    let recorded =
        perf(&["record", "-e", "cpu-clock", "-F", "4000", "-o", &data, "-p", &process, "sleep", "1"]);
    // SAFETY: a child of this process.
    unsafe { libc::kill(child, libc::SIGKILL) };
    wait(child);
    let reported = perf(&["report", "--stdio", "-i", &data, "--sort", "symbol"]);
    for file in [data, format!("/tmp/perf-{child}.map")] {
        let _ = fs::remove_file(file);
    }
    let name = format!("kdetour:{:#x}", target(0, 1).address());
    let Some(line) = reported.lines().find(|line| line.contains(&name)) else {
        fail(&format!("perf does not know {name}: {recorded} {reported}"));
    };
    line.trim().to_owned()
}
