//! The numbers as tables.

use crate::figures::{Compared, Figures, Own};
use std::collections::BTreeMap;

/// Everything.
pub(crate) fn all(figures: &Figures) -> String {
    let first = figures.first_use;
    let mut out = format!(
        "first use of the decoder: {:.0} microseconds, {} allocations, {} bytes\n\n",
        first.microseconds, first.allocations, first.bytes
    );
    out += &own(&figures.files);
    out.push('\n');
    out += &slots(&figures.files);
    out.push('\n');
    out += &results(&figures.files);
    if !figures.peers.is_empty() {
        out.push('\n');
        out += &right(&figures.peers);
        out.push('\n');
        out += &fast(&figures.peers);
    }
    out
}

fn own(files: &[Own]) -> String {
    let mut rows = vec![row([
        "survey + plan",
        "model",
        "functions",
        "a second",
        "best round",
        "survey ns",
        "plan ns",
        "heap survey",
        "heap plan",
    ])];
    for file in files {
        let (timing, heap) = (&file.timing, &file.heap);
        rows.push(vec![
            file.file.clone(),
            format!("{} {}", file.model, file.bits),
            file.functions.to_string(),
            whole(timing.functions_per_second),
            whole(timing.functions_per_second_best),
            whole(timing.survey_ns),
            whole(timing.plan_ns),
            heap.survey_allocations.to_string(),
            heap.plan_allocations.to_string(),
        ]);
    }
    aligned(&rows)
}

fn slots(files: &[Own]) -> String {
    let mut rows = vec![row(["slots, bytes", "shape", "count", "median", "90 %", "maximum"])];
    for file in files {
        for (shape, slots) in &file.slots {
            let numbers =
                [slots.count, slots.median, slots.ninety, slots.maximum].map(|number| number.to_string());
            rows.push([file.file.clone(), shape.clone()].into_iter().chain(numbers).collect());
        }
    }
    aligned(&rows)
}

fn results(files: &[Own]) -> String {
    let mut rows = vec![row(["results", "functions", "accepted", "%", "refused", "why"])];
    for file in files {
        let counts = &file.counts;
        rows.push(vec![
            file.file.clone(),
            file.functions.to_string(),
            counts.accepted.to_string(),
            format!("{:.3}", 100.0 * counts.accepted as f64 / file.functions as f64),
            counts.refused.to_string(),
            reasons(&counts.refusals),
        ]);
    }
    aligned(&rows)
}

fn reasons(refusals: &BTreeMap<String, usize>) -> String {
    let reasons: Vec<_> = refusals.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    if reasons.is_empty() { "-".to_owned() } else { reasons.join(", ") }
}

/// What came of the functions.
fn right(peers: &[Compared]) -> String {
    let mut rows = vec![row([
        "side by side",
        "file",
        "functions",
        "accepted",
        "refused",
        "panicked",
        "crashed",
        "wrong",
        "below stack",
        "returns",
        "jumped into",
        "neighbour",
    ])];
    for one in peers {
        let counts = [one.functions, one.accepted, one.refused, one.panicked, one.crashed];
        let emulated = one.emulated.as_ref();
        let emulated = [
            emulated.map(|emulated| emulated.wrong),
            emulated.map(|emulated| emulated.below_stack),
            emulated.map(|emulated| emulated.returns_into_slot),
        ];
        let mut cells = vec![one.peer.clone(), one.file.clone()];
        cells.extend(counts.map(|count| count.to_string()));
        cells.extend(emulated.map(|count| shown(count.map(|count| count.to_string()))));
        cells.extend([one.jumps_into_window, one.overwrites_neighbour].map(|count| count.to_string()));
        rows.push(cells);
    }
    let mut out = aligned(&rows);
    for one in peers.iter().filter(|one| !one.refusals.is_empty()) {
        out += &format!("{} refuses in {}: {}\n", one.peer, one.file, reasons(&one.refusals));
    }
    out
}

/// How fast, and what it takes.
fn fast(peers: &[Compared]) -> String {
    let mut rows = vec![row([
        "side by side",
        "file",
        "a second",
        "kdetour is",
        "if kept",
        "allocations",
        "heap kept",
        "code kept",
    ])];
    for one in peers {
        let digits =
            |number: Option<f64>, digits: usize| shown(number.map(|number| format!("{number:.digits$}")));
        let timing = one.timing;
        rows.push(vec![
            one.peer.clone(),
            one.file.clone(),
            shown(timing.map(|timing| whole(timing.dropped_per_second))),
            shown(one.kdetour_is_times_as_fast.map(|ratio| format!("{ratio:.2} x"))),
            shown(timing.and_then(|timing| timing.kept_per_second).map(whole)),
            digits(timing.map(|timing| timing.allocations), 1),
            digits(timing.and_then(|timing| timing.heap_bytes_kept), 0),
            digits(timing.and_then(|timing| timing.executable_bytes_kept), 0),
        ]);
    }
    aligned(&rows)
}

fn shown(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".to_owned())
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// A number with its thousands apart.
fn whole(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The first two columns to the left, the others to the right; the last one as it is if it is words.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column > 0 {
                line += "  ";
            }
            let is_number = cell.starts_with(|first: char| first.is_ascii_digit()) || column > 1;
            line +=
                &if is_number && *width < 40 { format!("{cell:>width$}") } else { format!("{cell:width$}") };
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        let shown = [0.4, 999.0, 1000.0, 1_234_567.2].map(whole);
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [row(["file", "model", "n"]), row(["libc.so.6", "process 64", "12"])];
        assert_eq!(aligned(&rows), "file       model        n\nlibc.so.6  process 64  12\n");
    }
}
