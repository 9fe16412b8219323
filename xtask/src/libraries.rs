//! The libraries that the engine is proven and measured on: Debian's own, unpacked into the cache.

use crate::download;
use crate::packages;
use crate::progress::Stage;
use crate::shell::query;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Debian package, and the libraries of it that are looked at.
const PACKAGES: [(&str, &[&str]); 7] = [
    ("libc6", &["libc.so.6", "libm.so.6"]),
    ("libssl3", &["libcrypto.so.3"]),
    ("libstdc++6", &["libstdc++.so.6"]),
    ("libsqlite3-0", &["libsqlite3.so.0"]),
    ("libpython3.11", &["libpython3.11.so.1.0"]),
    // Libraries of 32-bit code for a 64-bit system.
    ("libc6-i386", &["libc.so.6", "libm.so.6"]),
    ("lib32stdc++6", &["libstdc++.so.6"]),
];

/// Brings every library and says where each is.
pub(crate) fn all(workspace: &Workspace, stage: &Stage) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for (package, names) in PACKAGES {
        let home = home(workspace, stage, package)?;
        for name in names {
            let found = find(&home, name);
            libraries.push(found.with_context(|| format!("the package {package} holds no {name}"))?);
        }
    }
    Ok(libraries)
}

/// The folder of an unpacked package, of the version that the package index names today.
fn home(workspace: &Workspace, stage: &Stage, package: &str) -> Result<PathBuf> {
    let cache = workspace.cache.join("library");
    let Some(version) = candidate(package) else {
        // Without an index, any version that was brought before will do.
        let older = std::fs::read_dir(&cache).into_iter().flatten().flatten().map(|entry| entry.path());
        let prefix = format!("{package}_");
        let named =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        return older.filter(named).max().with_context(|| {
            format!("no package {package} is in the package index: run `apt-get update` as root")
        });
    };
    let home = cache.join(format!("{package}_{}", version.replace([':', '/'], "-")));
    if !home.is_dir() {
        stage.note(&format!("downloading {package} {version}"));
        let exact = [format!("{package}={version}"), package.to_owned()];
        let first = download::unpack(workspace, &exact, &home);
        if let Err(why) = first {
            if !packages::may_install() {
                bail!(why);
            }
            packages::update(workspace)?;
            download::unpack(workspace, &[package.to_owned()], &home)?;
        }
    }
    Ok(home)
}

fn candidate(package: &str) -> Option<String> {
    let policy = query(Command::new("apt-cache").args(["policy", package])).ok()?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// The file called `name`, or the one that the link of that name leads to.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if entry.file_name().to_string_lossy() == name && path.is_file() {
                return Some(path);
            }
        }
    }
    None
}
