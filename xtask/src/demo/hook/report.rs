//! What the demonstration showed, as numbers, and whether it is a success.

use crate::demo::facts::{Facts, hex};
use crate::vm::rounded;
use anyhow::Result;
use serde::Serialize;

/// What `--json` gets.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) kernel: String,
    pub(super) cpus: u64,
    accel: String,
    pub(super) target: String,
    address: String,
    original: String,
    patched: String,
    shape: String,
    protocol: String,
    pub(super) calls: u64,
    pub(super) proc_version_changed: bool,
    pub(super) restored: bool,
    text_bytes: u64,
    own_sites: u64,
    pub(super) kernel_warnings: usize,
    module_bytes: u64,
    pub(super) seconds: f64,
}

impl Report {
    /// Takes the numbers from what the guest reported.
    pub(super) fn new(
        facts: &Facts,
        release: &str,
        cpus: u32,
        accel: &str,
        kernel_warnings: usize,
        module_bytes: u64,
        seconds: f64,
    ) -> Result<Self> {
        let (before, after) = (facts.bytes("before")?, facts.bytes("after")?);
        let [first, detoured, last] =
            ["version_before", "version_during", "version_after"].map(|key| facts.text(key));
        Ok(Self {
            kernel: release.to_owned(),
            cpus: u64::from(cpus),
            accel: accel.to_owned(),
            target: facts.text("symbol").to_owned(),
            address: format!("{:#x}", facts.number("target")?),
            original: hex(&before),
            patched: hex(&facts.bytes("during")?),
            shape: facts.text("shape").to_owned(),
            protocol: facts.text("protocol").to_owned(),
            calls: facts.number("calls")?,
            proc_version_changed: first != detoured,
            restored: facts.number("restored")? == 1 && before == after && first == last,
            text_bytes: facts.number("text_bytes")?,
            own_sites: facts.number("own_sites")?,
            kernel_warnings,
            module_bytes,
            seconds: rounded(seconds),
        })
    }

    /// Why the demonstration is no success; nothing when it is one.
    pub(super) fn failures(&self, facts: &Facts) -> Vec<&'static str> {
        [
            (self.restored, "the kernel's text or /proc/version was not restored"),
            (self.proc_version_changed, "/proc/version read the same with the detour in place"),
            (self.original != self.patched, "the target's bytes were the same with the detour in place"),
            (self.calls > 0, "the detour was never called"),
            (self.kernel_warnings == 0, "the kernel complained"),
            (!facts.text("version_before").is_empty(), "/proc/version was empty"),
        ]
        .into_iter()
        .filter_map(|(good, why)| (!good).then_some(why))
        .collect()
    }
}
