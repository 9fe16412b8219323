//! Drivers in an emulator of NT: speakeasy, with what it lacks in `kernel/windows/tests/emulate.py`.

use super::judge::{self, Kernel};
use crate::drivers::{Driver, Machine};
use crate::progress::Progress;
use crate::python;
use crate::shell::Step;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::process::Command;

/// What the emulator found.
pub(super) struct Emulated {
    /// How many lines were as expected.
    pub(super) lines: usize,
    /// How many instructions are executed between `cli` and `sti`, at the most, to attach or to detach one detour, and to detach two.
    pub(super) parked: (u64, u64),
}

/// Runs the two drivers that do the same.
pub(super) fn run(
    workspace: &Workspace,
    progress: &Progress,
    machine: Machine,
    drivers: &[Driver],
) -> Result<Emulated> {
    let stage = progress.stage("emulator");
    let python = {
        let _lock = workspace.lock()?;
        python::for_drivers(workspace, &stage)?
    };
    let mut found = Emulated { lines: 0, parked: (0, 0) };
    // The other one needs threads that run at the same time.
    for driver in drivers.iter().filter(|driver| driver.name != "bad") {
        stage.note(&format!("{} for {}", driver.name, machine.name()));
        let log = workspace.log(&format!("suite-windows-drivers-{}-{}", machine.name(), driver.name));
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", "900"]).arg(&python);
        command.arg(workspace.root.join("kernel/windows/tests/emulate.py")).arg(&driver.file);
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
    }
    stage.clear();
    Ok(found)
}

/// The numbers in the last line: for one detour, and for two.
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
        parked("parked 10\n").unwrap_err();
        parked("KD: x\n").unwrap_err();
    }
}
