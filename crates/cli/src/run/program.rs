//! The program that is started.

use super::elf::Elf;
use anyhow::{Context as _, Result, bail};
use rustix::fs::{Access, StatVfsMountFlags, access, getxattr, statvfs};
use rustix::process::{getegid, geteuid, getgid, getuid};
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What is executed.
pub(super) struct Program {
    path: PathBuf,
    file: PathBuf,
    elf: Elf,
    loader: PathBuf,
}

/// Where programs are looked for if PATH does not say.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// How often a script may name another script, as the kernel allows.
const SCRIPTS: usize = 4;
/// `S_ISUID`, `S_ISGID`, and a group that may execute, without which the latter means something else.
const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2010;

impl Program {
    /// Finds it as a shell would, and makes sure that a loader will be asked to load things.
    pub(super) fn find(name: &OsStr) -> Result<Self> {
        let path = locate(name)?;
        let (file, data) = interpreted(&path)?;
        let elf = Elf::read(&data).with_context(|| format!("cannot run {}", file.display()))?;
        if !elf.is_loadable {
            bail!("cannot run {}: it is not linked", file.display());
        }
        let Some(loader) = elf.loader.clone() else {
            bail!(
                "{} is statically linked: it has no loader that could load a library; kdetour's own calls have to be \
                 linked into it",
                file.display()
            );
        };
        if !loader.exists() {
            bail!("cannot run {}: its loader {} is not there", file.display(), loader.display());
        }
        check_privileges(&file)?;
        Ok(Self { path, file, elf, loader })
    }

    /// What is executed: the program, or the script.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is loaded: the program, or the script's interpreter.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// What that says of itself.
    pub(super) const fn elf(&self) -> &Elf {
        &self.elf
    }

    /// Its loader.
    pub(super) fn loader(&self) -> &Path {
        &self.loader
    }
}

/// The file of that name, in PATH if it is no path.
fn locate(name: &OsStr) -> Result<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        executable(&path).with_context(|| format!("cannot run {}", path.display()))?;
        return Ok(path);
    }
    let list = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut found = env::split_paths(&list).map(|folder| folder.join(name));
    match found.find(|path| executable(path).is_ok()) {
        // What lies in the current folder is named so, or it would be looked for again.
        Some(path) if !path.as_os_str().as_bytes().contains(&b'/') => Ok(Path::new(".").join(path)),
        Some(path) => Ok(path),
        None => bail!("no program of the name {} is in PATH", name.display()),
    }
}

fn executable(path: &Path) -> Result<()> {
    let about = fs::metadata(path)?;
    if !about.is_file() {
        bail!("it is no file");
    }
    access(path, Access::EXEC_OK).context("it may not be executed")
}

/// The file that the kernel loads: of a script, its interpreter; and what is in it.
fn interpreted(path: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let mut file = path.to_owned();
    for _ in 0..=SCRIPTS {
        let data = fs::read(&file).with_context(|| {
            format!("cannot read {}, and so not tell whether a library can be loaded into it", file.display())
        })?;
        let Some(line) = data.strip_prefix(b"#!") else { return Ok((file, data)) };
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii();
        let name = line.split(|byte| b" \t".contains(byte)).next().unwrap_or_default();
        let next = PathBuf::from(OsStr::from_bytes(name));
        executable(&next).with_context(|| {
            format!("cannot run {}: its interpreter {:?}", file.display(), next.display().to_string())
        })?;
        file = next;
    }
    bail!("{}: a script for a script for a script", path.display())
}

/// A program that gets privileges which this process has not got loads nothing that its starter names.
fn check_privileges(file: &Path) -> Result<()> {
    let why = if getuid() != geteuid() || getgid() != getegid() {
        "this process itself runs with somebody else's privileges"
    } else if statvfs(file).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::NOSUID)) {
        return Ok(());
    } else {
        let about = fs::metadata(file).with_context(|| format!("cannot run {}", file.display()))?;
        let mode = about.mode();
        if mode & SET_USER != 0 && about.uid() != getuid().as_raw() {
            "it is setuid: it runs with its owner's privileges"
        } else if mode & SET_GROUP == SET_GROUP && about.gid() != getgid().as_raw() {
            "it is setgid: it runs with its group's privileges"
        } else if !getuid().is_root() && has_capabilities(file) {
            "it has capabilities"
        } else {
            return Ok(());
        }
    };
    bail!(
        "{}: {why}, so its loader ignores what others want to be loaded; run it as the user whose privileges it gets, or a \
         copy without them",
        file.display()
    )
}

fn has_capabilities(file: &Path) -> bool {
    let mut value = [0_u8; 64];
    getxattr(file, "security.capability", &mut value).is_ok_and(|len| len > 0)
}
