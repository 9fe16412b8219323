//! What is known about this process at one time.

use super::regions::Region;
use super::{WindowsProcess, arch, lock, memory, pointer, unwind};
use crate::Error;
use crate::host::image::Image;
use crate::host::process::seen::Seen;
use crate::host::process::{STUB, pe};
use crate::host::{Function, Span, View};
use crate::pointers::SIZE;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use kdetour_plan::Mode;

/// The region of memory, the page of code, the headers and the tables of the image that were last asked about: a session's targets are often
/// neighbours.
#[derive(Debug)]
pub struct ProcessView<'a> {
    host: &'a WindowsProcess,
    last: RefCell<Option<Arc<Image>>>,
    seen: RefCell<Seen>,
    headers: RefCell<Seen>,
    region: Cell<Option<Region>>,
    /// That of the detour: a session's are often one function, or neighbours.
    detours: Cell<Option<Region>>,
}

impl<'a> ProcessView<'a> {
    pub(super) const fn new(host: &'a WindowsProcess) -> Self {
        Self {
            host,
            last: RefCell::new(None),
            seen: RefCell::new(Seen::new()),
            headers: RefCell::new(Seen::new()),
            region: Cell::new(None),
            detours: Cell::new(None),
        }
    }

    /// The region of code that holds an address, if that may be patched.
    fn text(&self, address: u64) -> Result<Region, Error> {
        let region = self.region(address)?;
        if !region.is_code() {
            return Err(Error::NotCode { address });
        }
        // A section that is mapped shows the same bytes to other processes, and is not copied when it is written. So are those of an image that
        // says so of itself; one that has lost its headers does not, and its code can be patched as that of no image.
        let read = |address, bytes: &mut [u8]| memory::read(self.host.nt, address, bytes);
        let headers = |address, bytes: &mut [u8]| self.headers.borrow_mut().read(address, bytes, read);
        let is_shared = region.is_shared_by(&headers, address).unwrap_or_default();
        if is_shared || lock(&self.host.arena).is_slot(address) {
            return Err(Error::Forbidden { address });
        }
        self.host.guarded.check(address, 1)?;
        Ok(region)
    }

    fn region(&self, address: u64) -> Result<Region, Error> {
        let region = self.known(&self.region, address);
        region.ok_or(Error::Unreadable { address })
    }

    /// The region that holds an address: the one that was asked for last, if that is it.
    fn known(&self, last: &Cell<Option<Region>>, address: u64) -> Option<Region> {
        let holds = |region: &Region| region.start <= address && address < region.end;
        if !last.get().as_ref().is_some_and(holds) {
            last.set(Region::of(self.host.nt, address).filter(Region::is_there));
        }
        last.get()
    }

    /// Asks the image that begins at `base`; none if it has no headers that make sense.
    fn with_image<T>(&self, base: u64, ask: impl FnOnce(&Image) -> T) -> Result<Option<T>, Error> {
        let mut last = self.last.borrow_mut();
        if !last.as_ref().is_some_and(|image| image.begins_at(base)) {
            *last = self.host.tables.of(self.host.nt, base)?;
        }
        Ok(last.as_deref().map(ask))
    }

    /// What the tables of an image say.
    fn in_image(&self, base: u64, target: u64) -> Result<Function, Error> {
        let read = |address, bytes: &mut [u8]| memory::read(self.host.nt, address, bytes);
        self.with_image(base, |image| image.function_in(&read, target))?.unwrap_or(Ok(Function::default()))
    }

    /// The stub to which the pointer at `place` leads if it is not bound yet: none is, the loader binds them all.
    ///
    /// # Errors
    /// As for [`View::pointer`].
    pub(crate) fn stub(&self, place: u64) -> Result<Option<u64>, Error> {
        self.pointer(place).map(|_| None)
    }

    /// Where else the code of the function at `address` is, as its image's tables tell.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub(crate) fn moved_away(&self, address: u64) -> Result<Vec<Range<u64>>, Error> {
        let parts = self.function(address).map_or_else(|_| Vec::new(), |function| function.parts);
        let mut pieces = Vec::new();
        pieces.try_reserve_exact(parts.len())?;
        pieces.extend(parts.iter().map(Span::range));
        Ok(pieces)
    }

    /// Where the code of the function at `address` is, at the most: as far as its image's tables tell, else the bounds that unwinding it needs,
    /// else all code that is mapped there.
    pub(crate) fn bounds(&self, address: u64) -> Range<u64> {
        // What is called by a detour inside a function has the stub's address on its stack.
        if lock(&self.host.arena).is_slot(address) {
            return address..address.saturating_add(STUB as u64);
        }
        let byte = address..address.saturating_add(1);
        let Ok(region) = self.region(address) else { return byte };
        // The tables of a 32-bit image tell where some functions begin, and of none where it ends.
        let unwound = unwind::bounds(address).map(|bounds| address..bounds.end);
        if let Some(bounds) = unwound.clone().filter(|_| arch::MODE == Mode::Bits32) {
            return bounds;
        }
        // A leaf keeps no return address: who is there is there by its instruction pointer, which is in front of whatever comes next.
        if region.is_image()
            && let Ok(Some(Some(end))) = self.with_image(region.allocation, |image| image.end(address))
        {
            return address..end;
        }
        unwound.unwrap_or(region.start..region.end)
    }
}

impl View for ProcessView<'_> {
    fn mode(&self) -> Mode {
        arch::MODE
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.seen
            .borrow_mut()
            .read(address, bytes, |address, bytes| memory::read(self.host.nt, address, bytes))
    }

    /// Length, neighbours and other pieces come from the image's tables. A 64-bit function that has no entry in `.pdata` is a leaf, and of unknown length.
    /// A 32-bit function, and code in no image, has its length from what was registered to unwind it, if there is something.
    fn function(&self, target: u64) -> Result<Function, Error> {
        let region = self.text(target)?;
        let (mut function, mut is_named) = (Function::default(), false);
        if region.is_image() {
            function = self.in_image(region.allocation, target)?;
            if arch::MODE == Mode::Bits64 {
                return Ok(function);
            }
            is_named = self.with_image(region.allocation, |image| image.names(target))?.unwrap_or_default();
        }
        match unwind::bounds(target) {
            Some(bounds) if bounds.start == target => {
                let length = usize::try_from(bounds.end.saturating_sub(target)).ok();
                Ok(Function { length, ..function })
            }
            Some(bounds) if !is_named => Err(Error::NotFunction { address: target, entry: bounds.start }),
            _ => Ok(function),
        }
    }

    /// The span is short: it has a page border inside at the most.
    fn code(&self, span: Span) -> Result<(), Error> {
        let last = span.address.saturating_add((span.len as u64).saturating_sub(1));
        for address in [span.address, last] {
            self.text(address).map_err(|error| match error {
                Error::Unreadable { address } => Error::NotCode { address },
                other => other,
            })?;
        }
        Ok(())
    }

    fn pointer(&self, place: u64) -> Result<u64, Error> {
        let region = pointer::check(self.host.nt, place, SIZE)?;
        let function = pointer::read(self.host.nt, place)?;
        if function == 0 {
            return Err(Error::NullPointer { address: place });
        }
        self.detour(function)?;
        // Of an image's late imports those that are not bound lead to code of its own, which writes them.
        let same = |other: Region| other.allocation == region.allocation;
        if self.region(function).is_ok_and(same)
            && pe::is_late(self.host.nt, region.allocation, place).unwrap_or(false)
        {
            return Err(Error::Unbound { address: place });
        }
        Ok(function)
    }

    fn detour(&self, detour: u64) -> Result<(), Error> {
        match self.known(&self.detours, detour) {
            Some(region) if region.is_code() => Ok(()),
            _ => Err(Error::NotCode { address: detour }),
        }
    }
}
