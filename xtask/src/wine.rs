//! Wine, which runs programs for Windows on this machine.
//!
//! What Windows has on its disk, Wine has in a folder, its *prefix*. Ours is in the cache, made once for each version of Wine; the user's own
//! is not touched. Nothing in it is of this project but a DLL of one function that Rust's standard library needs and older Wine lacks.

use crate::cross::{self, MINGW, Target};
use crate::packages::{self, Need};
use crate::progress::Stage;
use crate::shell::{Step, query, write_if_changed};
use crate::workspace::Workspace;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// `bcryptprimitives.dll`: random bytes, from where Windows had them before it had that library.
const PRIMITIVES: &str = "\
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG); /* RtlGenRandom, in advapi32.dll */
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE to, SIZE_T size)
{
	return size == (ULONG)size && SystemFunction036(to, (ULONG)size);
}
";

/// A prefix takes half a minute on a machine that is busy.
const MAKING: Duration = Duration::from_secs(300);
/// To start, and to end, Wine takes a second or two.
const STARTING: Duration = Duration::from_secs(60);

/// A Wine that runs 64-bit programs.
#[derive(Clone, Debug)]
pub(crate) struct Wine {
    version: String,
    prefix: PathBuf,
}

impl Wine {
    /// Brings Wine, and makes the prefix if there is none.
    pub(crate) fn prepare(workspace: &Workspace, stage: &Stage) -> Result<Self> {
        // Debian's package wine brings wine64, unless wine32 is there: then the first step below fails, and names it.
        packages::ensure(workspace, stage, &[Need::new("wine", "wine"), cross::mingw()])?;
        let mut version = Command::new("wine");
        settle(&mut version, &workspace.out);
        let version = query(version.arg("--version"))?.trim().to_owned();
        let prefix = workspace.cache.join("wine").join(name(&version));
        let wine = Self { version, prefix };
        if !wine.prefix.is_dir() {
            stage.note(&format!("making a prefix for {}: half a minute, once", wine.version));
            wine.make(workspace)?;
        }
        Ok(wine)
    }

    /// Which Wine it is, for the user.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Makes cargo run the programs of `target` by Wine, and end each that takes longer than `limit`: status 124 then.
    pub(crate) fn run_for(&self, cargo: &mut Command, target: Target, limit: Duration) {
        settle(cargo, &self.prefix);
        let runner = limited("wine", limit).join(" ");
        cargo.env(target.variable("RUNNER"), runner);
    }

    /// Starts what Wine has in the background, which stays until nothing has been run for half a minute.
    ///
    /// Otherwise the first program would start it, and whoever waits for that program's output to end would wait for all of that.
    pub(crate) fn start(&self, workspace: &Workspace) -> Result<()> {
        let mut server = Command::new("wineserver");
        settle(&mut server, &self.prefix);
        server.arg("--persistent=30").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Its status is no failure: it is 2 where a server runs already.
        server.status().context("`wineserver` did not start: reinstall Wine")?;
        Step { what: "run a program by Wine", log: workspace.log("wine-start"), advice: &self.advice() }
            .run(self.command("wine", STARTING).args(["cmd", "/c", "ver"]))
            .map(drop)
    }

    /// Makes the prefix, elsewhere at first: whoever finds it finds it whole.
    fn make(&self, workspace: &Workspace) -> Result<()> {
        let folder = self.prefix.file_name().unwrap_or_default().to_string_lossy();
        let scratch = self.prefix.with_file_name(format!(".{folder}.{}", std::process::id()));
        fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
        let fresh = Self { prefix: scratch.clone(), version: self.version.clone() };
        let moved = fresh.fill(workspace).and_then(|()| {
            match fs::rename(&scratch, &self.prefix) {
                // Somebody else was faster.
                Err(_) if self.prefix.is_dir() => Ok(()),
                moved => {
                    moved.with_context(|| format!("cannot move the prefix to {}", self.prefix.display()))
                }
            }
        });
        if scratch.exists() {
            fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
        }
        moved
    }

    fn fill(&self, workspace: &Workspace) -> Result<()> {
        Step { what: "make a Wine prefix", log: workspace.log("wineboot"), advice: &self.advice() }
            .run(self.command("wine", MAKING).args(["wineboot", "--init"]))?;
        // Its registry is written when its server ends.
        Step { what: "let Wine end", log: workspace.log("wineserver"), advice: &self.advice() }
            .run(self.command("wineserver", STARTING).arg("--wait"))?;
        let primitives = self.prefix.join("drive_c/windows/system32/bcryptprimitives.dll");
        // Newer Wine has its own.
        if !primitives.is_file() {
            let source = workspace.out.join("wine/bcryptprimitives.c");
            write_if_changed(&source, PRIMITIVES.as_bytes())?;
            Step {
                what: "compile bcryptprimitives.dll for Wine",
                log: workspace.log("bcryptprimitives"),
                advice: "reinstall the package gcc-mingw-w64-x86-64-posix",
            }
            .run(
                Command::new(MINGW)
                    .args(["-O2", "-Wall", "-shared", "-static-libgcc", "-o"])
                    .args([&primitives, &source])
                    .arg("-ladvapi32"),
            )?;
        }
        Ok(())
    }

    /// One of Wine's own programs, or a program by Wine, in this prefix, for no longer than `limit`.
    pub(crate) fn command(&self, program: &str, limit: Duration) -> Command {
        let [timeout, arguments @ ..] = limited(program, limit);
        let mut command = Command::new(timeout);
        settle(&mut command, &self.prefix);
        command.args(arguments);
        command
    }

    fn advice(&self) -> String {
        format!(
            "`wine` has to run 64-bit programs (on Debian the package wine64); if it does, remove {} and run this again",
            self.prefix.display()
        )
    }
}

/// The words of a command that is ended when its time is up.
fn limited(program: &str, limit: Duration) -> [String; 4] {
    ["timeout", "--kill-after=10", &limit.as_secs().to_string(), program].map(str::to_owned)
}

/// What a command's environment says to Wine.
fn settle(command: &mut Command, prefix: &Path) {
    command.env("WINEPREFIX", prefix).env("WINEARCH", "win64");
    // Neither .NET nor a browser is looked for, and nothing is put into anybody's menus.
    command.env("WINEDLLOVERRIDES", "mscoree,mshtml=;winemenubuilder.exe=d");
    if std::env::var_os("WINEDEBUG").is_none() {
        command.env("WINEDEBUG", "-all");
    }
    // No window is opened, where one could be either.
    for variable in ["DISPLAY", "WAYLAND_DISPLAY", "LD_LIBRARY_PATH"] {
        command.env_remove(variable);
    }
}

/// A name for a folder of what one version of Wine has made: `8.0-Debian-8.0-repack-4`.
fn name(version: &str) -> String {
    let words = version.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.'));
    words.filter(|word| !word.is_empty() && *word != "wine").collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wine_has_a_folder_of_its_own() {
        assert_eq!(name("wine-8.0 (Debian 8.0~repack-4)"), "8.0-Debian-8.0-repack-4");
        assert_eq!(name("wine-10.3"), "10.3");
        assert_ne!(name("wine-8.0"), name("wine-8.1"));
    }

    #[test]
    fn cargo_is_told_of_prefix_and_runner() {
        let wine = Wine { version: "wine-8.0".to_owned(), prefix: PathBuf::from("/prefix") };
        let mut cargo = Command::new("cargo");
        wine.run_for(&mut cargo, Target::X86_64Windows, Duration::from_secs(7));
        let of = |name: &str| cargo.get_envs().find(|one| one.0 == name).and_then(|one| one.1);
        assert_eq!(of("WINEPREFIX"), Some("/prefix".as_ref()));
        assert_eq!(
            of("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER"),
            Some("timeout --kill-after=10 7 wine".as_ref())
        );
        assert!(cargo.get_envs().any(|one| one == ("DISPLAY".as_ref(), None)));
    }
}
