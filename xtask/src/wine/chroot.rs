//! A Debian for 32-bit code in a folder, and its Wine.
//!
//! A 64-bit Debian's Wine runs no 32-bit programs unless packages of another architecture are installed beside its own, and nobody's machine is
//! changed so for a test. So there is a second, small Debian in the cache, made once by `debootstrap`. A program that runs in it sees that
//! Debian's files, and the repository, what is built, and the cache where they are outside; it runs as the user, with the user's environment and in
//! the same folder.
//!
//! Making it and entering it take root, or `sudo -n`. Whatever is mounted for that is mounted in a namespace of the command's own: it is gone
//! with the command, whichever way that ends.

use crate::packages::{self, Need};
use crate::progress::Stage;
use crate::shell::{Step, query, write_if_changed};
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian is, if apt does not tell.
const MIRROR: &str = "http://deb.debian.org/debian/";
/// Which Debian, on a machine that is none.
const SUITE: &str = "stable";

/// How it is entered: as root into a mount namespace of its own; there the folders that are shared are mounted, and it goes on as the user.
const ENTER: &str = r#"#!/bin/sh
# i386 PROGRAM ARGUMENTS...: runs a program in the chroot for 32-bit code, as this user, in this folder, with this environment.
root=@ROOT@
if [ "$1" != --inside ]; then
	exec @BEFORE@ unshare --mount sh "$0" --inside "$(export -p)" "$PWD" "$(id -u):$(id -g)" "$@"
fi
environment=$2 folder=$3 user=$4
shift 4
for each in /dev /proc /sys; do
	mount --rbind "$each" "$root$each" || exit 125
done
for each in @SHARED@; do
	mkdir -p "$root$each" && mount --bind "$each" "$root$each" || exit 125
done
eval "$environment"
# What these say is about the Debian outside.
unset LD_LIBRARY_PATH LD_PRELOAD
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/
exec chroot --userspec="$user" "$root" env --chdir="$folder" "$@"
"#;

/// How it is made; the same folders are mounted in it while packages are installed.
const MAKE: &str = r#"
set -e
debootstrap --variant=minbase --arch=i386 "$2" "$1" "$3"
for each in /dev /proc /sys; do mount --rbind "$each" "$1$each"; done
# No service is started there.
printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
chmod 755 "$1/usr/sbin/policy-rc.d"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
chroot "$1" apt-get -q install -y --no-install-recommends wine wine32
chroot "$1" apt-get clean
rm -rf "$1"/var/lib/apt/lists/*
"#;

/// Its folder, and how it is entered.
#[derive(Clone, Debug)]
pub(super) struct Chroot {
    root: PathBuf,
    enter: PathBuf,
}

impl Chroot {
    /// Makes it, if there is none.
    pub(super) fn prepare(workspace: &Workspace, stage: &Stage) -> Result<Self> {
        let Some(before) = packages::before_root() else {
            bail!(
                "this machine's Wine runs no 32-bit programs, and a chroot with another one takes root\n\
                 what to do: run this as root, or let `sudo -n` work, or bring a Wine that runs them (on Debian the package wine32)"
            );
        };
        let suite = suite();
        let root = workspace.cache.join("wine").join(format!("i386-{suite}"));
        let enter = workspace.out.join("wine/i386");
        let shared = [&workspace.root, &workspace.out, &workspace.cache];
        write_if_changed(&enter, script(before, &root, &shared).as_bytes())?;
        fs::set_permissions(&enter, Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} a program", enter.display()))?;
        let chroot = Self { root, enter };
        if !chroot.root.is_dir() {
            chroot.make(workspace, stage, &suite)?;
        }
        Ok(chroot)
    }

    /// What stands in front of a program's name for it to be run there.
    pub(super) fn enter(&self) -> String {
        self.enter.display().to_string()
    }

    /// Makes it, elsewhere at first: whoever finds it finds it whole.
    fn make(&self, workspace: &Workspace, stage: &Stage, suite: &str) -> Result<()> {
        packages::ensure(workspace, stage, &[Need::new("debootstrap", "/usr/sbin/debootstrap")])?;
        stage.note("making a chroot for 32-bit Wine: a minute or two, once");
        let folder = self.root.file_name().unwrap_or_default().to_string_lossy();
        let scratch = self.root.with_file_name(format!(".{folder}.{}", std::process::id()));
        if let Some(parent) = scratch.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        let step = |what, command: &mut Command| {
            Step {
                what,
                log: workspace.log("chroot"),
                advice: "it takes root, a file system where devices can be made, and Debian's packages from the network",
            }
            .run(command)
        };
        let made = step(
            "make a chroot for 32-bit Wine",
            root("unshare")?
                .args(["--mount", "sh", "-c", MAKE, "sh"])
                .arg(&scratch)
                .args([suite, &mirror(suite)]),
        );
        let moved = made.and_then(|_| {
            let moved = step(
                "move the chroot to its place",
                root("mv")?.arg("--no-target-directory").args([&scratch, &self.root]),
            );
            // Somebody else may have been faster.
            if self.root.is_dir() { Ok(()) } else { moved.map(drop) }
        });
        if scratch.exists() {
            // Nothing is mounted in it any more: that was in a namespace that is gone.
            query(root("rm")?.args(["-r", "--one-file-system"]).arg(&scratch))?;
        }
        moved
    }

    /// What to do if programs do not run in it.
    pub(super) fn advice(&self) -> String {
        format!(
            "32-bit programs are run in the chroot {}: remove that, as root, and run this again",
            self.root.display()
        )
    }
}

/// A command that is run as root.
fn root(program: &str) -> Result<Command> {
    packages::privileged(program).with_context(|| format!("`{program}` needs root"))
}

/// Which Debian this machine is.
fn suite() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        release.lines().find_map(|line| line.strip_prefix(key)).map(|word| word.trim_matches('"'))
    };
    let codename = value("VERSION_CODENAME=").filter(|_| value("ID=") == Some("debian"));
    codename.unwrap_or(SUITE).to_owned()
}

/// Where apt gets that Debian from.
fn mirror(suite: &str) -> String {
    let mut targets = Command::new("apt-get");
    targets.args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
        "Component: main",
    ]);
    let known = query(targets.arg(format!("Codename: {suite}"))).unwrap_or_default();
    known.lines().find(|line| line.starts_with("http")).unwrap_or(MIRROR).to_owned()
}

/// The script that enters the chroot at `root`, in which `shared` are where they are outside.
fn script(before: &[&str], root: &Path, shared: &[&PathBuf]) -> String {
    let shared: Vec<String> = shared.iter().map(|path| quoted(path)).collect();
    ENTER
        .replace("@BEFORE@ ", &before.iter().map(|word| format!("{word} ")).collect::<String>())
        .replace("@SHARED@", &shared.join(" "))
        .replace("@ROOT@", &quoted(root))
}

/// A path as one word of a shell's.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_says_what_is_shared_and_who_is_root() {
        let (root, out) = (PathBuf::from("/cache/i386"), PathBuf::from("/it's here/target"));
        let text = script(&[], &root, &[&out]);
        assert!(text.contains("root='/cache/i386'\n"), "{text}");
        assert!(text.contains(r"for each in '/it'\''s here/target'; do"), "{text}");
        assert!(text.contains("exec unshare --mount"), "{text}");
        assert!(script(&["sudo", "-n"], &root, &[&out]).contains("exec sudo -n unshare --mount"), "{text}");
    }
}
