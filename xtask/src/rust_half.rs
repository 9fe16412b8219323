//! The modules' Rust halves, of `kdetour.ko` and of `kdetour_words.ko`: static libraries compiled for the kernel, each linked into
//! one object.
//!
//! They are the same for every kernel, so they are built once, with what the strictest of them asks for.

use crate::progress::Stage;
use crate::shell::{Step, query, write_if_changed};
use crate::toolchain::{Toolchain, linker};
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use object::read::elf::{ElfFile64, FileHeader};
use object::{Object as _, ObjectSection as _, RelocationFlags, elf};
use serde::Deserialize;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Code generation for the kernel.
///
/// * `static`, `kernel`: modules live in the top 2 GiB and are relocated by absolute 32-bit addresses.
/// * `no-redzone`: an interrupt may come at any instruction.
/// * `plt`: without it `core` calls memcpy through the GOT, which the module loader does not know.
/// * `branch`, `thunk-extern`, `retpoline`: IBT, rethunk and retpoline kernels, as Kbuild asks of C.
/// * `jump-tables=no`: no indirect branch that objtool cannot follow.
/// * `location-detail`, `fmt-debug`: no source paths and no `Debug` in the module, which never prints them.
const FLAGS: &[&str] = &[
    "-Crelocation-model=static",
    "-Ccode-model=kernel",
    "-Cno-redzone=yes",
    "-Cforce-unwind-tables=no",
    "-Zplt=yes",
    "-Zfunction-sections=yes",
    "-Zcf-protection=branch",
    "-Zfunction-return=thunk-extern",
    "-Zretpoline-external-thunk",
    "-Cjump-tables=no",
    "-Zlocation-detail=none",
    "-Zfmt-debug=none",
];

const TARGET: &str = "x86_64-unknown-none";

/// A module's Rust half.
#[derive(Debug)]
pub(crate) struct RustHalf {
    /// The module that it is one half of.
    pub(crate) module: &'static str,
    /// What Kbuild makes of it, beside the objects of the C half; it is given it as `OBJECT_shipped`.
    object: &'static str,
    /// The crate, and how its library is called.
    package: &'static str,
    library: &'static str,
    /// The features that it is compiled with: the only set that there is for a kernel.
    pub(crate) features: &'static str,
    /// In kernel/linux, the list of what the C half calls.
    exports: &'static str,
}

/// Both.
pub(crate) const HALVES: [RustHalf; 2] = [
    RustHalf {
        module: "kdetour",
        object: "rust.o",
        package: "kdetour-ffi",
        library: "libkdetour_ffi.a",
        features: "linux-kernel",
        exports: "exports.txt",
    },
    RustHalf {
        module: "kdetour_words",
        object: "words_rust.o",
        package: "kdetour-words",
        library: "libkdetour_words.a",
        features: "",
        exports: "exports-words.txt",
    },
];

/// Builds and links the Rust halves; gives back the folder where they lie.
pub(crate) fn build(workspace: &Workspace, stage: &Stage) -> Result<PathBuf> {
    let toolchain = Toolchain::find(workspace, stage)?;
    stage.note(&format!("compiling with {}", toolchain.description));
    for half in &HALVES {
        half.compile(workspace, &toolchain)?;
        half.link(workspace, stage)?;
    }
    Ok(workspace.out.join("rust"))
}

/// What the Rust halves were made of.
pub(crate) struct Origin {
    /// The compiler and its cargo.
    pub(crate) toolchain: Toolchain,
    /// The crates that were compiled for them: kdetour's own, others, and those of Rust's library.
    pub(crate) crates: Vec<Compiled>,
}

/// A crate that was compiled for a Rust half.
pub(crate) struct Compiled {
    /// Its `Cargo.toml`.
    pub(crate) manifest: PathBuf,
    /// The source file that the others belong to.
    pub(crate) root: PathBuf,
}

/// What the Rust halves that were built are made of, as cargo tells.
pub(crate) fn origin(workspace: &Workspace, stage: &Stage) -> Result<Origin> {
    let toolchain = Toolchain::find(workspace, stage)?;
    let mut crates: Vec<Compiled> = Vec::new();
    for half in &HALVES {
        let told = query(half.rustc(workspace, &toolchain).arg("--message-format=json"))?;
        for line in told.lines() {
            let message: Message = serde_json::from_str(line).context("cargo says something odd")?;
            let for_the_kernel = |file: &PathBuf| file.iter().any(|part| part == TARGET);
            if let Message { manifest_path: Some(manifest), target: Some(target), filenames } = message
                && filenames.iter().any(for_the_kernel)
                && crates.iter().all(|known| known.root != target.src_path)
            {
                crates.push(Compiled { manifest, root: target.src_path });
            }
        }
    }
    Ok(Origin { toolchain, crates })
}

/// What cargo says of something that it compiled.
#[derive(Deserialize)]
struct Message {
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    src_path: PathBuf,
}

impl RustHalf {
    /// The object's name.
    pub(crate) fn object(&self) -> &'static str {
        self.object
    }

    /// As Kbuild is given it.
    pub(crate) fn shipped(&self) -> String {
        format!("{}_shipped", self.object)
    }

    /// The static library that the object is linked from.
    pub(crate) fn archive(&self, workspace: &Workspace) -> PathBuf {
        target(workspace).join(TARGET).join("kernel").join(self.library)
    }

    fn compile(&self, workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
        Step {
            what: "compile a Rust half",
            log: workspace.log(&format!("rust-{}", self.module)),
            advice: "errors of the compiler point at crates/ffi, crates/words or what they use; errors about `core` or \
                     `-Zbuild-std` mean that compiler and library source differ: reinstall them together",
        }
        .run(&mut self.rustc(workspace, toolchain))
        .map(drop)
    }

    fn rustc(&self, workspace: &Workspace, toolchain: &Toolchain) -> Command {
        let mut cargo = toolchain.cargo();
        cargo.current_dir(&workspace.root).env("RUSTFLAGS", FLAGS.join(" "));
        cargo.args(["rustc", "-p", self.package, "--lib", "--crate-type", "staticlib"]);
        cargo.args(["--no-default-features", "--features", self.features]);
        cargo.args(["--target", TARGET, "-Zbuild-std=core,alloc", "--profile", "kernel", "--target-dir"]);
        cargo.arg(target(workspace));
        cargo
    }

    /// Links what the exports reach into one relocatable object.
    fn link(&self, workspace: &Workspace, stage: &Stage) -> Result<()> {
        let sources = workspace.kernel_sources();
        let roots = self.exports(workspace)?;
        let object = target(workspace).join(self.object);
        let fresh = object.with_extension("new.o");
        let mut lld = linker(workspace, stage)?;
        lld.args(["-m", "elf_x86_64", "-r", "--gc-sections", "-T"]).arg(sources.join("rust.lds"));
        for root in &roots {
            lld.args(["-u", root]);
        }
        lld.arg(self.archive(workspace)).arg("-o").arg(&fresh);
        Step {
            what: "link a Rust half",
            log: workspace.log(&format!("link-{}", self.module)),
            advice: "see kernel/linux/rust.lds and kernel/linux/exports*.txt",
        }
        .run(&mut lld)?;
        let bytes = fs::read(&fresh).with_context(|| format!("cannot read {}", fresh.display()))?;
        check(&bytes, &roots).with_context(|| format!("{} with {}", self.package, self.exports))?;
        write_if_changed(&object, &bytes)?;
        fs::remove_file(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))
    }

    /// The functions that the C half calls.
    pub(crate) fn exports(&self, workspace: &Workspace) -> Result<Vec<String>> {
        let file = workspace.kernel_sources().join(self.exports);
        let list = fs::read_to_string(&file).with_context(|| {
            format!("cannot read {}: it lists the symbols that the C half calls", workspace.shown(&file))
        })?;
        let names = symbols(&list);
        if names.is_empty() {
            bail!("{} lists no symbol: nothing of the Rust half would be kept", workspace.shown(&file));
        }
        Ok(names)
    }
}

fn target(workspace: &Workspace) -> PathBuf {
    workspace.out.join("rust")
}

/// The symbols of a list: one a line, `#` starts a comment.
fn symbols(list: &str) -> Vec<String> {
    let names = list.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Refuses an object that the module loader would reject, with the reason that it would not give.
fn check(bytes: &[u8], roots: &[String]) -> Result<()> {
    let file =
        ElfFile64::<object::LittleEndian>::parse(bytes).context("the linked Rust half is no ELF object")?;
    if file.elf_header().e_type(object::LittleEndian) != elf::ET_REL {
        bail!("the linked Rust half is not relocatable");
    }
    for section in file.sections() {
        for (offset, relocation) in section.relocations() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else {
                continue;
            };
            let known = [
                elf::R_X86_64_64,
                elf::R_X86_64_32,
                elf::R_X86_64_32S,
                elf::R_X86_64_PC32,
                elf::R_X86_64_PLT32,
            ];
            if !known.contains(&r_type) && r_type != elf::R_X86_64_PC64 {
                let name = section.name().unwrap_or("?");
                bail!(
                    "the Rust half has relocation type {r_type} at {name}+{offset:#x}, which no kernel accepts"
                );
            }
        }
    }
    use object::ObjectSymbol as _;
    let defined = |root: &str| file.symbols().any(|s| s.is_definition() && s.name() == Ok(root));
    let absent: Vec<_> = roots.iter().map(String::as_str).filter(|root| !defined(root)).collect();
    if !absent.is_empty() {
        bail!(
            "the crate does not define {}, which the list has: add `#[unsafe(no_mangle)] extern \"C\"` functions \
             or take the names out",
            absent.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_may_have_comments() {
        assert_eq!(symbols("# head\nkd_attach\n\n kd_detach  # tail\n"), ["kd_attach", "kd_detach"]);
    }
}
