//! The counts as JSON: `{"files": [...]}`.

use super::{Counts, Scanned};
use crate::hex::Address;
use kdetour_image::LeftOut;
use serde::Serialize;
use std::collections::BTreeMap;

/// The object.
#[derive(Serialize)]
pub(crate) struct Report<'a> {
    files: Vec<FileReport<'a>>,
}

/// A file that could not be read has all keys, too, and `error` besides.
#[derive(Serialize)]
struct FileReport<'a> {
    path: &'a str,
    mode: Option<u32>,
    functions: usize,
    accepted: usize,
    refused: BTreeMap<&'static str, usize>,
    shapes: BTreeMap<&'static str, usize>,
    seconds: f64,
    #[serde(flatten)]
    more: More<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum More<'a> {
    Read {
        kind: &'a str,
        host: &'static str,
        base: Address,
        left_out: Vec<LeftOutReport>,
        #[serde(skip_serializing_if = "Option::is_none")]
        refused_functions: Option<Vec<RefusedReport<'a>>>,
    },
    Failed {
        error: String,
    },
}

#[derive(Serialize)]
struct LeftOutReport {
    reason: String,
    count: usize,
    first: Address,
    kept: bool,
}

#[derive(Serialize)]
struct RefusedReport<'a> {
    name: &'a str,
    entry: Address,
    reason: &'static str,
    text: &'a str,
}

impl<'a> Report<'a> {
    /// With a list of all refused functions, if that is asked for.
    pub(crate) fn new(files: &'a [Scanned], refused: bool) -> Self {
        Self { files: files.iter().map(|file| FileReport::new(file, refused)).collect() }
    }
}

impl<'a> FileReport<'a> {
    fn new(file: &'a Scanned, list: bool) -> Self {
        let Scanned { path, outcome, seconds } = file;
        // Milliseconds are as exact as it gets.
        let seconds = (seconds * 1000.0).round() / 1000.0;
        let counts = match outcome {
            Ok(counts) => counts,
            Err(error) => {
                let more = More::Failed { error: format!("{error:#}") };
                let (refused, shapes) = (BTreeMap::new(), BTreeMap::new());
                return Self { path, mode: None, functions: 0, accepted: 0, refused, shapes, seconds, more };
            }
        };
        let Counts { kind, bits, host, base, tally, left_out } = counts;
        Self {
            path,
            mode: Some(*bits),
            functions: tally.functions(),
            accepted: tally.accepted(),
            refused: tally.refused.iter().map(|(&name, reason)| (name, reason.count)).collect(),
            shapes: tally.shapes().map(|(shape, count)| (shape.name(), count)).collect(),
            seconds,
            more: More::Read {
                kind,
                host,
                base: Address(*base),
                left_out: left_out.iter().map(LeftOutReport::new).collect(),
                refused_functions: list.then(|| refused(counts)),
            },
        }
    }
}

fn refused(counts: &Counts) -> Vec<RefusedReport<'_>> {
    let all = counts.tally.refused.iter().flat_map(|(&reason, refused)| {
        refused.functions.iter().map(move |function| RefusedReport {
            name: &function.name,
            entry: Address(function.entry),
            reason,
            text: &function.text,
        })
    });
    all.collect()
}

impl LeftOutReport {
    fn new(left_out: &LeftOut) -> Self {
        let (count, kept) = (left_out.count, left_out.is_kept());
        Self { reason: left_out.reason.to_string(), count, first: Address(left_out.first), kept }
    }
}
