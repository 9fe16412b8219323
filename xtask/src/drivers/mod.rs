//! `cargo xtask windows`: the library for Windows drivers, and drivers in C and in Rust, for x64 and i386; and somebody's own, tried.
//!
//! Rust compiles them for the UEFI targets: their code is that of a driver, without floating-point registers and with Windows' calling
//! conventions. MinGW's linker makes the `.sys`, and each is looked at before anybody else gets it ([`check`]).

mod attempt;
mod build;
mod check;
mod checksum;

pub(crate) use attempt::emulator;
pub(crate) use build::Driver;
pub(crate) use checksum::write as write_checksum;

use crate::progress::Progress;
use crate::workspace::Workspace;
use anyhow::Result;
use build::build;
use std::path::PathBuf;
use std::process::ExitCode;

/// The machines that drivers are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// 64-bit Windows.
    X64,
    /// 32-bit Windows.
    I386,
}

impl Machine {
    pub(crate) const ALL: [Self; 2] = [Self::X64, Self::I386];

    /// As folders and stages call it, and Windows.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::X64 => "x64",
            Self::I386 => "i386",
        }
    }

    /// As rustc calls what is compiled for it.
    const fn triple(self) -> &'static str {
        match self {
            Self::X64 => "x86_64-unknown-uefi",
            Self::I386 => "i686-unknown-uefi",
        }
    }

    /// MinGW's compiler, and the package that has it.
    pub(crate) const fn compiler(self) -> (&'static str, &'static str) {
        match self {
            Self::X64 => ("x86_64-w64-mingw32-gcc", "gcc-mingw-w64-x86-64-posix"),
            Self::I386 => ("i686-w64-mingw32-gcc", "gcc-mingw-w64-i686-posix"),
        }
    }

    /// `DriverEntry` as the linker knows it: with what a `stdcall` function takes behind it, where there is that.
    const fn entry(self) -> &'static str {
        match self {
            Self::X64 => "DriverEntry",
            Self::I386 => "_DriverEntry@8",
        }
    }

    /// Where it would lie. NT moves each driver; Wine does not if it can, and so a 64-bit one is within reach of Wine's kernel.
    const fn base(self) -> u64 {
        match self {
            Self::X64 => 0x3_0000_0000,
            Self::I386 => 0x1_0000,
        }
    }
}

#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Builds nothing: says whether NT would load this driver, and runs it in the emulator.
    #[arg(long = "try", value_name = "FILE.sys", conflicts_with = "checksum")]
    tried: Option<PathBuf>,
    /// Builds nothing: writes the checksum that NT asks for into this driver.
    #[arg(long, value_name = "FILE.sys")]
    checksum: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    if let Some(file) = &arguments.checksum {
        return attempt::seal(file);
    }
    if let Some(file) = &arguments.tried {
        return attempt::attempt(workspace, file);
    }
    let progress = Progress::new();
    for machine in Machine::ALL {
        let drivers = prepare(workspace, &progress, machine)?;
        for driver in &drivers {
            progress.line(&format!(
                "{}  {} bytes, {} imports, {} bytes of a stack",
                workspace.shown(&driver.file),
                driver.facts.size,
                driver.facts.imports,
                driver.facts.stack
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Every driver for a machine, built and looked at.
pub(crate) fn prepare(workspace: &Workspace, progress: &Progress, machine: Machine) -> Result<Vec<Driver>> {
    let stage = progress.stage(&format!("drivers {}", machine.name()));
    let _lock = workspace.lock()?;
    let drivers = build(workspace, &stage, machine)?;
    let largest = drivers.iter().map(|driver| driver.facts.size).max().unwrap_or_default();
    stage.done(&format!("{} drivers, the largest has {largest} bytes", drivers.len()));
    Ok(drivers)
}
