//! Measures kdetour in a process: what calls cost, what attaching costs, alone and beside busy threads, and memory.
//!
//! Side by side with the crate retour where it survives that. `README.md` beside this crate says how. It runs on Linux and on Windows,
//! on x86-64.

mod attach;
mod batch;
mod c;
mod callers;
mod calls;
mod drain;
mod functions;
mod methods;
mod pointers;
mod protocols;
#[cfg(not(windows))]
mod steps;
#[cfg(windows)]
#[path = "steps_windows.rs"]
mod steps;
mod system;
mod table;
mod toggle;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use table::Table;

/// Measures kdetour in a process.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Measures only these.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// How many times a target of the table `toggles` is attached and detached, at the most.
    #[arg(long, default_value_t = 20_000)]
    toggles: u64,
    /// How many seconds that may take.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Writes the tables there.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Calls of a detoured function.
    Calls,
    /// One attach, one detach.
    Attach,
    /// Sessions of many.
    Batch,
    /// Attach and detach without a pause, beside callers.
    Toggles,
    /// The same by each protocol.
    Protocols,
    /// Giving memory back.
    Drain,
    /// By `kdetour.h` and by Rust.
    C,
    /// Pointers that are exchanged.
    Pointers,
    /// A jump, a breakpoint, a debug register.
    Methods,
}

fn main() -> Result<()> {
    use Part::{Attach, Batch, C, Calls, Drain, Methods, Pointers, Protocols, Toggles};
    let cli = Cli::parse();
    let mut tables: Vec<Table> = Vec::new();
    // The calls first: nothing is attached then, no other thread has ever been.
    for part in [Calls, Attach, Batch, Toggles, Protocols, Drain, C, Pointers, Methods] {
        if !cli.only.is_empty() && !cli.only.contains(&part) {
            continue;
        }
        let measured = match part {
            Part::Calls => calls::measure(),
            Part::Attach => attach::measure(),
            Part::Batch => batch::measure(),
            Part::Toggles => toggle::measure(cli.toggles, cli.seconds),
            Part::Protocols => protocols::measure(cli.toggles, cli.seconds),
            Part::Drain => drain::measure(),
            Part::C => c::measure(),
            Part::Pointers => pointers::measure(),
            Part::Methods => methods::measure(),
        };
        for table in measured.with_context(|| format!("{part:?}"))? {
            println!("{}", table.shown());
            io::stdout().flush()?;
            tables.push(table);
        }
    }
    if let Some(path) = cli.json {
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        serde_json::to_writer_pretty(file, &tables)?;
    }
    Ok(())
}
