//! Shapes and text of a picture. The picture brings its own ground, so it reads on light and dark pages.

use crate::markup::Escaped;
use std::fmt::Write as _;

/// What a box is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// Code that is not touched.
    Plain,
    /// Landing pads and ftrace sites.
    Pad,
    /// Displaced instructions, and their copies.
    Displaced,
    /// Written by the patch, and jumps of the slot.
    Written,
    /// Left over.
    Dead,
}

impl Fill {
    const fn class(self) -> &'static str {
        match self {
            Self::Plain => "bp",
            Self::Pad => "bl",
            Self::Displaced => "bd",
            Self::Written => "bw",
            Self::Dead => "bx",
        }
    }
}

/// The colour of an arrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    /// What happens anyway.
    Black,
    /// What kdetour wrote.
    Red,
    /// What the detour does.
    Green,
}

impl Ink {
    const fn name(self) -> &'static str {
        match self {
            Self::Black => "k",
            Self::Red => "r",
            Self::Green => "g",
        }
    }
}

/// Width of a letter of the code's font.
pub(super) const LETTER: f64 = 7.85;
/// Size of a byte's box, with the gap to the next.
pub(super) const BOX: f64 = 24.0;
/// Height of a byte's box.
pub(super) const BOX_HEIGHT: f64 = 21.0;

const STYLE: &str = r#"
.m{font:13px "DejaVu Sans Mono","Liberation Mono",Menlo,Consolas,monospace;fill:#24262b}
.b{font:12px "DejaVu Sans Mono","Liberation Mono",Menlo,Consolas,monospace;fill:#24262b;text-anchor:middle}
.o{font:11px "DejaVu Sans Mono","Liberation Mono",Menlo,Consolas,monospace;fill:#6b6f78;text-anchor:end}
.s{font:13px "DejaVu Sans","Liberation Sans",Helvetica,Arial,sans-serif;fill:#6b6f78}
.t{font:bold 15px "DejaVu Sans","Liberation Sans",Helvetica,Arial,sans-serif;fill:#24262b}
.n{font:bold 12px "DejaVu Sans","Liberation Sans",Helvetica,Arial,sans-serif;fill:#fff;text-anchor:middle}
.red{fill:#c8374f}
.panel{fill:#fff;stroke:#c9c3b4;stroke-width:1.5}
.pg{stroke:#3f8f55}.py{stroke:#d9a92c}.pr{stroke:#c8374f}
.bp{fill:#eceef1;stroke:#c3c8d0}.bl{fill:#dfe9f7;stroke:#7d9cc6}.bd{fill:#fdeab8;stroke:#d9a92c}
.bw{fill:#f9cfd5;stroke:#c8374f}.bx{fill:#f6f6f6;stroke:#d5d5d5}
.w{fill:none;stroke:#c8374f;stroke-width:2;stroke-dasharray:4 2.5}
.halo{fill:none;stroke:#fbfaf6;stroke-width:6}
.a{fill:none;stroke-width:2}
.k{stroke:#24262b}.r{stroke:#c8374f}.g{stroke:#3f8f55}
.dash{stroke-dasharray:6 4}
.fk{fill:#24262b}.fr{fill:#c8374f}.fg{fill:#3f8f55}
"#;

/// A picture in the making.
pub(super) struct Svg {
    body: String,
}

impl Svg {
    pub(super) const fn new() -> Self {
        Self { body: String::new() }
    }

    /// Text of a class, from `x` on, on the line `y`.
    pub(super) fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        let _ = writeln!(
            self.body,
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}" xml:space="preserve">{}</text>"#,
            Escaped(text)
        );
    }

    /// A rounded box.
    pub(super) fn rect(&mut self, class: &str, (x, y): (f64, f64), (w, h): (f64, f64), radius: f64) {
        let _ = writeln!(
            self.body,
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" rx="{radius}"/>"#
        );
    }

    /// A byte in its box, whose left upper corner is given.
    pub(super) fn byte(&mut self, fill: Fill, x: f64, y: f64, byte: u8) {
        self.rect(fill.class(), (x, y), (BOX - 2.0, BOX_HEIGHT), 3.0);
        self.text("b", x + (BOX - 2.0) / 2.0, y + 15.0, &format!("{byte:02x}"));
    }

    /// An empty box of that kind.
    pub(super) fn sample(&mut self, fill: Fill, x: f64, y: f64) {
        self.rect(fill.class(), (x, y), (BOX - 2.0, 16.0), 3.0);
    }

    /// A line through the points, with rounded corners and a head at its end. Between `clear.0` and `clear.1` it
    /// keeps others at a distance that it crosses.
    pub(super) fn arrow(&mut self, ink: Ink, dashed: bool, clear: (f64, f64), points: &[(f64, f64)]) {
        let around: Vec<(f64, f64)> =
            points.iter().map(|&(x, y)| (x.max(clear.0 + 2.0).min(clear.1 - 2.0), y)).collect();
        let (around, path) = (rounded(&around), rounded(points));
        let name = ink.name();
        let dash = if dashed { " dash" } else { "" };
        let _ = writeln!(self.body, r#"<path class="halo" d="{around}"/>"#);
        let _ =
            writeln!(self.body, r#"<path class="a {name}{dash}" d="{path}" marker-end="url(#h{name})"/>"#);
    }

    /// A number in a circle.
    pub(super) fn badge(&mut self, ink: Ink, x: f64, y: f64, number: usize) {
        let _ = writeln!(self.body, r#"<circle class="f{}" cx="{x:.1}" cy="{y:.1}" r="9.5"/>"#, ink.name());
        self.text("n", x, y + 4.3, &number.to_string());
    }

    /// The whole picture.
    pub(super) fn finish(self, (w, h): (f64, f64), title: &str, description: &str) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:.0} {h:.0}" width="{w:.0}" height="{h:.0}" role="img" aria-labelledby="t d">"#
        );
        let _ = writeln!(out, r#"<title id="t">{}</title>"#, Escaped(title));
        let _ = writeln!(out, r#"<desc id="d">{}</desc>"#, Escaped(description));
        let _ = writeln!(out, "<style>{STYLE}</style>\n<defs>");
        for ink in [Ink::Black, Ink::Red, Ink::Green] {
            let name = ink.name();
            let _ = writeln!(
                out,
                r#"<marker id="h{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9" orient="auto-start-reverse" markerUnits="userSpaceOnUse"><path class="f{name}" d="M0 0.8 10 5 0 9.2z"/></marker>"#
            );
        }
        let (right, bottom) = (w - 2.0, h - 2.0);
        let _ = writeln!(
            out,
            "</defs>\n<rect x=\"1\" y=\"1\" width=\"{right:.0}\" height=\"{bottom:.0}\" rx=\"12\" fill=\"#fbfaf6\" stroke=\"#d8d3c6\" stroke-width=\"1.5\"/>"
        );
        out.push_str(&self.body);
        out.push_str("</svg>\n");
        out
    }
}

/// The path through the points.
fn rounded(points: &[(f64, f64)]) -> String {
    let mut path = String::new();
    for (index, &(x, y)) in points.iter().enumerate() {
        let neighbours = (index.checked_sub(1).and_then(|before| points.get(before)), points.get(index + 1));
        match neighbours {
            (Some(&before), Some(&after)) => {
                let (ax, ay) = towards((x, y), before);
                let (bx, by) = towards((x, y), after);
                let _ = write!(path, " L{ax:.1} {ay:.1} Q{x:.1} {y:.1} {bx:.1} {by:.1}");
            }
            (None, _) => {
                let _ = write!(path, "M{x:.1} {y:.1}");
            }
            (_, None) => {
                let _ = write!(path, " L{x:.1} {y:.1}");
            }
        }
    }
    path
}

/// A point a little way from one towards another.
fn towards((x, y): (f64, f64), (to_x, to_y): (f64, f64)) -> (f64, f64) {
    const ROUND: f64 = 7.0;
    let length = (to_x - x).hypot(to_y - y);
    let part = if length > 2.0 * ROUND { ROUND / length } else { 0.5 };
    (x + (to_x - x) * part, y + (to_y - y) * part)
}

/// The text, with its middle left out where it has more than `most` letters.
pub(super) fn fitted(text: &str, most: usize) -> String {
    let letters: Vec<char> = text.chars().collect();
    if letters.len() <= most {
        return text.to_owned();
    }
    let kept = most.saturating_sub(1);
    let (head, tail) = (kept - kept / 3, kept / 3);
    let start = letters.iter().take(head);
    let end = letters.iter().skip(letters.len() - tail);
    start.chain(&['…']).chain(end).collect()
}

/// As many letters of the headings' font as surely fit.
pub(super) fn letters(width: f64) -> usize {
    // Capitals are wider than that, but no name has only capitals of a proportional font.
    (width / 9.6).max(4.0) as usize
}
