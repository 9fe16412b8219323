//! Measures the engine of kdetour, alone and side by side with the crates `retour` and `ilhook`, in one run.
//!
//! `README.md` beside this crate says what is measured and how, and gives the commands. It runs on Linux on x86-64.

mod clock;
mod engine;
mod figures;
mod mapped;
mod model;
mod peers;
mod speed;
mod subject;
mod table;
mod window;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Measures kdetour.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Survey and plan over whole files: speed, heap, slots; and what other libraries make of the same functions.
    Engine(engine::Arguments),
    /// One library over one file, in a process of its own: started by `engine`.
    #[command(hide = true)]
    Peer(peers::child::Arguments),
}

fn main() -> Result<ExitCode> {
    // Before anything else decodes.
    let first_use = speed::first_use();
    match Cli::parse().command {
        Command::Engine(arguments) => engine::run(&arguments, first_use),
        Command::Peer(arguments) => peers::child::run(&arguments),
    }
}
