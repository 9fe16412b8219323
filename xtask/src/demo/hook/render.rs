//! The demonstration as text: entry before, plan, entry while patched, and what came of it.

use super::listing::{Line, Names, listing, patched};
use super::report::Report;
use crate::demo::facts::Facts;
use anyhow::Result;
use owo_colors::{OwoColorize as _, Style};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::ops::Range;

/// Colours, or none when stdout is no terminal or `NO_COLOR` is set.
#[derive(Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    /// For this process' stdout.
    pub(super) fn for_stdout() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()))
    }

    /// For a file.
    pub(super) fn none() -> Self {
        Self(false)
    }

    fn with(self, style: Style, text: &str) -> String {
        if self.0 { text.style(style).to_string() } else { text.to_owned() }
    }

    fn title(self, text: &str) -> String {
        self.with(Style::new().bold().cyan(), text)
    }

    fn faint(self, text: &str) -> String {
        self.with(Style::new().dimmed(), text)
    }

    fn displaced(self, text: &str) -> String {
        self.with(Style::new().yellow(), text)
    }

    fn patch(self, text: &str) -> String {
        self.with(Style::new().magenta().bold(), text)
    }

    fn verdict(self, good: bool, text: &str) -> String {
        self.with(if good { Style::new().green().bold() } else { Style::new().red().bold() }, text)
    }
}

/// The whole demonstration.
pub(super) fn render(facts: &Facts, report: &Report, paint: Paint) -> Result<String> {
    let target = facts.number("target")?;
    let start = facts.number("window_address")?;
    let window = start..start + facts.number("window_len")?;
    let names = names(facts)?;
    let mut out = String::new();
    let size = if facts.text("length").is_empty() { "?" } else { facts.text("length") };
    let head = format!("{} at {target:#x}, {size} bytes", report.target);
    writeln!(
        out,
        "\n{}   {}",
        paint.title(&head),
        paint.faint(&format!("{}, {} CPUs", report.kernel, report.cpus))
    )?;

    writeln!(out, "\n{}", paint.title("entry before"))?;
    // What is reported is longer than a short function.
    let length = facts.number("length").ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let entry = |key| facts.bytes(key).map(|bytes| bytes[..bytes.len().min(length)].to_vec());
    let before = listing(&entry("before")?, target, &names);
    let displaced = window.start..window.start + facts.bytes("displaced")?.len() as u64;
    code(&mut out, &before, &displaced, |text| paint.displaced(text))?;

    writeln!(out, "\n{}", paint.title("plan"))?;
    let length = window.end - window.start;
    field(&mut out, "window", &format!("{:#x}, {length} bytes: what the jump overwrites", window.start))?;
    let instructions = before.iter().filter(|line| displaced.contains(&line.address)).count();
    let bytes = displaced.end - displaced.start;
    field(&mut out, "displaced", &paint.displaced(&format!("{instructions} instructions, {bytes} bytes")))?;
    field(&mut out, "shape", facts.text("shape"))?;
    field(&mut out, "protocol", facts.text("protocol"))?;
    field(&mut out, "detour", &format!("{:#x} {}", facts.number("detour")?, facts.text("detour_symbol")))?;
    field(&mut out, "trampoline", &format!("{:#x}", facts.number("trampoline")?))?;
    let mut slot = facts.bytes("slot_bytes")?;
    while slot.last() == Some(&0xcc) {
        slot.pop();
    }
    code(&mut out, &listing(&slot, facts.number("slot")?, &names), &(0..0), str::to_owned)?;

    writeln!(out, "\n{}", paint.title("entry while detoured"))?;
    let during = patched(&entry("during")?, target, displaced.clone(), &names);
    code(&mut out, &during, &window, |text| paint.patch(text))?;

    writeln!(out, "\n{}", paint.title("entry after"))?;
    code(&mut out, &listing(&entry("after")?, target, &names), &displaced, |text| paint.displaced(text))?;

    writeln!(out, "\n{}", paint.title("/proc/version"))?;
    for when in ["before", "during", "after"] {
        field(&mut out, when, &shortened(facts.text(&format!("version_{when}"))))?;
    }

    writeln!(out, "\n{}", paint.title("result"))?;
    let calls = format!("calls of {}", facts.text("symbol"));
    field(&mut out, &calls, &paint.verdict(report.calls > 0, &report.calls.to_string()))?;
    let changed = if report.proc_version_changed { "yes" } else { "no" };
    field(&mut out, "version changed", &paint.verdict(report.proc_version_changed, changed))?;
    let compared = format!(
        " ({} bytes of kernel text compared, {} sites changed by the kernel itself)",
        facts.text("text_bytes"),
        facts.text("own_sites")
    );
    let restored = paint.verdict(report.restored, if report.restored { "yes" } else { "NO" });
    field(&mut out, "restored", &(restored + &paint.faint(&compared)))?;
    let warnings = paint.verdict(report.kernel_warnings == 0, &report.kernel_warnings.to_string());
    field(&mut out, "kernel warnings", &warnings)?;
    let times = format!(
        "{:.1} s in all; detoured for {} s of the guest's time",
        report.seconds,
        facts.text("load_seconds")
    );
    field(&mut out, "time", &times)?;
    Ok(out)
}

/// The beginning and the end of a long line.
fn shortened(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    match letters.as_slice() {
        [head @ .., _] if head.len() >= 90 => {
            let (start, end) = (&letters[..36], &letters[letters.len() - 50..]);
            format!("{} … {}", String::from_iter(start), String::from_iter(end))
        }
        _ => text.to_owned(),
    }
}

/// Names of the addresses that the listings refer to.
fn names(facts: &Facts) -> Result<Names> {
    let detour = match facts.text("detour_symbol") {
        "" => "detour",
        symbol => symbol,
    };
    let target = facts.number("target")?;
    let back = facts.number("window_address")? + facts.number("window_len")?;
    let symbol = facts.text("symbol");
    Ok(Names(vec![
        (facts.number("detour")?, detour.to_owned()),
        (facts.number("trampoline")?, "trampoline".to_owned()),
        (facts.number("slot")?, "relay".to_owned()),
        (back, format!("{symbol}+{:#x}", back.wrapping_sub(target))),
    ]))
}

fn field(out: &mut String, name: &str, value: &str) -> std::fmt::Result {
    writeln!(out, "  {name:<16} {value}")
}

/// Writes a listing; lines inside `window` go through `mark`.
fn code(
    out: &mut String,
    lines: &[Line],
    window: &Range<u64>,
    mark: impl Fn(&str) -> String,
) -> std::fmt::Result {
    for line in lines {
        let text =
            format!("{:016x}  {:<30}  {}", line.address, crate::demo::facts::hex(&line.bytes), line.text);
        let inside = window.contains(&line.address);
        writeln!(out, "  {} {}", if inside { '>' } else { ' ' }, if inside { mark(&text) } else { text })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_report_renders() {
        let mut facts = Facts::default();
        for line in include_str!("sample.txt").lines() {
            facts.take(line);
        }
        let report = Report::new(&facts, "6.12.117", 4, "tcg", 0, 0, 12.3).unwrap();
        assert!(report.failures(&facts).is_empty(), "{:?}", report.failures(&facts));
        let text = render(&facts, &report, Paint(false)).unwrap();
        assert!(text.contains("jmp kd_version_detour"), "{text}");
        assert!(text.contains("jmp version_proc_show+0xf"), "{text}");
        assert!(!text.contains('\u{1b}'));
        assert!(render(&facts, &report, Paint(true)).unwrap().contains('\u{1b}'));
    }
}
