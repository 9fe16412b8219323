//! What is mapped, as `/proc/self/maps` says.

use anyhow::{Context as _, Result};
use std::fs;

/// Executable memory that no file is behind, and mappings altogether.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) executable_pages: u64,
    pub(crate) executable_mappings: u64,
    pub(crate) mappings: u64,
}

impl Mapped {
    pub(crate) fn now() -> Result<Self> {
        let maps = fs::read_to_string("/proc/self/maps")?;
        let mut mapped = Self { executable_pages: 0, executable_mappings: 0, mappings: 0 };
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (range, protection) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let (start, end) = range.split_once('-').context("a mapping has bounds")?;
            let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
            mapped.mappings += 1;
            if protection.contains('x') && words.nth(3).is_none() {
                mapped.executable_mappings += 1;
                mapped.executable_pages += (end - start) / 4096;
            }
        }
        Ok(mapped)
    }
}

/// How many mappings a process may have.
pub(crate) fn most() -> Result<u64> {
    Ok(fs::read_to_string("/proc/sys/vm/max_map_count")?.trim().parse()?)
}
