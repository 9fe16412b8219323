//! Debian packages: what is missing, and bringing it.
//!
//! A need is met by the file it names, wherever that file came from; only what is missing is installed.

use crate::progress::Stage;
use crate::shell::{Step, program, query};
use crate::workspace::Workspace;
use anyhow::{Result, bail};
use std::process::Command;

/// A file the build cannot do without, and the Debian package that has it.
#[derive(Clone, Debug)]
pub(crate) struct Need {
    /// The Debian package.
    pub(crate) package: String,
    /// A program's name, looked up on `PATH`, or the absolute path of a file.
    pub(crate) file: String,
}

impl Need {
    /// `file` from `package`.
    pub(crate) fn new(package: impl Into<String>, file: impl Into<String>) -> Self {
        Self { package: package.into(), file: file.into() }
    }

    fn met(&self) -> bool {
        program(&self.file).is_some()
    }
}

/// What every command needs that builds or boots.
pub(crate) fn basic() -> Vec<Need> {
    [
        ("make", "make"),
        ("gcc", "gcc"),
        ("qemu-system-x86", "qemu-system-x86_64"),
        ("busybox-static", "busybox"),
        ("dpkg", "dpkg-deb"),
    ]
    .map(|(package, file)| Need::new(package, file))
    .to_vec()
}

/// Whether this machine has Debian's package tools.
pub(crate) fn have_apt() -> bool {
    program("apt-get").is_some() && program("dpkg-query").is_some()
}

/// Makes sure that every need is met, installing packages where that is allowed.
pub(crate) fn ensure(workspace: &Workspace, stage: &Stage, needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !need.met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !have_apt() {
        let list: Vec<_> =
            missing.iter().map(|n| format!("  {} (Debian package {})", n.file, n.package)).collect();
        bail!(
            "this machine has no apt-get, and these files are missing:\n{}\nbring them and run this again",
            list.join("\n")
        );
    }
    let names: Vec<&str> = missing.iter().map(|n| n.package.as_str()).collect();
    install(workspace, stage, &names)?;
    let still: Vec<_> =
        needs.iter().filter(|n| !n.met()).map(|n| format!("{} ({})", n.file, n.package)).collect();
    if !still.is_empty() {
        bail!("packages are installed but these files are still not there: {}", still.join(", "));
    }
    Ok(())
}

/// Installs `names`; refreshes the package index first when one of them is unknown.
fn install(workspace: &Workspace, stage: &Stage, names: &[&str]) -> Result<()> {
    let by_hand = format!(
        "{}apt-get update && {0}apt-get install -y --no-install-recommends {}",
        if is_root() { "" } else { "sudo " },
        names.join(" ")
    );
    if privileged("true").is_none() {
        bail!("these Debian packages are missing: {}\nrun: {by_hand}", names.join(" "));
    }
    stage.note(&format!("installing {}", names.join(" ")));
    if names.iter().any(|name| !has_candidate(name)) {
        update(workspace)?;
    }
    if let Some(unknown) = names.iter().find(|name| !has_candidate(name)) {
        bail!("no package called {unknown} is in this machine's package index, even after an update");
    }
    // A stale index names files that the mirror has replaced.
    apt_install(workspace, names, &by_hand)
        .or_else(|_| update(workspace).and_then(|()| apt_install(workspace, names, &by_hand)))
}

/// Brings the newest of `names`, though older ones are here.
pub(crate) fn renew(workspace: &Workspace, stage: &Stage, names: &[&str]) -> Result<()> {
    stage.note(&format!("installing a newer {}", names.join(" ")));
    update(workspace)?;
    apt_install(workspace, names, &format!("apt-get update && apt-get install -y {}", names.join(" ")))
}

fn apt_install(workspace: &Workspace, names: &[&str], by_hand: &str) -> Result<()> {
    let mut command = apt_get()?;
    command.args(["install", "-y", "--no-install-recommends"]).args(names);
    Step {
        what: "install packages",
        log: workspace.log("apt-install"),
        advice: &format!("run it by hand and see what apt says: {by_hand}"),
    }
    .run(&mut command)
    .map(drop)
}

/// Refreshes the package index.
pub(crate) fn update(workspace: &Workspace) -> Result<()> {
    Step {
        what: "refresh the package index",
        log: workspace.log("apt-update"),
        advice: "check the network and /etc/apt/sources.list, then run this again",
    }
    .run(apt_get()?.arg("update"))
    .map(drop)
}

/// Whether the package index can be changed without asking anybody.
pub(crate) fn may_install() -> bool {
    have_apt() && privileged("true").is_some()
}

fn apt_get() -> Result<Command> {
    let Some(mut command) = privileged("apt-get") else {
        bail!("apt-get needs root, and `sudo -n` does not work here");
    };
    command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}

fn is_root() -> bool {
    query(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// `program` run as root, when that is possible without a password.
pub(crate) fn privileged(program: &str) -> Option<Command> {
    let mut words = before_root()?.iter().copied().chain([program]);
    let mut command = Command::new(words.next()?);
    command.args(words);
    Some(command)
}

/// What stands in front of a command that is to be run as root, when that is possible without a password.
pub(crate) fn before_root() -> Option<&'static [&'static str]> {
    if is_root() {
        return Some(&[]);
    }
    query(Command::new("sudo").args(["-n", "true"])).ok()?;
    Some(&["sudo", "-n"])
}

fn has_candidate(package: &str) -> bool {
    query(Command::new("apt-cache").args(["policy", package]))
        .is_ok_and(|policy| policy.lines().any(|l| l.contains("Candidate:") && !l.contains("(none)")))
}
