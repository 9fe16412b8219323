//! The counts as text.

use super::{Counts, Scanned};
use crate::markup::printable;
use anstyle::{AnsiColor, Color, Style};
use kdetour_plan::Shape;
use std::fmt::{self, Write as _};

const TITLE: Style = Style::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Cyan)));
const GOOD: Style = Style::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Green)));
const BAD: Style = Style::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Red)));
const DIM: Style = Style::new().dimmed();
const PLAIN: Style = Style::new();

/// A table for each file, and a line for all if there are several.
pub(crate) fn text(files: &[Scanned], list: bool) -> Result<String, fmt::Error> {
    let mut out = String::new();
    for (index, file) in files.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        match &file.outcome {
            Ok(counts) => table(&mut out, file, counts, list)?,
            Err(error) => {
                writeln!(out, "{TITLE}{}{TITLE:#}\n  {BAD}error{BAD:#}: {error:#}", printable(&file.path))?
            }
        }
    }
    let counts: Vec<&Counts> = files.iter().filter_map(|file| file.outcome.as_ref().ok()).collect();
    if counts.len() > 1 {
        let sum = |what: fn(&Counts) -> usize| counts.iter().map(|counts| what(counts)).sum::<usize>();
        let functions = sum(|counts| counts.tally.functions());
        let accepted = sum(|counts| counts.tally.accepted());
        let trapped = sum(|counts| counts.tally.by_breakpoint());
        writeln!(
            out,
            "\n{TITLE}{} files{TITLE:#}: {GOOD}{}{GOOD:#} of {} functions accepted, {} of them by breakpoint only; {} refused",
            counts.len(),
            percent(accepted, functions),
            grouped(functions),
            grouped(trapped),
            grouped(functions - accepted)
        )?;
    }
    Ok(out)
}

fn table(out: &mut String, file: &Scanned, counts: &Counts, list: bool) -> fmt::Result {
    let Counts { kind, bits, host, base, tally, left_out } = counts;
    let functions = tally.functions();
    let at = if *base == 0 { String::new() } else { format!(" at {base:#x}") };
    writeln!(
        out,
        "{TITLE}{}{TITLE:#}  {DIM}{kind}, {bits}-bit, in a {host}'s memory{at}{DIM:#}",
        printable(&file.path)
    )?;
    let seconds = file.seconds;
    if functions == 0 {
        writeln!(out, "  no functions  {DIM}{seconds:.2} s{DIM:#}")?;
    } else {
        let accepted = tally.accepted();
        let all = if accepted == functions { GOOD } else { PLAIN };
        writeln!(
            out,
            "  {all}{}{all:#} of {} functions accepted, {} of them by breakpoint only  {DIM}{seconds:.2} s{DIM:#}",
            percent(accepted, functions),
            grouped(functions),
            grouped(tally.by_breakpoint()),
        )?;
    }
    for (shape, count) in tally.shapes().filter(|&(_, count)| count > 0) {
        let style =
            if shape == Shape::Breakpoint { color(AnsiColor::Yellow) } else { color(AnsiColor::Green) };
        line(out, shape.name(), count, functions, style)?;
    }
    if tally.refused() > 0 {
        line(out, "refused", tally.refused(), functions, color(AnsiColor::Red))?;
    }
    for (name, reason) in &tally.refused {
        let example = match reason.functions.first().filter(|_| !list) {
            Some(example) => {
                format!("{DIM}{}: {}{DIM:#}", shortened(&printable(&example.name)), example.text)
            }
            None => String::new(),
        };
        writeln!(out, "    {BAD}{name:<18}{BAD:#} {:>7}  {example}", grouped(reason.count))?;
        for function in reason.functions.iter().filter(|_| list) {
            writeln!(
                out,
                "      {:#x} {}  {DIM}{}{DIM:#}",
                function.entry,
                printable(&function.name),
                function.text
            )?;
        }
    }
    if !left_out.is_empty() {
        writeln!(out, "  {DIM}left out, or kept with a reservation:{DIM:#}")?;
    }
    for left_out in left_out {
        writeln!(out, "    {DIM}{left_out}{DIM:#}")?;
    }
    Ok(())
}

const fn color(color: AnsiColor) -> Style {
    Style::new().fg_color(Some(Color::Ansi(color)))
}

fn line(out: &mut String, name: &str, count: usize, all: usize, style: Style) -> fmt::Result {
    let bar = bar(count, all);
    writeln!(out, "    {name:<16} {:>9} {:>9}  {style}{bar}{style:#}", grouped(count), percent(count, all))
}

/// Two decimals, and never 100 or 0 unless it is all or none.
pub(crate) fn percent(count: usize, all: usize) -> String {
    let hundredths = match (count as u128 * 10_000 + all as u128 / 2).checked_div(all as u128) {
        None => return "-".to_owned(),
        Some(10_000) if count < all => 9_999,
        Some(0) if count > 0 => 1,
        Some(hundredths) => hundredths,
    };
    format!("{}.{:02} %", hundredths / 100, hundredths % 100)
}

/// With a narrow space between thousands.
pub(crate) fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A bar in eighths of a character: something for everything that is there.
fn bar(count: usize, all: usize) -> String {
    const WIDTH: usize = 40;
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (count * WIDTH * 8).checked_div(all).unwrap_or(0).max(usize::from(count > 0));
    "█".repeat(eighths / 8) + PARTS.get(eighths % 8).copied().unwrap_or("")
}

/// The beginning of a long name.
pub(crate) fn shortened(name: &str) -> String {
    const LONG: usize = 48;
    if name.chars().count() <= LONG {
        return name.to_owned();
    }
    name.chars().take(LONG - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_do_not_flatter() {
        assert_eq!(percent(1, 3), "33.33 %");
        assert_eq!(percent(2, 3), "66.67 %");
        assert_eq!(percent(99_999, 100_000), "99.99 %");
        assert_eq!(percent(1, 100_000), "0.01 %");
        assert_eq!(percent(7, 7), "100.00 %");
        assert_eq!(percent(0, 7), "0.00 %");
        assert_eq!(percent(0, 0), "-");
    }

    #[test]
    fn bars_show_what_is_there() {
        assert_eq!(bar(1, 1), "█".repeat(40));
        assert_eq!(bar(1, 1_000_000), "▏");
        assert_eq!(bar(0, 9), "");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(shortened(&"é".repeat(60)).chars().count(), 48);
    }
}
