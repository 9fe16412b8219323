//! From the arguments of `inspect` and `draw` to the answer about one function.

use crate::args::Asked;
use crate::file::File;
use crate::model::Model;
use crate::question::{Answer, Question};
use crate::target::{RawCode, Target, fits};
use anyhow::{Context as _, Result};
use std::io::Write as _;

/// Asks about the function that the arguments name, and lets `show` say what came of it.
pub(crate) fn ask<R>(
    Asked { subject, place, choices }: &Asked,
    show: impl FnOnce(&Target<'_>, &Question<'_>, &Answer) -> Result<R>,
) -> Result<R> {
    let question = |target: &Target<'_>, model: &Model| {
        let mode = target.code.mode();
        fits(mode, "--slot", place.slot)?;
        fits(mode, "--detour", place.detour)?;
        let options = choices.options(model.host());
        let question = Question { model, slot: place.slot, detour: place.detour, options };
        let answer = question.ask(&target.code, &target.context);
        show(target, &question, &answer)
    };
    if let Some(raw) = RawCode::read(&subject.raw)? {
        let target = raw.target();
        let host = choices.host.unwrap_or(raw.host());
        return question(&target, &raw.model(host));
    }
    let path = subject.file.as_deref().context("name a file, or give --bytes")?;
    let symbol = subject.symbol.as_deref().context("name a function of the file, or give its address")?;
    let file = File::open(path, &subject.reading, choices.host)?;
    let function = file.find(symbol)?;
    let more = file.namesakes(symbol);
    if let Some(next) = more.first() {
        let count = more.len();
        let note = format!(
            "note: this is the first of {} functions called {symbol}; the next is at {next:#x}",
            count + 1
        );
        let _ = writeln!(anstream::stderr(), "{note}");
    }
    file.with_target(function, |target| question(target, file.model()))
}
