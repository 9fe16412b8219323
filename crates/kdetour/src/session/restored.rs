//! A host's view without what is attached.

use crate::Error;
use crate::host::{Around, Function, Span, View};
use crate::sites::Sites;
use kdetour_plan::Mode;

/// Code as it would be without detours: surveys are about that.
pub(super) struct Restored<'a, V> {
    pub(super) view: &'a V,
    pub(super) sites: &'a Sites,
}

impl<V: View> View for Restored<'_, V> {
    fn mode(&self) -> Mode {
        self.view.mode()
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.view.read(address, bytes)?;
        self.sites.restore(address, bytes);
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
