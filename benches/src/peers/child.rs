//! One library over one file, in this process.

use super::ilhook::Ilhook;
use super::kdetour::{Anywhere, Near};
use super::retour::Retour;
use super::{Failure, Name, Peer, Site};
use crate::clock::Moment;
use crate::figures::{PeerTiming, median};
use crate::mapped::Mapped;
use crate::subject::{Subject, Targets};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the process shall do.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The library that builds trampolines.
    #[arg(long, value_enum)]
    peer: Name,
    /// The file whose functions are its targets.
    #[arg(long)]
    library: PathBuf,
    /// Examine from this function on.
    #[arg(long, default_value_t = 0)]
    from: usize,
    /// Measure instead, without the functions whose numbers are on the lines of this file.
    #[arg(long)]
    measure_without: Option<PathBuf>,
    /// Rounds of measuring.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// What came of one function, as a line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) at: usize,
    pub(crate) outcome: Outcome,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Accepted { patch_len: usize, displaced_len: usize, shape: String, record: Value },
    Refused(String),
    Panicked,
}

/// Runs the library.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let subject = Subject::open(&arguments.library)?;
    let mapped = Mapped::new(&subject)?;
    let facts = subject.facts();
    let targets = subject.targets(&facts, mapped.slide);
    // What it has to say is said on standard output.
    std::panic::set_hook(Box::new(|_| {}));
    match arguments.peer {
        Name::Kdetour => work(Near::new(&mapped, false), mapped, &targets, arguments),
        Name::KdetourWindow => work(Near::new(&mapped, true), mapped, &targets, arguments),
        Name::KdetourAnywhere => {
            let (first, end) = subject.span();
            let slide = mapped.slide;
            let peer = Anywhere::new(first.wrapping_add(slide), end.wrapping_add(slide));
            work(peer, mapped, &targets, arguments)
        }
        Name::Retour => work(Retour, mapped, &targets, arguments),
        Name::Ilhook => work(Ilhook, mapped, &targets, arguments),
    }
}

fn work(
    mut peer: impl Peer,
    mut mapped: Mapped,
    targets: &Targets<'_>,
    arguments: &Arguments,
) -> Result<ExitCode> {
    match &arguments.measure_without {
        None => examine(&mut peer, &mut mapped, targets, arguments.from)?,
        Some(file) => {
            let text =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            let mut good = vec![true; targets.all.len()];
            for number in text.lines() {
                if let Some(good) = good.get_mut(number.parse::<usize>()?) {
                    *good = false;
                }
            }
            let sites = targets.all.iter().zip(good).filter(|(_, good)| *good);
            let sites: Vec<Site<'_>> = sites.map(|(target, _)| Site { targets, target }).collect();
            let timing = measure(&mut peer, &mut mapped, &sites, arguments.rounds);
            println!("{}", serde_json::to_string(&timing)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn examine(peer: &mut impl Peer, mapped: &mut Mapped, targets: &Targets<'_>, from: usize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for (at, target) in targets.all.iter().enumerate().skip(from) {
        let site = Site { targets, target };
        let outcome = match catch_unwind(AssertUnwindSafe(|| peer.examine(&site, mapped))) {
            Ok(Ok(built)) => Outcome::Accepted {
                patch_len: built.new.len(),
                displaced_len: built.displaced_len(),
                shape: built.shape.name().to_owned(),
                record: built.json(&target.name, target.code.address()),
            },
            Ok(Err(Failure(reason))) => Outcome::Refused(reason),
            Err(_) => Outcome::Panicked,
        };
        let panicked = matches!(outcome, Outcome::Panicked);
        // A line is out before the next function is begun: standard output is written line by line.
        writeln!(out, "{}", serde_json::to_string(&Line { at, outcome })?)?;
        out.flush()?;
        if panicked && !peer.survives_a_panic() {
            break;
        }
    }
    Ok(())
}

fn measure<P: Peer>(peer: &mut P, mapped: &mut Mapped, sites: &[Site<'_>], rounds: usize) -> PeerTiming {
    let count = sites.len() as f64;
    let mut seconds = Vec::new();
    let heap = allocation_counter::measure(|| build_all(peer, mapped, sites));
    for _ in 0..rounds.max(1) {
        let started = Moment::now();
        build_all(peer, mapped, sites);
        seconds.push(started.elapsed().as_secs_f64());
    }
    let mut timing = PeerTiming {
        functions: sites.len(),
        dropped_per_second: count / median(&mut seconds),
        allocations: heap.count_total as f64 / count,
        allocated_bytes: heap.bytes_total as f64 / count,
        ..PeerTiming::default()
    };
    peer.forget();
    let mut kept: Vec<P::Kept> = Vec::with_capacity(sites.len());
    let before = peer.executable_in_use();
    let started = Moment::now();
    let heap = allocation_counter::measure(|| {
        for site in sites {
            match peer.keep(site, mapped) {
                Some(Ok(one)) => kept.push(one),
                Some(Err(_)) => {}
                None => break,
            }
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    if !kept.is_empty() {
        let kept = kept.len() as f64;
        let executable = peer.executable_in_use().saturating_sub(before);
        timing.kept_per_second = peer.keeping_says_speed().then_some(count / seconds);
        timing.heap_bytes_kept = Some(heap.bytes_current as f64 / kept);
        timing.executable_bytes_kept = (executable > 0).then_some(executable as f64 / kept);
    }
    // They are taken out again one by one, in the order in which they came.
    for one in kept {
        drop(one);
    }
    timing
}

fn build_all(peer: &mut impl Peer, mapped: &mut Mapped, sites: &[Site<'_>]) {
    for site in sites {
        let _ = std::hint::black_box(peer.build(site, mapped).is_ok());
    }
}
