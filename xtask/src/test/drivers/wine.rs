//! Drivers in Wine's driver host: each is created as a service, started, stopped and deleted.

use super::judge::{self, Kernel};
use super::shim;
use crate::cross::Target;
use crate::drivers::{Driver, Machine};
use crate::progress::Progress;
use crate::setup;
use crate::shell::Step;
use crate::wine::Wine;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A driver takes some seconds.
const LIMIT: Duration = Duration::from_secs(180);
/// With this on its disk, the shim says that a kernel debugger is attached.
const DEBUGGER: &str = "drive_c/kdetour-debugger";
/// The least number of checks of the one that is wrong on purpose.
const CHECKS: usize = 30;

/// Runs all of them: how many lines were as expected.
pub(super) fn run(
    workspace: &Workspace,
    progress: &Progress,
    machine: Machine,
    drivers: &[Driver],
) -> Result<usize> {
    let (target, kernels): (_, &[Kernel]) = match machine {
        Machine::X64 => (Target::X86_64Windows, &[Kernel::Guarded, Kernel::Open]),
        // It does not guard itself, whether or not there is a debugger.
        Machine::I386 => (Target::I686Windows, &[Kernel::Open]),
    };
    let wine = setup::wine(workspace, progress, target)?;
    let stage = progress.stage(&format!("driver host {}", machine.name()));
    // Where 32-bit programs and 64-bit ones look alike.
    let windows = wine.prefix().join("drive_c/windows");
    let dll = shim::build(workspace, machine)?;
    fs::copy(&dll, windows.join("kdntshim.exe")).with_context(|| format!("cannot copy {}", dll.display()))?;
    let mut lines = 0;
    for driver in drivers {
        shim::give(&driver.file, &windows.join(format!("{}.sys", driver.name)))?;
        for &kernel in kernels {
            stage.note(&format!("{} in {}, {kernel:?}", driver.name, wine.version()));
            let debugger = wine.prefix().join(DEBUGGER);
            if machine == Machine::X64 && kernel == Kernel::Open {
                fs::write(&debugger, b"")?;
            } else {
                drop(fs::remove_file(&debugger));
            }
            let log =
                workspace.log(&format!("suite-windows-drivers-wine-{}-{}", machine.name(), driver.name));
            let said = serve(&wine, &log, driver.name)?;
            lines += match driver.name {
                "bad" => judge::bad(&said, CHECKS),
                _ => judge::hello(&said, kernel),
            }
            .with_context(|| {
                format!(
                    "{}.sys for {}, {kernel:?}; the whole log: {}",
                    driver.name,
                    machine.name(),
                    log.display()
                )
            })?;
        }
    }
    if machine == Machine::X64 {
        stage.note(&format!("detours that are left by an exception, in {}", wine.version()));
        lines += super::raising::run(workspace, &stage, &wine)?;
    }
    stage.clear();
    Ok(lines)
}

/// What a driver prints from its start to its end.
fn serve(wine: &Wine, log: &Path, name: &str) -> Result<String> {
    // What its driver host prints goes to whoever has started Wine; so nothing of it may run yet. Its status is no failure: there may be nothing.
    let _ = wine.command("wineserver", LIMIT).arg("-k").status();
    let _ = wine.command("wineserver", LIMIT).arg("-w").status();
    let service = format!("kd{name}");
    let script = format!(
        "sc create {service} binPath= C:\\windows\\{name}.sys type= kernel start= demand \
         & sc start {service} & sc stop {service} & sc delete {service}"
    );
    let mut command = wine.command("wine", LIMIT);
    command.env("WINEDEBUG", "-all,+debugstr,err+module,err+ntoskrnl").args(["cmd", "/c", &script]);
    Step {
        what: &format!("load {name}.sys in Wine's driver host"),
        log: log.to_owned(),
        advice: "the log has what Wine and the driver say",
    }
    .run(&mut command)
}
