//! The libraries that the engine is proven and measured on: Debian's own, unpacked into the cache.

use crate::download;
use crate::progress::Stage;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

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
        let home = download::current(workspace, stage, package)?;
        for name in names {
            libraries.push(of(package, &home, name)?);
        }
    }
    Ok(libraries)
}

/// Brings the C library of 64-bit code alone.
pub(crate) fn libc(workspace: &Workspace, stage: &Stage) -> Result<PathBuf> {
    let home = download::current(workspace, stage, "libc6")?;
    of("libc6", &home, "libc.so.6")
}

fn of(package: &str, home: &Path, name: &str) -> Result<PathBuf> {
    find(home, name).with_context(|| format!("the package {package} holds no {name}"))
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
