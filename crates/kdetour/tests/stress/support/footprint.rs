//! What a scenario may not leave behind: changed text, detours, mappings, threads.

use super::system::{self, memory};
use kdetour::typed::{reclaim, with_process};
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// The text and the threads as they were.
pub(crate) struct Footprint {
    text: Vec<(u64, Vec<u8>)>,
    maps: Vec<String>,
    threads: usize,
}

impl Footprint {
    pub(crate) fn take() -> Self {
        let maps = executable();
        let mut text = Vec::new();
        for line in &maps {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let range =
                range.map(|(start, end)| (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16)));
            // The kernel's own pages cannot be read.
            if let Some((Ok(start), Ok(end))) = range
                && !line.contains("[v")
            {
                let mut bytes = vec![0; usize::try_from(end - start).expect("fits")];
                memory().read_exact_at(&mut bytes, start).expect("text can be read");
                text.push((start, bytes));
            }
        }
        Self { text, maps, threads: system::threads("self") }
    }

    /// Gives everything back, and fails if anything is not as it was.
    pub(crate) fn compare(&self) -> String {
        reclaim(Duration::from_secs(10)).expect("nobody is inside any more");
        let left = with_process(|kdetour| Ok(kdetour.len())).expect("nobody is at it");
        assert_eq!(left, 0, "detours are left");
        let mut found = Vec::new();
        for (start, before) in &self.text {
            found.resize(before.len(), 0);
            memory().read_exact_at(&mut found, *start).expect("text can be read");
            if let Some(at) = before.iter().zip(&found).position(|(before, found)| before != found) {
                panic!(
                    "text at {:#x} is {:02x?} and was {:02x?}",
                    start + at as u64,
                    &found[at..(at + 16).min(found.len())],
                    &before[at..(at + 16).min(found.len())]
                );
            }
        }
        system::wait_for("threads to end", || system::threads("self") <= self.threads);
        // An exchanged page comes from another `open` of the file than its neighbours, and stays a mapping of its own. What
        // is kdetour's has to go.
        let maps = executable();
        let new: Vec<&String> =
            maps.iter().filter(|line| is_anonymous(line) && !self.maps.contains(line)).collect();
        assert!(new.is_empty(), "mappings are left: {new:#?}");
        format!("text and threads as before, {} executable mappings became {}", self.maps.len(), maps.len())
    }
}

/// Whether no file is mapped.
fn is_anonymous(line: &str) -> bool {
    line.split_whitespace().nth(4) == Some("0")
}

fn executable() -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").expect("mappings are told");
    let is_executable =
        |line: &&str| line.split(' ').nth(1).is_some_and(|permissions| permissions.contains('x'));
    maps.lines().filter(is_executable).map(str::to_owned).collect()
}
