//! `cargo xtask install`: `kdetour.h` and the library for programs in C and C++, where their compiler looks for them.

use crate::packages::{self, Need};
use crate::progress::{Progress, Stage};
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
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let progress = Progress::new();
    for file in install(workspace, &progress, &arguments.prefix, arguments.destdir.as_deref())? {
        let size = fs::metadata(&file).map_or(0, |about| about.len());
        progress.line(&format!("{}  {size} bytes", file.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds and installs everything; the files.
pub(crate) fn install(
    workspace: &Workspace,
    progress: &Progress,
    prefix: &Path,
    destdir: Option<&Path>,
) -> Result<Vec<PathBuf>> {
    if !prefix.is_absolute() {
        bail!(
            "--prefix {} is no absolute path: programs would look for it wherever they run",
            prefix.display()
        );
    }
    if prefix.as_os_str().to_string_lossy().contains(char::is_whitespace) {
        bail!("--prefix {}: compilers are not told of paths with a blank in them", prefix.display());
    }
    let stage = progress.stage("libkdetour");
    let _lock = workspace.lock()?;
    packages::ensure(workspace, &stage, &[Need::new("gcc", "cc")])?;
    let built = build(workspace, &stage)?;
    let root = match destdir {
        Some(destdir) => destdir.join(prefix.strip_prefix("/").unwrap_or(prefix)),
        None => prefix.to_path_buf(),
    };
    let header = workspace.root.join("crates/ffi/include/kdetour.h");
    let shared = format!("libkdetour.so.{VERSION}");
    let interface = format!("libkdetour.so.{INTERFACE}");
    let mut files = Vec::new();
    let mut put = |from: &Path, to: String, mode: u32| -> Result<()> {
        let to = root.join(to);
        place(from, &to, mode)?;
        files.push(to);
        Ok(())
    };
    put(&header, "include/kdetour.h".to_owned(), 0o644)?;
    for name in ["detours.h", "windows.h"] {
        let from = workspace.root.join("crates/ffi/include/detours").join(name);
        // In a folder of their own: nobody else's program is to find a windows.h.
        put(&from, format!("include/kdetour-detours/{name}"), 0o644)?;
    }
    put(&built.fixed, "lib/libkdetour.a".to_owned(), 0o644)?;
    put(&built.shared, format!("lib/{shared}"), 0o755)?;
    put(&built.command, "bin/kdetour".to_owned(), 0o755)?;
    link(&shared, &root.join("lib").join(&interface))?;
    link(&interface, &root.join("lib/libkdetour.so"))?;
    for (name, text) in [("kdetour", pkg_config(prefix)), ("kdetour-detours", detours_pkg_config())] {
        let described = root.join(format!("lib/pkgconfig/{name}.pc"));
        write(&described, &text, 0o644)?;
        files.push(described);
    }
    stage.done(&root.display().to_string());
    Ok(files)
}

/// What was built.
struct Built {
    fixed: PathBuf,
    shared: PathBuf,
    command: PathBuf,
}

fn build(workspace: &Workspace, stage: &Stage) -> Result<Built> {
    // Of its own, so that no other build of these crates is undone.
    let target = workspace.out.join("c");
    let compile = |what: &str, arguments: &[&str]| -> Result<()> {
        stage.note(what);
        let mut cargo = Command::new("cargo");
        leave_cargo_run(&mut cargo);
        cargo.current_dir(&workspace.root).args(arguments).arg("--target-dir").arg(&target);
        // After `--` come arguments of rustc: they stand last.
        if what == "the shared library" {
            cargo.args(["--", &format!("-Clink-arg=-Wl,-soname,libkdetour.so.{INTERFACE}")]);
            // Its signal handlers stay when whoever has loaded it goes.
            cargo.arg("-Clink-arg=-Wl,-z,nodelete");
        }
        Step {
            what: &format!("build {what}"),
            log: workspace.log("install"),
            advice: "errors of the compiler point at crates/ffi or what it uses",
        }
        .run(&mut cargo)?;
        Ok(())
    };
    let library = |kind: &'static str| {
        let features = ["--release", "-p", "kdetour-ffi", "--lib", "--features", "linux-process"];
        [&["rustc"], &features[..], &["--crate-type", kind]].concat()
    };
    compile("the static library", &library("staticlib"))?;
    compile("the shared library", &library("cdylib"))?;
    compile("the command", &["build", "--release", "-p", "kdetour-cli"])?;
    let release = target.join("release");
    Ok(Built {
        fixed: release.join("libkdetour_ffi.a"),
        shared: release.join("libkdetour_ffi.so"),
        command: release.join("kdetour"),
    })
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
fn pkg_config(prefix: &Path) -> String {
    format!(
        "prefix={}\n\
         includedir=${{prefix}}/include\n\
         libdir=${{prefix}}/lib\n\
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
        let text = pkg_config(Path::new("/opt/kdetour"));
        assert!(text.starts_with("prefix=/opt/kdetour\n"));
        assert_eq!(text.matches("/opt").count(), 1);
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
