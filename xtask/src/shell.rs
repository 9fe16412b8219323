//! Runs a command with its log kept: quiet while it works, the end of its log when it fails.

use anyhow::{Context as _, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many lines of a log a failure shows.
const TAIL: usize = 30;

/// A command with a name, a log and advice for the day it fails.
pub(crate) struct Step<'a> {
    /// What the command does, in words that follow "could not".
    pub(crate) what: &'a str,
    /// Where stdout and stderr of the command go.
    pub(crate) log: PathBuf,
    /// What the user can do about a failure.
    pub(crate) advice: &'a str,
}

impl Step<'_> {
    /// Runs `command` and gives back what it printed.
    pub(crate) fn run(&self, command: &mut Command) -> Result<String> {
        if let Some(folder) = self.log.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let log = File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let both = log.try_clone().context("cannot duplicate a log's descriptor")?;
        let status = command.stdin(Stdio::null()).stdout(log).stderr(both).status();
        let text = fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        match status {
            Ok(status) if status.success() => Ok(text),
            Ok(status) => bail!(
                "could not {}: `{}` ended with {status}\n{}\n  whole log: {}\n  what to do: {}",
                self.what,
                shown(command),
                indent(&tail(&text, TAIL)),
                self.log.display(),
                self.advice,
            ),
            Err(error) => bail!(
                "could not {}: `{}` did not start: {error}\n  what to do: {}",
                self.what,
                shown(command),
                self.advice
            ),
        }
    }
}

/// The stdout of a short query, or an error with its stderr.
pub(crate) fn query(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("`{}` did not start", command.get_program().to_string_lossy()))?;
    if !out.status.success() {
        bail!(
            "`{}` ended with {}: {}",
            shown(command),
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The last `lines` lines of `text`.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// `text` with every line moved right, for the body of an error.
pub(crate) fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}

/// The program called `name` on `PATH`, or `name` itself when it is a path to a file.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Path::new(name).is_file().then(|| PathBuf::from(name));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Takes out of a command's environment what the surrounding `cargo run` put there for this crate.
pub(crate) fn leave_cargo_run(command: &mut Command) {
    const ABOUT_THIS_CRATE: &[&str] =
        &["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text == "LD_LIBRARY_PATH" || ABOUT_THIS_CRATE.iter().any(|start| text.starts_with(start)) {
            command.env_remove(&name);
        }
    }
}

/// Writes `bytes` to `path` unless they are there already, so that `make` sees only real changes.
pub(crate) fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(200) {
        Some((cut, _)) => format!("{} ...", &line[..cut]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_end() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a", 5), "a");
    }

    #[test]
    fn a_failure_shows_the_log_and_the_advice() {
        let log = std::env::temp_dir().join(format!("xtask-shell-{}.log", std::process::id()));
        let step = Step { what: "test failures", log: log.clone(), advice: "nothing" };
        let error = step.run(Command::new("sh").args(["-c", "echo why; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("could not test failures") && error.contains("| why"), "{error}");
        assert!(error.contains("what to do: nothing"), "{error}");
        fs::remove_file(log).unwrap();
    }

    #[test]
    fn unchanged_files_are_not_rewritten() {
        let file = std::env::temp_dir().join(format!("xtask-write-{}", std::process::id()));
        assert!(write_if_changed(&file, b"1").unwrap());
        assert!(!write_if_changed(&file, b"1").unwrap());
        assert!(write_if_changed(&file, b"2").unwrap());
        fs::remove_file(file).unwrap();
    }
}
