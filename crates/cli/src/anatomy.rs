//! A detour taken apart: every byte of target, cave and slot with what became of it, every instruction with what it is
//! there for. Both the listing and the picture are made from this.

use crate::asm::{Disassembler, Line};
use crate::target::Target;
use kdetour_plan::{Mode, Plan, Shape};

/// What a byte is, for whoever colours it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Not touched.
    Plain,
    /// Of a displaced instruction.
    Displaced,
    /// Changed by the patch.
    Patched,
    /// Inside the window, and the patch writes what was there already.
    Kept,
    /// Behind the patch, but of an instruction that began under it: nothing runs through it any more.
    Dead,
}

/// What a row of the slot is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Code of the target, or of the cave.
    Code,
    /// What the patch writes.
    Patch,
    /// On the way to the detour.
    Relay,
    /// ENDBR at the trampoline's start.
    LandingPad,
    /// Does what a displaced instruction did.
    Copy,
    /// Leads back to the target.
    Back,
}

/// One instruction, or a run of bytes that is none.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Of the first byte.
    pub(crate) address: u64,
    /// The bytes and what they are.
    pub(crate) bytes: Vec<(u8, Mark)>,
    /// Disassembly, or words in parentheses.
    pub(crate) text: String,
    /// What it is there for; empty where that is plain.
    pub(crate) note: String,
    /// What it is.
    pub(crate) role: Role,
    /// Where it goes, if it is a jump or the address of one.
    pub(crate) target: Option<u64>,
}

impl Row {
    fn new(line: Line, mark: impl Fn(u64) -> Mark, role: Role) -> Self {
        let bytes = (line.address..).zip(&line.bytes).map(|(at, &byte)| (byte, mark(at))).collect();
        Self { address: line.address, bytes, text: line.text, note: String::new(), role, target: line.target }
    }
}

/// The parts of a detour.
#[derive(Clone, Debug)]
pub(crate) struct Anatomy {
    /// The function's name.
    pub(crate) title: String,
    /// How the code is decoded.
    pub(crate) mode: Mode,
    /// The function's entry.
    pub(crate) entry: u64,
    /// The function's length, if known.
    pub(crate) length: Option<usize>,
    /// The shape.
    pub(crate) shape: Shape,
    /// Start of the window.
    pub(crate) window: u64,
    /// How many of the window's bytes change.
    pub(crate) changed: usize,
    /// Where the detour is.
    pub(crate) detour: u64,
    /// What the detour calls as the original.
    pub(crate) trampoline: u64,
    /// Where the code goes on behind the displaced instructions, if it does.
    pub(crate) resume: Option<u64>,
    /// The target's beginning as it was.
    pub(crate) before: Vec<Row>,
    /// The same with the patch.
    pub(crate) after: Vec<Row>,
    /// The cave with the patch, and what was there.
    pub(crate) cave: Option<(Row, Row)>,
    /// The slot.
    pub(crate) slot: Vec<Row>,
    /// Where the slot's last byte is followed by others.
    pub(crate) slot_end: u64,
    /// The relay in the slot, if there is one.
    pub(crate) relay: Option<u64>,
}

/// How many instructions are shown behind the displaced ones.
const CONTEXT: usize = 3;

impl Anatomy {
    /// Takes a plan apart.
    pub(crate) fn new(target: &Target<'_>, plan: &Plan, disassembler: &mut Disassembler) -> Self {
        let cutter = Cutter { target, plan, mode: target.code.mode() };
        let patch = plan.patch();
        let changed =
            patch.window_bytes().iter().zip(patch.new_bytes()).filter(|(old, new)| old != new).count();
        let displaced = plan.displaced().count();
        let slot_end = plan.slot().wrapping_add(plan.slot_bytes().len() as u64);
        let relay = cutter.relay();
        let mut anatomy = Self {
            title: target.title(),
            mode: cutter.mode,
            entry: target.code.address(),
            length: target.code.length(),
            shape: plan.shape(),
            window: patch.address(),
            changed,
            detour: patch.detour(),
            trampoline: plan.trampoline(),
            resume: plan.ip_map().pairs().get(displaced).map(|pair| pair.0),
            before: cutter.before(disassembler),
            after: cutter.after(disassembler),
            cave: cutter.cave(disassembler),
            slot: cutter.slot(relay, disassembler),
            slot_end,
            relay,
        };
        anatomy.explain();
        anatomy
    }

    /// An address by the part of the detour that is there.
    pub(crate) fn name(&self, address: u64) -> Option<String> {
        let function = &self.title;
        let offset = self.mode.wrap(address.wrapping_sub(self.entry));
        let length = self.length.map_or(0x100, |length| length as u64);
        let slot = self.slot.first().map_or(self.slot_end, |row| row.address);
        match address {
            _ if address == self.detour => Some("the detour".to_owned()),
            _ if self.relay == Some(address) => Some("the relay".to_owned()),
            _ if address == self.trampoline => Some("the trampoline".to_owned()),
            _ if self.cave.as_ref().is_some_and(|cave| cave.0.address == address) => {
                Some("the cave".to_owned())
            }
            _ if self.is_back(address) => Some("the jump back".to_owned()),
            _ if (slot..self.slot_end).contains(&address) => {
                Some(format!("slot+{:#x}", address.wrapping_sub(slot)))
            }
            _ if offset == 0 => Some(function.clone()),
            _ if offset < length => Some(format!("{function}+{offset:#x}")),
            _ => None,
        }
    }

    fn is_back(&self, address: u64) -> bool {
        self.slot.iter().any(|row| row.role == Role::Back && row.address == address)
    }

    /// Says of every jump where it goes, unless more is said already.
    fn explain(&mut self) {
        let note = |row: &Row| match row.target.and_then(|to| self.name(to)) {
            Some(name) if row.note.is_empty() => format!("to {name}"),
            Some(name) => format!("{} to {name}", row.note),
            None => row.note.clone(),
        };
        // The copy of a jump says what it copies; its new place tells nothing.
        let slot: Vec<String> = self
            .slot
            .iter()
            .map(|row| if row.role == Role::Copy { row.note.clone() } else { note(row) })
            .collect();
        let after: Vec<String> = self.after.iter().map(note).collect();
        let before: Vec<String> = self.before.iter().map(note).collect();
        let cave = self.cave.as_ref().map(|(row, _)| note(row));
        for (rows, notes) in [(&mut self.slot, slot), (&mut self.after, after), (&mut self.before, before)] {
            for (row, note) in rows.iter_mut().zip(notes) {
                row.note = note;
            }
        }
        if let (Some((row, _)), Some(note)) = (&mut self.cave, cave) {
            row.note = note;
        }
    }
}

/// Cuts the bytes into rows.
struct Cutter<'a> {
    target: &'a Target<'a>,
    plan: &'a Plan,
    mode: Mode,
}

impl Cutter<'_> {
    /// Distance of the window from the entry.
    fn skip(&self) -> usize {
        let distance = self.plan.patch().address().wrapping_sub(self.target.code.address());
        usize::try_from(distance).unwrap_or(0)
    }

    /// The function's bytes, as far as they are its own.
    fn bytes(&self) -> &[u8] {
        let bytes = self.target.code.bytes();
        let covered = self.skip() + self.plan.patch().original_bytes().len();
        let length = self.target.code.length().unwrap_or(bytes.len()).max(covered);
        bytes.get(..length).unwrap_or(bytes)
    }

    /// How much of the function is shown.
    fn shown(&self, disassembler: &mut Disassembler) -> usize {
        let mut end = self.skip() + self.plan.patch().original_bytes().len();
        for _ in 0..CONTEXT {
            let at = self.target.code.address().wrapping_add(end as u64);
            let rest = self.bytes().get(end..).unwrap_or(&[]);
            if rest.is_empty() {
                break;
            }
            end += disassembler.instruction(self.mode, at, rest).bytes.len().max(1);
        }
        end.min(self.bytes().len())
    }

    fn rows(
        &self,
        bytes: &[u8],
        address: u64,
        mark: impl Fn(u64) -> Mark,
        role: Role,
        disassembler: &mut Disassembler,
    ) -> Vec<Row> {
        let lines = disassembler.listing(self.mode, address, bytes);
        lines.into_iter().map(|line| Row::new(line, &mark, role)).collect()
    }

    fn before(&self, disassembler: &mut Disassembler) -> Vec<Row> {
        let shown = self.bytes().get(..self.shown(disassembler)).unwrap_or(&[]);
        let start = self.plan.patch().address();
        let covered = self.plan.patch().original_bytes().len();
        let mark = |at: u64| {
            if self.mode.wrap(at.wrapping_sub(start)) < covered as u64 {
                Mark::Displaced
            } else {
                Mark::Plain
            }
        };
        // The window may take padding behind the last instruction.
        let code: usize = self.plan.displaced().map(|displaced| displaced.bytes().len()).sum();
        let (code, covered) = (self.skip() + code, self.skip() + covered);
        let part = |from: usize, to: usize| shown.get(from..to).unwrap_or(&[]);
        let entry = self.target.code.address();
        let at = |offset: usize| self.mode.wrap(entry.wrapping_add(offset as u64));
        let mut rows = self.rows(part(0, code), entry, mark, Role::Code, disassembler);
        let padding = part(code, covered);
        if !padding.is_empty() {
            let bytes = padding.iter().map(|&byte| (byte, Mark::Displaced)).collect();
            rows.push(words(at(code), bytes, "(proven padding)"));
        }
        rows.extend(self.rows(part(covered, shown.len()), at(covered), mark, Role::Code, disassembler));
        rows
    }

    fn after(&self, disassembler: &mut Disassembler) -> Vec<Row> {
        let patch = self.plan.patch();
        let (entry, window) = (self.target.code.address(), patch.address());
        let (skip, shown) = (self.skip(), self.shown(disassembler));
        let len = patch.new_bytes().len();
        let covered = patch.original_bytes().len();
        let part = |from: usize, to: usize| self.bytes().get(from..to).unwrap_or(&[]);
        let at = |offset: usize| self.mode.wrap(entry.wrapping_add(offset as u64));

        let plain = |_| Mark::Plain;
        let mut rows = self.rows(part(0, skip), entry, plain, Role::Code, disassembler);
        let changed = |address: u64| {
            let offset = usize::try_from(self.mode.wrap(address.wrapping_sub(window))).unwrap_or(usize::MAX);
            let same = patch.window_bytes().get(offset) == patch.new_bytes().get(offset);
            if same { Mark::Kept } else { Mark::Patched }
        };
        rows.extend(self.rows(patch.new_bytes(), window, changed, Role::Patch, disassembler));
        if let Some(last) = rows.last_mut().filter(|_| self.plan.shape() == Shape::Breakpoint) {
            last.note = "the host's handler sends threads on to the detour".to_owned();
        }
        // What the patch left of its last instruction, then whole displaced instructions, which threads may still be
        // in, or which are kept.
        let starts = self.plan.displaced().map(|displaced| displaced.address());
        let offsets: Vec<usize> = starts
            .filter_map(|address| usize::try_from(self.mode.wrap(address.wrapping_sub(window))).ok())
            .collect();
        let whole = offsets.iter().copied().find(|&offset| offset >= len).unwrap_or(covered);
        let tail = part(skip + len, skip + whole);
        if !tail.is_empty() {
            let kept = self.plan.shape() == Shape::Jump5Kept;
            let mark = if kept { Mark::Kept } else { Mark::Dead };
            let bytes: Vec<(u8, Mark)> = tail.iter().map(|&byte| (byte, mark)).collect();
            // A thread that stands at an interior boundary of a kept jump runs through it.
            let text = if kept { "(kept, still whole)" } else { "(rest of an instruction)" };
            rows.push(words(at(skip + len), bytes, text));
        }
        rows.extend(self.rows(part(skip + whole, shown), at(skip + whole), plain, Role::Code, disassembler));
        rows
    }

    fn cave(&self, disassembler: &mut Disassembler) -> Option<(Row, Row)> {
        let patch = self.plan.patch().cave()?;
        let address = patch.cave.address;
        let line = disassembler.instruction(self.mode, address, &patch.new);
        let mut after = Row::new(line, |_| Mark::Patched, Role::Patch);
        after.bytes = patch.new.iter().map(|&byte| (byte, Mark::Patched)).collect();
        let bytes = patch.cave.expected.iter().map(|&byte| (byte, Mark::Displaced)).collect();
        let before = words(address, bytes, "(proven padding)");
        Some((after, before))
    }

    /// Where the relay is in the slot: the patch or the cave jumps to it.
    fn relay(&self) -> Option<u64> {
        let patch = self.plan.patch();
        let (from, new) = match patch.cave() {
            Some(cave) => (cave.cave.address, cave.new),
            None => (patch.address(), *patch.new_bytes().first_chunk()?),
        };
        let [0xe9, displacement @ ..] = new else { return None };
        let displacement = i64::from(i32::from_le_bytes(displacement));
        let to = self.mode.wrap(from.wrapping_add(5).wrapping_add_signed(displacement));
        let end = self.plan.slot().wrapping_add(self.plan.slot_bytes().len() as u64);
        (self.plan.slot()..end).contains(&to).then_some(to)
    }

    fn slot(&self, relay: Option<u64>, disassembler: &mut Disassembler) -> Vec<Row> {
        let displaced: Vec<_> = self.plan.displaced().collect();
        let mut starts: Vec<(u64, Role, String)> = Vec::new();
        if self.plan.trampoline() != self.plan.ip_map().pairs().first().map_or(0, |pair| pair.1) {
            starts.push((self.plan.trampoline(), Role::LandingPad, "landing pad".to_owned()));
        }
        for (index, &(_, new)) in self.plan.ip_map().pairs().iter().enumerate() {
            match displaced.get(index) {
                Some(original) => {
                    let text = disassembler.text(self.mode, original.address(), original.bytes());
                    starts.push((new, Role::Copy, format!("copy of {text}")));
                }
                None => starts.push((new, Role::Back, "jump back".to_owned())),
            }
        }
        if let Some(relay) = relay {
            starts.push((relay, Role::Relay, "relay".to_owned()));
        }
        starts.sort_by_key(|start| start.0);
        let slot = self.plan.slot();
        let bytes = self.plan.slot_bytes();
        let offset = |address: u64| usize::try_from(address.wrapping_sub(slot)).unwrap_or(usize::MAX);
        let mut rows = Vec::new();
        for (index, (start, role, note)) in starts.iter().enumerate() {
            let end = starts.get(index + 1).map_or(bytes.len(), |next| offset(next.0));
            let part = bytes.get(offset(*start)..end).unwrap_or(&[]);
            let mut new = self.rows(part, *start, |_| Mark::Plain, *role, disassembler);
            // The data of a far jump says where it goes; its first line what it is.
            if let Some(first) = new.first_mut() {
                first.note.clone_from(note);
            }
            rows.extend(new);
        }
        rows
    }
}

/// A row that is no instruction.
fn words(address: u64, bytes: Vec<(u8, Mark)>, text: &str) -> Row {
    Row { address, bytes, text: text.to_owned(), note: String::new(), role: Role::Code, target: None }
}
