//! Allocators that answer as a process and as the kernel would, and hand out no memory.

use kdetour_plan::{Allocator, Options, Reach, Relays, Shape, Shapes, Slot};

/// More than any slot takes.
const CAPACITY: usize = 256;

/// Where slots may be.
#[derive(Clone, Copy)]
pub(crate) enum Model {
    /// A process: pages can be mapped wherever a shape wants them, but not on the library that spans these addresses.
    Process {
        /// 64 or 32.
        bits: u32,
        /// First address of the library.
        first: u64,
        /// One past its last one.
        end: u64,
    },
    /// The kernel: memory for modules within reach of its text, and no choice of addresses.
    Kernel,
}

/// The lowest address that Linux lets a process map.
const LOWEST: u64 = 0x1_0000;
/// One past the highest, in 64-bit mode and in 32-bit mode under a 64-bit kernel.
const HIGHEST: [u64; 2] = [0x7fff_ffff_f000, 0xffff_e000];
/// The kernel's module area: `MODULES_VADDR` without KASLR.
const MODULES: u64 = 0xffff_ffff_c000_0000;

impl Model {
    /// What is planned: every shape in a process; no relays in the kernel.
    pub(crate) fn options(self) -> Options {
        let shapes = match self {
            Self::Process { .. } => Shapes::ALL,
            Self::Kernel => Shapes::NONE
                .with(Shape::WholeInstruction)
                .with(Shape::ShortJump)
                .with(Shape::Jump5)
                .with(Shape::Breakpoint),
        };
        Options { shapes, ..Options::default() }
    }

    /// Where the detour is: in the program, far from its libraries; in a module, near the kernel.
    pub(crate) fn detour(self) -> u64 {
        match self {
            Self::Process { bits: 32, .. } => 0x5655_5000,
            Self::Process { .. } => 0x5555_5555_0000,
            Self::Kernel => MODULES + 0x1000,
        }
    }

    /// Whether a process could map memory there.
    fn is_free(self, address: u64) -> bool {
        let Self::Process { bits, first, end } = self else { return false };
        let highest = if bits == 32 { HIGHEST[1] } else { HIGHEST[0] };
        let slot_end = address.saturating_add(CAPACITY as u64);
        LOWEST <= address && slot_end <= highest && (slot_end <= first || end <= address)
    }
}

impl Allocator for Model {
    fn near(&mut self, reach: Reach, _len: usize) -> Option<Slot> {
        let address = match *self {
            // Behind the library or, where that is too far, in front of it.
            Self::Process { first, end, .. } => {
                [end.next_multiple_of(4096), first - 4096, reach.first.max(LOWEST)]
                    .into_iter()
                    .find(|&address| reach.contains(address) && self.is_free(address))?
            }
            Self::Kernel => Some(MODULES).filter(|&address| reach.contains(address))?,
        };
        Some(Slot { address, capacity: CAPACITY })
    }

    fn at(&mut self, relays: Relays, reach: Reach, _len: usize) -> Option<Slot> {
        let mut ranges = relays.ranges().take(4096).map(|(address, _)| address);
        let address = ranges.find(|&address| reach.contains(address) && self.is_free(address))?;
        Some(Slot { address, capacity: CAPACITY })
    }
}
