//! All places where something begins: what the readers of the formats collect, before functions are made of it.

use crate::error::Error;
use crate::function::Source;
use crate::image::Kind;
use crate::left_out::{Reason, Tally};
use crate::memory::{Memory, Ranges, Segment};
use crate::names::{Name, Names, owner_of_part};
use core::ops::Range;
use kdetour_plan::{Mode, Reserved};

/// What begins at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// A function, by a symbol or an export.
    Function,
    /// Probably a function: a symbol without a type that is global or has a size.
    Assembly,
    /// A part of a function that is elsewhere, by its name.
    Part,
    /// A function, by unwind information.
    Unwind,
    /// Unwind information for the middle of a function.
    Piece,
    /// Padding in front of a function (the kernel's `__pfx_` symbols).
    Pad,
    /// A label in code.
    Label,
    /// Data in code, or code that is no function's.
    Other,
}

/// Something begins here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) address: u64,
    /// 0 if it is not known.
    pub(crate) size: u32,
    pub(crate) name: Name,
    pub(crate) what: What,
    pub(crate) source: Source,
    /// Of several names for an address the one of the lowest rank is preferred.
    pub(crate) rank: u8,
}

impl Start {
    /// Where it ends, if that is known.
    pub(crate) fn end(&self) -> Option<u64> {
        (self.size > 0).then(|| self.address.saturating_add(self.size.into()))
    }
}

/// A piece of a function that is not where its entry is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) owner: u64,
    pub(crate) address: u64,
    pub(crate) size: u32,
}

/// What was found in a file.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) kind: Kind,
    pub(crate) mode: Mode,
    pub(crate) kernel: bool,
    pub(crate) memory: Memory,
    /// What is executable.
    pub(crate) code: Ranges,
    pub(crate) starts: Vec<Start>,
    pub(crate) names: Names,
    /// The procedure linkage table, where it is known.
    pub(crate) plt: Ranges,
    /// Whether every function begins with a start.
    pub(crate) complete: bool,
    /// Whether a start ends where the next one begins.
    pub(crate) gapless: bool,
    pub(crate) targets: Vec<u64>,
    pub(crate) reserved: Vec<Reserved>,
    /// What the kernel rewrites once, while it boots.
    pub(crate) rewritten: Vec<Reserved>,
    pub(crate) fentry: Vec<u64>,
    pub(crate) pieces: Vec<Piece>,
    /// Read-only bytes, where jump tables may be.
    pub(crate) data: Vec<Range<u64>>,
    pub(crate) got: Option<u64>,
    /// The bounds that a jump to somebody else's hook would leave.
    pub(crate) bounds: Option<(u64, u64)>,
    pub(crate) tally: Tally,
    /// How many entries of each kind the file's size justifies.
    pub(crate) limit: usize,
}

/// How many of a file's bytes stand for a start. At 24 bytes for a start and for a function, both tables together
/// are not larger than the file.
const BYTES_PER_START: usize = 48;
/// What is always allowed.
const FLOOR: usize = 1 << 15;

impl Found {
    pub(crate) fn new(kind: Kind, mode: Mode, segments: Vec<Segment>, file: usize) -> Result<Self, Error> {
        let mut tally = Tally::default();
        let memory = Memory::new(segments, &mut tally);
        let executable = memory.segments().iter().filter(|segment| segment.executable);
        let code = Ranges::new(executable.map(|segment| segment.address..segment.filled_end()).collect());
        if code.is_empty() {
            return Err(Error::NoCode);
        }
        Ok(Self {
            kind,
            mode,
            kernel: false,
            bounds: memory.bounds(),
            memory,
            code,
            plt: Ranges::default(),
            starts: Vec::new(),
            names: Names::default(),
            complete: false,
            gapless: false,
            targets: Vec::new(),
            reserved: Vec::new(),
            rewritten: Vec::new(),
            fentry: Vec::new(),
            pieces: Vec::new(),
            data: Vec::new(),
            got: None,
            tally,
            limit: (file / BYTES_PER_START).max(FLOOR),
        })
    }

    /// Narrows what counts as code, to sections or to the kernel's core.
    pub(crate) fn narrow(&mut self, ranges: Vec<Range<u64>>) {
        let mut inside = Vec::new();
        for range in ranges {
            if let Some(around) = self.code.around(range.start) {
                inside.push(range.start..range.end.min(around.end));
            }
        }
        let inside = Ranges::new(inside);
        if !inside.is_empty() {
            self.code = inside;
        }
    }

    /// Takes a start that lies in code; otherwise says why it is left out.
    pub(crate) fn push(&mut self, start: Start) {
        if !self.code.contains(start.address) {
            if matches!(start.what, What::Function | What::Unwind) {
                let reason = match self.memory.segment(start.address) {
                    Some(_) if self.plt.contains(start.address) => Reason::Plt,
                    Some(segment) if segment.executable && self.kernel => Reason::NotCore,
                    Some(_) if start.source == Source::Export => Reason::DataExport,
                    Some(_) => Reason::PointsAtData,
                    None => Reason::NotMapped,
                };
                self.tally.add(reason, start.address);
            }
            return;
        }
        if self.starts.len() >= self.limit {
            self.tally.add(Reason::TooMany("symbols and unwind information"), start.address);
            return;
        }
        self.starts.push(start);
    }

    /// Takes a symbol. The name decides whether it is the part of another one, or padding.
    pub(crate) fn push_symbol(&mut self, mut start: Start, name: &[u8]) {
        if matches!(start.what, What::Function | What::Assembly) && owner_of_part(name).is_some() {
            start.what = What::Part;
        }
        if self.kernel && name.starts_with(b"__pfx_") {
            start.what = What::Pad;
        }
        self.push(start);
    }

    pub(crate) fn push_target(&mut self, target: u64) {
        if !self.code.contains(target) {
            return;
        }
        if self.targets.len() >= self.limit {
            self.tally.add(Reason::TooMany("branch targets"), target);
            return;
        }
        self.targets.push(target);
    }

    /// Takes bytes that belong to somebody else; `once` if they are only rewritten while the kernel boots.
    pub(crate) fn reserve(&mut self, reserved: Reserved, once: bool) {
        let sites = if once { &mut self.rewritten } else { &mut self.reserved };
        if sites.len() >= self.limit {
            self.tally.add(Reason::TooMany("sites"), reserved.address);
            return;
        }
        sites.push(reserved);
    }
}
