//! The panels of one detour, and the arrows between them.
//!
//! ```text
//!              call target
//!                  |
//!   target,     target,  --- patch ---------> the detour
//!   before      detoured                          | calls the original
//!                  ^                              v
//!                  +------ jump back ---------- the slot: relay, trampoline
//!               the cave (if there is one)
//! ```

use super::panel::{Code, Item, Panel};
use super::svg::{Fill, Ink, Svg, fitted, letters};
use crate::anatomy::{Anatomy, Mark, Role, Row};
use kdetour_plan::Shape;

/// One arrow's meaning, in the order of what happens.
struct Step {
    ink: Ink,
    text: String,
    /// Whether there is an arrow for it.
    drawn: bool,
}

const EDGE: f64 = 24.0;
const TOP: f64 = 58.0;
/// Between the target before and while it is detoured.
const LEFT_GAP: f64 = 56.0;
/// Between the target and the slot: two lanes for arrows.
const GAP: f64 = 104.0;
/// At the right: two lanes.
const RIGHT_GAP: f64 = 72.0;

/// The picture.
pub(super) fn draw(anatomy: &Anatomy) -> String {
    let mut svg = Svg::new();
    let mut scene = Scene::new(anatomy);
    scene.place();
    for panel in scene.panels() {
        panel.draw(&mut svg);
    }
    let steps = scene.arrows(&mut svg);
    let height = scene.legend(&mut svg, &steps);
    let title = format!("A detour of {} as {}", anatomy.title, anatomy.shape);
    let description: Vec<&str> = steps.iter().map(|step| step.text.as_str()).collect();
    svg.finish((scene.width(), height), &title, &format!("{}.", description.join("; ")))
}

struct Scene<'a> {
    anatomy: &'a Anatomy,
    before: Panel,
    after: Panel,
    cave: Option<Panel>,
    detour: Panel,
    slot: Panel,
}

impl<'a> Scene<'a> {
    fn new(anatomy: &'a Anatomy) -> Self {
        let name = &anatomy.title;
        let len = anatomy.shape.window_len();
        let changed = match (anatomy.changed, len) {
            (1, 1) => "one byte has changed".to_owned(),
            (1, len) => format!("one byte of {len} has changed"),
            (changed, len) if changed == len => format!("{len} bytes have changed"),
            (changed, len) => format!("{changed} of {len} bytes have changed"),
        };
        let slot_len = anatomy.slot_end.wrapping_sub(anatomy.slot.first().map_or(0, |row| row.address));
        let slot = anatomy.slot.first().map_or(0, |row| row.address);
        let changed = format!("{}: {changed}", anatomy.shape);
        let title = |what: &str| format!("{name}, {what}");
        Self {
            anatomy,
            before: Panel::new(
                "",
                title("before"),
                format!("at {:#x}", anatomy.entry),
                target(anatomy, &anatomy.before, true),
            ),
            after: Panel::new("", title("detoured"), changed, target(anatomy, &anatomy.after, false)),
            cave: anatomy.cave.as_ref().map(|(after, before)| cave(anatomy, after, before)),
            detour: Panel::new(
                "pg",
                "The detour".to_owned(),
                format!("your function, {:#x}", anatomy.detour),
                ["look at the call", "call the original", "return the result"].map(line).to_vec(),
            ),
            slot: Panel::new(
                "py",
                "The slot".to_owned(),
                format!("{slot:#x}, {slot_len} bytes"),
                slot_items(anatomy),
            ),
        }
    }

    fn panels(&self) -> impl Iterator<Item = &Panel> {
        [&self.before, &self.after, &self.detour, &self.slot].into_iter().chain(&self.cave)
    }

    fn place(&mut self) {
        let wide = self.detour.width.max(self.slot.width);
        (self.detour.width, self.slot.width) = (wide, wide);
        if let Some(cave) = &mut self.cave {
            let wide = self.after.width.max(cave.width);
            (self.after.width, cave.width) = (wide, wide);
        }
        (self.before.x, self.before.y) = (EDGE, TOP);
        (self.after.x, self.after.y) = (self.before.right() + LEFT_GAP, TOP);
        if let Some(cave) = &mut self.cave {
            (cave.x, cave.y) = (self.after.x, self.after.bottom() + 34.0);
        }
        (self.detour.x, self.detour.y) = (self.after.right() + GAP, TOP);
        (self.slot.x, self.slot.y) = (self.detour.x, self.detour.bottom() + 34.0);
    }

    fn width(&self) -> f64 {
        // The legend needs that much.
        (self.slot.right() + RIGHT_GAP).max(1080.0)
    }

    /// Draws the arrows; the steps are what they mean.
    fn arrows(&self, svg: &mut Svg) -> Vec<Step> {
        let Anatomy { shape, relay, .. } = *self.anatomy;
        let name = &self.anatomy.title;
        let (back_lane, in_lane) = (self.after.right() + 34.0, self.after.right() + 72.0);
        let (call_lane, relay_lane) = (self.slot.right() + 24.0, self.slot.right() + 52.0);
        let gutter = (self.after.right(), self.slot.x);
        let margin = (self.slot.right(), self.width());
        let mut steps = Vec::new();
        let mut badges = Vec::new();
        let mut step = |ink: Ink, at: (f64, f64), text: String| {
            steps.push(Step { ink, text, drawn: true });
            badges.push((ink, at, steps.len()));
        };

        // The call.
        let x = self.after.x + 28.0;
        svg.arrow(Ink::Black, false, (x, x), &[(x + 30.0, 27.0), (x, 27.0), (x, TOP - 1.0)]);
        let called = fitted(name, letters(self.after.width - 80.0));
        svg.text("m", x + 58.0, 31.5, &format!("call {called}"));
        step(Ink::Black, (x + 42.0, 27.0), format!("somebody calls {called}"));

        // From the patch to the cave, the relay, the detour.
        let patch = self.anatomy.window;
        let mut from = self.after.place(patch).map(|place| (place.end + 8.0, place.y));
        if let (Some(cave), Some(start)) = (&self.cave, self.after.place(patch)) {
            let row = self.anatomy.cave.as_ref().map_or(0, |(after, _)| after.address);
            let end = cave.place(row).unwrap_or(cave.last());
            let lane = self.after.x - 28.0;
            svg.arrow(
                Ink::Red,
                false,
                (0.0, self.after.x),
                &[(self.after.x, start.y), (lane, start.y), (lane, end.y), (cave.x - 1.0, end.y)],
            );
            step(
                Ink::Red,
                (lane, f64::midpoint(start.y, end.y)),
                "the short jump leads to the cave".to_owned(),
            );
            from = Some((end.end + 8.0, end.y));
        }
        let detour_y = self.detour.y + 20.0;
        let to = relay
            .and_then(|relay| self.slot.place(relay))
            .map_or((self.detour.x, detour_y), |place| (self.slot.x, place.y));
        if let Some((x, y)) = from {
            let trap = shape == Shape::Breakpoint;
            svg.arrow(Ink::Red, trap, gutter, &[(x, y), (in_lane, y), (in_lane, to.1), (to.0 - 1.0, to.1)]);
            let text = match (trap, relay.is_some()) {
                (true, _) => "the breakpoint traps; the host's handler sends the thread on to the detour",
                (_, true) => "the jump leads to the relay in the slot",
                (_, false) => "the jump leads to the detour",
            };
            step(Ink::Red, (in_lane, f64::midpoint(y, to.1)), text.to_owned());
        }
        if relay.is_some() {
            let (right, y) = (self.slot.right(), to.1);
            let end = (self.detour.right() + 1.0, detour_y);
            svg.arrow(Ink::Red, false, margin, &[(right, y), (relay_lane, y), (relay_lane, end.1), end]);
            step(Ink::Red, (relay_lane, f64::midpoint(y, end.1)), "the relay leads to the detour".to_owned());
        }

        // The detour calls the original.
        let lines = self.detour.items.len() as f64;
        let call = self.detour.bottom() - 4.0 - 24.0 * (lines - 1.0) + 10.5;
        if let Some(place) = self.slot.place(self.anatomy.trampoline) {
            let right = self.slot.right();
            svg.arrow(
                Ink::Green,
                false,
                margin,
                &[(right, call), (call_lane, call), (call_lane, place.y), (right + 1.0, place.y)],
            );
            let at = (call_lane, f64::midpoint(self.detour.bottom(), self.slot.y));
            step(Ink::Green, at, "the detour may call the original: the trampoline".to_owned());
        }
        let back = self
            .anatomy
            .slot
            .iter()
            .find(|row| row.role == Role::Back)
            .and_then(|row| self.slot.place(row.address));
        if let (Some(back), Some(resume)) = (back, self.anatomy.resume) {
            let end = self.after.place(resume).unwrap_or_else(|| self.after.last());
            svg.arrow(
                Ink::Green,
                false,
                gutter,
                &[(self.slot.x, back.y), (back_lane, back.y), (back_lane, end.y), (end.end + 8.0, end.y)],
            );
            let place = self.anatomy.name(resume).unwrap_or_default();
            let place = fitted(&place, 40);
            step(
                Ink::Green,
                (back_lane, f64::midpoint(back.y, end.y)),
                format!("the copies run, then the rest, from {place} on"),
            );
        } else {
            let text = "the copies run, and leave for where the originals went".to_owned();
            steps.push(Step { ink: Ink::Green, text, drawn: false });
        }
        for (ink, (x, y), number) in badges {
            svg.badge(ink, x, y, number);
        }
        steps
    }

    /// What colours and numbers mean; returns the picture's height.
    fn legend(&self, svg: &mut Svg, steps: &[Step]) -> f64 {
        let bottom = self.panels().map(Panel::bottom).fold(0.0, f64::max);
        let top = bottom + 26.0;
        svg.rect("bp", (EDGE, top - 10.0), (self.width() - 2.0 * EDGE, 0.5), 0.0);
        let has = |fill: Fill| {
            let items = self.panels().flat_map(|panel| &panel.items);
            let codes = items.filter_map(|item| match item {
                Item::Code(code) => Some(code),
                _ => None,
            });
            codes.flat_map(|code| &code.bytes).any(|byte| byte.1 == fill)
        };
        let kept = matches!(self.anatomy.shape, Shape::Jump5Kept);
        let colours = [
            (
                Fill::Displaced,
                if kept {
                    "displaced instructions: their copies, and what is kept of them"
                } else {
                    "displaced instructions, and their copies; padding"
                },
            ),
            (Fill::Written, "written by kdetour: the patch, and its jumps"),
            (Fill::Pad, "landing pad and ftrace site: never touched"),
            (Fill::Dead, "left over: nothing runs through it any more"),
        ];
        let mut y = top + 10.0;
        svg.rect("w", (EDGE, y), (22.0, 16.0), 3.0);
        svg.text("s", EDGE + 32.0, y + 12.5, "the window: the bytes that the patch overwrites");
        for (fill, text) in colours.into_iter().filter(|&(fill, _)| has(fill)) {
            y += 25.0;
            svg.sample(fill, EDGE, y);
            svg.text("s", EDGE + 32.0, y + 12.5, text);
        }
        let interior = self.before.items.iter().any(|item| matches!(item, Item::Code(code) if code.boundary));
        if interior {
            y += 25.0;
            svg.text("o red", EDGE + 22.0, y + 12.5, "+4");
            svg.text("s", EDGE + 32.0, y + 12.5, "interior boundary: a thread may stand here");
        }
        let left = y;
        // Behind the left column's longest text.
        let x = EDGE + 460.0;
        y = top + 10.0;
        for (index, step) in steps.iter().enumerate() {
            if step.drawn {
                svg.badge(step.ink, x + 10.0, y + 8.0, index + 1);
            }
            svg.text("s", x + 30.0, y + 12.5, &step.text);
            y += 25.0;
        }
        let y = y.max(left + 25.0) + 12.0;
        let most = (self.width() - 2.0 * EDGE) / 8.6;
        let length = self.anatomy.length.map_or_else(String::new, |length| format!(", {length} bytes"));
        let what = format!(
            "{} at {:#x}{length}, {}-bit, as {}",
            self.anatomy.title,
            self.anatomy.entry,
            self.anatomy.mode.bits(),
            self.anatomy.shape
        );
        svg.text("s", EDGE, y + 8.0, &fitted(&what, most as usize));
        y + 28.0
    }
}

fn line(text: &str) -> Item {
    Item::Note(text.to_owned())
}

/// The target's rows.
fn target(anatomy: &Anatomy, rows: &[Row], before: bool) -> Vec<Item> {
    let window = anatomy.window;
    let len = anatomy.shape.window_len() as u64;
    let distance = |address: u64| anatomy.mode.wrap(address.wrapping_sub(window));
    let mut items: Vec<Item> = Vec::new();
    for row in rows {
        let in_window = len.saturating_sub(distance(row.address)).min(row.bytes.len() as u64);
        let pad = row.address < window;
        let boundary = distance(row.address) > 0 && distance(row.address) < len;
        let bytes = row.bytes.iter().map(|&(byte, mark)| {
            let fill = match mark {
                Mark::Plain if pad => Fill::Pad,
                Mark::Plain => Fill::Plain,
                Mark::Displaced | Mark::Kept => Fill::Displaced,
                Mark::Patched => Fill::Written,
                Mark::Dead => Fill::Dead,
            };
            (byte, fill)
        });
        items.push(Item::Code(Code {
            address: row.address,
            offset: offset(anatomy.mode.wrap(row.address.wrapping_sub(anatomy.entry))),
            boundary: before && boundary,
            bytes: bytes.collect(),
            window: usize::try_from(in_window).unwrap_or(0),
            text: text(anatomy, row),
        }));
    }
    let shown: usize = rows.iter().map(|row| row.bytes.len()).sum();
    if anatomy.length.is_none_or(|length| length > shown) {
        items.push(line("… the rest of the function"));
    }
    items
}

/// The cave's rows.
fn cave(anatomy: &Anatomy, after: &Row, before: &Row) -> Panel {
    let code = |row: &Row, fill: Fill, address: u64, text: String| {
        let bytes = row.bytes.iter().map(|&(byte, _)| (byte, fill)).collect();
        Item::Code(Code { address, offset: String::new(), boundary: false, bytes, window: 0, text })
    };
    // The row as it was has no address of its own: arrows go to the new one.
    let items = vec![
        code(before, Fill::Displaced, !after.address, "proven padding, before".to_owned()),
        code(after, Fill::Written, after.address, text(anatomy, after)),
    ];
    Panel::new("pr", "The cave".to_owned(), format!("at {:#x}", after.address), items)
}

/// The slot's rows: the relay and the trampoline.
fn slot_items(anatomy: &Anatomy) -> Vec<Item> {
    let start = anatomy.slot.first().map_or(0, |row| row.address);
    let mut items = Vec::new();
    let mut part = None;
    for row in &anatomy.slot {
        let is_relay = row.role == Role::Relay;
        if part != Some(is_relay) {
            part = Some(is_relay);
            let name = if is_relay { "the relay" } else { "the trampoline" };
            items.push(Item::Caption(format!("{name}, {:#x}", row.address)));
        }
        let fill = match row.role {
            Role::Copy => Fill::Displaced,
            Role::LandingPad => Fill::Pad,
            _ => Fill::Written,
        };
        items.push(Item::Code(Code {
            address: row.address,
            offset: offset(row.address.wrapping_sub(start)),
            boundary: false,
            bytes: row.bytes.iter().map(|&(byte, _)| (byte, fill)).collect(),
            window: 0,
            text: text(anatomy, row),
        }));
    }
    items
}

fn offset(distance: u64) -> String {
    format!("+{distance:x}")
}

/// The instruction, with names for places.
fn text(anatomy: &Anatomy, row: &Row) -> String {
    if row.bytes.iter().map(|byte| byte.0).eq([0xff, 0x25, 0, 0, 0, 0]) {
        return "jmp [rip+0]".to_owned();
    }
    let Some(target) = row.target else { return row.text.clone() };
    let name = anatomy.name(target);
    if row.text.starts_with("dq ") {
        return name.unwrap_or_else(|| format!("{target:#x}"));
    }
    match name {
        Some(name) => row.text.replace(&format!("{target:#x}"), &name),
        None => row.text.clone(),
    }
}
