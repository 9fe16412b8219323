//! Everything between a fresh checkout and modules that can be booted.

use crate::cross::{Cross, Target};
use crate::guest::{Display, FIRMWARE};
use crate::kernel::{self, Kernel, Series};
use crate::module::{self, Figures, Modules};
use crate::packages;
use crate::progress::Progress;
use crate::rust_half;
use crate::toolchain::{self, Toolchain};
use crate::wine::Wine;
use crate::workspace::Workspace;
use anyhow::Result;
use std::path::PathBuf;

/// Packages, then one kernel for each of `series`.
pub(crate) fn kernels(
    workspace: &Workspace,
    progress: &Progress,
    series: &[Series],
    flavour: &str,
) -> Result<Vec<Kernel>> {
    let _lock = workspace.lock()?;
    let stage = progress.stage("packages");
    packages::ensure(workspace, &stage, &packages::basic())?;
    stage.done("ready");
    let prepare = |&series: &Series| {
        let stage = progress.stage("kernel");
        let kernel = kernel::prepare(workspace, &stage, series, flavour)?;
        stage.done(&kernel.release);
        Ok(kernel)
    };
    series.iter().map(prepare).collect()
}

/// What a guest's screen needs.
pub(crate) fn display(workspace: &Workspace, progress: &Progress, display: Option<Display>) -> Result<()> {
    if display != Some(Display::Efi) {
        return Ok(());
    }
    let stage = progress.stage("firmware");
    let _lock = workspace.lock()?;
    packages::ensure(workspace, &stage, &[packages::Need::new("ovmf", FIRMWARE)])?;
    stage.done("ready");
    Ok(())
}

/// Finds or brings the compiler and the linker, and builds nothing.
pub(crate) fn toolchain(workspace: &Workspace, progress: &Progress) -> Result<()> {
    let stage = progress.stage("toolchain");
    let _lock = workspace.lock()?;
    let toolchain = Toolchain::find(workspace, &stage)?;
    toolchain::linker(workspace, &stage)?;
    stage.done(&toolchain.description);
    Ok(())
}

/// What makes programs for another target.
pub(crate) fn cross(workspace: &Workspace, progress: &Progress, target: Target) -> Result<Cross> {
    let stage = progress.stage(target.name());
    let _lock = workspace.lock()?;
    let cross = Cross::prepare(workspace, &stage, target)?;
    stage.done(cross.description());
    Ok(cross)
}

/// What runs programs of `target`, which is one for Windows.
pub(crate) fn wine(workspace: &Workspace, progress: &Progress, target: Target) -> Result<Wine> {
    let stage = progress.stage("wine");
    let _lock = workspace.lock()?;
    let wine = Wine::prepare(workspace, &stage, target)?;
    stage.done(wine.version());
    Ok(wine)
}

/// The Rust halves; the folder where their objects lie.
pub(crate) fn rust(workspace: &Workspace, progress: &Progress) -> Result<PathBuf> {
    let stage = progress.stage("Rust halves");
    let _lock = workspace.lock()?;
    let folder = rust_half::build(workspace, &stage)?;
    stage.done("compiled and linked");
    Ok(folder)
}

/// The modules of `kernel` around the Rust halves.
pub(crate) fn modules(
    workspace: &Workspace,
    progress: &Progress,
    kernel: &Kernel,
    rust: &std::path::Path,
) -> Result<Modules> {
    let stage = progress.stage("modules");
    let _lock = workspace.lock()?;
    let modules = module::build(workspace, &stage, kernel, rust)?;
    stage.done(&format!("{} for {}", modules.files.len(), kernel.release));
    for Figures { module, size, stack } in &modules.figures {
        progress.line(&format!(
            "  {module}.ko has {} KiB of code and constants, and takes {stack} bytes of a stack",
            size.div_ceil(1024)
        ));
    }
    for warning in &modules.warnings {
        progress.warn(&format!("  {warning}"));
    }
    Ok(modules)
}
