//! The suite `dist`: the archive of `cargo xtask dist`, used as somebody uses it who has no Rust.
//!
//! What it builds goes into guests: the suites whose script says `modules=dist`.

mod dkms;
mod place;
mod refusals;

use crate::dist::{self, Archive};
use crate::kernel::Kernel;
use crate::progress::Progress;
use crate::workspace::Workspace;
use anyhow::{Result, ensure};
use place::Place;
use std::path::PathBuf;

/// The modules that were built from the archive for one kernel.
pub(super) struct Built {
    /// The kernel's release.
    pub(super) release: String,
    /// `kdetour.ko` and the examples.
    pub(super) modules: Vec<PathBuf>,
}

/// Checks the archive, and what is built from it for each of `kernels`.
pub(super) fn check(workspace: &Workspace, progress: &Progress, kernels: &[Kernel]) -> Result<Vec<Built>> {
    let archive = dist::make(workspace, progress, &workspace.out)?;
    let stage = progress.stage("dist");
    let place = Place::new(workspace)?;
    self_contained(workspace, &archive)?;
    refusals::check(&place, &place.unpack(&archive, "refusals")?)?;
    let build = |kernel: &Kernel| {
        let tree = place.unpack(&archive, &kernel.release)?;
        let built = place.build(workspace, &stage, kernel, &tree)?;
        place.installs(kernel, &tree)?;
        place.cleans(kernel, &tree, &archive)?;
        Ok(built)
    };
    let built = kernels.iter().map(build).collect::<Result<_>>()?;
    dkms::check(workspace, &stage, &place, &archive, kernels)?;
    stage.clear();
    Ok(built)
}

/// Builds from a new archive for one kernel, and checks nothing else.
pub(super) fn build(workspace: &Workspace, progress: &Progress, kernel: &Kernel) -> Result<Built> {
    let archive = dist::make(workspace, progress, &workspace.out)?;
    let stage = progress.stage("dist");
    let place = Place::new(workspace)?;
    let built = place.build(workspace, &stage, kernel, &place.unpack(&archive, &kernel.release)?);
    stage.clear();
    built
}

/// Nothing in the archive tells where it was made, nothing was left to be filled in, and what its README refers to
/// is there.
fn self_contained(workspace: &Workspace, archive: &Archive) -> Result<()> {
    let root = workspace.root.display().to_string();
    let odd = [root.as_str(), "/registry/src/", "@VERSION@", "@RUSTC@", "@REPOSITORY@"];
    for (name, bytes) in &archive.files {
        let text = String::from_utf8_lossy(bytes);
        for part in odd {
            ensure!(!text.contains(part), "{name} in the archive holds {part}");
        }
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| name == "README.md" && !link.contains("://")) {
            ensure!(
                archive.files.contains_key(link),
                "README.md in the archive refers to {link}, which it lacks"
            );
        }
    }
    Ok(())
}
