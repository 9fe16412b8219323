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
use std::path::PathBuf;
use std::time::Duration;

/// A driver takes some seconds.
const LIMIT: Duration = Duration::from_secs(180);
/// With this on its disk, the shim says that a kernel debugger is attached.
const DEBUGGER: &str = "drive_c/kdetour-debugger";
/// The least number of checks of the one that is wrong on purpose.
const CHECKS: usize = 30;

/// Runs all of them: how many lines were as expected.
pub(super) fn run(workspace: &Workspace, progress: &Progress, drivers: &[Driver]) -> Result<usize> {
    let wine = setup::wine(workspace, progress, Target::X86_64Windows)?;
    let stage = progress.stage("driver host");
    let system = wine.prefix().join("drive_c/windows/system32");
    let dll = shim::build(workspace, Machine::X64)?;
    fs::copy(&dll, system.join("kdntshim.exe")).with_context(|| format!("cannot copy {}", dll.display()))?;
    let mut lines = 0;
    for driver in drivers {
        let file = system.join("drivers").join(format!("{}.sys", driver.name));
        shim::give(&driver.file, &file)?;
        for kernel in [Kernel::Guarded, Kernel::Open] {
            stage.note(&format!("{} in {}, {kernel:?}", driver.name, wine.version()));
            let debugger = wine.prefix().join(DEBUGGER);
            match kernel {
                Kernel::Open => fs::write(&debugger, b"")?,
                Kernel::Guarded => drop(fs::remove_file(&debugger)),
            }
            let said = serve(workspace, &wine, driver.name)?;
            lines += match driver.name {
                "bad" => judge::bad(&said, CHECKS),
                _ => judge::hello(&said, kernel),
            }
            .with_context(|| {
                format!(
                    "{}.sys, {kernel:?}; the whole log: {}",
                    driver.name,
                    log(workspace, driver.name).display()
                )
            })?;
        }
    }
    stage.clear();
    Ok(lines)
}

fn log(workspace: &Workspace, name: &str) -> PathBuf {
    workspace.log(&format!("suite-windows-drivers-{name}"))
}

/// What a driver prints from its start to its end.
fn serve(workspace: &Workspace, wine: &Wine, name: &str) -> Result<String> {
    // What its driver host prints goes to whoever has started Wine; so nothing of it may run yet. Its status is no failure: there may be nothing.
    let _ = wine.command("wineserver", LIMIT).arg("-k").status();
    let _ = wine.command("wineserver", LIMIT).arg("-w").status();
    let service = format!("kd{name}");
    let script = format!(
        "sc create {service} binPath= C:\\windows\\system32\\drivers\\{name}.sys type= kernel start= demand \
         & sc start {service} & sc stop {service} & sc delete {service}"
    );
    let mut command = wine.command("wine", LIMIT);
    command.env("WINEDEBUG", "-all,+debugstr,err+module,err+ntoskrnl").args(["cmd", "/c", &script]);
    Step {
        what: &format!("load {name}.sys in Wine's driver host"),
        log: log(workspace, name),
        advice: "the log has what Wine and the driver say",
    }
    .run(&mut command)
}
