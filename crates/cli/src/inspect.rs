//! `kdetour inspect`: the detour of one function, as text or as JSON.

use crate::Outcome;
use crate::args::Inspect;
use crate::asm::Disassembler;
use crate::listing;
use crate::record::Record;
use crate::subject;
use anyhow::Result;
use std::io::Write as _;

/// Asks and shows.
pub(crate) fn run(inspect: &Inspect) -> Result<Outcome> {
    subject::ask(&inspect.asked, |target, question, answer| {
        let mut disassembler = Disassembler::new();
        if inspect.json {
            let record = Record::new(target.name, target.code.mode(), answer, &mut disassembler);
            let mut out = std::io::stdout().lock();
            serde_json::to_writer(&mut out, &record)?;
            writeln!(out)?;
        } else {
            let text = listing::text(target, question, answer, &mut disassembler)?;
            anstream::stdout().write_all(text.as_bytes())?;
        }
        Ok(if answer.plan.is_ok() { Outcome::Accepted } else { Outcome::Refused })
    })
}
