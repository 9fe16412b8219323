//! Where things are: the repository, the build folder and the cache.

use anyhow::{Context as _, Result, bail};
use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The folders that every command works in.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    /// The repository: the folder of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Everything this crate builds: `target/kdetour`.
    pub(crate) out: PathBuf,
    /// Downloads that survive `cargo clean`: `$XDG_CACHE_HOME/kdetour`, else `~/.cache/kdetour`.
    pub(crate) cache: PathBuf,
}

impl Workspace {
    /// Finds the repository from cargo's environment or from the current folder upwards.
    pub(crate) fn find() -> Result<Self> {
        let start = match env::var_os("CARGO_MANIFEST_DIR") {
            Some(folder) => PathBuf::from(folder),
            None => env::current_dir().context("the current folder cannot be read")?,
        };
        let Some(root) = start.ancestors().find(|f| f.join("xtask/Cargo.toml").is_file()) else {
            bail!("{} is not inside the kdetour repository: run `cargo xtask` there", start.display());
        };
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let target = if target.is_absolute() { target } else { root.join(target) };
        let cache = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
            (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
            (_, Some(home)) => PathBuf::from(home).join(".cache"),
            _ => target.clone(),
        };
        Ok(Self { root: root.to_path_buf(), out: target.join("kdetour"), cache: cache.join("kdetour") })
    }

    /// Keeps other runs of this program from building at the same time, as long as the file lives.
    pub(crate) fn lock(&self) -> Result<File> {
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot create {}", self.out.display()))?;
        let path = self.out.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    /// The module's C half, its Kbuild, its examples and its guest scripts.
    pub(crate) fn kernel_sources(&self) -> PathBuf {
        self.root.join("kernel/linux")
    }

    /// A file under `target/kdetour/log`.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.out.join("log").join(format!("{name}.log"))
    }

    /// `path` as the user would type it: relative to the repository when it is inside.
    pub(crate) fn shown<'p>(&self, path: &'p Path) -> std::path::Display<'p> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}
