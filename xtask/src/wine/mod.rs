//! Wine, which runs programs for Windows on this machine.
//!
//! What Windows has on its disk, Wine has in a folder, its *prefix*. Ours is in the cache, made once for each version of Wine; the user's own
//! is not touched. Nothing in it is of this project but a DLL of one function that Rust's standard library needs and older Wine lacks.
//!
//! | programs | run by |
//! |---|---|
//! | 64-bit | the Wine of this machine |
//! | 32-bit | that one, if it runs them; else one in a folder of its own (`chroot`) |

mod chroot;

use crate::cross::Target;
use crate::packages::{self, Need};
use crate::progress::Stage;
use crate::shell::{Step, program, query, write_if_changed};
use crate::workspace::Workspace;
use anyhow::{Context as _, Result};
use chroot::Chroot;
use std::fs;
use std::path::PathBuf;
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

/// A Wine that runs programs of one target.
#[derive(Clone, Debug)]
pub(crate) struct Wine {
    version: String,
    prefix: PathBuf,
    place: Place,
}

/// Where it is.
#[derive(Clone, Debug)]
enum Place {
    /// This machine's own. It runs 64-bit programs, and perhaps others.
    Here,
    /// It runs 32-bit programs only.
    Chroot(Chroot),
}

impl Wine {
    /// Brings a Wine that runs programs of `target`, and makes its prefix if there is none.
    pub(crate) fn prepare(workspace: &Workspace, stage: &Stage, target: Target) -> Result<Self> {
        if target != Target::I686Windows {
            return Self::here(workspace, stage);
        }
        let able = program("wine").and_then(|_| Self::here(workspace, stage).ok());
        if let Some(wine) = able.filter(|wine| wine.runs_both(workspace)) {
            wine.bring_primitives(workspace, stage, Target::I686Windows)?;
            return Ok(wine);
        }
        let wine = Self::at(Place::Chroot(Chroot::prepare(workspace, stage)?), workspace, stage)?;
        wine.bring_primitives(workspace, stage, Target::I686Windows)?;
        Ok(wine)
    }

    /// This machine's own.
    fn here(workspace: &Workspace, stage: &Stage) -> Result<Self> {
        // Debian's package wine brings wine64, unless wine32 is there: then the first step below fails, and names it.
        packages::ensure(workspace, stage, &[Need::new("wine", "wine")])?;
        let wine = Self::at(Place::Here, workspace, stage)?;
        wine.bring_primitives(workspace, stage, Target::X86_64Windows)?;
        Ok(wine)
    }

    /// The one at `place`, with a prefix.
    fn at(place: Place, workspace: &Workspace, stage: &Stage) -> Result<Self> {
        let mut wine = Self { version: String::new(), prefix: workspace.out.clone(), place };
        wine.version = query(wine.command("wine", STARTING).arg("--version"))?.trim().to_owned();
        let folder = match wine.place {
            Place::Here => name(&wine.version),
            Place::Chroot(_) => format!("{}-i386", name(&wine.version)),
        };
        wine.prefix = workspace.cache.join("wine").join(folder);
        if !wine.prefix.is_dir() {
            stage.note(&format!("making a prefix for {}: half a minute, once", wine.version));
            wine.make(workspace)?;
        }
        Ok(wine)
    }

    /// Whether it runs 32-bit programs as well as 64-bit ones.
    fn runs_both(&self, workspace: &Workspace) -> bool {
        let program = self.prefix.join("drive_c/windows/syswow64/cmd.exe");
        let step = Step { what: "run a 32-bit program by Wine", log: workspace.log("wine-32"), advice: "" };
        program.is_file() && step.run(self.command("wine", STARTING).arg(program).args(["/c", "ver"])).is_ok()
    }

    /// The folder that has what Windows has on its disk.
    pub(crate) fn prefix(&self) -> &std::path::Path {
        &self.prefix
    }

    /// Which Wine it is, for the user.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Makes cargo run the programs of `target` by Wine, and end each that takes longer than `limit`: status 124 then.
    ///
    /// Before what is to be said to the programs themselves. `workspace` has a folder for what is compiled on the way and thrown away, examples in
    /// documentation: where the system has one, the chroot has another.
    pub(crate) fn run_for(
        &self,
        workspace: &Workspace,
        cargo: &mut Command,
        target: Target,
        limit: Duration,
    ) -> Result<()> {
        self.settle(cargo);
        let scratch = workspace.out.join("wine/tmp");
        fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
        cargo.env("TMPDIR", scratch);
        // As a list: a folder's name may have spaces.
        let words = self.words("wine", limit).map(|word| format!("{word:?}")).collect::<Vec<_>>();
        let runner = format!("target.{}.runner=[{}]", target.triple(), words.join(","));
        cargo.args(["--config", &runner]);
        Ok(())
    }

    /// Starts what Wine has in the background, which stays until nothing has been run for half a minute.
    ///
    /// Otherwise the first program would start it, and whoever waits for that program's output to end would wait for all of that.
    pub(crate) fn start(&self, workspace: &Workspace) -> Result<()> {
        let mut server = self.command("wineserver", STARTING);
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
        let fresh = Self { prefix: scratch.clone(), ..self.clone() };
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
        Ok(())
    }

    /// Makes sure that programs of `target` find `bcryptprimitives.dll`.
    fn bring_primitives(&self, workspace: &Workspace, stage: &Stage, target: Target) -> Result<()> {
        // Where there are both, each has a folder, and this is that of 32-bit ones.
        let beside = self.prefix.join("drive_c/windows/syswow64");
        let folder = match target {
            Target::I686Windows if beside.is_dir() => beside,
            _ => self.prefix.join("drive_c/windows/system32"),
        };
        let primitives = folder.join("bcryptprimitives.dll");
        // Newer Wine has its own.
        if primitives.is_file() {
            return Ok(());
        }
        let compiler = target.mingw();
        packages::ensure(workspace, stage, std::slice::from_ref(&compiler))?;
        let source = workspace.out.join("wine/bcryptprimitives.c");
        write_if_changed(&source, PRIMITIVES.as_bytes())?;
        Step {
            what: "compile bcryptprimitives.dll for Wine",
            log: workspace.log("bcryptprimitives"),
            advice: &format!("reinstall the package {}", compiler.package),
        }
        .run(
            // Exported by its name alone, also where its convention adds to that.
            Command::new(compiler.file)
                .args(["-O2", "-Wall", "-shared", "-static-libgcc", "-Wl,--kill-at", "-o"])
                .args([&primitives, &source])
                .arg("-ladvapi32"),
        )
        .map(drop)
    }

    /// One of Wine's own programs, in this prefix, for no longer than `limit`: `wine` and what it is told, say. It sees the repository, what is built, and
    /// the cache where they are, whether it runs here or in the chroot.
    pub(crate) fn command(&self, program: &str, limit: Duration) -> Command {
        let mut words = self.words(program, limit);
        let mut command = Command::new(words.next().unwrap_or_default());
        self.settle(&mut command);
        command.args(words);
        command
    }

    /// The words of a command that is ended when its time is up.
    fn words(&self, program: &str, limit: Duration) -> impl Iterator<Item = String> + use<> {
        let enter = match &self.place {
            Place::Here => None,
            Place::Chroot(chroot) => Some(chroot.enter()),
        };
        let limited =
            ["timeout", "--kill-after=10", &limit.as_secs().to_string(), program].map(str::to_owned);
        enter.into_iter().chain(limited)
    }

    /// What a command's environment says to Wine.
    fn settle(&self, command: &mut Command) {
        let programs = match self.place {
            Place::Here => "win64",
            Place::Chroot(_) => "win32",
        };
        command.env("WINEPREFIX", &self.prefix).env("WINEARCH", programs);
        // Neither .NET nor a browser is looked for, and nothing is put into anybody's menus.
        command.env("WINEDLLOVERRIDES", "mscoree,mshtml=;winemenubuilder.exe=d");
        if std::env::var_os("WINEDEBUG").is_none() {
            command.env("WINEDEBUG", "-all");
        }
        // Who names functions for a backtrace is Wine's dbghelp, and some names of Rust's it does not survive.
        command.env("RUST_BACKTRACE", "0");
        // No window is opened, where one could be either.
        for variable in ["DISPLAY", "WAYLAND_DISPLAY", "LD_LIBRARY_PATH"] {
            command.env_remove(variable);
        }
    }

    fn advice(&self) -> String {
        let programs = match &self.place {
            Place::Here => "`wine` has to run 64-bit programs (on Debian the package wine64)".to_owned(),
            Place::Chroot(chroot) => chroot.advice(),
        };
        format!("{programs}; if it does, remove {} and run this again", self.prefix.display())
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
        let wine =
            Wine { version: "wine-8.0".to_owned(), prefix: PathBuf::from("/prefix"), place: Place::Here };
        let out = std::env::temp_dir().join(format!("xtask-wine-{}", std::process::id()));
        let workspace = Workspace { root: out.clone(), out: out.clone(), cache: out.clone() };
        let mut cargo = Command::new("cargo");
        wine.run_for(&workspace, &mut cargo, Target::X86_64Windows, Duration::from_secs(7)).unwrap();
        let of = |name: &str| cargo.get_envs().find(|one| one.0 == name).and_then(|one| one.1);
        assert_eq!(of("WINEPREFIX"), Some("/prefix".as_ref()));
        // What is put there is seen in the chroot, too.
        let scratch = of("TMPDIR").map(PathBuf::from).unwrap();
        assert!(scratch.is_dir() && scratch.starts_with(&workspace.out));
        fs::remove_dir_all(out).unwrap();
        let runner = r#"target.x86_64-pc-windows-gnu.runner=["timeout","--kill-after=10","7","wine"]"#;
        assert_eq!(cargo.get_args().collect::<Vec<_>>(), ["--config", runner]);
        assert!(cargo.get_envs().any(|one| one == ("DISPLAY".as_ref(), None)));
    }
}
