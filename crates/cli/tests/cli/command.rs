//! Running the command.

use serde_json::Value;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

/// How a run ended, and what it said.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Its output as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {:?} {:?}", self.stdout, self.stderr))
    }
}

/// Runs the command.
pub(crate) fn kdetour<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Run {
    let output =
        Command::new(env!("CARGO_BIN_EXE_kdetour")).args(arguments).env_remove("NO_COLOR").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
    let code = output.status.code().unwrap_or_else(|| panic!("killed: {stderr}"));
    Run { code, stdout: String::from_utf8(output.stdout).unwrap(), stderr }
}

/// Runs the command with arguments that have no spaces inside.
pub(crate) fn kdetour_line(line: &str) -> Run {
    kdetour(line.split_whitespace())
}

/// The C library that this test runs with.
pub(crate) fn libc() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path =
        maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("libc.so"));
    PathBuf::from(path.expect("this test is linked to a C library"))
}
