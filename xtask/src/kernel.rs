//! The kernel to build for and boot: its headers, installed, and its image, unpacked into the cache.
//!
//! Debian's exact release rolls forward, so it is asked of the meta packages each time. Where the
//! package index cannot be reached, headers that are already on the machine serve.

use crate::download;
use crate::module::files_under;
use crate::packages::{self, Need};
use crate::progress::Stage;
use crate::shell::{query, write_if_changed};
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel series that kdetour is tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// Debian 12's kernel: no IBT, no call padding.
    #[value(name = "6.1")]
    V6_1,
    /// The 6.12 long-term kernel: IBT, call padding, rethunks.
    #[value(name = "6.12")]
    V6_12,
    /// 6.1 as PREEMPT_RT: spinlocks sleep, interrupts are threads, tasks are preempted nearly anywhere.
    #[value(name = "6.1-rt")]
    V6_1Rt,
    /// 6.12 as PREEMPT_RT.
    #[value(name = "6.12-rt")]
    V6_12Rt,
}

/// Debian's flavour of the kernels with PREEMPT_RT.
const REAL_TIME: &str = "rt-amd64";

impl Series {
    /// Every series: the ordinary ones, oldest first, then those with PREEMPT_RT.
    pub(crate) const ALL: [Self; 4] = [Self::V6_1, Self::V6_12, Self::V6_1Rt, Self::V6_12Rt];
    /// The series without PREEMPT_RT.
    pub(crate) const ORDINARY: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// As a guest's header and `--kernel` name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V6_1Rt => "6.1-rt",
            Self::V6_12Rt => "6.12-rt",
        }
    }

    /// Debian's flavour: the one that was asked for, where the series does not settle it.
    fn flavour(self, asked: &str) -> &str {
        match self {
            Self::V6_1 | Self::V6_12 => asked,
            Self::V6_1Rt | Self::V6_12Rt => REAL_TIME,
        }
    }

    /// What the releases of the series begin with.
    fn version(self) -> &'static str {
        match self {
            Self::V6_1 | Self::V6_1Rt => "6.1",
            Self::V6_12 | Self::V6_12Rt => "6.12",
        }
    }

    fn owns(self, release: &str) -> bool {
        release.strip_prefix(self.version()).is_some_and(|rest| rest.starts_with(['.', '-', '+']))
    }
}

/// Whether a release is of that flavour: `6.1.0-56-rt-amd64` is of `rt-amd64` and not of `amd64`.
fn is_of_flavour(release: &str, flavour: &str) -> bool {
    let version = release.strip_suffix(flavour).and_then(|rest| rest.strip_suffix('-'));
    version.is_some_and(|version| version.ends_with(|last: char| last.is_ascii_digit()))
}

/// A kernel that is ready to build against and to boot.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` prints it.
    pub(crate) release: String,
    /// The build tree for `make -C`.
    pub(crate) headers: PathBuf,
    /// The bzImage.
    pub(crate) image: PathBuf,
}

impl Kernel {
    /// Modules of the kernel's own, by name, from its package: those that are compressed there are unpacked, and those that are part
    /// of the kernel left out.
    pub(crate) fn drivers(&self, workspace: &Workspace, names: &[String]) -> Result<Vec<PathBuf>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        // The image is RELEASE/boot/vmlinuz-RELEASE, or the machine's own.
        let root = self.image.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
        let folder = root.join("lib/modules").join(&self.release).join("kernel");
        let files = files_under(&folder)?;
        let builtin = fs::read_to_string(folder.with_file_name("modules.builtin")).unwrap_or_default();
        let is_builtin = |name: &&String| builtin.lines().any(|line| line.ends_with(&format!("/{name}.ko")));
        let unpacked = workspace.out.join("kernel-modules").join(&self.release);
        let file = |name: &String| {
            let wanted = format!("{name}.ko");
            let find =
                |wanted: &str| files.iter().find(|file| file.file_name().is_some_and(|name| name == wanted));
            if let Some(found) = find(&wanted) {
                return Ok(found.clone());
            }
            let found = find(&format!("{wanted}.xz"))
                .with_context(|| format!("{} has no {wanted}", folder.display()))?;
            unpack_module(found, &unpacked.join(wanted))
        };
        names.iter().filter(|name| !is_builtin(name)).map(file).collect()
    }

    /// Whether the kernel was configured with `CONFIG_<option>=y`.
    pub(crate) fn has_option(&self, option: &str) -> Result<bool> {
        let file = self.headers.join("include/config/auto.conf");
        let text = fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}: are the headers complete?", file.display()))?;
        Ok(text.lines().any(|line| line == format!("CONFIG_{option}=y")))
    }
}

/// Unpacks one module.
fn unpack_module(from: &Path, to: &Path) -> Result<PathBuf> {
    let output = Command::new("xz").arg("-dc").arg(from).output();
    let output =
        output.with_context(|| format!("cannot unpack {}: is xz installed (xz-utils)?", from.display()))?;
    if !output.status.success() {
        bail!("cannot unpack {}: {}", from.display(), String::from_utf8_lossy(&output.stderr));
    }
    fs::create_dir_all(to.parent().unwrap_or(Path::new("/")))
        .with_context(|| format!("cannot create the folder of {}", to.display()))?;
    write_if_changed(to, &output.stdout)?;
    Ok(to.to_owned())
}

/// Makes a kernel of `series` ready: headers installed, image unpacked.
pub(crate) fn prepare(workspace: &Workspace, stage: &Stage, series: Series, flavour: &str) -> Result<Kernel> {
    let flavour = series.flavour(flavour);
    if !packages::have_apt() {
        return installed(workspace, series, flavour).with_context(|| {
            format!(
                "there is no apt-get here to bring a kernel: put the headers of a {} kernel under \
                 /lib/modules/RELEASE/build and its image at /boot/vmlinuz-RELEASE",
                series.name()
            )
        });
    }
    let first = match current(workspace, stage, series, flavour) {
        Ok(kernel) => return Ok(kernel),
        Err(error) => error,
    };
    // The index may be stale or empty; only then is a refresh worth its seconds.
    if packages::may_install() && packages::update(workspace).is_ok() {
        return current(workspace, stage, series, flavour);
    }
    stage.note("the package index does not help: looking for a kernel on this machine");
    installed(workspace, series, flavour).map_err(|second| {
        first.context(format!(
            "{second}, and none could be brought (check the network, run `apt-get update` as root)"
        ))
    })
}

/// The release that the package index names today.
fn current(workspace: &Workspace, stage: &Stage, series: Series, flavour: &str) -> Result<Kernel> {
    let release = resolve(series, flavour)?;
    let headers = PathBuf::from(format!("/lib/modules/{release}/build"));
    let makefile = headers.join("Makefile").display().to_string();
    packages::ensure(workspace, stage, &[Need::new(format!("linux-headers-{release}"), makefile)])?;
    let image = image(workspace, stage, &release)?;
    Ok(Kernel { release, headers, image })
}

/// Asks the meta packages which release a series has.
fn resolve(series: Series, flavour: &str) -> Result<String> {
    let metas = [format!("linux-headers-{}-{flavour}", series.version()), format!("linux-headers-{flavour}")];
    for meta in &metas {
        let Ok(depends) = query(Command::new("apt-cache").args(["depends", meta])) else {
            continue;
        };
        if let Some(release) = release_in(&depends, series) {
            return Ok(release);
        }
    }
    bail!(
        "the package index names no {} kernel: neither of {} is known there",
        series.name(),
        metas.join(", ")
    )
}

/// The release in `apt-cache depends` of a headers meta package.
fn release_in(depends: &str, series: Series) -> Option<String> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: linux-headers-"))
        .find(|release| series.owns(release))
        .map(str::to_owned)
}

/// The newest release of a series whose headers and image are on the machine already.
fn installed(workspace: &Workspace, series: Series, flavour: &str) -> Result<Kernel> {
    let mut found: Vec<String> = fs::read_dir("/lib/modules")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|r| series.owns(r) && is_of_flavour(r, flavour))
        .filter(|r| Path::new("/lib/modules").join(r).join("build/Makefile").is_file())
        .collect();
    found.sort_by_key(|release| numbers(release));
    while let Some(release) = found.pop() {
        let headers = PathBuf::from(format!("/lib/modules/{release}/build"));
        if let Some(image) = unpacked(workspace, &release) {
            return Ok(Kernel { release, headers, image });
        }
    }
    bail!(
        "no {} kernel of flavour {flavour} has both its headers and its image on this machine",
        series.name()
    )
}

/// The numbers in a release, to order releases by.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn unpacked(workspace: &Workspace, release: &str) -> Option<PathBuf> {
    let name = format!("vmlinuz-{release}");
    [workspace.cache.join("kernel").join(release).join("boot"), PathBuf::from("/boot")]
        .map(|folder| folder.join(&name))
        .into_iter()
        .find(|file| fs::File::open(file).is_ok())
}

/// The kernel image, from the cache, from `/boot`, or downloaded and unpacked (never installed): the unsigned one,
/// else the plain one.
fn image(workspace: &Workspace, stage: &Stage, release: &str) -> Result<PathBuf> {
    if let Some(image) = unpacked(workspace, release) {
        return Ok(image);
    }
    stage.note(&format!("downloading the image of {release}"));
    let names = [format!("linux-image-{release}-unsigned"), format!("linux-image-{release}")];
    download::unpack(workspace, &names, &workspace.cache.join("kernel").join(release))?;
    unpacked(workspace, release)
        .with_context(|| format!("the image package of {release} holds no /boot/vmlinuz-{release}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_packages_name_the_release() {
        let depends = "linux-headers-cloud-amd64\n  Depends: linux-headers-6.1.0-56-cloud-amd64\n";
        assert_eq!(release_in(depends, Series::V6_1).as_deref(), Some("6.1.0-56-cloud-amd64"));
        // 6.1 is not a prefix match for 6.12.
        assert_eq!(release_in("  Depends: linux-headers-6.12.117+deb12-cloud-amd64", Series::V6_1), None);
    }

    #[test]
    fn a_flavour_is_all_that_follows_the_version() {
        for (release, flavour) in [
            ("6.1.0-56-cloud-amd64", "cloud-amd64"),
            ("6.1.0-56-amd64", "amd64"),
            ("6.12.117+deb12-rt-amd64", "rt-amd64"),
        ] {
            assert!(is_of_flavour(release, flavour), "{release}");
        }
        assert!(!is_of_flavour("6.1.0-56-rt-amd64", "amd64"));
        assert!(!is_of_flavour("6.1.0-56-cloud-amd64", "amd64"));
        assert_eq!(Series::V6_12Rt.flavour("cloud-amd64"), "rt-amd64");
        assert_eq!(Series::V6_12.flavour("cloud-amd64"), "cloud-amd64");
    }

    #[test]
    fn releases_are_ordered_by_number() {
        assert!(numbers("6.1.0-9-cloud-amd64") < numbers("6.1.0-56-cloud-amd64"));
    }
}
