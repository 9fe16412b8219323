//! What ran on which kernel: the list at the end of the guests, which also stays as a file.
//!
//! The kernel is named as the guest itself named it, `uname -rv`: the release and the very build.

use std::fmt::Write as _;

/// One guest suite that was started.
#[derive(Clone, Debug)]
pub(super) struct Ran {
    /// The suite's name.
    pub(super) suite: String,
    /// The release that it was to run on.
    pub(super) release: String,
    /// What the guest said that it runs; none if it never came so far.
    pub(super) uname: Option<String>,
    /// The kernel's command line, as far as the suite chose it.
    pub(super) append: String,
    /// How QEMU executed it.
    pub(super) accel: &'static str,
    /// From the start of the suite to its end.
    pub(super) seconds: f64,
    /// How many checks passed; none if the suite failed.
    pub(super) passed: Option<usize>,
}

impl Ran {
    fn kernel(&self) -> String {
        self.uname.clone().unwrap_or_else(|| format!("{} (never said what it is)", self.release))
    }
}

/// The list: kernels by name, below each its suites.
pub(super) fn list(ran: &[Ran]) -> String {
    let mut kernels: Vec<String> = ran.iter().map(Ran::kernel).collect();
    kernels.sort();
    kernels.dedup();
    let name_width = ran.iter().map(|one| one.suite.len()).max().unwrap_or(0);
    let mut out = String::from("what ran on which kernel\n");
    for kernel in kernels {
        writeln!(out, "{kernel}").ok();
        let mut suites: Vec<&Ran> = ran.iter().filter(|one| one.kernel() == kernel).collect();
        suites.sort_by(|one, other| one.suite.cmp(&other.suite));
        for Ran { suite, append, accel, seconds, passed, .. } in suites {
            let (outcome, checks) = match passed {
                Some(checks) => ("ok", format!("{checks} checks")),
                None => ("FAILED", String::new()),
            };
            let line = format!(
                "  {suite:name_width$}  {outcome:6} {seconds:7.1} s  {accel:5}  {checks:10}  {append}"
            );
            writeln!(out, "{}", line.trim_end()).ok();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(suite: &str, uname: Option<&str>, passed: Option<usize>) -> Ran {
        Ran {
            suite: suite.to_owned(),
            release: "6.1.0-56-rt-amd64".to_owned(),
            uname: uname.map(str::to_owned),
            append: if suite.contains("preempt") { "preempt=full".to_owned() } else { String::new() },
            accel: "tcg",
            seconds: 12.34,
            passed,
        }
    }

    #[test]
    fn suites_stand_below_the_kernel_that_the_guest_named() {
        let real_time = Some("6.1.0-56-rt-amd64 #1 SMP PREEMPT_RT Debian 6.1.192-2");
        let cloud = Some("6.1.0-56-cloud-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2");
        let list = list(&[
            ran("kernel-preempt-6.1-rt", real_time, Some(7)),
            ran("kernel-bad-6.1-rt", real_time, None),
            ran("kernel-bad-6.1", cloud, Some(112)),
            ran("kernel-dead-6.1-rt", None, None),
        ]);
        assert_eq!(
            list,
            "what ran on which kernel\n\
             6.1.0-56-cloud-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2\n\
             \x20 kernel-bad-6.1         ok        12.3 s  tcg    112 checks\n\
             6.1.0-56-rt-amd64 #1 SMP PREEMPT_RT Debian 6.1.192-2\n\
             \x20 kernel-bad-6.1-rt      FAILED    12.3 s  tcg\n\
             \x20 kernel-preempt-6.1-rt  ok        12.3 s  tcg    7 checks    preempt=full\n\
             6.1.0-56-rt-amd64 (never said what it is)\n\
             \x20 kernel-dead-6.1-rt     FAILED    12.3 s  tcg\n"
        );
    }
}
