//! All functions of a file, looked at by several threads, in order.
//!
//! The list is cut into pieces, and every thread takes the next one. The pieces come back as they are done and are put
//! in order again, so the result does not depend on who was faster.

use super::tally::Tally;
use crate::asm::Disassembler;
use crate::file::File;
use crate::question::Question;
use crate::record::Record;
use anyhow::{Context as _, Result};
use indicatif::ProgressBar;
use kdetour_image::Function;
use kdetour_plan::Options;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

/// Functions in a piece.
const PIECE: usize = 256;

/// What to look at, and how.
pub(crate) struct Scan<'a> {
    /// The file.
    pub(crate) file: &'a File,
    /// What plans may do.
    pub(crate) options: Options,
    /// Threads.
    pub(crate) jobs: usize,
    /// Functions to look at.
    pub(crate) limit: usize,
    /// Keep every refused function, not only examples.
    pub(crate) keep: bool,
}

/// What a thread made of a piece.
struct Done {
    index: usize,
    functions: usize,
    tally: Tally,
    lines: Vec<u8>,
}

impl Scan<'_> {
    /// Looks at everything. The plans are written one a line.
    pub(crate) fn run(&self, mut plans: Option<&mut Box<dyn Write>>, bar: &ProgressBar) -> Result<Tally> {
        let functions = self.file.image().functions();
        let functions = functions.get(..self.limit).unwrap_or(functions);
        bar.set_length(functions.len() as u64);
        let pieces: Vec<&[Function]> = functions.chunks(PIECE).collect();
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let lines = plans.is_some();
        let mut tally = Tally::default();
        let mut outcome = Ok(());
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(2 * self.jobs);
            for _ in 0..self.jobs.min(pieces.len()) {
                let (sender, pieces, next, stop) = (sender.clone(), &pieces, &next, &stop);
                scope.spawn(move || self.work(pieces, next, stop, lines, &sender));
            }
            drop(sender);
            let mut early: BTreeMap<usize, Done> = BTreeMap::new();
            let mut wanted = 0;
            for done in receiver {
                bar.inc(done.functions as u64);
                early.insert(done.index, done);
                while let Some(done) = early.remove(&wanted) {
                    wanted += 1;
                    tally.append(done.tally, self.keep);
                    if let Some(plans) = plans.as_deref_mut().filter(|_| outcome.is_ok()) {
                        outcome = plans.write_all(&done.lines).context("cannot write the plans");
                        stop.store(outcome.is_err(), Ordering::Relaxed);
                    }
                }
            }
        });
        outcome.map(|()| tally)
    }

    fn work(
        &self,
        pieces: &[&[Function]],
        next: &AtomicUsize,
        stop: &AtomicBool,
        lines: bool,
        sender: &SyncSender<Done>,
    ) {
        let model = self.file.model();
        let question = Question { model, slot: None, detour: None, options: self.options };
        let mut disassembler = Disassembler::new();
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(index) else { return };
            let mut done = Done { index, functions: piece.len(), tally: Tally::default(), lines: Vec::new() };
            for function in *piece {
                self.file.with_target(function, |target| {
                    let answer = question.ask(&target.code, &target.context);
                    let name = target.name.unwrap_or("");
                    done.tally.add(name, &answer, self.keep);
                    if lines {
                        let record = Record::new(target.name, target.code.mode(), &answer, &mut disassembler);
                        // A Vec takes everything, and the record has only strings for keys.
                        if serde_json::to_writer(&mut done.lines, &record).is_ok() {
                            done.lines.push(b'\n');
                        }
                    }
                });
            }
            if sender.send(done).is_err() {
                return;
            }
        }
    }
}
