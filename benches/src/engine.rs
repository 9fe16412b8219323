//! `engine`: everything about survey and plan.

use crate::figures::{Compared, Figures, FirstUse};
use crate::peers::{Name, compare};
use crate::speed;
use crate::subject::Subject;
use crate::table;
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// What is measured.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A library for x86-64 or x86-32; repeat it.
    #[arg(long = "library", value_name = "PATH")]
    libraries: Vec<PathBuf>,
    /// A kernel: vmlinux, or a distribution's vmlinuz; repeat it.
    #[arg(long = "kernel", value_name = "VMLINUX")]
    kernels: Vec<PathBuf>,
    /// Writes the numbers there.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Writes every trampoline there, for the emulator; without it they are thrown away.
    #[arg(long, value_name = "DIR")]
    records: Option<PathBuf>,
    /// A Python with the module unicorn: runs every trampoline in an emulator.
    #[arg(long, value_name = "PYTHON")]
    emulate: Option<PathBuf>,
    /// Rounds of measuring; the median counts.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Leaves out the other libraries.
    #[arg(long)]
    alone: bool,
    /// Only these libraries.
    #[arg(long, value_enum)]
    peer: Vec<Name>,
}

/// Measures.
pub(crate) fn run(arguments: &Arguments, first_use: FirstUse) -> Result<ExitCode> {
    ensure!(
        !arguments.libraries.is_empty() || !arguments.kernels.is_empty(),
        "nothing to measure: give --library or --kernel"
    );
    let mut figures = Figures { first_use, files: Vec::new(), peers: Vec::new() };
    for path in arguments.libraries.iter().chain(&arguments.kernels) {
        eprintln!("surveying {}", path.display());
        figures.files.push(speed::measure(&Subject::open(path)?, arguments.rounds)?);
    }
    if !arguments.alone {
        let scratch = std::env::temp_dir().join(format!("kdetour-benches-{}", std::process::id()));
        let records = arguments.records.as_ref().unwrap_or(&scratch);
        std::fs::create_dir_all(records).with_context(|| format!("cannot create {}", records.display()))?;
        let tools =
            compare::Tools { records, python: arguments.emulate.as_deref(), rounds: arguments.rounds };
        let chosen = |peer: &Name| arguments.peer.is_empty() || arguments.peer.contains(peer);
        for path in &arguments.libraries {
            let subject = Subject::open(path)?;
            // In this process they build for 64 bits.
            if subject.bits() != 64 {
                continue;
            }
            for peer in Name::ALL.into_iter().filter(chosen) {
                eprintln!("{} over {}", peer.text(), subject.name);
                figures.peers.push(compare::compare(peer, &subject, &tools)?);
            }
        }
        relate(&mut figures.peers);
        if arguments.records.is_none() {
            std::fs::remove_dir_all(&scratch)?;
        }
    }
    print!("{}", table::all(&figures));
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&figures)?;
        std::fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    let wrong: Vec<&Compared> = figures.peers.iter().filter(|one| breaks_a_promise(one)).collect();
    for one in &wrong {
        eprintln!("wrong: {} over {}", one.peer, one.file);
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether kdetour did what it must never do.
fn breaks_a_promise(one: &Compared) -> bool {
    let ours = [Name::Kdetour, Name::KdetourAnywhere].iter().any(|name| name.text() == one.peer);
    let emulated = one.emulated.as_ref().is_some_and(|emulated| emulated.same != emulated.records);
    ours && (emulated || one.panicked + one.crashed + one.jumps_into_window + one.overwrites_neighbour > 0)
}

/// How much faster kdetour is over the same file.
fn relate(peers: &mut [Compared]) {
    let speed = |one: &Compared| one.timing.map(|timing| timing.dropped_per_second);
    let own = peers.iter().filter(|one| one.peer == Name::Kdetour.text());
    let own: BTreeMap<String, Option<f64>> = own.map(|one| (one.file.clone(), speed(one))).collect();
    for one in peers {
        let ours = own.get(&one.file).copied().flatten();
        one.kdetour_is_times_as_fast = ours.zip(speed(one)).map(|(ours, theirs)| ours / theirs);
    }
}
