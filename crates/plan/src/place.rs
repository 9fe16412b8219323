//! Where slots may lie, and who finds a place for one.

use crate::code::Mode;

/// Executable memory that will hold the trampoline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its first byte.
    pub address: u64,
    /// How many bytes it has.
    pub capacity: usize,
}

/// The addresses at which a slot may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Lowest address of a slot's first byte.
    pub first: u64,
    /// Highest address of a slot's first byte.
    pub last: u64,
}

/// How far a displacement surely reaches from anywhere in a slot.
const NEAR: i64 = (1 << 31) - 2048;
/// How far slots are looked for: what lies next to a target is then near, too.
const LOOK: i64 = NEAR - 2048;

impl Reach {
    /// Whether a slot may begin at `address`.
    pub const fn contains(&self, address: u64) -> bool {
        self.first <= address && address <= self.last
    }

    const NOWHERE: Self = Self { first: 1, last: 0 };

    /// Every address.
    pub(crate) const fn anywhere(mode: Mode) -> Self {
        Self { first: 0, last: mode.last_address() }
    }

    /// The slots from which `target` is a 32-bit displacement away, with room for the slot itself. Displacements
    /// wrap at both ends of the address space: kernel code at the top refers to per-CPU data at the bottom. In
    /// 32-bit mode every address is reached from every other.
    pub(crate) fn around(mode: Mode, target: u64, window: u64) -> Self {
        if mode == Mode::Bits32 {
            return Self::anywhere(mode);
        }
        let distance = target.wrapping_sub(window).cast_signed();
        let (first, last) = (distance.saturating_sub(LOOK), distance.saturating_add(LOOK));
        // No slot is in front of the first address or behind the last one.
        let outside = |bound: i64| window.checked_add_signed(bound).is_none();
        if (last < 0 && outside(last)) || (first > 0 && outside(first)) {
            return Self::NOWHERE;
        }
        Self { first: window.saturating_add_signed(first), last: window.saturating_add_signed(last) }
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self { first: self.first.max(other.first), last: self.last.min(other.last) }
    }
}

/// Whether `target` is surely within a 32-bit displacement of everything in a slot at `slot`.
pub(crate) fn is_near(mode: Mode, slot: u64, target: u64) -> bool {
    mode == Mode::Bits32 || target.wrapping_sub(slot).cast_signed().unsigned_abs() <= NEAR.unsigned_abs()
}

/// The addresses of a relay for which the displacement of a `jmp rel32` to it has certain bytes.
///
/// The displacement `d = relay - after` is allowed if `d & mask == value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relays {
    /// The address behind the jump, from which the displacement counts.
    pub after: u64,
    /// The bits of the displacement that are given.
    pub mask: u32,
    /// What they are.
    pub value: u32,
    pub(crate) mode: Mode,
}

impl Relays {
    /// Whether a relay may be at `address`.
    pub fn contains(&self, address: u64) -> bool {
        let distance = match self.mode {
            // Not round the end of the address space.
            Mode::Bits64 => i128::from(address) - i128::from(self.after),
            Mode::Bits32 if address > self.mode.last_address() => return false,
            Mode::Bits32 => i128::from(low_half(address.wrapping_sub(self.after)).cast_signed()),
        };
        i32::try_from(distance).is_ok_and(|distance| distance.cast_unsigned() & self.mask == self.value)
    }

    /// In which mode the jump is executed.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// How many addresses there are.
    pub const fn count(&self) -> u64 {
        1 << self.mask.count_zeros()
    }

    /// The addresses as ranges `(first, last)`, each as long as can be: the forward displacements first. Addresses
    /// beyond the ends of the address space are left out.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let Self { after, mask, value, mode } = *self;
        // The free bits below the lowest given one make a range.
        let low = if mask == 0 { u32::MAX } else { (1 << mask.trailing_zeros()) - 1 };
        let mut next = Some(value & mask);
        core::iter::from_fn(move || {
            let first = next?;
            let last = first | low;
            // The next value of the free bits above: the given ones are filled so that a carry runs through them.
            next = (last | mask).checked_add(1).map(|carried| carried & !mask | value & mask);
            Some((first, last))
        })
        .flat_map(move |(first, last)| {
            // A range of displacements never crosses the sign bit, unless it is everything.
            let place = |d: u32| i128::from(after) + i128::from(d.cast_signed());
            let end = i128::from(mode.last_address());
            let cut = move |first: i128, last: i128| {
                let (first, last) = (first.max(0), last.min(end));
                (first <= last)
                    .then(|| Some((u64::try_from(first).ok()?, u64::try_from(last).ok()?)))
                    .flatten()
            };
            let (first, last) = (place(first), place(last));
            // Addresses of 32 bits go round the end, those of 64 bits do not.
            let round = i128::from(u32::MAX) + 1;
            let turns: &[i128] = if mode == Mode::Bits32 { &[0, 1, -1] } else { &[0] };
            let turns = turns.iter().map(move |turn| turn * round);
            turns.filter_map(move |turn| cut(first + turn, last + turn))
        })
    }
}

fn low_half(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The 32-bit displacement from `after` to `target`, if it fits.
pub(crate) fn displacement(mode: Mode, after: u64, target: u64) -> Option<u32> {
    let distance = target.wrapping_sub(after);
    match mode {
        Mode::Bits64 => i32::try_from(distance.cast_signed()).ok().map(i32::cast_unsigned),
        Mode::Bits32 => u32::try_from(mode.wrap(distance)).ok(),
    }
}

/// Finds places for slots: the survey says which addresses each shape allows, the allocator answers what it has.
///
/// [`Plan::best`](crate::Plan::best) asks shape by shape and may ask several times; only the last answer is used. So an
/// allocator hands out addresses that are free, and takes memory when it has seen the plan.
///
/// ```
/// use kdetour_plan::{Allocator, Code, Context, Mode, Options, Plan, Reach, Relays, Shape, Slot, Survey};
///
/// /// All of a 32-bit address space is free, but for the lowest 64 KiB.
/// struct Anywhere;
///
/// impl Allocator for Anywhere {
///     fn near(&mut self, reach: Reach, len: usize) -> Option<Slot> {
///         let address = reach.first.max(0x1_0000);
///         (address <= reach.last).then_some(Slot { address, capacity: len })
///     }
///
///     fn at(&mut self, relays: Relays, reach: Reach, len: usize) -> Option<Slot> {
///         let fits = |&(first, _): &(u64, u64)| first >= 0x1_0000 && reach.contains(first);
///         let (address, _) = relays.ranges().find(fits)?;
///         Some(Slot { address, capacity: len })
///     }
/// }
///
/// // push ebp / mov ebp, esp / push edi / push esi / ret
/// let bytes = [0x55, 0x89, 0xe5, 0x57, 0x56, 0xc3];
/// let code = Code::in_mode(Mode::Bits32, 0x8048000, &bytes).with_length(bytes.len());
/// let survey = Survey::of(&code, &Context::default())?;
/// let plan = Plan::best(&survey, &mut Anywhere, 0x5655_5000, Options::default())?;
/// // One byte changes: 55 becomes E9, and the bytes behind it are the displacement.
/// assert_eq!(plan.shape(), Shape::Jump5Kept);
/// assert_eq!(plan.patch().new_bytes(), [0xe9, 0x89, 0xe5, 0x57, 0x56]);
/// # Ok::<(), kdetour_plan::Refusal>(())
/// ```
pub trait Allocator {
    /// A slot of `len` bytes that begins within `reach`, which may be empty (`first > last`).
    fn near(&mut self, reach: Reach, len: usize) -> Option<Slot>;

    /// A slot of `len` bytes that begins at one of `relays` and also within `reach`. There may be one such address or
    /// millions: [`Relays::ranges`] gives them as ranges, which are long where the low bytes are free. An allocator that
    /// cannot choose addresses answers none.
    fn at(&mut self, relays: Relays, reach: Reach, len: usize) -> Option<Slot> {
        let _ = (relays, reach, len);
        None
    }
}
