//! Programs for others, made on this machine: 32-bit ones, and ones for Windows. The compilers, and Rust's standard library.
//!
//! Where the active toolchain has that library, it is used. Otherwise it is built once from the source of the compiler that
//! [`Toolchain`] finds, and kept in the cache for that very compiler; nothing is written into a toolchain.

use crate::packages::{self, Need};
use crate::progress::Stage;
use crate::shell::{Step, query};
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whose code programs in C are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processor {
    /// This machine's own code.
    X86_64,
    /// 32-bit code, which it runs as well.
    I686,
}

impl Processor {
    /// What C's compilers are told.
    pub(crate) const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &[],
            // Where Debian has the kernel's headers, of which `errno.h` needs some: its gcc looks there for 64-bit code only.
            Self::I686 => &["-m32", "-idirafter", "/usr/include/x86_64-linux-gnu"],
        }
    }

    /// Where libraries lie below a prefix: those for 32-bit code where `cc -m32` looks for its own.
    pub(crate) const fn library_folder(self) -> &'static str {
        match self {
            Self::X86_64 => "lib",
            Self::I686 => "lib32",
        }
    }
}

/// For whom programs in Rust are made, if not for this machine as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// 32-bit programs, which this machine runs as well.
    I686Linux,
    /// 64-bit programs for Windows, which [`Wine`](crate::wine::Wine) runs.
    X86_64Windows,
    /// 32-bit programs for Windows.
    I686Windows,
}

impl Target {
    /// As rustc calls it; below its own folder, cargo has one of this name for what is made.
    pub(crate) const fn triple(self) -> &'static str {
        match self {
            Self::I686Linux => "i686-unknown-linux-gnu",
            Self::X86_64Windows => "x86_64-pc-windows-gnu",
            Self::I686Windows => "i686-pc-windows-gnu",
        }
    }

    /// As suites and stages call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::I686Linux => "i686",
            Self::X86_64Windows => "windows",
            Self::I686Windows => "windows-i686",
        }
    }

    /// Makes sure that programs can be linked. rustc finds the linker by itself.
    fn linker(self, workspace: &Workspace, stage: &Stage) -> Result<()> {
        match self {
            Self::I686Linux => compilers(workspace, stage, &["cc"]),
            Self::X86_64Windows | Self::I686Windows => packages::ensure(workspace, stage, &[self.mingw()]),
        }
    }

    /// The need of the C compiler for Windows, by which it is called, and of what it has beside it: linker, import libraries, `dlltool`.
    pub(crate) fn mingw(self) -> Need {
        // Their other form, with threads of Windows' own kind, serves as well where it is installed already.
        match self {
            Self::I686Windows => Need::new("gcc-mingw-w64-i686-posix", "i686-w64-mingw32-gcc"),
            _ => Need::new("gcc-mingw-w64-x86-64-posix", "x86_64-w64-mingw32-gcc"),
        }
    }

    /// The same of its C++ compiler.
    pub(crate) fn mingw_plus(self) -> Need {
        match self {
            Self::I686Windows => Need::new("g++-mingw-w64-i686-posix", "i686-w64-mingw32-g++"),
            _ => Need::new("g++-mingw-w64-x86-64-posix", "x86_64-w64-mingw32-g++"),
        }
    }

    /// Objects that rustc links first and last into every program, compiled of the library's `rtstartup`. They announce the program's tables
    /// for unwinding where the system does not find these by itself.
    const fn startup_objects(self) -> &'static [&'static str] {
        match self {
            Self::I686Linux | Self::X86_64Windows => &[],
            Self::I686Windows => &["rsbegin", "rsend"],
        }
    }
}

/// All of the standard library that a program or a test may name.
const LIBRARIES: &str = "-Zbuild-std=std,panic_unwind,panic_abort,test";

/// Makes programs in Rust for another target.
#[derive(Clone, Debug)]
pub(crate) struct Cross {
    target: Target,
    toolchain: Toolchain,
    /// Where the standard library is, if not in the toolchain.
    sysroot: Option<PathBuf>,
}

impl Cross {
    /// Finds the standard library, or builds it.
    pub(crate) fn prepare(workspace: &Workspace, stage: &Stage, target: Target) -> Result<Self> {
        target.linker(workspace, stage)?;
        if let Some(toolchain) = Toolchain::with_target(workspace, target.triple()) {
            return Ok(Self { target, toolchain, sysroot: None });
        }
        let toolchain = Toolchain::find(workspace, stage)?;
        let home = workspace.cache.join("sysroot").join(name(&toolchain.version));
        if !libraries(&home, target).is_dir() {
            stage.note(&format!(
                "building std for {} with {}: some minutes, once",
                target.triple(),
                toolchain.description
            ));
            build(workspace, &toolchain, target, &home)?;
        }
        Ok(Self { target, toolchain, sysroot: Some(home) })
    }

    /// Which compiler it is, for the user.
    pub(crate) fn description(&self) -> &str {
        &self.toolchain.description
    }

    /// Cargo, for the target: its command, and what of the command's arguments says for whom. `flags` are for rustc.
    pub(crate) fn cargo(&self, command: &str, flags: &[&str]) -> Command {
        let mut cargo = self.toolchain.cargo();
        // Nothing here asks for what is not stable; and crates would, if they saw that they may.
        cargo.env_remove("RUSTC_BOOTSTRAP");
        let mut for_both: Vec<String> = Vec::new();
        if let Some(sysroot) = &self.sysroot {
            for_both.extend(["--sysroot".to_owned(), sysroot.display().to_string()]);
        }
        let encoded = |more: &[&str]| {
            let flags = for_both.iter().map(String::as_str).chain(more.iter().copied());
            flags.collect::<Vec<_>>().join("\x1f")
        };
        // With a target named, build scripts and macros are compiled without them.
        cargo.env("CARGO_ENCODED_RUSTFLAGS", encoded(flags)).env("CARGO_ENCODED_RUSTDOCFLAGS", encoded(&[]));
        cargo.args([command, "--target", self.target.triple()]);
        cargo
    }

    /// The folder below cargo's own where it puts what is for the target.
    pub(crate) const fn folder(&self) -> &'static str {
        self.target.triple()
    }
}

/// Makes sure that these compilers of C and C++ make 32-bit programs.
pub(crate) fn compilers(workspace: &Workspace, stage: &Stage, names: &[&str]) -> Result<()> {
    let plain = |name: &str| Need::new(if name == "cc" { "gcc" } else { "g++" }, name);
    packages::ensure(workspace, stage, &names.iter().map(|name| plain(name)).collect::<Vec<_>>())?;
    for name in names {
        if links(workspace, name) {
            continue;
        }
        // Not `gcc-multilib`: that one and compilers for other processors put each other out.
        let version = query(Command::new(name).arg("-dumpversion"))?;
        let major = version.trim().split('.').next().unwrap_or_default();
        let (package, file) = match *name {
            "cc" => (format!("gcc-{major}-multilib"), "crtbegin.o"),
            _ => (format!("g++-{major}-multilib"), "libstdc++.so"),
        };
        let file = format!("/usr/lib/gcc/x86_64-linux-gnu/{major}/32/{file}");
        packages::ensure(workspace, stage, &[Need::new(package, file)])?;
        if !links(workspace, name) {
            bail!("`{name} -m32` links no program: its libraries for 32-bit code are not complete");
        }
    }
    Ok(())
}

/// Whether a compiler makes a 32-bit program.
fn links(workspace: &Workspace, compiler: &str) -> bool {
    let source = workspace.out.join("m32.c");
    let include = if compiler == "cc" { "#include <stdlib.h>" } else { "#include <new>" };
    let written = crate::shell::write_if_changed(
        &source,
        format!("{include}\nint main() {{ return 0; }}\n").as_bytes(),
    );
    let language = if compiler == "cc" { "c" } else { "c++" };
    let mut command = Command::new(compiler);
    command.args(Processor::I686.flags()).args(["-x", language]).arg(&source);
    written.is_ok() && query(command.arg("-o").arg(workspace.out.join("m32"))).is_ok()
}

/// Where rustc looks for a target's libraries. Those of several targets are beside each other, each moved there whole.
fn libraries(sysroot: &Path, target: Target) -> PathBuf {
    sysroot.join("lib/rustlib").join(target.triple()).join("lib")
}

/// A name for a folder of what one compiler has made: `1.96.0-ac68faa20-2026-05-25`.
fn name(version: &str) -> String {
    // Behind the first parenthesis Debian says how it was built.
    let build = version.split(')').next().unwrap_or_default();
    let words =
        build.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).filter(|word| !word.is_empty());
    words.skip(1).collect::<Vec<_>>().join("-")
}

/// Compiles the standard library as a dependency of an empty crate, and puts it where rustc will find it.
fn build(workspace: &Workspace, toolchain: &Toolchain, target: Target, home: &Path) -> Result<()> {
    let folder = home.file_name().unwrap_or_default().to_string_lossy();
    let scratch = home.with_file_name(format!(".{folder}.{}", std::process::id()));
    let fresh = scratch.join("lib");
    let built = compile(workspace, toolchain, target, &scratch)
        .and_then(|compiled| gather(&compiled, &fresh))
        .and_then(|()| startup_objects(workspace, toolchain, target, &fresh));
    let moved = built.and_then(|()| place(&fresh, &libraries(home, target)));
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    moved
}

/// Moves a target's libraries to where rustc looks for them.
fn place(fresh: &Path, libraries: &Path) -> Result<()> {
    if let Some(folder) = libraries.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    match fs::rename(fresh, libraries) {
        // Somebody else was faster.
        Err(_) if libraries.is_dir() => Ok(()),
        moved => {
            moved.with_context(|| format!("cannot move the standard library to {}", libraries.display()))
        }
    }
}

fn compile(workspace: &Workspace, toolchain: &Toolchain, target: Target, scratch: &Path) -> Result<PathBuf> {
    let manifest = "[package]\nname = \"empty\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n";
    for (file, text) in [("Cargo.toml", manifest), ("src/lib.rs", "#![no_std]\n")] {
        crate::shell::write_if_changed(&scratch.join(file), text.as_bytes())?;
    }
    let out = scratch.join("target");
    let triple = target.triple();
    let mut cargo = toolchain.cargo();
    // With bitcode, or no program that is optimized when it is linked could be linked with it.
    cargo.current_dir(scratch).env("RUSTFLAGS", "-Cembed-bitcode=yes");
    cargo.args(["build", "--release", "--target", triple, LIBRARIES, "--target-dir"]).arg(&out);
    Step {
        what: &format!("build Rust's standard library for {triple}"),
        log: workspace.log(&format!("std-{}", target.name())),
        advice: &format!(
            "errors about `-Zbuild-std` mean that compiler and library source differ: reinstall them together; \
             with rustup, `rustup target add {triple}` saves the build"
        ),
    }
    .run(&mut cargo)?;
    Ok(out.join(triple).join("release/deps"))
}

/// Compiles what is linked first and last into every program.
fn startup_objects(
    workspace: &Workspace,
    toolchain: &Toolchain,
    target: Target,
    libraries: &Path,
) -> Result<()> {
    for name in target.startup_objects() {
        let mut rustc = toolchain.rustc();
        rustc.args(["--target", target.triple(), "--emit=obj", "-Copt-level=3", "-o"]);
        rustc.arg(libraries.join(format!("{name}.o")));
        Step {
            what: &format!("compile {name}.o for {}", target.triple()),
            log: workspace.log(&format!("std-{}-{name}", target.name())),
            advice: "reinstall the compiler and its library source together",
        }
        .run(rustc.arg(toolchain.library().join(format!("rtstartup/{name}.rs"))))?;
    }
    Ok(())
}

/// Copies the libraries; not that of the empty crate.
fn gather(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut found_std = false;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", from.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".rlib") && !name.starts_with("libempty-") {
            found_std |= name.starts_with("libstd-");
            fs::copy(&path, to.join(&name)).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    if !found_std {
        bail!("cargo built no libstd in {}", from.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_compiler_has_a_folder_of_its_own() {
        assert_eq!(
            name("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"),
            "1.96.0-ac68faa20-2026-05-25"
        );
        assert_eq!(
            name("rustc 1.97.0-nightly (0123456789 2026-06-01)"),
            "1.97.0-nightly-0123456789-2026-06-01"
        );
        assert_ne!(name("rustc 1.96.0"), name("rustc 1.96.1"));
    }

    #[test]
    fn targets_lie_beside_each_other() {
        let home = std::env::temp_dir().join(format!("xtask-cross-{}", std::process::id()));
        for target in [Target::I686Linux, Target::X86_64Windows, Target::I686Windows, Target::X86_64Windows] {
            let fresh = home.with_extension("fresh");
            fs::create_dir_all(&fresh).unwrap();
            fs::write(fresh.join("libstd-1.rlib"), target.triple()).unwrap();
            // The second time, what is there stays there.
            place(&fresh, &libraries(&home, target)).unwrap();
            let kept = fs::read_to_string(libraries(&home, target).join("libstd-1.rlib")).unwrap();
            assert_eq!(kept, target.triple());
        }
        fs::remove_dir_all(home.with_extension("fresh")).unwrap();
        fs::remove_dir_all(home).unwrap();
    }
}
