//! DKMS builds from the archive: the real one, unpacked and not installed, in folders of its own, so that nothing of
//! this machine changes.

use super::place::{self, OURS, Place};
use crate::dist::Archive;
use crate::download;
use crate::kernel::Kernel;
use crate::module;
use crate::progress::Stage;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Adds the archive to DKMS, and has it build for each of `kernels`: all but the examples, and nothing else.
pub(super) fn check(
    workspace: &Workspace,
    stage: &Stage,
    place: &Place,
    archive: &Archive,
    kernels: &[Kernel],
) -> Result<()> {
    let script = {
        let _lock = workspace.lock()?;
        download::current(workspace, stage, "dkms")?.join("usr/sbin/dkms")
    };
    let tree = place.unpack(archive, "dkms")?;
    let sources = tree.parent().context("what was unpacked lies in a folder")?;
    let id = archive.top.replace('-', "/");
    let dkms = Dkms { place, script, sources };
    place.step("dkms-add", "add the archive to DKMS").run(&mut dkms.command(&["add", &id])?)?;
    for kernel in kernels {
        let release = kernel.release.as_str();
        stage.note(&format!("building for {release} by DKMS"));
        let step = format!("dkms-build-{release}");
        let mut build = dkms.command(&["build", &id, "-k", release])?;
        place.step(&step, "build by DKMS").run(&mut build)?;
        let built = sources.join("tree").join(&id).join(release);
        let log = fs::read(built.join("x86_64/log/make.log")).context("DKMS kept no log")?;
        let complaints = module::warnings_in(&String::from_utf8_lossy(&log));
        ensure!(complaints.is_empty(), "building by DKMS complains: {}", complaints.join("\n"));
        let modules = module::files_under(&built.join("x86_64/module"))?;
        let names: Vec<_> = modules.iter().filter_map(|file| file.file_name()?.to_str()).collect();
        ensure!(place::are_ours(&names), "DKMS is to build {OURS:?} for {release}, and has {names:?}");
    }
    Ok(())
}

struct Dkms<'a> {
    place: &'a Place,
    script: PathBuf,
    /// Where it finds what it builds, and has its own folders.
    sources: &'a Path,
}

impl Dkms<'_> {
    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let own = |name: &str| self.sources.join(name);
        for name in ["tree", "tmp"] {
            fs::create_dir_all(own(name))
                .with_context(|| format!("cannot create {}", own(name).display()))?;
        }
        let mut command = self.place.command("bash");
        command.arg(&self.script).args(arguments).arg("--sourcetree").arg(self.sources);
        command.arg("--dkmstree").arg(own("tree")).env("TMPDIR", own("tmp"));
        // What it signs with, and makes where there is none.
        command.env("mok_signing_key", own("tmp/key")).env("mok_certificate", own("tmp/certificate"));
        Ok(command)
    }
}
