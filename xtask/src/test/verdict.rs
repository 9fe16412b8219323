//! The verdict over a guest script: what it printed, how it ended, and what the kernel said.

use crate::guest::Outcome;

/// The lines of a script, sorted by what they say.
#[derive(Debug, Default)]
pub(super) struct Lines {
    passed: usize,
    failed: Vec<String>,
    all: Vec<String>,
}

impl Lines {
    /// Takes one line of the script's output.
    pub(super) fn take(&mut self, line: &str) {
        if line == "ok" || line.starts_with("ok ") {
            self.passed += 1;
        } else if line.starts_with("FAIL") {
            self.failed.push(line.to_owned());
        }
        self.all.push(line.to_owned());
    }

    /// Everything the script printed.
    pub(super) fn text(&self) -> String {
        self.all.join("\n") + "\n"
    }

    /// How many checks passed, or why the suite failed.
    pub(super) fn judge(&self, outcome: &Outcome) -> Result<usize, String> {
        let mut why = self.failed.clone();
        why.extend(outcome.warnings.iter().map(|line| format!("kernel: {}", line.trim())));
        if outcome.exit != 0 {
            why.push(format!("the script ended with {}", outcome.exit));
        }
        if self.passed == 0 {
            why.push("the script printed no `ok` line: it checked nothing".to_owned());
        }
        if why.is_empty() {
            return Ok(self.passed);
        }
        if self.failed.is_empty() && outcome.warnings.is_empty() {
            why.extend(self.all.iter().rev().take(15).rev().map(|line| format!("output: {line}")));
        }
        why.push(format!("kernel log: {}", outcome.log.display()));
        Err(why.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(exit: i32, warnings: &[&str]) -> Outcome {
        let warnings = warnings.iter().map(|line| (*line).to_owned()).collect();
        Outcome { exit, tainted: 12288, warnings, seconds: 1.0, log: "kernel.log".into() }
    }

    #[test]
    fn every_way_to_fail_fails() {
        let mut good = Lines::default();
        good.take("ok attach");
        assert_eq!(good.judge(&outcome(0, &[])), Ok(1));
        assert!(good.judge(&outcome(1, &[])).is_err());
        assert!(good.judge(&outcome(0, &["WARNING: at"])).is_err());
        let mut bad = Lines::default();
        bad.take("okay, nothing checked yet");
        assert!(bad.judge(&outcome(0, &[])).is_err());
        bad.take("ok attach");
        bad.take("FAIL detach: bytes differ");
        assert!(bad.judge(&outcome(0, &[])).unwrap_err().contains("bytes differ"));
    }
}
