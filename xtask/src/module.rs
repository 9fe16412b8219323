//! The kernel modules: a staging folder per release, Kbuild in it, and what came out.
//!
//! Files are staged only when they changed, so that `make` rebuilds only what it must.

use crate::kernel::Kernel;
use crate::programs;
use crate::progress::Stage;
use crate::rust_half::{HALVES, RustHalf};
use crate::shell::{Step, write_if_changed};
use crate::workspace::Workspace;
use crate::{stack, unwind};
use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _, SectionFlags, elf};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a module with a Rust half takes.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    /// Its name.
    pub(crate) module: &'static str,
    /// Code and read-only data, in bytes.
    pub(crate) size: u64,
    /// The most that its functions take of a stack, in bytes.
    pub(crate) stack: u64,
}

/// The modules of one kernel.
#[derive(Clone, Debug)]
pub(crate) struct Modules {
    /// Every `.ko`, `kdetour.ko` first.
    pub(crate) files: Vec<PathBuf>,
    /// What `kdetour.ko` and `kdetour_words.ko` take.
    pub(crate) figures: Vec<Figures>,
    /// Programs of the tests, with their paths in the guest.
    pub(crate) programs: Vec<(PathBuf, String)>,
    /// Warnings of the compiler, objtool and modpost.
    pub(crate) warnings: Vec<String>,
}

impl Modules {
    /// Code and read-only data of `kdetour.ko`, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.figures.first().map_or(0, |figures| figures.size)
    }
}

/// Builds every module for `kernel` around the Rust halves in the folder `rust`.
pub(crate) fn build(workspace: &Workspace, stage: &Stage, kernel: &Kernel, rust: &Path) -> Result<Modules> {
    let staging = workspace.out.join(&kernel.release);
    stage_sources(workspace, &staging)?;
    for half in &HALVES {
        let object = rust.join(half.object());
        let bytes = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
        write_if_changed(&staging.join(half.shipped()), &bytes)?;
    }
    stage.note("running Kbuild");
    let jobs = std::thread::available_parallelism().map_or(2, |n| n.get());
    let mut m = std::ffi::OsString::from("M=");
    m.push(&staging);
    let mut make = Command::new("make");
    make.arg("-C").arg(&kernel.headers).arg(format!("-j{jobs}")).arg(m);
    make.args(["KDETOUR_ALSO=examples/ tests/", "modules"]);
    for inherited in ["MAKEFLAGS", "MFLAGS", "LD_LIBRARY_PATH", "CFLAGS", "LDFLAGS"] {
        make.env_remove(inherited);
    }
    let log = Step {
        what: "build the modules",
        log: workspace.log(&format!("kbuild-{}", kernel.release)),
        advice: "errors of the compiler point at kernel/linux; undefined symbols are functions that the \
                 kernel does not export or that crates/ffi no longer has",
    }
    .run(&mut make)?;
    let warnings = warnings_in(&log);
    let files = built(&staging)?;
    let figures = check(workspace, kernel, &staging)?;
    Ok(Modules { files, figures, programs: programs::build(workspace)?, warnings })
}

/// The folders with the headers for other modules.
pub(crate) fn headers(workspace: &Workspace) -> [PathBuf; 2] {
    ["ffi", "words"].map(|name| workspace.root.join("crates").join(name).join("include"))
}

/// Copies the C halves and the headers, and removes what is gone from the sources.
fn stage_sources(workspace: &Workspace, staging: &Path) -> Result<()> {
    let mut staged = BTreeSet::new();
    let headers = headers(workspace).map(|from| (from, PathBuf::from("include")));
    for (from, to) in [(workspace.kernel_sources(), PathBuf::new())].into_iter().chain(headers) {
        for file in files_under(&from)? {
            let inside = to.join(file.strip_prefix(&from).unwrap_or(&file));
            let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            write_if_changed(&staging.join(&inside), &bytes)?;
            staged.insert(inside.display().to_string());
        }
    }
    let list = staging.join(".staged");
    for old in fs::read_to_string(&list).unwrap_or_default().lines().filter(|old| !staged.contains(*old)) {
        // Gone already is as good as removed.
        fs::remove_file(staging.join(old)).ok();
    }
    let text: String = staged.iter().map(|name| format!("{name}\n")).collect();
    write_if_changed(&list, text.as_bytes()).map(drop)
}

/// What the modules with a Rust half take, which were built in `folder`. Refuses one that takes too much of a stack, or through whose
/// Rust half the kernel could not unwind.
pub(crate) fn check(workspace: &Workspace, kernel: &Kernel, folder: &Path) -> Result<Vec<Figures>> {
    let unwinds = kernel.has_option("UNWINDER_ORC")?;
    let check = |half: &RustHalf| {
        let module = folder.join(half.module).with_extension("ko");
        let bytes = fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
        let stack = stack::check(&bytes).with_context(|| module.display().to_string())?;
        let exports = half.exports(workspace)?;
        let untold = if unwinds { unwind::untold(&bytes, &exports)? } else { Vec::new() };
        if !untold.is_empty() {
            bail!(
                "{}: the unwind table tells nothing of {}: objtool was not run over {}, see kernel/linux/Kbuild",
                module.display(),
                untold.join(", "),
                half.object()
            );
        }
        Ok(Figures { module: half.module, size: size(&module, &bytes)?, stack })
    };
    HALVES.iter().map(check).collect()
}

/// The lines of a build log that the user should see.
pub(crate) fn warnings_in(log: &str) -> Vec<String> {
    let telling = |line: &&str| {
        // The last is the assembler's.
        let parts = ["warning:", "objtool:", " WARNING:", ": Warning:"];
        parts.iter().any(|part| line.contains(part)) || line.starts_with("WARNING")
    };
    log.lines().filter(telling).map(str::to_owned).collect()
}

/// Every `.ko` under `staging`: `kdetour.ko` first, then by path.
fn built(staging: &Path) -> Result<Vec<PathBuf>> {
    let mut files = files_under(staging)?;
    files.retain(|file| file.extension().is_some_and(|e| e == "ko"));
    files.sort_by_key(|file| (file.file_stem().is_none_or(|stem| stem != "kdetour"), file.clone()));
    Ok(files)
}

/// Every plain file under `folder`, in order; none when there is no such folder.
pub(crate) fn files_under(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if !folder.is_dir() {
        return Ok(found);
    }
    let list = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in list {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        if path.is_dir() {
            found.extend(files_under(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Code and read-only data of a module: what it takes on top of its C and Rust variables.
pub(crate) fn size(module: &Path, bytes: &[u8]) -> Result<u64> {
    let file =
        object::File::parse(bytes).with_context(|| format!("{} is no ELF object", module.display()))?;
    let counted = |section: &object::Section<'_, '_>| {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else {
            return false;
        };
        let fixed = sh_flags.contains(elf::SHF_ALLOC) && !sh_flags.contains(elf::SHF_WRITE);
        fixed && section.name().is_ok_and(|n| n.contains(".text") || n.starts_with(".rodata"))
    };
    Ok(file.sections().filter(counted).map(|section| section.size()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_logs_are_searched_for_warnings() {
        let log = "  CC [M]  a.o\na.c:1:2: warning: unused\nrust.o: warning: objtool: kd_x: naked\n\
                   WARNING: modpost: missing MODULE_LICENSE()\nSkipping BTF generation for a.ko\n\
                   a.s:7: Warning: setting incorrect section type for .text.a\n";
        assert_eq!(warnings_in(log).len(), 4);
    }
}
