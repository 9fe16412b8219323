//! `kdetour draw`: the picture of a detour, as SVG.
//!
//! ```text
//!   svg       shapes and text of a picture
//!   panel     a box with code: rows of bytes, and what they mean
//!   picture   the panels of one detour, and the arrows between them
//! ```

mod panel;
mod picture;
mod svg;

use crate::Outcome;
use crate::advice::advice;
use crate::anatomy::Anatomy;
use crate::args::Draw;
use crate::asm::Disassembler;
use crate::subject;
use anyhow::{Context as _, Result};
use std::io::Write as _;
use std::path::Path;

/// Asks and draws.
pub(crate) fn run(draw: &Draw) -> Result<Outcome> {
    subject::ask(&draw.asked, |target, _, answer| {
        let plan = match &answer.plan {
            Ok(plan) => plan,
            Err(refusal) => {
                let mut err = anstream::stderr();
                writeln!(
                    err,
                    "refused: {} ({refusal}); nothing is drawn. {}",
                    refusal.name(),
                    advice(refusal)
                )?;
                return Ok(Outcome::Refused);
            }
        };
        let anatomy = Anatomy::new(target, plan, &mut Disassembler::new());
        let picture = picture::draw(&anatomy);
        if draw.output == Path::new("-") {
            std::io::stdout().lock().write_all(picture.as_bytes())?;
        } else {
            let path = draw.output.display();
            std::fs::write(&draw.output, picture).with_context(|| format!("cannot write {path}"))?;
        }
        Ok(Outcome::Accepted)
    })
}
