//! A library that is to be in the program.

use super::can_be_named;
use super::elf::Elf;
use anyhow::{Context as _, Result, anyhow, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// A shared object.
pub(super) struct Library {
    path: PathBuf,
    elf: Elf,
}

impl Library {
    /// Looks at the file.
    pub(super) fn open(given: &Path) -> Result<Self> {
        let named = || format!("cannot load {}", given.display());
        let path = fs::canonicalize(given).with_context(named)?;
        can_be_named(&path)?;
        // A pipe would never end.
        if !fs::metadata(&path).with_context(named)?.is_file() {
            bail!("cannot load {}: it is no file", given.display());
        }
        let data = fs::read(&path).with_context(named)?;
        let elf = Elf::read(&data).with_context(named)?;
        if !elf.is_loadable {
            bail!("cannot load {}: it is not linked; link it with -shared", given.display());
        }
        if elf.is_program {
            bail!("cannot load {}: it is a program; link it with -shared", given.display());
        }
        Ok(Self { path, elf })
    }

    /// Where it is, without links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is for the same processors as the program.
    pub(super) fn fits(&self, program: &Elf, file: &Path) -> Result<()> {
        let (ours, theirs) = (self.elf.machine, program.machine);
        if ours == theirs {
            return Ok(());
        }
        Err(anyhow!(
            "{} is for {ours}, and {} for {theirs}: build the library for that",
            self.path.display(),
            file.display()
        ))
    }
}
