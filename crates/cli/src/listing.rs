//! An answer as text: the target before and after, the slot, and why this shape.
//!
//! Colours are always written; whoever prints strips them where there is no terminal.

use crate::advice::advice;
use crate::anatomy::{Anatomy, Mark, Role, Row};
use crate::asm::Disassembler;
use crate::question::{Answer, Question};
use crate::target::Target;
use anstyle::{AnsiColor, Style};
use kdetour_plan::{Plan, Refusal, Shape, Survey};
use std::fmt::{self, Write as _};

const TITLE: Style = Style::new().bold().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Cyan)));
const GOOD: Style = Style::new().bold().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Green)));
const BAD: Style = Style::new().bold().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red)));
const DIM: Style = Style::new().dimmed();
const DISPLACED: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Yellow)));
const PATCHED: Style = Style::new().bold().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Magenta)));
const RELAY: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Blue)));
const PLAIN: Style = Style::new();

/// Everything there is to say.
pub(crate) fn text(
    target: &Target<'_>,
    question: &Question<'_>,
    answer: &Answer,
    disassembler: &mut Disassembler,
) -> Result<String, fmt::Error> {
    let mut out = String::new();
    head(&mut out, target)?;
    match &answer.plan {
        Ok(plan) => {
            let anatomy = Anatomy::new(target, plan, disassembler);
            accepted(&mut out, question, plan, &anatomy)?;
        }
        Err(refusal) => refused(&mut out, target, answer, refusal, disassembler)?,
    }
    hazards(&mut out, answer)?;
    if let Some(survey) = &answer.survey {
        shapes(&mut out, survey, question, answer)?;
    }
    Ok(out)
}

fn head(out: &mut String, target: &Target<'_>) -> fmt::Result {
    let length = target.code.length().map_or_else(|| "length unknown".to_owned(), bytes);
    let name = target.title();
    let (address, bits) = (target.code.address(), target.code.mode().bits());
    writeln!(out, "{TITLE}{name}{TITLE:#} at {address:#x}, {bits}-bit, {length}")
}

fn accepted(out: &mut String, question: &Question<'_>, plan: &Plan, anatomy: &Anatomy) -> fmt::Result {
    let shape = plan.shape();
    let len = shape.window_len();
    let changed = match (anatomy.changed, len) {
        (1, 1) => "one byte changes".to_owned(),
        (changed, len) if changed == len => format!("{len} bytes change"),
        (changed, len) => {
            format!("{changed} of the window's {len} bytes change{}", if changed == 1 { "s" } else { "" })
        }
    };
    writeln!(out, "{GOOD}accepted{GOOD:#} as {GOOD}{shape}{GOOD:#}: {changed} at {:#x}", anatomy.window)?;
    let by_model = |given: Option<u64>| if given.is_some() { "" } else { ", chosen by the model" };
    writeln!(out, "detour at {:#x}{}", anatomy.detour, by_model(question.detour))?;

    let width = width([&anatomy.before, &anatomy.after, &anatomy.slot]);
    title(out, "before")?;
    rows(out, &anatomy.before, width)?;
    title(out, "while detoured")?;
    rows(out, &anatomy.after, width)?;
    if let Some((after, before)) = &anatomy.cave {
        title(out, "cave, before and while detoured")?;
        rows(out, std::slice::from_ref(before), width)?;
        rows(out, std::slice::from_ref(after), width)?;
    }
    let bytes = plan.slot_bytes().len();
    title(out, &format!("slot at {:#x}, {bytes} bytes{}", plan.slot(), by_model(question.slot)))?;
    writeln!(
        out,
        "  {DIM}the trampoline, which the detour calls as the original, is at {:#x}{DIM:#}",
        plan.trampoline()
    )?;
    rows(out, &anatomy.slot, width)?;

    title(out, "instruction pointers")?;
    for &(old, new) in plan.ip_map().pairs() {
        let back = if Some(old) == anatomy.resume { "   the jump back" } else { "" };
        writeln!(out, "    {old:#x} → {new:#x}{DIM}{back}{DIM:#}")?;
    }
    Ok(())
}

fn refused(
    out: &mut String,
    target: &Target<'_>,
    answer: &Answer,
    refusal: &Refusal,
    disassembler: &mut Disassembler,
) -> fmt::Result {
    let at = answer.refused_at(refusal);
    writeln!(out, "{BAD}refused{BAD:#}: {BAD}{}{BAD:#} at {at:#x}", refusal.name())?;
    writeln!(out, "  {refusal}.")?;
    writeln!(out, "  {}", advice(refusal))?;
    title(out, "code")?;
    const SHOWN: usize = 24;
    let bytes = target.code.bytes();
    let length = target.code.length().unwrap_or(bytes.len()).clamp(1, SHOWN).min(bytes.len());
    let lines =
        disassembler.listing(target.code.mode(), target.code.address(), bytes.get(..length).unwrap_or(bytes));
    for line in lines {
        let hit = line.address <= at && at < line.end();
        let (style, sign) = if hit { (BAD, '>') } else { (PLAIN, ' ') };
        let bytes = crate::hex::spaced(&line.bytes);
        writeln!(out, "  {style}{sign} {:#x}  {bytes:<30}  {}{style:#}", line.address, line.text)?;
    }
    Ok(())
}

fn hazards(out: &mut String, answer: &Answer) -> fmt::Result {
    if !answer.hazards.is_empty() {
        title(out, "to be known")?;
    }
    answer.hazards.iter().try_for_each(|hazard| writeln!(out, "    {hazard}"))
}

/// The survey's explanation: each shape, what it needs or why not, and why not a better one.
fn shapes(out: &mut String, survey: &Survey, question: &Question<'_>, answer: &Answer) -> fmt::Result {
    title(out, "shapes, the best first")?;
    let chosen = answer.plan.as_ref().ok().map(Plan::shape);
    for shape in Shape::ALL {
        let is_chosen = chosen == Some(shape);
        let (style, sign) = if is_chosen { (GOOD, '>') } else { (PLAIN, ' ') };
        let (verdict, text) = why(survey, shape, question, chosen);
        let verdict_style = match verdict {
            Verdict::Taken | Verdict::Offered => GOOD,
            Verdict::NoPlace => DISPLACED,
            Verdict::Forbidden | Verdict::NotAsked => DIM,
        };
        let word = verdict.word();
        writeln!(
            out,
            "  {style}{sign} {:<16}{style:#}  {verdict_style}{word:<9}{verdict_style:#}  {text}",
            shape.name()
        )?;
    }
    Ok(())
}

/// What came of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the plan's.
    Taken,
    /// It would do too.
    Offered,
    /// It would do, if there were a slot for it.
    NoPlace,
    /// The code forbids it.
    Forbidden,
    /// The host does not allow it, or the caller does not want it.
    NotAsked,
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Offered => "offered",
            Self::NoPlace => "no place",
            Self::Forbidden => "no",
            Self::NotAsked => "not asked",
        }
    }
}

fn why(survey: &Survey, shape: Shape, question: &Question<'_>, chosen: Option<Shape>) -> (Verdict, String) {
    let options = question.options;
    let offer = match survey.offer(shape, &options) {
        Ok(offer) => offer,
        Err(refusal) => return (Verdict::Forbidden, refusal.to_string()),
    };
    let reach = offer.reach();
    let relays: u64 = offer.relays(&options).map(|relays| relays.count()).sum();
    let mut text = format!("window of {}, slot of at most {} bytes", bytes(shape.window_len()), offer.need());
    if relays > 0 {
        let _ = match relays {
            1 => write!(text, " at one address"),
            relays => write!(text, " at one of {relays} addresses"),
        };
    } else if reach.first > reach.last {
        text.push_str(" nowhere: what is displaced refers to places too far apart");
    } else if reach.first > 0 || reach.last < survey.mode().last_address() {
        let _ = write!(text, " in {:#x}..={:#x}", reach.first, reach.last);
    } else {
        text.push_str(" anywhere");
    }
    if shape == Shape::ShortJump {
        text.push_str(", a cave");
    }
    if shape.needs_quiesce() {
        text.push_str(", a quiesce");
    }
    let verdict = if !options.shapes.contains(shape) {
        let host =
            if question.model.host().shapes().contains(shape) { "" } else { "; this host does not allow it" };
        text.push_str(host);
        Verdict::NotAsked
    } else if chosen == Some(shape) {
        Verdict::Taken
    } else if chosen.is_none_or(|chosen| shape < chosen) {
        let why =
            if question.slot.is_some() { "the given slot is elsewhere" } else { "no such memory is free" };
        let _ = write!(text, "; {why}");
        Verdict::NoPlace
    } else {
        Verdict::Offered
    };
    (verdict, text)
}

/// A number of bytes.
fn bytes(count: usize) -> String {
    if count == 1 { "one byte".to_owned() } else { format!("{count} bytes") }
}

fn title(out: &mut String, text: &str) -> fmt::Result {
    writeln!(out, "\n{TITLE}{text}{TITLE:#}")
}

/// Widths of the columns for bytes and for instructions.
fn width<'a>(parts: impl IntoIterator<Item = &'a Vec<Row>>) -> (usize, usize) {
    let mut width = (14, 0);
    for row in parts.into_iter().flatten() {
        width.0 = width.0.max(row.bytes.len() * 3 - 1);
        if !row.note.is_empty() {
            width.1 = width.1.max(row.text.chars().count());
        }
    }
    (width.0.min(44), width.1.min(40))
}

fn rows(out: &mut String, rows: &[Row], (bytes_width, text_width): (usize, usize)) -> fmt::Result {
    for row in rows {
        let inside = row.bytes.iter().any(|(_, mark)| !matches!(mark, Mark::Plain | Mark::Dead));
        let sign = if inside { '>' } else { ' ' };
        let style = match row.role {
            Role::Patch => PATCHED,
            Role::Relay => RELAY,
            Role::Copy => DISPLACED,
            Role::Code if inside => DISPLACED,
            Role::Code => DIM,
            Role::Back | Role::LandingPad => PLAIN,
        };
        write!(out, "  {style}{sign} {:#x}{style:#} ", row.address)?;
        for &(byte, mark) in &row.bytes {
            let style = match mark {
                Mark::Plain => style,
                Mark::Displaced => DISPLACED,
                Mark::Patched => PATCHED,
                Mark::Kept => DISPLACED,
                Mark::Dead => DIM,
            };
            write!(out, " {style}{byte:02x}{style:#}")?;
        }
        let gap = (bytes_width + 2).saturating_sub((row.bytes.len() * 3).saturating_sub(1));
        write!(out, "{:gap$}{style}{}{style:#}", "", row.text)?;
        if !row.note.is_empty() {
            let gap = (text_width + 2).saturating_sub(row.text.chars().count()).max(2);
            write!(out, "{:gap$}{DIM}; {}{DIM:#}", "", row.note)?;
        }
        writeln!(out)?;
    }
    Ok(())
}
