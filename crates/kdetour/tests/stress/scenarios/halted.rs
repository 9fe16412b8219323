//! The committing thread stops for ever, at any moment, or its process is killed: all others go on.
//!
//! Text changes by system calls only. So a tracer that stops the committing thread at the beginning and at the end of each
//! of its system calls sees every state that text can be in.

use crate::support::callers::Callers;
use crate::support::helper::Dice;
use crate::support::ptrace::Stopped;
use crate::support::runner::{Clock, fail, tell};
use crate::support::sites::{self, Mode, Site};
use crate::support::system::{self, fork, shared, text, wait_for};
use crate::support::targets::{LONGEST, PLACES, PROLOGUES, Target, target};
use kdetour::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

struct Table {
    /// The committing thread.
    committer: AtomicI32,
    /// How many toggles it may do, and has done.
    wanted: AtomicU32,
    done: AtomicU32,
    calls: AtomicU64,
    /// Whether the mode is not possible with the target.
    refused: AtomicU32,
}

const CALLERS: usize = 2;

const MODES: [Mode; 5] =
    [sites::EXCHANGE, sites::EXCHANGE_TRAPPED, sites::EXCHANGE_WHOLE, sites::LIVE_KEPT, sites::LIVE_TRAPPED];

/// The child: callers, and a thread that toggles as often as it is told to.
fn live(table: &'static Table, call: Target, mode: Mode) -> i32 {
    let callers = Callers::start(CALLERS, call, sites::either);
    let mut site = Site::adding::<0>(call).with(&mode);
    thread::spawn(move || {
        let toggle = |site: &mut Site| site.attach(mode.protocol).and_then(|()| site.detach(mode.protocol));
        match toggle(&mut site) {
            Ok(()) => {}
            Err(Error::Refused(_) | Error::NoSlot { .. }) => table.refused.store(1, SeqCst),
            Err(error) => fail(&format!("{}: {error:?}", mode.name)),
        }
        table.committer.store(system::thread_number(), SeqCst);
        loop {
            while table.done.load(SeqCst) >= table.wanted.load(SeqCst) {
                thread::sleep(Duration::from_micros(20));
            }
            if let Err(error) = toggle(&mut site) {
                fail(&format!("{}: {error:?}", mode.name));
            }
            table.done.fetch_add(1, SeqCst);
        }
    });
    loop {
        thread::sleep(Duration::from_micros(100));
        table.calls.store(callers.calls(), SeqCst);
    }
}

struct Child {
    table: &'static Table,
    process: i32,
    what: String,
    target: u64,
    original: Vec<u8>,
}

impl Child {
    fn start(mode: Mode, prologue: usize, place: usize) -> Option<Self> {
        let what = format!("{}, {}, {}", mode.name, PROLOGUES[prologue], PLACES[place]);
        tell(&what);
        let table: &'static Table = shared();
        let call = target(prologue, place);
        let target = call as *const () as u64;
        let original = text(target, LONGEST);
        let process = fork(|| live(table, call, mode)).expect("a process");
        let child = Self { table, process, what, target, original };
        wait_for("the committing thread", || table.committer.load(SeqCst) != 0 || child.has_died());
        if table.refused.load(SeqCst) != 0 {
            child.kill();
            return None;
        }
        Some(child)
    }

    fn has_died(&self) -> bool {
        let task = format!("/proc/{}", self.process);
        if matches!(system::state_at(task.as_ref()), None | Some('Z' | 'X')) {
            fail(&format!("{}: the child died: {}", self.what, system::wait_traced(self.process)));
        }
        false
    }

    fn kill(self) {
        // SAFETY: a child of this process.
        unsafe { libc::kill(self.process, libc::SIGKILL) };
        let ended = system::wait_traced(self.process);
        if ended != -libc::SIGKILL {
            fail(&format!("{}: the child ended with {ended}", self.what));
        }
    }

    fn text(&self) -> Vec<u8> {
        let mut bytes = vec![0; LONGEST];
        let file = File::open(format!("/proc/{}/mem", self.process)).expect("the child's memory");
        file.read_exact_at(&mut bytes, self.target).expect("the child's text");
        bytes
    }

    /// The callers go on, although the committing thread does not.
    fn goes_on(&self, where_: &str) {
        let before = self.table.calls.load(SeqCst);
        wait_for(
            &format!("callers to go on while the committing thread stands {where_} ({})", self.what),
            || self.table.calls.load(SeqCst) > before + 500 || self.has_died(),
        );
    }
}

pub(crate) fn stopped(clock: &Clock) -> String {
    let (mut stops, mut random, mut states, mut not_possible) = (0_u64, 0_u64, 0_u64, 0);
    let mut dice = Dice::new(9);
    let mut number = 0;
    while !clock.is_over() || number < MODES.len() {
        let mode = MODES[number % MODES.len()];
        // Each mode begins with what it is best for.
        let prologue =
            if mode.shape == Some(kdetour::plan::Shape::WholeInstruction) { 3 } else { number % 3 };
        let place = number * 2 % PLACES.len();
        number += 1;
        let Some(child) = Child::start(mode, prologue, place) else {
            not_possible += 1;
            continue;
        };
        let table = child.table;
        let mut seen = vec![child.original.clone()];
        // At the beginning and the end of each system call of one toggle.
        let mut committer = Stopped::seize(table.committer.load(SeqCst));
        let done = table.done.load(SeqCst);
        table.wanted.store(done + 1, SeqCst);
        let mut calls = 0;
        while table.done.load(SeqCst) == done {
            let was = seen.len();
            if !committer.run_to_system_call() {
                continue;
            }
            calls += 1;
            let now = child.text();
            if !seen.contains(&now) {
                seen.push(now);
            }
            // Where text has changed, and now and then.
            if seen.len() > was || calls % 8 == 0 {
                child.goes_on(&format!("at its system call {calls}, {:#x}", committer.system_call()));
                stops += 1;
            }
        }
        states += seen.len() as u64;
        if mode.protocol == kdetour::Protocol::Exchange && seen.len() > 2 {
            fail(&format!("{}: text was neither old nor new: {seen:02x?}", child.what));
        }
        committer.release();
        // At any moment; then it never goes on.
        table.wanted.store(u32::MAX, SeqCst);
        for _ in 0..3 {
            thread::sleep(Duration::from_micros(dice.below(400) as u64));
            let committer = Stopped::seize(table.committer.load(SeqCst));
            child.goes_on(&format!("at {:#x}", committer.ip()));
            random += 1;
            committer.release();
        }
        // It dies stopped.
        let _committer = Stopped::seize(table.committer.load(SeqCst));
        child.goes_on("for ever");
        child.kill();
    }
    format!(
        "{stops} stops at system calls, {random} elsewhere, {states} states of text, {not_possible} modes not possible"
    )
}

pub(crate) fn killed(clock: &Clock) -> String {
    let mut dice = Dice::new(3);
    let mut kills = 0;
    while !clock.is_over() || kills < 10 {
        let mode = MODES[kills % MODES.len()];
        let prologue = if mode.shape == Some(kdetour::plan::Shape::WholeInstruction) { 3 } else { kills % 3 };
        kills += 1;
        let Some(child) = Child::start(mode, prologue, kills % PLACES.len()) else { continue };
        child.table.wanted.store(u32::MAX, SeqCst);
        thread::sleep(Duration::from_micros(dice.below(5000) as u64));
        child.has_died();
        let (target, original) = (child.target, child.original.clone());
        child.kill();
        // What the child patched was its own.
        assert_eq!(text(target, LONGEST), original, "the child's text is its own");
    }
    format!("{kills} kills")
}
