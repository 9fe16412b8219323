//! The verdict over a guest script: what it printed, how it ended, and what the kernel said.

use crate::guest::{Crashed, Outcome};
use anyhow::Result as Run;

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

    /// The same of a guest that has to go down while its script runs, its kernel saying `wanted`.
    pub(super) fn judge_death(&self, wanted: &str, run: Run<Outcome>) -> Result<usize, String> {
        let mut why = self.failed.clone();
        match run.map_err(anyhow::Error::downcast::<Crashed>) {
            Ok(outcome) => why.push(format!(
                "the guest did not go down, the script ended with {}; kernel log: {}",
                outcome.exit,
                outcome.log.display()
            )),
            Err(Ok(crashed)) if !crashed.log.contains(wanted) => {
                why.push(format!("the kernel did not say `{wanted}`: {crashed}"));
            }
            Err(Ok(_)) => {}
            Err(Err(other)) => why.push(format!("{other:#}")),
        }
        if self.passed == 0 {
            why.push("the script printed no `ok` line: it had not begun".to_owned());
        }
        if why.is_empty() { Ok(self.passed) } else { Err(why.join("\n")) }
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

    #[test]
    fn who_has_to_die_must_and_of_the_right_thing() {
        let mut lines = Lines::default();
        let crash = |log: &str| Err(Crashed::for_test(log).into());
        assert!(lines.judge_death("guard page", crash("BUG: guard page was hit")).is_err());
        lines.take("ok insmod");
        assert_eq!(lines.judge_death("guard page", crash("BUG: guard page was hit")), Ok(1));
        assert!(lines.judge_death("guard page", crash("Oops: int3")).is_err());
        assert!(lines.judge_death("guard page", Ok(outcome(0, &[]))).is_err());
        assert!(lines.judge_death("guard page", Err(anyhow::anyhow!("was not done"))).is_err());
        lines.take("FAIL still up");
        assert!(lines.judge_death("guard page", crash("BUG: guard page was hit")).is_err());
    }
}
