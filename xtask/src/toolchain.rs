//! The compiler and linker for the module's Rust half, and the compiler for other targets' programs.
//!
//! `core` and `alloc` are rebuilt for the kernel, and `std` for 32-bit programs and for Windows, so a compiler is needed whose library
//! source is on the machine: the active one when it has `rust-src`, else Debian's, which brings its source as a package.

use crate::packages::{self, Need};
use crate::progress::Stage;
use crate::shell::{program, query};
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest compiler that builds the workspace (`rust-version` in Cargo.toml).
const OLDEST: (u32, u32) = (1, 95);

/// Where a toolchain has its library's source, below its own `lib`.
const LIBRARY: &str = "rustlib/src/rust/library";

/// A compiler whose library source is at hand.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    bin: PathBuf,
    /// What `rustc -V` says: the release, and the very build.
    pub(crate) version: String,
    /// Which one it is, for the user: `rustc 1.96.0 (Debian's, rust-web-src)`.
    pub(crate) description: String,
}

impl Toolchain {
    /// Finds a compiler with library source, installing Debian's when there is none.
    pub(crate) fn find(workspace: &Workspace, stage: &Stage) -> Result<Self> {
        let active = sysroot(workspace);
        if let Some(root) = active.as_ref().filter(|root| has_source(root)) {
            return Self::at(root.join("bin"), "the active toolchain, with its rust-src");
        }
        Self::debian(workspace, stage)
    }

    /// The active compiler, if it has a standard library for `target`, as after `rustup target add`.
    pub(crate) fn with_target(workspace: &Workspace, target: &str) -> Option<Self> {
        let root = sysroot(workspace)?;
        let mut libraries = fs::read_dir(root.join("lib/rustlib").join(target).join("lib")).ok()?.flatten();
        libraries.find(|file| file.file_name().to_string_lossy().starts_with("libstd-"))?;
        Self::at(root.join("bin"), "the active toolchain").ok()
    }

    fn debian(workspace: &Workspace, stage: &Stage) -> Result<Self> {
        let debian = Path::new("/usr");
        if !(has_source(debian) && Path::new("/usr/bin/cargo").is_file()) {
            let by_hand = "run `rustup component add rust-src`, or on Debian 12 \
                           `apt-get install rustc-web cargo-web rust-web-src`";
            if !packages::have_apt() {
                bail!("no Rust compiler with library source is on this machine: {by_hand}");
            }
            let needs = [
                Need::new("rustc-web", "/usr/bin/rustc"),
                Need::new("cargo-web", "/usr/bin/cargo"),
                Need::new("rust-web-src", "/usr/lib/rustlib/src/rust/library/core/src/lib.rs"),
            ];
            packages::ensure(workspace, stage, &needs).with_context(|| {
                format!("no Rust compiler with library source could be brought here: {by_hand}")
            })?;
        }
        let bin = debian.join("bin");
        if is_old(&bin) && packages::may_install() {
            // Debian's rolls forward; an index that is stale, or was made without its updates, names an older one.
            packages::renew(workspace, stage, &["rustc-web", "cargo-web", "rust-web-src"])?;
        }
        Self::at(bin, "Debian's, with rust-web-src")
    }

    fn at(bin: PathBuf, origin: &str) -> Result<Self> {
        let version = query(Command::new(bin.join("rustc")).arg("-V").env_remove("LD_LIBRARY_PATH"))?;
        let number = version.split_whitespace().nth(1).unwrap_or_default().to_owned();
        if parse(&number).is_none_or(|found| found < OLDEST) {
            bail!(
                "{} is {number}, but {}.{} or newer is needed: run `rustup component add rust-src` \
                 on a current toolchain",
                bin.join("rustc").display(),
                OLDEST.0,
                OLDEST.1
            );
        }
        let description = format!("rustc {number} ({origin})");
        Ok(Self { bin, version: version.trim().to_owned(), description })
    }

    /// Where the source of the library is.
    pub(crate) fn library(&self) -> PathBuf {
        self.bin.with_file_name("lib").join(LIBRARY)
    }

    /// This toolchain's cargo, with nothing of the surrounding `cargo run` left in its environment.
    pub(crate) fn cargo(&self) -> Command {
        self.program("cargo")
    }

    /// Its compiler, likewise.
    pub(crate) fn rustc(&self) -> Command {
        self.program("rustc")
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let inherited =
                text.starts_with("CARGO") && text != "CARGO_HOME" && !text.starts_with("CARGO_NET")
                    || text.starts_with("RUST") && text != "RUSTUP_HOME"
                    || text == "LD_LIBRARY_PATH";
            if inherited {
                command.env_remove(&name);
            }
        }
        let mut path = OsString::from(&self.bin);
        if let Some(old) = std::env::var_os("PATH") {
            path.push(":");
            path.push(old);
        }
        command.env("PATH", path).env("RUSTC", self.bin.join("rustc")).env("RUSTC_BOOTSTRAP", "1");
        command
    }
}

/// A linker for `ld -r`: the active toolchain's rust-lld, else LLVM's.
///
/// GNU ld is no choice: Debian's LLVM plugin for it stumbles over the newer bitcode in Rust's objects.
pub(crate) fn linker(workspace: &Workspace, stage: &Stage) -> Result<Command> {
    let bundled = sysroot(workspace).map(|r| r.join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld"));
    if let Some(lld) = bundled.filter(|lld| lld.is_file()) {
        let mut command = Command::new(lld);
        command.args(["-flavor", "gnu"]).env_remove("LD_LIBRARY_PATH");
        return Ok(command);
    }
    packages::ensure(workspace, stage, &[Need::new("lld", "ld.lld")])?;
    Ok(Command::new(program("ld.lld").unwrap_or_else(|| PathBuf::from("ld.lld"))))
}

/// The active compiler's sysroot, if there is a compiler.
fn sysroot(workspace: &Workspace) -> Option<PathBuf> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "sysroot"]).current_dir(&workspace.root).env_remove("LD_LIBRARY_PATH");
    query(&mut rustc).ok().map(|out| PathBuf::from(out.trim()))
}

/// Whether the compiler there is older than the workspace needs.
fn is_old(bin: &Path) -> bool {
    let version = query(Command::new(bin.join("rustc")).arg("-V").env_remove("LD_LIBRARY_PATH"));
    let number = version.ok().and_then(|said| parse(said.split_whitespace().nth(1)?));
    number.is_some_and(|found| found < OLDEST)
}

fn has_source(sysroot: &Path) -> bool {
    sysroot.join("bin/rustc").is_file() && sysroot.join("lib").join(LIBRARY).join("core/src/lib.rs").is_file()
}

/// `1.96.0` as (1, 96).
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(parse("1.96.0-nightly"), Some((1, 96)));
        assert!(parse("1.100.0") > Some(OLDEST));
        assert_eq!(parse("unknown"), None);
    }
}
