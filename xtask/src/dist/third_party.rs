//! Whose code is in the Rust halves: the crates that were compiled into them, and the words of their licences.
//!
//! Cargo says which crates those are, Rust's own library among them, and what licence each has.

use crate::rust_half::{Compiled, Origin};
use crate::shell::query;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

/// What the names of files with a licence begin with.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// What `cargo metadata` says of a workspace.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// What it says of a crate.
#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
}

/// The list, as a document.
pub(super) fn list(workspace: &Workspace, origin: &Origin) -> Result<String> {
    let ours = |name| {
        let file = workspace.root.join(name);
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
    };
    let (mit, apache) = (ours("LICENSE-MIT")?, ours("LICENSE-APACHE")?);
    let others = origin.crates.iter().filter(|one| !one.manifest.starts_with(&workspace.root));
    let mut crates = others.map(|one| Ok((package(origin, one)?, one))).collect::<Result<Vec<_>>>()?;
    // Cargo's own order is the one in which they were ready.
    crates.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    let mut table = String::new();
    let mut texts = String::new();
    for (package, compiled) in &crates {
        let Package { name, version, .. } = package;
        // The parts of Rust's library have no versions of their own.
        let version = if version == "0.0.0" { &origin.toolchain.description } else { version };
        let license = package.license.as_deref().with_context(|| format!("{name} says no licence"))?;
        let repository = package.repository.as_deref().unwrap_or_default();
        table.push_str(&format!("| {name} | {version} | {license} | {repository} |\n"));
        for (title, text) in words(compiled, package, license, &mit)? {
            if !same_words(&text, &apache) {
                texts.push_str(&format!("\n## {name}: {title}\n\n```text\n{}\n```\n", text.trim_end()));
            }
        }
    }
    Ok(format!(
        "# What is compiled into rust.o_shipped and words_rust.o_shipped beside kdetour itself\n\n\
         | crate | version | licence | source |\n|---|---|---|---|\n{table}\n\
         The words of Apache-2.0 are in [LICENSE-APACHE](LICENSE-APACHE); those of the others follow.\n{texts}"
    ))
}

fn package(origin: &Origin, compiled: &Compiled) -> Result<Package> {
    let mut cargo = origin.toolchain.cargo();
    cargo.args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"]).arg(&compiled.manifest);
    let metadata: Metadata = serde_json::from_str(&query(&mut cargo)?)
        .with_context(|| format!("cargo says something odd of {}", compiled.manifest.display()))?;
    let found = metadata.packages.into_iter().find(|package| package.manifest_path == compiled.manifest);
    found.with_context(|| format!("cargo does not know {}", compiled.manifest.display()))
}

/// The words of a crate's licences, each with a title: those that it brings, else those of MIT, if it is under that.
fn words(compiled: &Compiled, package: &Package, license: &str, mit: &str) -> Result<Vec<(String, String)>> {
    let folder = compiled.manifest.parent().context("a manifest lies in a folder")?;
    let brought = brought(folder)?;
    if !brought.is_empty() {
        return Ok(brought);
    }
    if !license.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '.').any(|word| word == "MIT") {
        bail!("{} brings no text of its licence, {license}", package.name);
    }
    let mut text = Vec::new();
    for line in mit.lines() {
        if line.starts_with("Copyright ") {
            text.push(holder(compiled, package)?)
        } else {
            text.push(line.to_owned())
        }
    }
    Ok(vec![("MIT".to_owned(), text.join("\n"))])
}

fn brought(folder: &Path) -> Result<Vec<(String, String)>> {
    let list = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in list {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() && NAMES.iter().any(|start| name.to_uppercase().starts_with(start)) {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            found.push((name, text));
        }
    }
    found.sort();
    Ok(found)
}

/// Whose copyright it is: as the head of the source says, else its contributors', whoever they are.
fn holder(compiled: &Compiled, package: &Package) -> Result<String> {
    let text = fs::read_to_string(&compiled.root)
        .with_context(|| format!("cannot read {}", compiled.root.display()))?;
    let mut head = text.lines().map_while(|line| line.strip_prefix("//")).map(str::trim);
    let said = head.find(|line| line.starts_with("Copyright ")).map(str::to_owned);
    Ok(said.unwrap_or_else(|| format!("Copyright (c) the contributors to {}", package.name)))
}

fn same_words(one: &str, other: &str) -> bool {
    one.split_whitespace().eq(other.split_whitespace())
}
