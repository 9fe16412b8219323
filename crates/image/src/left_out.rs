//! What was found in a file and is not among its functions.

use core::fmt;

/// Why something was left out, or taken with a reservation.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A function's symbol in a section or segment that is not executable.
    PointsAtData,
    /// An export that is data.
    DataExport,
    /// A function's symbol where the file maps nothing.
    NotMapped,
    /// A label without a size inside a function: others may jump there, but it is no function.
    LabelInside,
    /// A function whose bytes also belong to another function's symbol. It is kept; its entry is a branch
    /// target of the other.
    Overlaps,
    /// Nothing says how long the function is. It is kept, without a length.
    NoLength,
    /// The symbol's size reaches beyond the code. The function is kept, without a length.
    TooLong,
    /// A symbol of an indirect function (IFUNC). The function that is kept is its resolver, which runs once and picks
    /// another one: whoever wants to detour what is called later wants that one.
    Resolver,
    /// An entry of the procedure linkage table.
    Plt,
    /// A trampoline of a static call of the kernel, which rewrites it.
    StaticCall,
    /// A piece that belongs to an unknown function: unwind information that does not begin at a function's
    /// first instruction, or a `.cold` symbol without its function.
    Piece,
    /// An export that another image serves.
    Forwarded,
    /// Kernel code that is freed after boot, or replacement code that never runs where it is.
    NotCore,
    /// A signal frame's trampoline.
    SignalFrame,
    /// A table is cut off, damaged or not understood. What came before the damage counts.
    Table(&'static str),
    /// More entries than the file's size justifies; the rest was not read.
    TooMany(&'static str),
    /// Segments or sections that lie over each other. The first one counts.
    Overlaid,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PointsAtData => f.write_str("function symbol points at data"),
            Self::DataExport => f.write_str("export of data"),
            Self::StaticCall => f.write_str("static call trampoline"),
            Self::NotMapped => f.write_str("function symbol points outside the file's bytes"),
            Self::LabelInside => f.write_str("label inside a function"),
            Self::Overlaps => f.write_str("kept: overlaps another function"),
            Self::NoLength => f.write_str("kept: length unknown"),
            Self::TooLong => f.write_str("kept: length reaches beyond the code, ignored"),
            Self::Resolver => f.write_str("kept: an indirect function's symbol, which is its resolver"),
            Self::Plt => f.write_str("procedure linkage table"),
            Self::Piece => f.write_str("piece of an unknown function"),
            Self::Forwarded => f.write_str("export forwarded to another image"),
            Self::NotCore => f.write_str("kernel code that is freed after boot or never runs in place"),
            Self::SignalFrame => f.write_str("signal frame trampoline"),
            Self::Table(table) => write!(f, "{table}: damaged or not understood"),
            Self::TooMany(table) => write!(f, "{table}: more entries than the file's size justifies"),
            Self::Overlaid => f.write_str("segments lie over each other"),
        }
    }
}

/// How often something was left out for a [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Why.
    pub reason: Reason,
    /// How often.
    pub count: usize,
    /// The first one's address, or 0 if it has none.
    pub first: u64,
}

impl LeftOut {
    /// Whether what this is about is among the functions all the same.
    pub const fn is_kept(&self) -> bool {
        matches!(self.reason, Reason::Overlaps | Reason::NoLength | Reason::TooLong | Reason::Resolver)
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.count, self.reason)?;
        if self.first != 0 {
            write!(f, " (first at {:#x})", self.first)?;
        }
        Ok(())
    }
}

/// The counts, while a file is read. There are few reasons: a list serves.
#[derive(Debug, Default)]
pub(crate) struct Tally(Vec<LeftOut>);

impl Tally {
    pub(crate) fn add(&mut self, reason: Reason, address: u64) {
        match self.0.iter_mut().find(|known| known.reason == reason) {
            Some(known) => known.count = known.count.saturating_add(1),
            None => self.0.push(LeftOut { reason, count: 1, first: address }),
        }
    }

    pub(crate) fn finish(mut self) -> Vec<LeftOut> {
        self.0.sort_by_key(|left_out| left_out.reason);
        self.0
    }
}
