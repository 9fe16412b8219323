//! A host's view without what is attached.

use crate::Error;
use crate::host::{Around, Function, Span, View};
use crate::sites::Sites;
use kdetour_plan::{CavePatch, Mode};

/// Code as it would be without detours: surveys are about that.
pub(super) struct Restored<'a, V> {
    pub(super) view: &'a V,
    pub(super) sites: &'a Sites,
    /// Padding that still holds the long jump of a patch that may be put in again: it is that patch's.
    pub(super) cave: Option<CavePatch>,
}

/// Puts the padding where the jump is, all of it or none.
fn restore_cave(cave: &CavePatch, address: u64, bytes: &mut [u8]) {
    let places = || (cave.cave.address..).zip(cave.new.into_iter().zip(cave.cave.expected));
    let index = |place: u64| usize::try_from(place.checked_sub(address)?).ok();
    let is_there = places().all(|(place, (new, _))| {
        let found = index(place).and_then(|index| bytes.get(index));
        found.is_none_or(|&found| found == new)
    });
    for (place, (_, expected)) in places().filter(|_| is_there) {
        if let Some(byte) = index(place).and_then(|index| bytes.get_mut(index)) {
            *byte = expected;
        }
    }
}

impl<V: View> View for Restored<'_, V> {
    fn mode(&self) -> Mode {
        self.view.mode()
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.view.read(address, bytes)?;
        self.sites.restore(address, bytes);
        if let Some(cave) = &self.cave {
            restore_cave(cave, address, bytes);
        }
        Ok(())
    }

    fn function(&self, target: u64) -> Result<Function, Error> {
        self.view.function(target)
    }

    fn around(&self, address: u64) -> Result<Around, Error> {
        self.view.around(address)
    }

    fn code(&self, span: Span) -> Result<(), Error> {
        self.view.code(span)
    }

    fn pointer(&self, place: u64) -> Result<u64, Error> {
        self.view.pointer(place)
    }

    fn detour(&self, detour: u64) -> Result<(), Error> {
        self.view.detour(detour)
    }
}
