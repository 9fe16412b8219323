//! The numbers, as `--json` writes them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the first use of the decoder costs: it builds its tables.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct FirstUse {
    pub(crate) microseconds: f64,
    pub(crate) allocations: u64,
    pub(crate) bytes: u64,
}

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) first_use: FirstUse,
    pub(crate) files: Vec<Own>,
    pub(crate) peers: Vec<Compared>,
}

/// Survey and plan over one file.
#[derive(Debug, Serialize)]
pub(crate) struct Own {
    pub(crate) file: String,
    pub(crate) model: &'static str,
    pub(crate) bits: u32,
    pub(crate) functions: usize,
    #[serde(flatten)]
    pub(crate) counts: Counts,
    pub(crate) timing: Timing,
    pub(crate) heap: Heap,
    pub(crate) slots: BTreeMap<String, Slots>,
}

/// Accepted, by shape; refused, by reason.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Counts {
    pub(crate) accepted: usize,
    pub(crate) refused: usize,
    pub(crate) shapes: BTreeMap<String, usize>,
    pub(crate) refusals: BTreeMap<String, usize>,
}

/// On one core.
#[derive(Debug, Serialize)]
pub(crate) struct Timing {
    pub(crate) rounds: usize,
    /// Survey and plan, of the median round.
    pub(crate) functions_per_second: f64,
    /// The same, of the fastest round.
    pub(crate) functions_per_second_best: f64,
    pub(crate) survey_ns: f64,
    pub(crate) plan_ns: f64,
}

/// Heap traffic of all functions together, after the first use of the decoder.
#[derive(Debug, Serialize)]
pub(crate) struct Heap {
    pub(crate) survey_allocations: u64,
    pub(crate) survey_bytes: u64,
    pub(crate) plan_allocations: u64,
    pub(crate) plan_bytes: u64,
}

/// Bytes of the slots of one shape.
#[derive(Debug, Serialize)]
pub(crate) struct Slots {
    pub(crate) count: usize,
    pub(crate) median: usize,
    pub(crate) ninety: usize,
    pub(crate) maximum: usize,
}

/// What one library made of the functions of one file.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Compared {
    pub(crate) peer: String,
    pub(crate) file: String,
    pub(crate) functions: usize,
    pub(crate) accepted: usize,
    pub(crate) refused: usize,
    pub(crate) refusals: BTreeMap<String, usize>,
    pub(crate) panicked: usize,
    /// The process died.
    pub(crate) crashed: usize,
    /// Where it panicked or died: the function, and its entry's offset in its page.
    pub(crate) failed_at: Vec<String>,
    /// Accepted though other code jumps into the overwritten bytes, as one of the following two says.
    pub(crate) jumps_into_window: usize,
    /// A linear decode of the function.
    pub(crate) jumps_into_window_by_decoding: usize,
    /// kdetour's survey, of a window of the same length: it also knows of other functions that jump there.
    pub(crate) jumps_into_window_by_survey: usize,
    /// The functions about which they say different things, with what each says.
    pub(crate) told_differently: Vec<String>,
    /// Accepted though another function begins inside the overwritten bytes.
    pub(crate) overwrites_neighbour: usize,
    pub(crate) timing: Option<PeerTiming>,
    /// kdetour's speed divided by this one's.
    pub(crate) kdetour_is_times_as_fast: Option<f64>,
    pub(crate) emulated: Option<Emulated>,
}

/// Building trampolines, of the functions that neither panic nor crash.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct PeerTiming {
    pub(crate) functions: usize,
    /// Each trampoline dropped before the next one is built.
    pub(crate) dropped_per_second: f64,
    /// All trampolines kept, if the library can do so without patching.
    pub(crate) kept_per_second: Option<f64>,
    /// Heap allocations for each function.
    pub(crate) allocations: f64,
    pub(crate) allocated_bytes: f64,
    /// For each trampoline that is kept.
    pub(crate) heap_bytes_kept: Option<f64>,
    pub(crate) executable_bytes_kept: Option<f64>,
}

/// What the emulator found: each trampoline is in one class, the worst.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Emulated {
    pub(crate) records: usize,
    pub(crate) same: usize,
    /// A displaced call's callee sees a return address in the trampoline.
    pub(crate) returns_into_slot: usize,
    /// Bytes below the stack pointer are overwritten (the red zone of the System V ABI).
    pub(crate) below_stack: usize,
    pub(crate) wrong: usize,
    #[serde(default)]
    pub(crate) examples: Vec<String>,
}

/// The middle one.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The value that `percent` of the sorted values do not exceed.
pub(crate) fn quantile(sorted: &[usize], percent: usize) -> usize {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(0)
}
