//! What a scenario may not leave behind: changed text, detours, mappings, threads.

use super::system::{self, Region, text};
use kdetour::typed::{reclaim, with_process};
use std::time::Duration;

/// The text and the threads as they were.
pub(crate) struct Footprint {
    text: Vec<(u64, Vec<u8>)>,
    regions: Vec<Region>,
    threads: usize,
}

impl Footprint {
    pub(crate) fn take() -> Self {
        let regions = system::executable();
        let readable = regions.iter().filter(|region| region.is_readable);
        let text = readable.map(|region| (region.start, text(region.start, len(region)))).collect();
        Self { text, regions, threads: system::threads() }
    }

    /// Gives everything back, and fails if anything is not as it was.
    pub(crate) fn compare(&self) -> String {
        reclaim(Duration::from_secs(10)).expect("nobody is inside any more");
        let left = with_process(|kdetour| Ok(kdetour.len())).expect("nobody is at it");
        assert_eq!(left, 0, "detours are left");
        for (start, before) in &self.text {
            let found = text(*start, before.len());
            if let Some(at) = before.iter().zip(&found).position(|(before, found)| before != found) {
                panic!(
                    "text at {:#x} is {:02x?} and was {:02x?}",
                    start + at as u64,
                    &found[at..(at + 16).min(found.len())],
                    &before[at..(at + 16).min(found.len())]
                );
            }
        }
        system::wait_for("threads to end", || system::threads() <= self.threads);
        // On Linux an exchanged page comes from another `open` of the file than its neighbours, and stays a mapping of its own. What
        // is kdetour's has to go.
        let regions = system::executable();
        let new: Vec<&Region> =
            regions.iter().filter(|region| region.is_anonymous && !self.regions.contains(region)).collect();
        assert!(new.is_empty(), "mappings are left: {new:#?}");
        for before in &self.regions {
            let covered = |at: u64| regions.iter().any(|region| region.start <= at && at < region.end);
            let lost = (before.start..before.end).step_by(4096).find(|&at| !covered(at));
            assert_eq!(lost, None, "not executable any more, of {before:?}");
        }
        format!(
            "text and threads as before, {} executable mappings became {}",
            self.regions.len(),
            regions.len()
        )
    }
}

fn len(region: &Region) -> usize {
    usize::try_from(region.end - region.start).expect("fits")
}
