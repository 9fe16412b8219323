//! Who is told of slots.

use super::names::{self, JitEntry};
use super::unwind::{self, Frames};
use crate::Error;
use kdetour_plan::Plan;
use std::collections::BTreeMap;
use std::format;

/// Who is told of slots, so that a thread that is in one can be unwound, and its place named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tell {
    /// The unwinder of this process: panics, exceptions and backtraces; so many slots at the most, and as many again may
    /// come when these have gone. No return address points into a slot, so what it serves is a backtrace that a signal
    /// handler takes while the thread runs through one. It takes a microsecond for each new slot, and the unwinder of GCC
    /// 12 gets slower with each.
    pub unwinder: usize,
    /// A debugger: gdb's JIT interface.
    pub debugger: bool,
    /// perf: a line in `/tmp/perf-PID.map`. There is no way to take it back.
    pub profiler: bool,
}

impl Default for Tell {
    /// The unwinder, of the first 256.
    fn default() -> Self {
        Self { unwinder: 256, debugger: false, profiler: false }
    }
}

/// What has been told.
#[derive(Debug, Default)]
pub(super) struct Telling {
    pub(super) whom: Tell,
    slots: BTreeMap<u64, Told>,
}

/// Withdrawn when it is dropped.
#[derive(Debug)]
struct Told {
    _frames: Option<Frames>,
    _entry: Option<JitEntry>,
}

impl Telling {
    pub(super) fn of(&mut self, plan: &Plan) -> Result<(), Error> {
        let (slot, len, Tell { unwinder, debugger, profiler }) =
            (plan.slot(), plan.slot_bytes().len(), self.whom);
        let name = || format!("kdetour:{:#x}", plan.patch().address());
        if profiler {
            names::perf(slot, len, &name())?;
        }
        let entry = match debugger {
            true => {
                Some(JitEntry::register(slot, len, &name(), &unwind::eh_frame(slot, len, plan.unwind())?)?)
            }
            false => None,
        };
        let frames = if self.slots.len() < unwinder {
            Some(Frames::register(slot, len, plan.unwind())?)
        } else {
            None
        };
        if frames.is_some() || entry.is_some() {
            self.slots.insert(slot, Told { _frames: frames, _entry: entry });
        }
        Ok(())
    }

    pub(super) fn withdraw(&mut self, slot: u64) {
        self.slots.remove(&slot);
    }
}
