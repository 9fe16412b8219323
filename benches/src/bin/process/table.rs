//! Figures in rows and columns: printed, and as JSON.

use serde::Serialize;
use std::fmt::Write as _;

/// One table.
#[derive(Serialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<&'static str>,
    pub(crate) rows: Vec<Row>,
    /// What should be known about them.
    pub(crate) notes: Vec<String>,
}

/// One of its rows.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) subject: String,
    pub(crate) cells: Vec<Cell>,
}

/// A figure, or what is said in its place.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Cell {
    Number(Figure),
    Words(String),
}

#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct Figure {
    value: f64,
    /// How many digits behind the point are shown.
    #[serde(skip)]
    digits: usize,
}

/// A number with digits behind the point.
pub(crate) const fn number(value: f64, digits: usize) -> Cell {
    Cell::Number(Figure { value, digits })
}

/// A count.
pub(crate) const fn count(value: u64) -> Cell {
    number(value as f64, 0)
}

/// Anything else.
pub(crate) fn words(text: impl Into<String>) -> Cell {
    Cell::Words(text.into())
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, columns: &[&'static str]) -> Self {
        Self { title: title.into(), columns: columns.to_vec(), rows: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn row(&mut self, subject: impl Into<String>, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(Row { subject: subject.into(), cells: cells.into_iter().collect() });
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// As text.
    pub(crate) fn shown(&self) -> String {
        let mut lines: Vec<Vec<String>> = vec![
            std::iter::once(String::new()).chain(self.columns.iter().map(|&name| name.to_owned())).collect(),
        ];
        for row in &self.rows {
            let mut line = vec![row.subject.clone()];
            line.extend(row.cells.iter().map(Cell::shown));
            lines.push(line);
        }
        let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column| lines.iter().filter_map(|line| line.get(column)).map(String::len).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut out = format!("{}\n", self.title);
        for line in &lines {
            let mut text = String::new();
            for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                _ = if column == 0 {
                    write!(text, "  {cell:width$}")
                } else {
                    write!(text, "  {cell:>width$}")
                };
            }
            out += text.trim_end();
            out.push('\n');
        }
        for note in &self.notes {
            _ = writeln!(out, "  {note}");
        }
        out
    }
}

impl Cell {
    fn shown(&self) -> String {
        match self {
            Self::Words(text) => text.clone(),
            // What nobody tells here.
            Self::Number(Figure { value, .. }) if value.is_nan() => "-".to_owned(),
            Self::Number(Figure { value, digits }) => format!("{value:.digits$}"),
        }
    }
}

/// The middle one.
pub(crate) fn median(numbers: &mut [f64]) -> f64 {
    quantile(numbers, 0.5)
}

/// The one that this part of them is below.
pub(crate) fn quantile(numbers: &mut [f64], part: f64) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    let index = (numbers.len() as f64 * part) as usize;
    numbers.get(index.min(numbers.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
