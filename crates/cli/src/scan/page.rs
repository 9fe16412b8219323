//! The counts as a page: one file, without scripts, for light and dark.

use super::table::{grouped, percent};
use super::{Counts, Scanned};
use crate::markup::Escaped;
use kdetour_plan::Shape;
use std::fmt::{self, Write as _};

const STYLE: &str = include_str!("page.css");

/// The page.
pub(crate) fn html(files: &[Scanned]) -> Result<String, fmt::Error> {
    let mut out = String::new();
    out.push_str("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n");
    writeln!(out, "<title>kdetour scan</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>")?;
    head(&mut out, files)?;
    legend(&mut out)?;
    for file in files {
        match &file.outcome {
            Ok(counts) => card(&mut out, file, counts, files.len() <= 2)?,
            Err(error) => writeln!(
                out,
                "<section class=\"error\"><h2>{}</h2><p>{}</p></section>",
                Escaped(&file.path),
                Escaped(format!("{error:#}"))
            )?,
        }
    }
    out.push_str("</main>\n</body>\n</html>\n");
    Ok(out)
}

fn head(out: &mut String, files: &[Scanned]) -> fmt::Result {
    let counts = || files.iter().filter_map(|file| file.outcome.as_ref().ok());
    let functions: usize = counts().map(|counts| counts.tally.functions()).sum();
    let accepted: usize = counts().map(|counts| counts.tally.accepted()).sum();
    let trapped: usize = counts().map(|counts| counts.tally.by_breakpoint()).sum();
    writeln!(
        out,
        "<h1>A detour can be planned for {} of {} functions</h1>",
        percent(accepted, functions),
        grouped(functions)
    )?;
    writeln!(
        out,
        "<p class=\"soft\">{} of them by breakpoint only, {} refused; {} files; kdetour {}</p>",
        grouped(trapped),
        grouped(functions - accepted),
        files.len(),
        env!("CARGO_PKG_VERSION")
    )
}

const fn meaning(shape: Shape) -> &'static str {
    match shape {
        Shape::WholeInstruction => "jump over one whole instruction",
        Shape::Jump5Kept => "jump that keeps later instructions as they are",
        Shape::Jump5Trapped => "jump with traps on later instructions",
        Shape::ShortJump => "two bytes, to a cave",
        Shape::Jump5 => "jump over several, needs a quiesce",
        Shape::Jump14 => "fourteen bytes, needs a quiesce",
        Shape::Breakpoint => "int3, through the host's handler",
        _ => "",
    }
}

fn legend(out: &mut String) -> fmt::Result {
    out.push_str("<ul class=\"legend\">\n");
    for shape in Shape::ALL {
        let name = shape.name();
        writeln!(
            out,
            "<li><span class=\"key\" style=\"background:var(--{name})\"></span><b>{name}</b> <span class=\"soft\">{}</span></li>",
            meaning(shape)
        )?;
    }
    out.push_str("<li><span class=\"key stripes\"></span><b>refused</b></li>\n</ul>\n");
    writeln!(
        out,
        "<p class=\"soft\">A running kernel is asked for more than its file tells: its kprobe \
         blacklist and its entry code are refused there.</p>"
    )
}

fn card(out: &mut String, file: &Scanned, counts: &Counts, open: bool) -> fmt::Result {
    let Counts { kind, bits, host, base, tally, left_out } = counts;
    let (functions, accepted, refused) = (tally.functions(), tally.accepted(), tally.refused());
    let name = file.path.rsplit('/').next().unwrap_or(&file.path);
    let rate = percent(accepted, functions);
    writeln!(
        out,
        "<section>\n<div class=\"head\"><h2>{}</h2><span class=\"rate\">{rate}</span></div>",
        Escaped(name)
    )?;
    let at = if *base == 0 { String::new() } else { format!(" at {base:#x}") };
    writeln!(
        out,
        "<p class=\"soft\">{} · {kind}, {bits}-bit, in a {host}'s memory{at} · {} functions in {:.2} s</p>",
        Escaped(&file.path),
        grouped(functions),
        file.seconds
    )?;
    if functions > 0 {
        let label = format!("{rate} accepted, {} refused", percent(refused, functions));
        writeln!(out, "<div class=\"bar\" role=\"img\" aria-label=\"{label}\">")?;
        for (shape, count) in tally.shapes().filter(|&(_, count)| count > 0) {
            let shape = shape.name();
            writeln!(
                out,
                "<span style=\"flex-grow:{count};background:var(--{shape})\" title=\"{shape}: {} ({})\"></span>",
                grouped(count),
                percent(count, functions)
            )?;
        }
        if refused > 0 {
            writeln!(
                out,
                "<span class=\"stripes\" style=\"flex-grow:{refused}\" title=\"refused: {} ({})\"></span>",
                grouped(refused),
                percent(refused, functions)
            )?;
        }
        out.push_str("</div>\n<ul class=\"counts\">\n");
        for (shape, count) in tally.shapes().filter(|&(_, count)| count > 0) {
            let style = format!("style=\"background:var(--{})\"", shape.name());
            item(out, "key", &style, shape.name(), count, functions)?;
        }
        item(out, "key stripes", "", "refused", refused, functions)?;
        out.push_str("</ul>\n");
    }
    reasons(out, counts, open)?;
    if !left_out.is_empty() {
        out.push_str("<details><summary>Left out, or kept with a reservation</summary>\n<div class=\"scroll\"><table>\n");
        out.push_str("<tr><th>what</th><th>how many</th><th>the first at</th></tr>\n");
        for left in left_out {
            let first =
                if left.first == 0 { String::new() } else { format!("<code>{:#x}</code>", left.first) };
            let (what, count) = (Escaped(left.reason), grouped(left.count));
            writeln!(out, "<tr><td>{what}</td><td class=\"n\">{count}</td><td>{first}</td></tr>")?;
        }
        out.push_str("</table></div></details>\n");
    }
    out.push_str("</section>\n");
    Ok(())
}

fn item(out: &mut String, class: &str, style: &str, name: &str, count: usize, all: usize) -> fmt::Result {
    writeln!(
        out,
        "<li><span class=\"{class}\" {style}></span>{name} <b>{}</b> <span class=\"soft\">{}</span></li>",
        grouped(count),
        percent(count, all)
    )
}

fn reasons(out: &mut String, counts: &Counts, open: bool) -> fmt::Result {
    let tally = &counts.tally;
    if tally.refused() == 0 {
        return Ok(());
    }
    let open = if open { " open=\"open\"" } else { "" };
    writeln!(
        out,
        "<details{open}><summary>Why functions are refused</summary>\n<div class=\"scroll\"><table>"
    )?;
    out.push_str("<tr><th>reason</th><th>how many</th><th>for example</th><th>what can be done</th></tr>\n");
    for (name, reason) in &tally.refused {
        write!(out, "<tr><td>{name}</td><td class=\"n\">{}</td><td>", grouped(reason.count))?;
        for example in reason.functions.iter().take(3) {
            write!(out, "<p><code>{}</code> {}</p>", Escaped(&example.name), Escaped(&example.text))?;
        }
        writeln!(out, "</td><td>{}</td></tr>", Escaped(reason.advice))?;
    }
    out.push_str("</table></div></details>\n");
    Ok(())
}
