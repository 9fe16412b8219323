//! Drivers in an emulator of NT: speakeasy, with what it lacks in `kernel/windows/tests/emulate.py`.

use super::judge::{self, Kernel};
use crate::drivers::{Driver, Machine, emulator};
use crate::progress::Progress;
use crate::shell::Step;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};

/// What the emulator found.
pub(super) struct Emulated {
    /// How many lines were as expected.
    pub(super) lines: usize,
    /// How many instructions are executed between `cli` and `sti`, at the most, to attach or to detach one detour, and to detach two.
    pub(super) parked: (u64, u64),
    /// How many bytes of a stack were used at the most.
    pub(super) stack: u64,
}

/// Runs the two drivers that do the same.
pub(super) fn run(
    workspace: &Workspace,
    progress: &Progress,
    machine: Machine,
    drivers: &[Driver],
) -> Result<Emulated> {
    let stage = progress.stage("emulator");
    let mut found = Emulated { lines: 0, parked: (0, 0), stack: 0 };
    // The other one needs threads that run at the same time.
    for driver in drivers.iter().filter(|driver| driver.name != "bad") {
        stage.note(&format!("{} for {}", driver.name, machine.name()));
        let log = workspace.log(&format!("suite-windows-drivers-{}-{}", machine.name(), driver.name));
        let mut command = emulator(workspace, &stage, &driver.file)?;
        let said = Step {
            what: &format!("run {}.sys for {} in the emulator", driver.name, machine.name()),
            log: log.clone(),
            advice: "the log has what the driver prints, and what it did wrong",
        }
        .run(&mut command)?;
        found.lines += judge::hello(&said, Kernel::Open)
            .with_context(|| format!("{}.sys; the whole log: {}", driver.name, log.display()))?;
        let (one, two) = parked(&said)?;
        found.parked = (found.parked.0.max(one), found.parked.1.max(two));
        let used = stack(&said)?;
        // What was counted in the image leaves out calls by pointers.
        if used > driver.facts.stack {
            bail!(
                "{}.sys used {used} bytes of a stack, more than the {} that were counted",
                driver.name,
                driver.facts.stack
            );
        }
        found.stack = found.stack.max(used);
    }
    stage.clear();
    Ok(found)
}

/// The bytes of the stack.
fn stack(said: &str) -> Result<u64> {
    let used = said.lines().find_map(|line| line.strip_prefix("stack ")?.parse().ok());
    used.filter(|&used| used > 0).context("the emulator saw no stack that was used")
}

/// The numbers behind `parked`: for one detour, and for two.
fn parked(said: &str) -> Result<(u64, u64)> {
    let line = said.lines().find_map(|line| line.strip_prefix("parked "));
    let numbers = line.context("the emulator counted no instructions")?.split_whitespace().map(str::parse);
    let numbers: Vec<u64> = numbers.collect::<Result<_, _>>()?;
    // Attached, the kernel's attached, detached, attached again, and both detached.
    let [attached, kernels, detached, again, both] = numbers[..] else {
        bail!("interrupts were turned off {} times, and not once for each of 5 commits", numbers.len());
    };
    Ok((attached.max(kernels).max(detached).max(again), both))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_is_told() {
        assert_eq!(parked("KD: x\nparked 10 30 20 10 50\n").unwrap(), (30, 50));
        assert_eq!(stack("parked 10\nstack 500\n").unwrap(), 500);
        stack("stack 0\n").unwrap_err();
        parked("parked 10\n").unwrap_err();
        parked("KD: x\n").unwrap_err();
    }
}
