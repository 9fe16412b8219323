//! What memory a detour would find: models of the two hosts, for a target that does not run.
//!
//! A plan needs the address of a slot and of a detour. Where code runs, the host's allocator answers; here a model
//! does, the same one for every function, so that a scan says the same each time.
//!
//! | model | free for slots | addresses of relays | detour, unless given |
//! |---|---|---|---|
//! | [`Host::Process`] | all of `0x10000..0x7ffffffff000` (32-bit: `..0xffffe000`), but for the image and the detour | chosen freely | `0x555555550000` (32-bit: `0x56555000`) |
//! | [`Host::Kernel`] | a module area: `0xffffffffc0001000..0xffffffffc0800000` for an image in the top 2 GiB, else 7 MiB from 1 MiB behind the image on | as they come | behind the module area |
//!
//! A process is thus given the memory of an otherwise empty address space, with a detour that is out of reach of a
//! shared object: its plans go through relays. The kernel's slots and its detour are a module's text.

use kdetour_plan::{Allocator, Mode, Reach, Relays, Shape, Shapes, Slot};

/// In whose memory the target is taken to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Host {
    /// A process that patches itself: any free address can be mapped; every shape is allowed.
    Process,
    /// A kernel module: slots in its own text; allowed are WholeInstruction, ShortJump, Jump5 and Breakpoint.
    Kernel,
}

impl Host {
    /// What it is called.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Kernel => "kernel",
        }
    }

    /// The shapes that such a host could commit. What a host of the crate `kdetour` does commit, it says itself.
    pub(crate) const fn shapes(self) -> Shapes {
        match self {
            Self::Process => Shapes::ALL,
            Self::Kernel => Shapes::NONE
                .with(Shape::WholeInstruction)
                .with(Shape::ShortJump)
                .with(Shape::Jump5)
                .with(Shape::Breakpoint),
        }
    }

    /// Whose memory code at `address` is in, if nobody says: that of a kernel in the upper half.
    pub(crate) const fn of_address(mode: Mode, address: u64) -> Self {
        match mode {
            Mode::Bits64 if address >= 1 << 63 => Self::Kernel,
            _ => Self::Process,
        }
    }
}

const PAGE: u64 = 1 << 12;
const MIB: u64 = 1 << 20;
/// Where Linux puts the modules of a kernel whose own place is random (`MODULES_VADDR`, Documentation/arch/x86/x86_64/mm.rst).
const MODULES: u64 = 0xffff_ffff_c000_0000;
/// What an allocator aligns a slot to, where the address does not matter.
const ALIGNMENT: u64 = 16;

/// The memory around one image.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    host: Host,
    mode: Mode,
    /// First and last address of each free range, ascending.
    free: Vec<(u64, u64)>,
    /// The image's end: slots are taken from here on.
    end: u64,
    detour: u64,
}

impl Model {
    /// The memory around an image that occupies these ranges `(start, end)`.
    pub(crate) fn new(host: Host, mode: Mode, image: impl IntoIterator<Item = (u64, u64)>) -> Self {
        Self::beside(host, mode, image, [])
    }

    /// As [`new`](Self::new), where something is known to be at other addresses, too.
    pub(crate) fn beside(
        host: Host,
        mode: Mode,
        image: impl IntoIterator<Item = (u64, u64)>,
        others: impl IntoIterator<Item = u64>,
    ) -> Self {
        let pages = |(start, end): (u64, u64)| {
            (start / PAGE * PAGE, end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX))
        };
        let mut taken: Vec<(u64, u64)> =
            image.into_iter().filter(|(start, end)| start < end).map(pages).collect();
        taken.sort_unstable();
        let end = taken.iter().map(|range| range.1).max().unwrap_or(0);
        let (areas, detour) = match host {
            Host::Process => process(mode, &taken),
            Host::Kernel => kernel(mode, end),
        };
        taken.extend(others.into_iter().map(|other| pages((other, other.saturating_add(8)))));
        taken.push((detour, detour.saturating_add(PAGE)));
        taken.sort_unstable();
        Self { host, mode, free: without(areas, &taken), end, detour }
    }

    /// Whose memory it is.
    pub(crate) const fn host(&self) -> Host {
        self.host
    }

    /// Where the detour is, unless the caller knows better.
    pub(crate) const fn detour(&self) -> u64 {
        self.detour
    }

    /// The first and last addresses within `reach` at which `len` bytes are free: behind the image first.
    fn places(&self, reach: Reach, len: usize) -> impl Iterator<Item = (u64, u64)> {
        let place = move |&(first, last): &(u64, u64)| {
            let last = last.checked_sub((len as u64).saturating_sub(1))?;
            let place = (first.max(reach.first), last.min(reach.last));
            (place.0 <= place.1).then_some(place)
        };
        let behind = self.free.iter().filter(|range| range.0 >= self.end).filter_map(place);
        behind.chain(self.free.iter().rev().filter(|range| range.0 < self.end).filter_map(place))
    }
}

/// The user half of the address space, and the usual place of a program in it: far away from where libraries are.
fn process(mode: Mode, taken: &[(u64, u64)]) -> ((u64, u64), u64) {
    let (last, usual, other) = match mode {
        Mode::Bits32 => (0xffff_dfff, 0x5655_5000, 0x4000_0000),
        _ => (0x7fff_ffff_efff, 0x5555_5555_0000, 0x2aaa_aaaa_0000),
    };
    let occupied = taken.iter().any(|&(start, end)| start < usual + 16 * MIB && end > usual - 16 * MIB);
    ((0x1_0000, last), if occupied { other } else { usual })
}

/// The text of a module.
fn kernel(mode: Mode, end: u64) -> ((u64, u64), u64) {
    let top = mode == Mode::Bits64 && end > 0xffff_ffff_8000_0000;
    let start = if top { MODULES } else { mode.wrap(end.saturating_add(MIB)).max(PAGE) };
    let detour = mode.wrap(start.saturating_add(8 * MIB));
    ((start.saturating_add(PAGE), detour.saturating_sub(1)), detour)
}

/// The range without what is taken.
fn without((first, last): (u64, u64), taken: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut free = Vec::new();
    let mut from = first;
    for &(start, end) in taken {
        if let Some(before) = start.checked_sub(1).filter(|&before| before >= from) {
            free.push((from, before.min(last)));
        }
        from = from.max(end);
    }
    if from <= last {
        free.push((from, last));
    }
    free.retain(|range| range.0 <= range.1);
    free
}

impl Allocator for &Model {
    fn near(&mut self, reach: Reach, len: usize) -> Option<Slot> {
        let (first, last) = self.places(reach, len).next()?;
        let aligned = first.checked_next_multiple_of(ALIGNMENT).filter(|&aligned| aligned <= last);
        Some(Slot { address: aligned.unwrap_or(first), capacity: len })
    }

    fn at(&mut self, relays: Relays, reach: Reach, len: usize) -> Option<Slot> {
        if self.host == Host::Kernel {
            return None;
        }
        self.places(reach, len).find_map(|(first, last)| {
            let address = first_relay(relays, self.mode, first, last)?;
            Some(Slot { address, capacity: len })
        })
    }
}

/// The lowest address of `relays` between two others: the forward displacements first.
fn first_relay(relays: Relays, mode: Mode, first: u64, last: u64) -> Option<u64> {
    let after = relays.after;
    let (front, back) = match mode {
        Mode::Bits32 => (mode.last_address(), 0),
        _ => (after.saturating_add(i32::MAX as u64), after.saturating_sub(1 << 31)),
    };
    let within = |first: u64, last: u64| {
        if first > last {
            return None;
        }
        // Between the two ends the displacement grows as the address does.
        let displacement = |address: u64| (address.wrapping_sub(after) & 0xffff_ffff) as u32;
        let found = next_match(displacement(first), relays.mask, relays.value)?;
        (found <= displacement(last)).then(|| first + u64::from(found - displacement(first)))
    };
    within(first.max(after), last.min(front))
        .or_else(|| within(first.max(back), last.min(after.checked_sub(1)?)))
}

/// The lowest `d >= from` with `d & mask == value`.
fn next_match(from: u32, mask: u32, value: u32) -> Option<u32> {
    let wrong = (from ^ value) & mask;
    if wrong == 0 {
        return Some(from);
    }
    // The highest bit that is not as it has to be, and everything above it.
    let bit = 31 - wrong.leading_zeros();
    let above = (u64::from(u32::MAX) << (bit + 1)) as u32;
    let kept = if value & 1 << bit != 0 {
        // It has to become one: what is below it starts again.
        from & above
    } else {
        // It has to become zero: the free bits above count up by one, with a carry through the given ones.
        let filled = u64::from((from & above) | mask | !above);
        let counted = u32::try_from(filled + 1).ok()?;
        (counted & above & !mask) | (value & above)
    };
    Some(kept | (value & !above))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kdetour_plan::{Code, Context, Options, Plan, Survey};

    #[test]
    fn the_next_match_is_the_lowest_one() {
        // Eight bits tell as much as 32 do.
        for mask in 0..=255_u32 {
            for value in (0..=255).filter(|value| value & !mask == 0) {
                for from in [0, 1, 7, 0x40, 0x7f, 0x80, 0xfe, 0xff] {
                    let expected = (from..512).find(|d| d & mask == value);
                    assert_eq!(next_match(from, mask, value), expected, "{from:#x} {mask:#x} {value:#x}");
                }
            }
        }
        assert_eq!(next_match(u32::MAX, 1, 0), None);
        assert_eq!(next_match(0xffff_ff00, 0xff, 0xcc), Some(0xffff_ffcc));
        assert_eq!(next_match(0xffff_ffcd, 0xff, 0xcc), None);
    }

    fn survey(mode: Mode, address: u64, bytes: &[u8]) -> Survey {
        Survey::of(&Code::in_mode(mode, address, bytes), &Context::default()).unwrap()
    }

    #[test]
    fn a_process_has_the_one_relay_of_a_kept_jump() {
        // push rbp / mov rbp, rsp / push r15: the displacement is 48 89 e5 41
        let bytes = [0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0xc3];
        for (mode, address) in
            [(Mode::Bits64, 0x7f00_0000_1000), (Mode::Bits32, 0xf700_1000), (Mode::Bits64, 0x40_1000)]
        {
            let model = Model::new(Host::Process, mode, [(address, address + 7)]);
            let survey = survey(mode, address, &bytes);
            let options = Options::default();
            let plan = Plan::best(&survey, &mut &model, model.detour(), options).unwrap();
            assert_eq!(plan.shape(), Shape::Jump5Kept);
            assert_eq!(plan.slot(), mode.wrap(address + 5 + 0x41e5_8948));
            assert_eq!(plan.patch().new_bytes(), [0xe9, 0x48, 0x89, 0xe5, 0x41]);
        }
    }

    #[test]
    fn the_kernel_has_a_modules_text() {
        let bytes = [0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0xc3];
        let address = 0xffff_ffff_8100_0000;
        let model = Model::new(Host::Kernel, Mode::Bits64, [(address, address + (32 << 20))]);
        let options = Options { shapes: Host::Kernel.shapes(), ..Options::default() };
        let plan = Plan::best(&survey(Mode::Bits64, address, &bytes), &mut &model, model.detour(), options);
        let plan = plan.unwrap();
        assert_eq!(plan.shape(), Shape::Jump5);
        assert_eq!(plan.slot(), 0xffff_ffff_c000_1000);
        assert_eq!(plan.patch().detour(), 0xffff_ffff_c080_0000);
    }

    #[test]
    fn nothing_free_lies_on_the_image_or_the_detour() {
        let image = [(0x7f00_0000_0000, 0x7f00_0000_0001), (0x7f00_0020_0000, 0x7f00_0020_1800), (5, 5)];
        let model = Model::new(Host::Process, Mode::Bits64, image);
        assert_eq!(
            model.free,
            [
                (0x1_0000, 0x5555_5554_ffff),
                (0x5555_5555_1000, 0x7eff_ffff_ffff),
                (0x7f00_0000_1000, 0x7f00_001f_ffff),
                (0x7f00_0020_2000, 0x7fff_ffff_efff)
            ]
        );
        let whole = Model::new(Host::Process, Mode::Bits64, [(0, u64::MAX)]);
        assert_eq!(whole.free, []);
        let everywhere = Reach { first: 0, last: u64::MAX };
        assert_eq!((&whole).near(everywhere, 16), None);
    }
}
