//! A program started with a library in it: `kdetour run`.
//!
//! ```text
//!   program   which file is executed, and whether the kernel lets anything be loaded into it
//!   elf       what a file says of itself: for which machine, by which loader
//!   library   whether the loader could load it
//!   loader    asked what it would load; nothing of the program runs
//! ```
//!
//! The library is named in `LD_PRELOAD`, which is all that a loader needs. What makes a loader ignore that is looked for
//! before: it would say so in one line among the program's own, or not at all, and the program would run without.

mod elf;
mod library;
mod loader;
mod program;

use crate::args::Run;
use anyhow::{Context as _, Result, anyhow, bail};
use library::Library;
use program::Program;
use std::convert::Infallible;
use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

const PRELOAD: &str = "LD_PRELOAD";

/// Replaces this process by the program, with the libraries in it. Comes back only if that cannot be.
pub(crate) fn run(run: &Run) -> Result<Infallible> {
    let program = Program::find(&run.program)?;
    let libraries = run.with.iter().map(|path| Library::open(path)).collect::<Result<Vec<_>>>()?;
    for library in &libraries {
        library.fits(program.elf(), program.file())?;
    }
    let preload = preload(&libraries)?;
    loader::check(&program, &libraries, &preload)?;
    let mut command = Command::new(program.path());
    command.arg0(&run.program).args(&run.arguments).env(PRELOAD, preload);
    let error = command.exec();
    Err(anyhow!(error)).with_context(|| format!("cannot execute {}", program.path().display()))
}

/// The libraries, in front of what is to be loaded anyway.
fn preload(libraries: &[Library]) -> Result<OsString> {
    let mut list = OsString::new();
    for library in libraries {
        append(&mut list, library.path().as_os_str());
    }
    if let Some(before) = env::var_os(PRELOAD).filter(|before| !before.is_empty()) {
        append(&mut list, &before);
    }
    Ok(list)
}

fn append(list: &mut OsString, what: &OsStr) {
    if !list.is_empty() {
        list.push(":");
    }
    list.push(what);
}

/// Whether a loader can be told of this path: blanks and colons end it, a dollar sign may stand for something else.
fn can_be_named(path: &Path) -> Result<()> {
    let bytes = path.as_os_str().as_bytes();
    match bytes.iter().find(|&&byte| byte.is_ascii_whitespace() || b":;$".contains(&byte)) {
        None => Ok(()),
        Some(&byte) => bail!(
            "{}: a path with {:?} in it cannot be handed to a loader; give the library another name",
            path.display(),
            char::from(byte)
        ),
    }
}
