//! `cargo xtask`: builds kdetour's kernel module, boots it, shows it, tests it and measures it.
//!
//! Each command brings what it needs: packages, a kernel, a compiler with library source.

mod bench;
mod cross;
mod demo;
mod dist;
mod download;
mod drivers;
mod guest;
mod install;
mod kernel;
mod libraries;
mod module;
mod packages;
mod programs;
mod progress;
mod python;
mod rust_half;
mod setup;
mod shell;
mod size;
mod stack;
mod test;
mod toolchain;
mod unwind;
mod vm;
mod wine;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};
use kernel::Series;
use progress::Progress;
use std::process::ExitCode;
use workspace::Workspace;

/// Builds, boots, shows, tests and measures kdetour.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand, Debug)]
enum Task {
    /// Brings packages, kernels and the compiler, and builds nothing.
    Setup,
    /// Builds the kernel modules.
    Build(Build),
    /// Runs a script in a guest with the modules.
    Vm(vm::Arguments),
    /// Detours a function of a running kernel and shows every step.
    Demo(demo::Arguments),
    /// Runs every test suite, on this machine and in guests.
    Test(test::Arguments),
    /// Measures what a detour costs.
    Bench(bench::Arguments),
    /// Makes an archive from which the module is built without Rust.
    Dist(dist::Arguments),
    /// Builds the library for Windows drivers, and drivers in C and in Rust; or tries somebody's own.
    Windows(drivers::Arguments),
    /// Says how large the library for the kernel is, for each set of features.
    Size,
    /// Installs libkdetour and kdetour.h for programs in C and C++, and the command kdetour.
    Install(install::Arguments),
}

#[derive(clap::Args, Debug)]
struct Build {
    /// The kernel to build for; without it, all, those with PREEMPT_RT too.
    #[arg(long, value_enum)]
    kernel: Option<Series>,
    /// Debian's kernel flavour.
    #[arg(long, default_value = "cloud-amd64")]
    flavour: String,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = Workspace::find().and_then(|workspace| match &cli.command {
        Task::Setup => set_up(&workspace),
        Task::Build(arguments) => build(&workspace, arguments),
        Task::Vm(arguments) => vm::run(&workspace, arguments),
        Task::Demo(arguments) => demo::run(&workspace, arguments),
        Task::Test(arguments) => test::run(&workspace, arguments),
        Task::Bench(arguments) => bench::run(&workspace, arguments),
        Task::Dist(arguments) => dist::run(&workspace, arguments),
        Task::Windows(arguments) => drivers::run(&workspace, arguments),
        Task::Size => size::run(&workspace),
        Task::Install(arguments) => install::run(&workspace, arguments),
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn set_up(workspace: &Workspace) -> Result<ExitCode> {
    let progress = Progress::new();
    setup::kernels(workspace, &progress, &Series::ALL, "cloud-amd64")?;
    setup::toolchain(workspace, &progress)?;
    Ok(ExitCode::SUCCESS)
}

fn build(workspace: &Workspace, arguments: &Build) -> Result<ExitCode> {
    let progress = Progress::new();
    let wanted = arguments.kernel.map_or_else(|| Series::ALL.to_vec(), |series| vec![series]);
    let kernels = setup::kernels(workspace, &progress, &wanted, &arguments.flavour)?;
    let rust = setup::rust(workspace, &progress)?;
    for kernel in &kernels {
        let modules = setup::modules(workspace, &progress, kernel, &rust)?;
        for file in &modules.files {
            progress.line(&workspace.shown(file).to_string());
        }
    }
    Ok(ExitCode::SUCCESS)
}
