//! Debian packages that are unpacked into the cache and never installed.

use crate::packages;
use crate::progress::Stage;
use crate::shell::{Step, query};
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of an unpacked package, of the version that the package index names today.
pub(crate) fn current(workspace: &Workspace, stage: &Stage, package: &str) -> Result<PathBuf> {
    let cache = workspace.cache.join("library");
    let Some(version) = candidate(package) else {
        // Without an index, any version that was brought before will do.
        let older = fs::read_dir(&cache).into_iter().flatten().flatten().map(|entry| entry.path());
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
        let first = unpack(workspace, &exact, &home);
        if let Err(why) = first {
            if !packages::may_install() {
                bail!(why);
            }
            packages::update(workspace)?;
            unpack(workspace, &[package.to_owned()], &home)?;
        }
    }
    Ok(home)
}

fn candidate(package: &str) -> Option<String> {
    let policy = query(Command::new("apt-cache").args(["policy", package])).ok()?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Downloads the first of `names` that there is, and unpacks it as the folder `home`.
pub(crate) fn unpack(workspace: &Workspace, names: &[String], home: &Path) -> Result<()> {
    let name = home.file_name().unwrap_or_default().to_string_lossy();
    let scratch = home.with_file_name(format!(".{name}.{}", std::process::id()));
    let tree = scratch.join("tree");
    fs::create_dir_all(&tree).with_context(|| format!("cannot create {}", tree.display()))?;
    let fetched = fetch(workspace, &scratch, names).and_then(|package| {
        Step {
            what: "unpack a package",
            log: workspace.log("dpkg-deb"),
            advice: "the download may be broken or the disk full: run this again",
        }
        .run(Command::new("dpkg-deb").arg("-x").arg(package).arg(&tree))
    });
    let moved = fetched.and_then(|_| {
        if home.exists() {
            fs::remove_dir_all(home).with_context(|| format!("cannot replace {}", home.display()))?;
        }
        fs::rename(&tree, home).with_context(|| format!("cannot move a package to {}", home.display()))
    });
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    moved
}

/// Downloads the first of `names` that there is into `folder`.
fn fetch(workspace: &Workspace, folder: &Path, names: &[String]) -> Result<PathBuf> {
    let mut outcome = Ok(String::new());
    for name in names {
        outcome = Step {
            what: "download a package",
            log: workspace.log("download"),
            advice: "check the network, run `apt-get update` as root, then run this again",
        }
        .run(Command::new("apt-get").args(["-q", "download", name]).current_dir(folder));
        if outcome.is_ok() {
            break;
        }
    }
    outcome?;
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .context("apt-get download left no package behind")
}
