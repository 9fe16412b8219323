//! The header of a guest script, which says on what guest it runs:
//!
//! ```text
//! # guest: cpus=4 append="preempt=full" kernels=6.1,6.12 extent=all timeout=600
//! ```

use super::suite::Extent;
use crate::guest::{Accel, Display};
use crate::kernel::Series;
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;
use std::time::Duration;

/// How many lines at the start of a script may hold the header.
const FIRST_LINES: usize = 10;

/// What a script asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Number of guest CPUs.
    pub(super) cpus: u32,
    /// Added to the kernel's command line.
    pub(super) append: String,
    /// The kernels to run on.
    pub(super) kernels: Vec<Series>,
    /// Those that `--long` adds.
    pub(super) long_kernels: Vec<Series>,
    /// With how much it is run.
    pub(super) extent: Extent,
    /// Never as a suite: somebody else runs it.
    pub(super) manual: bool,
    /// With the modules that were built from the archive of `cargo xtask dist`.
    pub(super) dist: bool,
    /// On a guest that counts instructions: `Guest::count_instructions`.
    pub(super) counts: bool,
    /// Longest time for boot and script.
    pub(super) timeout: Duration,
    /// The guest has to go down before the script ends, and the kernel to say this.
    pub(super) dies: Option<String>,
    /// How QEMU executes it, when the script insists.
    pub(super) accel: Option<Accel>,
    /// With a screen and keys.
    pub(super) display: Option<Display>,
    /// Modules of the kernel's own, for `/modules`.
    pub(super) drivers: Vec<String>,
    /// More arguments of QEMU's.
    pub(super) qemu: Vec<String>,
}

impl Header {
    /// Reads the header of `script`; `None` when it has none and so is no suite.
    pub(super) fn read(script: &str) -> Result<Option<Self>> {
        let found = script.lines().take(FIRST_LINES).find_map(|line| line.strip_prefix("# guest:"));
        found.map(Self::parse).transpose()
    }

    /// With how much it is run on one of its kernels: in the short form on the newest of the ordinary ones.
    pub(super) fn extent_on(&self, series: Series) -> Extent {
        let is_newest = Series::ORDINARY.last() == Some(&series);
        if is_newest { self.extent } else { self.extent.max(Extent::All) }
    }

    fn parse(text: &str) -> Result<Self> {
        let mut header = Self {
            cpus: 2,
            append: String::new(),
            kernels: Series::ORDINARY.to_vec(),
            long_kernels: Vec::new(),
            extent: Extent::Short,
            manual: false,
            dist: false,
            dies: None,
            counts: false,
            timeout: Duration::from_secs(600),
            accel: None,
            display: None,
            drivers: Vec::new(),
            qemu: Vec::new(),
        };
        for (key, value) in pairs(text)? {
            let number = || value.parse::<u32>().with_context(|| format!("{key}={value}: not a number"));
            match key {
                "cpus" => header.cpus = number()?,
                "append" => header.append = value.to_owned(),
                "kernels" => header.kernels = series(value)?,
                "long-kernels" => header.long_kernels = series(value)?,
                "extent" if value == "all" => header.extent = Extent::All,
                "extent" if value == "long" => header.extent = Extent::Long,
                "only" => header.manual = value == "manual",
                "modules" if value == "dist" => header.dist = true,
                "dies" => header.dies = Some(value.to_owned()),
                "counts" if value == "instructions" => header.counts = true,
                "timeout" => header.timeout = Duration::from_secs(number()?.into()),
                "accel" => header.accel = Some(Accel::from_str(value, true).map_err(anyhow::Error::msg)?),
                "screen" => {
                    header.display = Some(Display::from_str(value, true).map_err(anyhow::Error::msg)?);
                }
                "drivers" => header.drivers = value.split(',').map(str::to_owned).collect(),
                "qemu" => header.qemu = value.split_whitespace().map(str::to_owned).collect(),
                _ => bail!(
                    "{key}={value} is unknown: known are cpus, append, kernels, long-kernels, extent=all, extent=long, only, modules=dist, dies, \
                     counts=instructions, timeout, accel, screen, drivers, qemu"
                ),
            }
        }
        Ok(header)
    }
}

fn series(names: &str) -> Result<Vec<Series>> {
    let one = |name| Series::from_str(name, true).map_err(|why| anyhow::anyhow!("kernels: {why}"));
    names.split(',').map(one).collect()
}

/// `key=value` and `key="two words"`, one after the other.
fn pairs(text: &str) -> Result<Vec<(&str, &str)>> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').with_context(|| format!("no `=` in `{rest}`"))?;
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => {
                quoted.split_once('"').with_context(|| format!("no closing quote after {key}="))?
            }
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        found.push((key, value));
        rest = left.trim_start();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read() {
        let script = "#!/bin/sh\n# What it tests.\n\
                      # guest: cpus=4 append=\"preempt=full a=b\" kernels=6.12,6.1-rt long-kernels=6.12-rt \
                      extent=long modules=dist dies=\"double fault\" timeout=60 accel=mttcg screen=efi drivers=drm,bochs \
                      qemu=\"-device edu\"\n";
        let header = Header::read(script).unwrap().unwrap();
        assert_eq!((header.cpus, header.append.as_str()), (4, "preempt=full a=b"));
        assert_eq!(
            (header.kernels, header.extent, header.manual),
            (vec![Series::V6_12, Series::V6_1Rt], Extent::Long, false)
        );
        assert_eq!(header.long_kernels, [Series::V6_12Rt]);
        assert!(header.dist);
        assert_eq!(header.dies.as_deref(), Some("double fault"));
        assert_eq!((header.timeout, header.accel), (Duration::from_secs(60), Some(Accel::Mttcg)));
        assert_eq!(header.display, Some(Display::Efi));
        assert_eq!(header.drivers, ["drm", "bochs"]);
        assert_eq!(header.qemu, ["-device", "edu"]);
    }

    #[test]
    fn no_header_is_no_suite_and_a_wrong_one_an_error() {
        assert_eq!(Header::read("echo hi\n").unwrap(), None);
        assert!(Header::read("# guest: cpu=4\n").is_err());
        assert!(Header::read("# guest: append=\"open\n").is_err());
        assert!(Header::read("# guest: kernels=5.10\n").is_err());
        assert!(Header::read("# guest: modules=mine\n").is_err());
        assert!(Header::read("# guest: screen=big\n").is_err());
    }
}
