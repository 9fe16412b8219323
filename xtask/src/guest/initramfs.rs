//! The guest's file system: static busybox, `/init`, `/run.sh`, `/modules` and the user's files.

use anyhow::{Context as _, Result, bail};
use cpio::newc::{Builder, trailer};
use object::{Object as _, ObjectSection as _};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{program, query};

const INIT: &str = include_str!("init.sh");
const FOLDERS: &[&str] = &["bin", "dev", "lib", "modules", "proc", "sys", "tmp"];
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// A cpio archive in the `newc` format, as the kernel unpacks it.
#[derive(Default)]
pub(crate) struct Initramfs {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Initramfs {
    /// Busybox with its applets, and `/init`.
    pub(crate) fn with_busybox() -> Result<Self> {
        let busybox =
            program("busybox").context("there is no busybox on this machine: install busybox-static")?;
        let bytes = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
        if !is_static(&bytes) {
            bail!(
                "{} is not static, so it cannot run in the guest: install busybox-static",
                busybox.display()
            );
        }
        let mut archive = Self::default();
        for folder in FOLDERS {
            archive.folder(folder)?;
        }
        archive.entry("bin/busybox", EXECUTABLE, &bytes)?;
        for applet in query(Command::new(&busybox).arg("--list"))?.lines().filter(|name| *name != "busybox") {
            archive.entry(&format!("bin/{applet}"), LINK, b"busybox")?;
        }
        archive.entry("init", EXECUTABLE, INIT.as_bytes())?;
        Ok(archive)
    }

    /// Adds `host`'s content as `guest`, an absolute path; the folders above it come along.
    pub(crate) fn file(&mut self, host: &Path, guest: &str) -> Result<()> {
        let bytes =
            fs::read(host).with_context(|| format!("cannot read {} for the guest", host.display()))?;
        self.content(guest, &bytes)
    }

    /// Adds `bytes` as `guest`, an absolute path; the folders above it come along.
    pub(crate) fn content(&mut self, guest: &str, bytes: &[u8]) -> Result<()> {
        let name = guest.trim_start_matches('/');
        let above: Vec<PathBuf> = Path::new(name).ancestors().skip(1).map(Path::to_path_buf).collect();
        for folder in above.iter().rev().filter(|folder| !folder.as_os_str().is_empty()) {
            self.folder(&folder.display().to_string())?;
        }
        self.entry(name, EXECUTABLE, bytes)
    }

    /// The whole archive.
    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        trailer(self.bytes).context("cannot end the initramfs")
    }

    fn folder(&mut self, name: &str) -> Result<()> {
        if self.names.contains(name) { Ok(()) } else { self.entry(name, DIRECTORY, b"") }
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let size =
            u32::try_from(bytes.len()).with_context(|| format!("{name} is too large for the guest"))?;
        self.names.insert(name.to_owned());
        let inode = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        let mut writer = Builder::new(name).ino(inode).mode(mode).nlink(1).write(&mut self.bytes, size);
        std::io::Write::write_all(&mut writer, bytes).with_context(|| format!("cannot add {name}"))?;
        writer.finish().map(drop).with_context(|| format!("cannot add {name}"))
    }
}

/// Whether an ELF program asks for no interpreter.
fn is_static(bytes: &[u8]) -> bool {
    object::File::parse(bytes).is_ok_and(|file| !file.sections().any(|s| s.name() == Ok(".interp")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_above_a_file_come_once() {
        let mut archive = Initramfs::default();
        archive.content("/a/b/c", b"1").unwrap();
        archive.content("/a/b/d", b"2").unwrap();
        assert_eq!(
            archive.names.iter().map(String::as_str).collect::<Vec<_>>(),
            ["a", "a/b", "a/b/c", "a/b/d"]
        );
        let bytes = archive.finish().unwrap();
        let first = cpio::newc::Reader::new(bytes.as_slice()).unwrap();
        assert_eq!((first.entry().name(), first.entry().mode()), ("a", DIRECTORY));
    }
}
