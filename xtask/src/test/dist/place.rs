//! A machine without Rust: a folder to build in, and all programs of this machine but Rust's.

use super::Built;
use crate::dist::Archive;
use crate::kernel::Kernel;
use crate::module;
use crate::progress::Stage;
use crate::shell::{Step, query};
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the programs are.
const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

/// What an archive builds, but for the examples, in the order of their names.
pub(super) const OURS: [&str; 3] = ["kdetour.ko", "kdetour_room.ko", "kdetour_words.ko"];

pub(super) struct Place {
    /// All that is built lies here.
    pub(super) folder: PathBuf,
    programs: PathBuf,
    logs: PathBuf,
}

impl Place {
    /// One that finds `make` and does not find Rust.
    pub(super) fn new(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.out.join("dist");
        let programs = folder.join("programs");
        empty(&programs)?;
        for entry in FOLDERS.iter().flat_map(fs::read_dir).flatten().flatten() {
            let name = entry.file_name();
            let link = programs.join(&name);
            let rust = ["cargo", "rust"].iter().any(|start| name.to_string_lossy().starts_with(start));
            if !rust && !link.is_symlink() {
                symlink(entry.path(), &link).with_context(|| format!("cannot link {}", link.display()))?;
            }
        }
        let place = Self { folder, programs, logs: workspace.log("dist").with_extension("") };
        let look = "command -v make && ! command -v cargo && ! command -v rustc";
        query(place.command("sh").args(["-c", look])).context("this is no machine without Rust")?;
        Ok(place)
    }

    /// A program that sees no Rust, and nothing of this program's environment.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.env_clear().env("PATH", &self.programs).env("LANG", "C.UTF-8");
        command
    }

    /// The archive's folder, unpacked afresh in the folder `name`.
    pub(super) fn unpack(&self, archive: &Archive, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        empty(&folder)?;
        let mut tar = self.command("tar");
        tar.arg("-xzf").arg(&archive.path).current_dir(&folder);
        self.step(&format!("unpack-{name}"), "unpack the archive").run(&mut tar)?;
        Ok(folder.join(&archive.top))
    }

    /// `make examples`, without a complaint; what it built is copied to where `make clean` leaves it.
    pub(super) fn build(
        &self,
        workspace: &Workspace,
        stage: &Stage,
        kernel: &Kernel,
        tree: &Path,
    ) -> Result<Built> {
        stage.note(&format!("building for {}", kernel.release));
        let step = self.step(&format!("build-{}", kernel.release), "build from the archive");
        let log = step.run(&mut self.make(tree, kernel, "examples"))?;
        let complaints = module::warnings_in(&log);
        ensure!(complaints.is_empty(), "building from the archive complains: {}", complaints.join("\n"));
        module::check(workspace, kernel, tree)?;
        let folder = self.folder.join(&kernel.release).join("modules");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let mut modules = Vec::new();
        let examples = [
            "hello",
            "static_trampoline",
            "stackgrow",
            "video",
            "video_drm",
            "video_panel",
            "calls",
            "popup",
        ];
        let examples = examples.map(|name| tree.join("examples").join(format!("{name}.ko")));
        for built in OURS.map(|name| tree.join(name)).into_iter().chain(examples) {
            let module = folder.join(built.file_name().unwrap_or_default());
            fs::copy(&built, &module).with_context(|| format!("cannot copy {}", built.display()))?;
            modules.push(module);
        }
        Ok(Built { release: kernel.release.clone(), modules })
    }

    /// `make modules_install` puts all but the examples, and nothing else, where modprobe looks for it.
    pub(super) fn installs(&self, kernel: &Kernel, tree: &Path) -> Result<()> {
        let root = self.folder.join(&kernel.release).join("root");
        let mut make = self.make(tree, kernel, "modules_install");
        make.arg(format!("INSTALL_MOD_PATH={}", root.display()));
        self.step(&format!("install-{}", kernel.release), "install what was built").run(&mut make)?;
        let modules = module::files_under(&root.join("lib/modules").join(&kernel.release))?;
        let names: Vec<_> = modules.iter().filter_map(|file| file.file_name()?.to_str()).collect();
        ensure!(are_ours(&names), "make modules_install is to install {OURS:?}, and did {names:?}");
        Ok(())
    }

    /// `make clean` leaves what was unpacked.
    pub(super) fn cleans(&self, kernel: &Kernel, tree: &Path, archive: &Archive) -> Result<()> {
        let step = self.step(&format!("clean-{}", kernel.release), "clean what was built");
        step.run(&mut self.make(tree, kernel, "clean"))?;
        let files = module::files_under(tree)?;
        let names: Vec<_> = files.iter().filter_map(|file| file.strip_prefix(tree).ok()?.to_str()).collect();
        let more: Vec<_> = names.iter().filter(|name| !archive.files.contains_key(**name)).collect();
        ensure!(more.is_empty(), "make clean leaves {more:?}");
        ensure!(names.len() == archive.files.len(), "make clean removes what was in the archive");
        Ok(())
    }

    fn make(&self, tree: &Path, kernel: &Kernel, target: &str) -> Command {
        let jobs = std::thread::available_parallelism().map_or(2, |n| n.get());
        let mut make = self.command("make");
        make.current_dir(tree).args([target, &format!("-j{jobs}"), &format!("KVER={}", kernel.release)]);
        make
    }

    /// One step, with a log of its own.
    pub(super) fn step<'a>(&self, log: &str, what: &'a str) -> Step<'a> {
        let log = self.logs.join(format!("{log}.log"));
        Step { what, log, advice: "see kernel/linux/dist/Makefile and xtask/src/dist" }
    }
}

/// Makes a folder new.
fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Whether these are what an archive builds, but for the examples; they may be compressed.
pub(super) fn are_ours(names: &[&str]) -> bool {
    names.len() == OURS.len() && names.iter().zip(OURS).all(|(name, wanted)| name.starts_with(wanted))
}
