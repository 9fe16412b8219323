//! A box with code: rows of bytes, and what they mean.

use super::svg::{BOX, BOX_HEIGHT, Fill, LETTER, Svg, fitted, letters};

/// One thing in a panel, from top to bottom.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// An instruction.
    Code(Code),
    /// A heading.
    Caption(String),
    /// A line of small text.
    Note(String),
}

/// An instruction's bytes and text.
#[derive(Clone, Debug)]
pub(super) struct Code {
    /// Where it is.
    pub(super) address: u64,
    /// What stands in front: how far it is from the start.
    pub(super) offset: String,
    /// A thread may stand here while the patch is written.
    pub(super) boundary: bool,
    /// The bytes.
    pub(super) bytes: Vec<(u8, Fill)>,
    /// So many of the first bytes are in the window.
    pub(super) window: usize,
    /// The instruction.
    pub(super) text: String,
}

/// A box with a title.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) class: &'static str,
    pub(super) title: String,
    pub(super) subtitle: String,
    pub(super) items: Vec<Item>,
}

/// Where a row is, for arrows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Behind its text.
    pub(super) end: f64,
    /// The middle of its first line.
    pub(super) y: f64,
}

const MARGIN: f64 = 14.0;
const HEAD: f64 = 62.0;
const ROW: f64 = 28.0;
const OFFSET: f64 = 40.0;
/// Bytes in a line.
const ACROSS: usize = 8;
/// Letters of an instruction.
const MOST: usize = 34;

impl Panel {
    /// A panel that is as wide as it needs to be.
    pub(super) fn new(class: &'static str, title: String, subtitle: String, items: Vec<Item>) -> Self {
        let mut panel = Self { x: 0.0, y: 0.0, width: 0.0, class, title, subtitle, items };
        let text = panel.codes().map(|code| code.text.chars().count().min(MOST)).max().unwrap_or(0);
        let subtitle = panel.subtitle.chars().count() as f64 * 7.9;
        let notes = panel.items.iter().filter_map(|item| match item {
            Item::Note(text) => Some(text.chars().count() as f64 * 7.6),
            _ => None,
        });
        let notes = notes.fold(subtitle, f64::max) + 2.0 * MARGIN;
        let code = panel.text_x() + text as f64 * LETTER + MARGIN + 12.0;
        panel.width = code.max(notes).max(236.0);
        panel
    }

    fn codes(&self) -> impl Iterator<Item = &Code> {
        self.items.iter().filter_map(|item| match item {
            Item::Code(code) => Some(code),
            _ => None,
        })
    }

    /// Where instructions begin.
    fn text_x(&self) -> f64 {
        let across = self.codes().map(|code| code.bytes.len().min(ACROSS)).max().unwrap_or(0);
        let offset = if self.codes().any(|code| !code.offset.is_empty()) { OFFSET } else { 0.0 };
        self.x + MARGIN + offset + across as f64 * BOX + 8.0
    }

    /// The right edge.
    pub(super) fn right(&self) -> f64 {
        self.x + self.width
    }

    /// The lower edge.
    pub(super) fn bottom(&self) -> f64 {
        let items: f64 = self.items.iter().map(height).sum();
        self.y + HEAD + items + 4.0
    }

    /// Where the instruction at an address is.
    pub(super) fn place(&self, address: u64) -> Option<Place> {
        let mut y = self.y + HEAD;
        for item in &self.items {
            if let Item::Code(code) = item
                && code.address == address
            {
                let letters = code.text.chars().count().min(MOST);
                return Some(Place { end: self.text_x() + letters as f64 * LETTER, y: y + BOX_HEIGHT / 2.0 });
            }
            y += height(item);
        }
        None
    }

    /// Where the last item is.
    pub(super) fn last(&self) -> Place {
        let height = self.items.last().map_or(0.0, height);
        let end = match self.items.last() {
            Some(Item::Note(text)) => self.x + MARGIN + text.chars().count() as f64 * 7.6,
            _ => self.right() - MARGIN,
        };
        Place { end, y: self.bottom() - 4.0 - height + BOX_HEIGHT / 2.0 }
    }

    /// Draws it.
    pub(super) fn draw(&self, svg: &mut Svg) {
        svg.rect(
            &format!("panel {}", self.class),
            (self.x, self.y),
            (self.width, self.bottom() - self.y),
            8.0,
        );
        let inner = self.width - 2.0 * MARGIN;
        svg.text("t", self.x + MARGIN, self.y + 24.0, &fitted(&self.title, letters(inner)));
        svg.text("s", self.x + MARGIN, self.y + 44.0, &self.subtitle);
        let mut y = self.y + HEAD;
        for item in &self.items {
            match item {
                Item::Code(code) => self.draw_code(svg, code, y),
                Item::Caption(text) => svg.text("s", self.x + MARGIN, y + 14.0, text),
                Item::Note(text) => svg.text("s", self.x + MARGIN, y + 15.0, text),
            }
            y += height(item);
        }
    }

    fn draw_code(&self, svg: &mut Svg, code: &Code, y: f64) {
        let offset = if self.codes().any(|code| !code.offset.is_empty()) { OFFSET } else { 0.0 };
        let start = self.x + MARGIN + offset;
        let class = if code.boundary { "o red" } else { "o" };
        svg.text(class, start - 7.0, y + 15.0, &code.offset);
        for (index, &(byte, fill)) in code.bytes.iter().enumerate() {
            let (line, column) = (index / ACROSS, index % ACROSS);
            svg.byte(fill, start + column as f64 * BOX, y + line as f64 * ROW, byte);
        }
        if code.window > 0 {
            let across = code.window.min(ACROSS) as f64;
            svg.rect("w", (start - 3.0, y - 3.0), (across * BOX + 4.0, BOX_HEIGHT + 6.0), 4.0);
            if let Some(more) = code.window.checked_sub(ACROSS).filter(|&more| more > 0) {
                let width = more as f64 * BOX + 4.0;
                svg.rect("w", (start - 3.0, y + ROW - 3.0), (width, BOX_HEIGHT + 6.0), 4.0);
            }
        }
        svg.text("m", self.text_x(), y + 15.0, &fitted(&code.text, MOST));
    }
}

fn height(item: &Item) -> f64 {
    match item {
        Item::Code(code) => ROW * code.bytes.len().div_ceil(ACROSS).max(1) as f64,
        Item::Caption(_) => 23.0,
        Item::Note(_) => 24.0,
    }
}
