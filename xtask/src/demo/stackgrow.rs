//! Softirqs that need more stack than the kernel gives them: a guest without `examples/stackgrow.c`, which goes down of
//! them; one with it; and one that counts the instructions of a run.

use super::facts::Facts;
use super::{Machine, Steps};
use crate::guest::{Crashed, Guest};
use crate::kernel::Kernel;
use crate::module::Modules;
use crate::progress::Progress;
use crate::vm::rounded;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How many instructions a run of softirqs may take more.
const MOST_INSTRUCTIONS: u64 = 30;
/// What the test softirq needs, in bytes.
const NEEDED: u64 = 24 << 10;

/// What `--json` gets.
#[derive(Debug, Serialize)]
struct Report {
    kernel: String,
    cpus: u32,
    accel: String,
    /// What the kernel said when it went down without the module.
    without: String,
    processors: Vec<Grown>,
    runs: u64,
    spoilt: u64,
    network: String,
    /// Functions, the innermost first.
    trace: Vec<String>,
    instructions_without: u64,
    instructions_with: u64,
    restored: bool,
    kernel_warnings: usize,
    seconds: f64,
}

/// One processor's stack.
#[derive(Debug, Serialize)]
struct Grown {
    switches: u64,
    deepest: u64,
    size: u64,
}

/// Runs the three guests.
pub(super) fn run(workspace: &Workspace, machine: &Machine) -> Result<ExitCode> {
    let start = Instant::now();
    let progress = Progress::new();
    let (kernel, modules) = machine.prepare(workspace, &progress)?;
    let shown = Show { workspace, machine, progress: &progress, kernel: &kernel, modules: &modules };
    let without = shown.without()?;
    let mut facts = Facts::default();
    let mut warnings = shown.guest("demo-stackgrow.sh", false, &mut facts)?;
    warnings += shown.guest("stackgrow-cost.sh", true, &mut facts)?;

    let report = Report {
        kernel: kernel.release.clone(),
        cpus: machine.cpus,
        accel: machine.accel.settle(workspace, &kernel).name().to_owned(),
        without,
        processors: (0..facts.number("processors")?)
            .map(|cpu| Grown::read(facts.text(&format!("cpu{cpu}"))))
            .collect::<Option<_>>()
            .context("the guest's statistics are no numbers")?,
        runs: facts.number("runs")?,
        spoilt: facts.number("spoilt")?,
        network: facts.text("network").to_owned(),
        trace: facts.text("trace").split_terminator(';').map(str::to_owned).collect(),
        instructions_without: facts.number("cost_without")?,
        instructions_with: facts.number("cost_with")?,
        restored: facts.number("restored")? == 1,
        kernel_warnings: warnings,
        seconds: rounded(start.elapsed().as_secs_f64()),
    };
    let text = report.render()?;
    print!("{text}");
    super::keep(workspace, "stackgrow", &text, &report, machine.json.as_ref())?;
    Ok(super::verdict(&report.failures()))
}

/// What the guests have in common.
struct Show<'a> {
    workspace: &'a Workspace,
    machine: &'a Machine,
    progress: &'a Progress,
    kernel: &'a Kernel,
    modules: &'a Modules,
}

impl Show<'_> {
    fn boot(&self, script: &str) -> Result<Guest<'_>> {
        let label = script.trim_end_matches(".sh");
        let mut guest = Guest::new(self.workspace, self.kernel, &format!("{label}-{}", self.kernel.release));
        guest.script = super::script(self.workspace, script)?;
        guest.cpus = self.machine.cpus;
        guest.accel = self.machine.accel.settle(self.workspace, self.kernel);
        guest.timeout = Duration::from_secs(300);
        guest.modules.clone_from(&self.modules.files);
        guest.files.extend(self.modules.programs.iter().cloned());
        Ok(guest)
    }

    /// The guest that has to go down; what its kernel says then.
    fn without(&self) -> Result<String> {
        let stage = self.progress.stage("unprotected");
        stage.show("softirqs of 24 KiB without stackgrow.ko");
        let outcome = self.boot("stackgrow-without.sh")?.run(&mut |_| ());
        let crashed = match outcome.map_err(anyhow::Error::downcast::<Crashed>) {
            Ok(_) => bail!("the guest without stackgrow.ko did not go down"),
            Err(Err(other)) => return Err(other),
            Err(Ok(crashed)) => crashed,
        };
        let line = crashed.log.lines().find(|line| line.contains("stack guard page was hit"));
        let line = line.with_context(|| format!("the guest went down of something else: {crashed}"))?;
        stage.done("went down, as it had to");
        Ok(line.trim().to_owned())
    }

    /// A guest that has to live; how often its kernel complained.
    fn guest(&self, script: &str, counts: bool, facts: &mut Facts) -> Result<usize> {
        let mut guest = self.boot(script)?;
        if counts {
            guest.count_instructions();
        }
        let mut steps = Steps::new(self.progress);
        let mut other = Vec::new();
        let outcome = guest.run(&mut |line| {
            if !steps.take(line) && !facts.take(line) {
                other.push(line.to_owned());
            }
        })?;
        steps.finish();
        crate::vm::report_warnings(&outcome);
        if outcome.exit != 0 {
            bail!("{script} ended with {}:\n{}", outcome.exit, crate::shell::indent(&other.join("\n")));
        }
        Ok(outcome.warnings.len())
    }
}

impl Grown {
    /// `SWITCHES DEEPEST SIZE`.
    fn read(line: &str) -> Option<Self> {
        let numbers: Vec<u64> = line.split_whitespace().map(|n| n.parse().ok()).collect::<Option<_>>()?;
        let [switches, deepest, size] = numbers.try_into().ok()?;
        Some(Self { switches, deepest, size })
    }
}

impl Report {
    fn extra(&self) -> u64 {
        self.instructions_with.saturating_sub(self.instructions_without)
    }

    /// From the softirq to the task that was interrupted.
    fn trace_is_whole(&self) -> bool {
        let mut left = self.trace.iter();
        ["deep_dig", "handle_softirqs", "handle_softirqs_entered_", "deep_spin"]
            .iter()
            .all(|wanted| left.any(|name| name.split(' ').next() == Some(wanted)))
    }

    fn failures(&self) -> Vec<&'static str> {
        [
            (self.runs > 0, "no softirq of 24 KiB ran"),
            (self.spoilt == 0, "what a softirq wrote on the stack was spoilt"),
            (self.processors.iter().all(|one| one.switches > 0), "a processor never changed stacks"),
            (
                self.processors.iter().all(|one| one.deepest > NEEDED),
                "a stack was not used as deep as needed",
            ),
            (self.trace_is_whole(), "the trace does not lead to the interrupted task"),
            (self.extra() > 0 && self.extra() <= MOST_INSTRUCTIONS, "a run takes too many instructions more"),
            (self.restored, "the kernel's text was not restored"),
            (self.kernel_warnings == 0, "the kernel complained"),
        ]
        .into_iter()
        .filter_map(|(good, why)| (!good).then_some(why))
        .collect()
    }

    fn render(&self) -> Result<String> {
        let mut out = String::new();
        writeln!(out, "\nsoftirqs that need 24 KiB of stack   {}, {} CPUs", self.kernel, self.cpus)?;
        writeln!(out, "\nwithout stackgrow.ko, the end of the log\n  {}", self.without)?;
        writeln!(out, "\nwith stackgrow.ko kib=64")?;
        writeln!(
            out,
            "  {} runs, {} of them spoilt; datagrams over lo: {}",
            self.runs, self.spoilt, self.network
        )?;
        for (cpu, Grown { switches, deepest, size }) in self.processors.iter().enumerate() {
            writeln!(out, "  CPU {cpu}: {switches} switches, at most {deepest} of {size} bytes in use")?;
        }
        writeln!(out, "\na stack trace from such a softirq, the innermost function first")?;
        for name in &self.trace {
            writeln!(out, "  {name}")?;
        }
        writeln!(out, "\ninstructions of a run of softirqs, counted")?;
        let (with, without) = (self.instructions_with, self.instructions_without);
        writeln!(out, "  {with} with the module, {without} without: {} more", self.extra())?;
        let restored = if self.restored { "yes" } else { "NO" };
        writeln!(out, "\nunloaded under load; kernel text restored: {restored}")?;
        writeln!(out, "kernel warnings: {}; {:.1} s in all", self.kernel_warnings, self.seconds)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let trace = "deep_dig [deep];handle_softirqs;handle_softirqs_entered_ [stackgrow];deep_spin [deep]";
        Report {
            kernel: "6.1".to_owned(),
            cpus: 1,
            accel: "tcg".to_owned(),
            without: "BUG: IRQ stack guard page was hit".to_owned(),
            processors: Grown::read("1000 25000 65536").into_iter().collect(),
            runs: 10,
            spoilt: 0,
            network: "sent 2 received 2 spoilt 0".to_owned(),
            trace: trace.split(';').map(str::to_owned).collect(),
            instructions_without: 400,
            instructions_with: 420,
            restored: true,
            kernel_warnings: 0,
            seconds: 1.0,
        }
    }

    #[test]
    fn each_thing_that_has_to_be_shown_is_asked_for() {
        assert_eq!(report().failures(), [""; 0]);
        assert!(report().render().unwrap().contains("20 more"));
        let bad: [fn(&mut Report); 8] = [
            |r| r.runs = 0,
            |r| r.spoilt = 1,
            |r| r.processors[0].switches = 0,
            |r| r.processors[0].deepest = 20000,
            |r| drop(r.trace.pop()),
            |r| r.instructions_with = 431,
            |r| r.restored = false,
            |r| r.kernel_warnings = 1,
        ];
        for spoil in bad {
            let mut report = report();
            spoil(&mut report);
            assert_eq!(report.failures().len(), 1);
        }
    }
}
