//! `cargo xtask dist`: an archive from which people without Rust build `kdetour.ko`.
//!
//! It holds the C halves as they are, and the Rust halves as one object each, which Kbuild puts into their places
//! (`kernel/linux/Kbuild`). The same sources and the same compiler give the same bytes, wherever it is made, and when.

mod archive;
mod third_party;

use crate::module;
use crate::progress::Progress;
use crate::rust_half::{self, HALVES};
use crate::setup;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const REPOSITORY: &str = env!("CARGO_PKG_REPOSITORY");

/// Makes an archive from which kdetour.ko is built without Rust.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// The folder that it is put into; without it, target/kdetour.
    #[arg(long, value_name = "FOLDER")]
    to: Option<PathBuf>,
}

/// An archive that was made.
pub(crate) struct Archive {
    /// The `.tar.gz`.
    pub(crate) path: PathBuf,
    /// The folder in it that holds everything.
    pub(crate) top: String,
    /// What that folder holds, by path.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let progress = Progress::new();
    let folder = arguments.to.as_deref().unwrap_or(&workspace.out);
    let archive = make(workspace, &progress, folder)?;
    let size = fs::metadata(&archive.path)?.len();
    progress.line(&format!("{}  {size} bytes", workspace.shown(&archive.path)));
    Ok(ExitCode::SUCCESS)
}

/// Makes the archive in `folder`.
pub(crate) fn make(workspace: &Workspace, progress: &Progress, folder: &Path) -> Result<Archive> {
    let rust = setup::rust(workspace, progress)?;
    let stage = progress.stage("archive");
    let _lock = workspace.lock()?;
    let origin = rust_half::origin(workspace, &stage)?;
    let mut files = sources(workspace, &origin.toolchain.description)?;
    for half in &HALVES {
        files.insert(half.shipped(), read(&rust.join(half.object()))?);
    }
    files.insert("THIRD-PARTY.md".to_owned(), third_party::list(workspace, &origin)?.into_bytes());
    let top = format!("kdetour-{VERSION}");
    let path = folder.join(format!("{top}.tar.gz"));
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(&path, archive::pack(&top, &files)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    stage.done(&format!("{} files", files.len()));
    Ok(Archive { path, top, files })
}

/// Everything but the Rust halves, by its path in the archive.
fn sources(workspace: &Workspace, compiler: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let half = workspace.kernel_sources();
    let at_the_top = |name: &str| name == "Kbuild" || name.ends_with(".c") || name.ends_with(".h");
    for file in module::files_under(&half)? {
        let name = file.strip_prefix(&half).unwrap_or(&file).display().to_string();
        match name.split_once('/') {
            None if at_the_top(&name) => files.insert(name, read(&file)?),
            Some(("examples", _)) => files.insert(name, read(&file)?),
            Some(("dist", name)) => files.insert(name.to_owned(), filled_in(&file, compiler)?),
            // What links the Rust halves, and the tests.
            _ => None,
        };
    }
    for include in module::headers(workspace) {
        for file in module::files_under(&include)? {
            let name = file.strip_prefix(&include).unwrap_or(&file);
            files.insert(format!("include/{}", name.display()), read(&file)?);
        }
    }
    for name in ["LICENSE-MIT", "LICENSE-APACHE", "CHANGELOG.md"] {
        files.insert(name.to_owned(), read(&workspace.root.join(name))?);
    }
    Ok(files)
}

/// A file of `kernel/linux/dist` with its `@NAMES@` replaced.
fn filled_in(file: &Path, compiler: &str) -> Result<Vec<u8>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = text.replace("@VERSION@", VERSION).replace("@REPOSITORY@", REPOSITORY);
    Ok(text.replace("@RUSTC@", compiler).into_bytes())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}
