//! `cargo xtask install`: `kdetour.h` and the library for programs in C and C++, where their compiler looks for them.

pub(crate) mod windows;

use crate::cross::{Cross, Processor, Target};
use crate::packages::{self, Need};
use crate::progress::{Progress, Stage};
use crate::setup;
use crate::shell::{Step, leave_cargo_run};
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Before 1.0 each second number is an interface of its own.
const INTERFACE: &str = "0.1";

/// Installs the C library, its header, its pkg-config file and the command `kdetour`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Where programs will find it.
    #[arg(long, value_name = "FOLDER", default_value = "/usr/local")]
    prefix: PathBuf,
    /// Put everything below this folder instead of /, for packages.
    #[arg(long, value_name = "FOLDER")]
    destdir: Option<PathBuf>,
    /// The library for 32-bit programs (cc -m32) too, in lib32.
    #[arg(long)]
    i686: bool,
    /// The library for Windows' programs in place of that, in x86_64-w64-mingw32; with --i686 that for 32-bit ones too, in
    /// i686-w64-mingw32. Neither brings the command.
    #[arg(long)]
    windows: bool,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let progress = Progress::new();
    let destdir = arguments.destdir.as_deref();
    let mut files = Vec::new();
    if arguments.windows {
        files.extend(install_windows(
            workspace,
            &progress,
            Target::X86_64Windows,
            &arguments.prefix,
            destdir,
        )?);
        if arguments.i686 {
            files.extend(install_windows(
                workspace,
                &progress,
                Target::I686Windows,
                &arguments.prefix,
                destdir,
            )?);
        }
    } else {
        files.extend(install(workspace, &progress, &arguments.prefix, destdir)?);
        if arguments.i686 {
            files.extend(install_i686(workspace, &progress, &arguments.prefix, destdir)?);
        }
    }
    for file in files {
        let size = fs::metadata(&file).map_or(0, |about| about.len());
        progress.line(&format!("{}  {size} bytes", file.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds and installs everything but what is for 32-bit programs; the files.
pub(crate) fn install(
    workspace: &Workspace,
    progress: &Progress,
    prefix: &Path,
    destdir: Option<&Path>,
) -> Result<Vec<PathBuf>> {
    let mut into = Destination::new(prefix, destdir)?;
    let stage = progress.stage("libkdetour");
    let _lock = workspace.lock()?;
    packages::ensure(workspace, &stage, &[Need::new("gcc", "cc")])?;
    let libraries = build_libraries(workspace, &stage, None)?;
    let command = build_command(workspace, &stage)?;
    into.put(&workspace.root.join("crates/ffi/include/kdetour.h"), "include/kdetour.h", 0o644)?;
    for name in ["detours.h", "windows.h"] {
        let from = workspace.root.join("crates/ffi/include/detours").join(name);
        // In a folder of their own: nobody else's program is to find a windows.h.
        into.put(&from, &format!("include/kdetour-detours/{name}"), 0o644)?;
    }
    into.put(&command, "bin/kdetour", 0o755)?;
    into.libraries(&libraries, Processor::X86_64)?;
    stage.done(&into.root.display().to_string());
    Ok(into.files)
}

/// Builds and installs the libraries for 32-bit programs beside the others; the files. The headers are the same.
pub(crate) fn install_i686(
    workspace: &Workspace,
    progress: &Progress,
    prefix: &Path,
    destdir: Option<&Path>,
) -> Result<Vec<PathBuf>> {
    let mut into = Destination::new(prefix, destdir)?;
    let cross = setup::cross(workspace, progress, Target::I686Linux)?;
    let stage = progress.stage("libkdetour i686");
    let _lock = workspace.lock()?;
    let libraries = build_libraries(workspace, &stage, Some(&cross))?;
    into.libraries(&libraries, Processor::I686)?;
    stage.done(&into.root.join(Processor::I686.library_folder()).display().to_string());
    Ok(into.files)
}

/// Builds and installs the libraries for programs on Windows, and their headers, in a folder of their own as compilers for them have it; the files.
pub(crate) fn install_windows(
    workspace: &Workspace,
    progress: &Progress,
    target: Target,
    prefix: &Path,
    destdir: Option<&Path>,
) -> Result<Vec<PathBuf>> {
    let mut into = Destination::new(prefix, destdir)?;
    let cross = setup::cross(workspace, progress, target)?;
    let stage = progress.stage(&format!("libkdetour {}", target.name()));
    let _lock = workspace.lock()?;
    windows::install(workspace, &stage, target, &cross, &mut into)?;
    stage.done(&into.root.join(windows::folder(target)).display().to_string());
    Ok(into.files)
}

/// Where things are installed, and what has been.
struct Destination<'a> {
    prefix: &'a Path,
    root: PathBuf,
    files: Vec<PathBuf>,
}

impl<'a> Destination<'a> {
    fn new(prefix: &'a Path, destdir: Option<&Path>) -> Result<Self> {
        if !prefix.is_absolute() {
            bail!(
                "--prefix {} is no absolute path: programs would look for it wherever they run",
                prefix.display()
            );
        }
        if prefix.as_os_str().to_string_lossy().contains(char::is_whitespace) {
            bail!("--prefix {}: compilers are not told of paths with a blank in them", prefix.display());
        }
        let root = match destdir {
            Some(destdir) => destdir.join(prefix.strip_prefix("/").unwrap_or(prefix)),
            None => prefix.to_path_buf(),
        };
        Ok(Self { prefix, root, files: Vec::new() })
    }

    fn put(&mut self, from: &Path, to: &str, mode: u32) -> Result<()> {
        let to = self.root.join(to);
        place(from, &to, mode)?;
        self.files.push(to);
        Ok(())
    }

    /// The libraries, and what tells compilers of them.
    fn libraries(&mut self, built: &Libraries, processor: Processor) -> Result<()> {
        let folder = processor.library_folder();
        let shared = format!("libkdetour.so.{VERSION}");
        let interface = format!("libkdetour.so.{INTERFACE}");
        self.put(&built.fixed, &format!("{folder}/libkdetour.a"), 0o644)?;
        self.put(&built.shared, &format!("{folder}/{shared}"), 0o755)?;
        let libraries = self.root.join(folder);
        link(&shared, &libraries.join(&interface))?;
        link(&interface, &libraries.join("libkdetour.so"))?;
        let described =
            [("kdetour", pkg_config(self.prefix, folder)), ("kdetour-detours", detours_pkg_config())];
        for (name, text) in described {
            let file = libraries.join(format!("pkgconfig/{name}.pc"));
            write(&file, &text, 0o644)?;
            self.files.push(file);
        }
        Ok(())
    }
}

/// What was built.
struct Libraries {
    fixed: PathBuf,
    shared: PathBuf,
}

/// The libraries: for this machine's own code, or for 32-bit code.
fn build_libraries(workspace: &Workspace, stage: &Stage, cross: Option<&Cross>) -> Result<Libraries> {
    let compile = |what: &str, kind: &str, more: &[&str]| -> Result<()> {
        stage.note(what);
        let mut cargo = cross.map_or_else(|| native("rustc"), |cross| cross.cargo("rustc", &[]));
        cargo.args(["--release", "-p", "kdetour-ffi", "--lib", "--features", "linux-process"]);
        cargo.args(["--crate-type", kind]);
        // What stands last, behind `--`, is for rustc.
        step(workspace, what, &mut cargo, more)
    };
    compile("the static library", "staticlib", &[])?;
    let soname = format!("-Clink-arg=-Wl,-soname,libkdetour.so.{INTERFACE}");
    // Its signal handlers stay when whoever has loaded it goes.
    compile("the shared library", "cdylib", &["--", &soname, "-Clink-arg=-Wl,-z,nodelete"])?;
    let release = target(workspace).join(cross.map_or("", Cross::folder)).join("release");
    Ok(Libraries { fixed: release.join("libkdetour_ffi.a"), shared: release.join("libkdetour_ffi.so") })
}

fn build_command(workspace: &Workspace, stage: &Stage) -> Result<PathBuf> {
    stage.note("the command");
    let mut cargo = native("build");
    step(workspace, "the command", cargo.args(["--release", "-p", "kdetour-cli"]), &[])?;
    Ok(target(workspace).join("release/kdetour"))
}

fn native(command: &str) -> Command {
    let mut cargo = Command::new("cargo");
    leave_cargo_run(&mut cargo);
    cargo.arg(command);
    cargo
}

fn step(workspace: &Workspace, what: &str, cargo: &mut Command, more: &[&str]) -> Result<()> {
    cargo.current_dir(&workspace.root).arg("--target-dir").arg(target(workspace)).args(more);
    Step {
        what: &format!("build {what}"),
        log: workspace.log("install"),
        advice: "errors of the compiler point at crates/ffi or what it uses",
    }
    .run(cargo)
    .map(drop)
}

/// Of its own, so that no other build of these crates is undone.
fn target(workspace: &Workspace) -> PathBuf {
    workspace.out.join("c")
}

/// Puts a file into its place at one moment: a program that runs keeps the one that it has.
fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write(to, &bytes, mode)
}

fn write(to: &Path, bytes: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    let folder = to.parent().unwrap_or(Path::new("/"));
    let cannot = || format!("cannot write {}: choose another --prefix, or run this as root", to.display());
    fs::create_dir_all(folder).with_context(cannot)?;
    let fresh = to.with_extension("new");
    fs::write(&fresh, bytes).with_context(cannot)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).with_context(cannot)?;
    fs::rename(&fresh, to).with_context(cannot)
}

/// Makes `link` lead to `name` beside it.
fn link(name: &str, link: &Path) -> Result<()> {
    let fresh = link.with_extension("new");
    let _ = fs::remove_file(&fresh);
    symlink(name, &fresh)
        .and_then(|()| fs::rename(&fresh, link))
        .with_context(|| format!("cannot make the link {}", link.display()))
}

/// `kdetour.pc`. What the static library needs besides is what `rustc --print native-static-libs` says.
fn pkg_config(prefix: &Path, folder: &str) -> String {
    format!(
        "prefix={}\n\
         includedir=${{prefix}}/include\n\
         libdir=${{prefix}}/{folder}\n\
         \n\
         Name: kdetour\n\
         Description: Detours of functions of running code\n\
         Version: {VERSION}\n\
         Cflags: -I${{includedir}}\n\
         Libs: -L${{libdir}} -lkdetour\n\
         Libs.private: -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc\n",
        prefix.display()
    )
}

/// `kdetour-detours.pc`: where `windows.h` and `detours.h` are.
fn detours_pkg_config() -> String {
    format!(
        "Name: kdetour-detours\n\
         Description: The calls of Microsoft Detours for programs on Linux\n\
         Version: {VERSION}\n\
         Requires: kdetour\n\
         Cflags: -I${{pcfiledir}}/../../include/kdetour-detours\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_is_that_of_the_version() {
        assert!(VERSION.starts_with(&format!("{INTERFACE}.")), "{VERSION} begins a new interface");
    }

    #[test]
    fn the_description_names_the_prefix_once() {
        for folder in ["lib", "lib32"] {
            let text = pkg_config(Path::new("/opt/kdetour"), folder);
            assert!(text.starts_with("prefix=/opt/kdetour\n"));
            assert_eq!(text.matches("/opt").count(), 1);
            assert!(text.contains(&format!("\nlibdir=${{prefix}}/{folder}\n")), "{text}");
        }
    }

    #[test]
    fn links_and_files_are_replaced() {
        let folder = std::env::temp_dir().join(format!("xtask-install-{}", std::process::id()));
        let file = folder.join("lib/one.so.0.1.0");
        for text in ["a", "b"] {
            write(&file, text, 0o644).unwrap();
            link("one.so.0.1.0", &folder.join("lib/one.so")).unwrap();
            assert_eq!(fs::read_to_string(folder.join("lib/one.so")).unwrap(), text);
        }
        assert_eq!(fs::read_dir(folder.join("lib")).unwrap().count(), 2);
        fs::remove_dir_all(folder).unwrap();
    }
}
