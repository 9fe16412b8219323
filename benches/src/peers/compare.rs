//! Runs a library over a file in processes, and counts what came of it.

use super::Name;
use super::child::{Line, Outcome};
use crate::figures::{Compared, Emulated, PeerTiming};
use crate::subject::{Subject, Target, library_base};
use crate::window::{self, Says};
use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where things are put and found.
pub(crate) struct Tools<'a> {
    /// For the records, which stay there.
    pub(crate) records: &'a Path,
    /// A Python with the module `unicorn`; without it nothing is emulated.
    pub(crate) python: Option<&'a Path>,
    pub(crate) rounds: usize,
}

/// One library over one file.
pub(crate) fn compare(peer: Name, subject: &Subject, tools: &Tools<'_>) -> Result<Compared> {
    let facts = subject.facts();
    let targets = subject.targets(&facts, library_base(subject.bits()));
    let count = targets.all.len();
    let mut compared = Compared {
        peer: peer.text().to_owned(),
        file: subject.name.clone(),
        functions: count,
        ..Compared::default()
    };
    let stem = format!("{}-{}", peer.text(), subject.name);
    let records = tools.records.join(format!("{stem}.jsonl"));
    let file = File::create(&records).with_context(|| format!("cannot write {}", records.display()))?;
    let mut file = BufWriter::new(file);
    let mut bad = Vec::new();
    let mut from = 0;
    while from < count {
        let mut child = this(peer, subject)?
            .args(["--from", &from.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let lines = child.stdout.take().context("no output")?;
        let mut panicked = false;
        for line in BufReader::new(lines).lines() {
            let line: Line = match serde_json::from_str(&line?) {
                Ok(line) => line,
                // It died while it wrote.
                Err(_) => break,
            };
            from = line.at + 1;
            panicked = false;
            match line.outcome {
                Outcome::Accepted { patch_len, displaced_len, shape, record } => {
                    compared.accepted += 1;
                    serde_json::to_writer(&mut file, &record)?;
                    file.write_all(b"\n")?;
                    let Some(target) = targets.all.get(line.at) else { bail!("no function {}", line.at) };
                    // Those that begin with a relay answer for who stands or lands inside: kept bytes, or traps.
                    if !matches!(shape.as_str(), "Jump5Kept" | "Jump5Trapped") {
                        let decoded = window::by_decoding(target, patch_len, displaced_len);
                        let surveyed = window::by_survey(&targets, target, patch_len);
                        compared.see_window(target, decoded, &surveyed);
                    }
                    let entry = target.code.address();
                    compared.overwrites_neighbour += usize::from(targets.neighbour_within(entry, patch_len));
                }
                Outcome::Refused(reason) => {
                    compared.refused += 1;
                    *compared.refusals.entry(reason).or_default() += 1;
                }
                Outcome::Panicked => {
                    compared.panicked += 1;
                    bad.push(line.at);
                    panicked = true;
                }
            }
        }
        let status = child.wait()?;
        if !status.success() {
            compared.crashed += 1;
            bad.push(from);
            from += 1;
        } else if from < count && !panicked {
            bail!("{} stopped before function {from} of {}", peer.text(), subject.name);
        }
    }
    file.flush()?;
    let failed = bad.iter().filter_map(|&at| targets.all.get(at));
    compared.failed_at =
        failed.map(|target| format!("{} {:#05x}", target.name, target.code.address() & 0xfff)).collect();
    compared.timing = measure(peer, subject, tools, &bad, &stem)?;
    compared.emulated = tools.python.map(|python| emulate(python, &records)).transpose()?;
    Ok(compared)
}

impl Compared {
    /// Counts an accepted function whose overwritten bytes are jumped into, as one or the other says.
    fn see_window(&mut self, target: &Target<'_>, decoded: bool, says: &Says) {
        let surveyed = matches!(says, Says::BranchIntoWindow(_));
        self.jumps_into_window += usize::from(decoded || surveyed);
        self.jumps_into_window_by_decoding += usize::from(decoded);
        self.jumps_into_window_by_survey += usize::from(surveyed);
        if decoded != surveyed {
            let decode = if decoded { "a jump" } else { "nothing" };
            let line =
                format!("{} {:#x}: decoded {decode}; survey: {says}", target.name, target.code.address());
            self.told_differently.push(line);
        }
    }
}

/// The speed, in a process of its own; none if it dies there.
fn measure(
    peer: Name,
    subject: &Subject,
    tools: &Tools<'_>,
    bad: &[usize],
    stem: &str,
) -> Result<Option<PeerTiming>> {
    let without = tools.records.join(format!("{stem}.not-measured"));
    let numbers: String = bad.iter().map(|number| format!("{number}\n")).collect();
    std::fs::write(&without, numbers).with_context(|| format!("cannot write {}", without.display()))?;
    let output = this(peer, subject)?
        .arg("--measure-without")
        .arg(&without)
        .args(["--rounds", &tools.rounds.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    std::fs::remove_file(&without)?;
    Ok(if output.status.success() { Some(serde_json::from_slice(&output.stdout)?) } else { None })
}

fn this(peer: Name, subject: &Subject) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["peer", "--peer", peer.text(), "--library"]).arg(&subject.path).stdin(Stdio::null());
    Ok(command)
}

/// The script beside this crate, which uses the emulator of `tests/differential`.
fn emulate(python: &Path, records: &Path) -> Result<Emulated> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("emulate.py");
    let output = Command::new(python).arg(&script).arg(records).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("{} failed over {}", script.display(), records.display());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
