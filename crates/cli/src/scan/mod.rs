//! `kdetour scan`: every function of files, counted.
//!
//! ```text
//!   survey    all threads look at pieces of the list of functions; the pieces come back in order
//!   tally     what is counted: accepted by shape, refused by reason
//!   table     the counts as text
//!   report    the counts as JSON
//!   page      the counts as a page with bars
//! ```

mod page;
mod report;
mod survey;
mod table;
mod tally;

use crate::Outcome;
use crate::args::Scan;
use crate::file::File;
use anyhow::{Context as _, Result, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use tally::Tally;

/// What came of one file.
pub(crate) struct Scanned {
    /// As it was given.
    pub(crate) path: String,
    /// The counts, or why there are none.
    pub(crate) outcome: Result<Counts>,
    /// For reading and scanning.
    pub(crate) seconds: f64,
}

/// The counts of one file.
pub(crate) struct Counts {
    /// What the file is, in words.
    pub(crate) kind: String,
    /// 32 or 64.
    pub(crate) bits: u32,
    /// Whose memory it is taken to be in.
    pub(crate) host: &'static str,
    /// What was added to the file's addresses.
    pub(crate) base: u64,
    /// The counts.
    pub(crate) tally: Tally,
    /// What was found and is not counted, or is with a reservation.
    pub(crate) left_out: Vec<kdetour_image::LeftOut>,
}

/// Scans and reports.
pub(crate) fn run(scan: &Scan) -> Result<Outcome> {
    let to_stdout = |path: &Option<std::path::PathBuf>| path.as_deref() == Some(Path::new("-"));
    let outputs =
        usize::from(scan.json) + usize::from(to_stdout(&scan.plans)) + usize::from(to_stdout(&scan.html));
    ensure!(
        outputs <= 1,
        "--json, --plans - and --html - would all write to standard output: give files to all but one"
    );
    let mut plans = scan.plans.as_deref().map(writer).transpose()?;
    // Who cannot write the page should hear it now.
    let html = scan.html.as_deref().map(writer).transpose()?;
    let bar = progress();
    let mut files = Vec::new();
    for path in &scan.files {
        let scanned = one(scan, path, plans.as_mut(), &bar)?;
        if let Err(error) = &scanned.outcome {
            // Who closes stderr does not want to know.
            bar.suspend(|| {
                let _ = writeln!(anstream::stderr(), "error: {error:#}");
            });
        }
        files.push(scanned);
    }
    bar.finish_and_clear();
    if let Some(mut plans) = plans {
        plans.flush().context("cannot write the plans")?;
    }
    if let Some(mut html) = html {
        html.write_all(page::html(&files)?.as_bytes())
            .and_then(|()| html.flush())
            .context("cannot write the page")?;
    }
    if scan.json {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &report::Report::new(&files, scan.refused))?;
        writeln!(out)?;
    } else if outputs == 0 {
        anstream::stdout().write_all(table::text(&files, scan.refused)?.as_bytes())?;
    }
    let whole = files.iter().all(|file| file.outcome.is_ok());
    Ok(if whole { Outcome::Accepted } else { Outcome::Partial })
}

fn one(scan: &Scan, path: &Path, plans: Option<&mut Box<dyn Write>>, bar: &ProgressBar) -> Result<Scanned> {
    let start = Instant::now();
    let name = path.display().to_string();
    bar.set_prefix(path.file_name().map_or(name.clone(), |name| name.to_string_lossy().into_owned()));
    bar.set_length(0);
    bar.set_position(0);
    let outcome = match File::open(path, &scan.reading, scan.choices.host) {
        Ok(file) => {
            let options = scan.choices.options(file.model().host());
            let survey = survey::Scan {
                file: &file,
                options,
                jobs: jobs(scan.jobs),
                limit: scan.limit.unwrap_or(usize::MAX),
                keep: scan.refused,
            };
            // What cannot be written ends the scan; what cannot be read does not.
            let tally = survey.run(plans, bar)?;
            let image = file.image();
            Ok(Counts {
                kind: image.kind().to_string(),
                bits: image.mode().bits(),
                host: file.model().host().name(),
                base: file.base(),
                tally,
                left_out: image.left_out().to_vec(),
            })
        }
        Err(error) => Err(error),
    };
    Ok(Scanned { path: name, outcome, seconds: start.elapsed().as_secs_f64() })
}

/// A file to be written, or standard output.
fn writer(path: &Path) -> Result<Box<dyn Write>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufWriter::with_capacity(1 << 18, io::stdout())));
    }
    let file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Box::new(BufWriter::with_capacity(1 << 18, file)))
}

/// A bar on stderr where that is a terminal.
fn progress() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
    let template =
        "{prefix:<24!.bold} {bar:32.cyan/black.bright} {human_pos:>9}/{human_len} functions {per_sec:.dim}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn jobs(asked: Option<u16>) -> usize {
    let available = || std::thread::available_parallelism().map_or(1, usize::from);
    asked.map_or_else(available, usize::from)
}
