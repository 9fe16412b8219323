//! What is known about this process at one time.

use super::maps::{Mapping, Mappings};
use super::memory::Memory;
use super::query::{MANY, Query};
use super::symbols::Symbols;
use super::{LinuxProcess, arch, function, imports, lock, moved, pointer, unwind};
use crate::Error;
use crate::host::process::STUB;
use crate::host::{Around, Function, Span, View};
use crate::pointers::SIZE;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, OnceCell, RefCell};
use core::ops::Range;
use kdetour_plan::Mode;

/// The mappings as they were when they were first asked for, and the memory behind them.
#[derive(Debug)]
pub struct ProcessView<'a> {
    host: &'a LinuxProcess,
    memory: &'static Memory,
    mappings: Seen,
    /// The image that was last asked about: a session's targets are often neighbours.
    last: RefCell<Option<Image>>,
}

/// Mappings that are looked for one by one, as long as they are few.
#[derive(Debug)]
struct Seen {
    query: Option<Query>,
    /// How many more queries are worth it.
    left: Cell<usize>,
    some: RefCell<Mappings>,
    all: OnceCell<Mappings>,
}

impl Seen {
    fn new() -> Result<Self, Error> {
        let seen = Self {
            query: Query::open(),
            left: Cell::new(MANY),
            some: RefCell::default(),
            all: OnceCell::new(),
        };
        if seen.query.is_none() {
            seen.all()?;
        }
        Ok(seen)
    }

    fn all(&self) -> Result<&Mappings, Error> {
        match self.all.get() {
            Some(all) => Ok(all),
            None => {
                let read = Mappings::read()?;
                Ok(self.all.get_or_init(|| read))
            }
        }
    }

    /// Does something with the mapping that holds an address.
    fn with<T>(&self, address: u64, work: impl FnOnce(Option<&Mapping>) -> T) -> Result<T, Error> {
        if self.all.get().is_none() {
            if let Some(mapping) = self.some.borrow().of(address) {
                return Ok(work(Some(mapping)));
            }
            // What the kernel does not find is looked for in the list: there are addresses that only the list has.
            if let (Some(query), Some(left)) = (&self.query, self.left.get().checked_sub(1))
                && let Ok(Some(mapping)) = query.of(address)
            {
                self.left.set(left);
                let done = work(Some(&mapping));
                self.some.borrow_mut().insert(mapping);
                return Ok(done);
            }
        }
        Ok(work(self.all()?.of(address)))
    }

    /// As [`Mappings::image_of`].
    fn image_of(&self, mapping: &Mapping) -> Result<(u64, u64), Error> {
        if self.all.get().is_none()
            && let Some(query) = &self.query
            && let Some(image) = query.image_of(mapping, &self.left)
        {
            return Ok(image);
        }
        Ok(self.all()?.image_of(mapping))
    }
}

#[derive(Clone, Debug)]
struct Image {
    start: u64,
    end: u64,
    /// None if the file is not to be had, or has no symbols.
    symbols: Option<Arc<Symbols>>,
}

impl<'a> ProcessView<'a> {
    pub(super) fn new(host: &'a LinuxProcess) -> Result<Self, Error> {
        let (memory, mappings) = (host.memory.get()?, Seen::new()?);
        Ok(Self { host, memory, mappings, last: RefCell::new(None) })
    }

    fn image_of(&self, mapping: &Mapping) -> Result<Image, Error> {
        if let Some(last) = &*self.last.borrow()
            && last.start <= mapping.start
            && mapping.end <= last.end
        {
            return Ok(last.clone());
        }
        let (start, end) = self.mappings.image_of(mapping)?;
        let image = Image { start, end, symbols: lock(&self.host.files).of(mapping) };
        *self.last.borrow_mut() = Some(image.clone());
        Ok(image)
    }

    /// Where the code of the function at `address` is, at the most: its symbol's bounds, else those that
    /// unwinding it needs, else all that is mapped there.
    pub(crate) fn bounds(&self, address: u64) -> Range<u64> {
        // What is called by a detour inside a function has the stub's address on its stack.
        if lock(&self.host.arena).is_slot(address) {
            return address..address.saturating_add(STUB as u64);
        }
        let function = self.function(address).ok().and_then(|function| function.length);
        if let Some(length) = function {
            return address..address.saturating_add(length as u64);
        }
        if let Some(bounds) = unwind::bounds(address) {
            return bounds;
        }
        let all = self.mappings.with(address, |mapping| mapping.map(|mapping| mapping.start..mapping.end));
        all.ok().flatten().unwrap_or(address..address.saturating_add(1))
    }

    /// Where else the code of the function at `address` is. In a file that is stripped a function that it calls by a jump
    /// counts as its own.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub(crate) fn moved_away(&self, address: u64) -> Result<Vec<Range<u64>>, Error> {
        let mut pieces = Vec::new();
        let Ok(function) = self.function(address) else { return Ok(pieces) };
        pieces.try_reserve(function.parts.len())?;
        pieces.extend(function.parts.iter().map(Span::range));
        if let Some(length) = function.length {
            self.mappings.with(address, |mapping| match mapping {
                Some(mapping) => self.add_unnamed(mapping, address, length, &mut pieces),
                None => Ok(()),
            })??;
        }
        Ok(pieces)
    }

    /// Adds what no symbol names: where the function jumps to.
    fn add_unnamed(
        &self,
        mapping: &Mapping,
        address: u64,
        length: usize,
        pieces: &mut Vec<Range<u64>>,
    ) -> Result<(), Error> {
        let Image { start, end, symbols } = self.image_of(mapping)?;
        if mapping.inode == 0 || symbols.as_ref().is_some_and(|symbols| symbols.are_complete()) {
            return Ok(());
        }
        let known = symbols.as_deref().and_then(|symbols| Some((symbols, symbols.bias(mapping)?)));
        let mut body = Vec::new();
        body.try_reserve_exact(length)?;
        body.resize(length, 0);
        if self.read(address, &mut body).is_err() {
            return Ok(());
        }
        for to in moved::jumped_to(address, &body).filter(|to| (start..end).contains(to)) {
            if pieces.iter().any(|piece| piece.contains(&to)) {
                continue;
            }
            // What has a name of its own is no piece.
            let has_name = |entry: u64| {
                known.is_some_and(|(symbols, bias)| {
                    let is_stub = symbols.is_stub(to.wrapping_sub(bias));
                    is_stub || symbols.function_at(entry.wrapping_sub(bias)).is_some()
                })
            };
            let piece =
                unwind::bounds(to).filter(|piece| !piece.contains(&address) && !has_name(piece.start));
            if let Some(piece) = piece {
                pieces.try_reserve(1)?;
                pieces.push(piece);
            }
        }
        Ok(())
    }

    /// Whether the pointer at `place`, which leads to `function`, is one that the loader binds when it is called first, and has
    /// not bound yet.
    fn is_unbound(&self, place: u64, function: u64) -> Result<bool, Error> {
        self.mappings.with(function, |mapping| {
            let Some(mapping) = mapping.filter(|mapping| mapping.inode != 0) else { return Ok(false) };
            let (start, end) = self.mappings.image_of(mapping)?;
            if !(start..end).contains(&place) {
                return Ok(false);
            }
            let Some(symbols) = self.image_of(mapping)?.symbols else { return Ok(false) };
            let Some(bias) = symbols.bias(mapping) else { return Ok(false) };
            let is_stub = symbols.is_stub(function.wrapping_sub(bias));
            Ok(is_stub && imports::is_bound_late(mapping, place.wrapping_sub(bias)))
        })?
    }

    /// The stub to which the pointer at `place` leads if it is not bound yet.
    ///
    /// # Errors
    /// As for [`View::pointer`].
    pub(crate) fn stub(&self, place: u64) -> Result<Option<u64>, Error> {
        let function = self.led_to(place)?;
        Ok(self.is_unbound(place, function)?.then_some(function))
    }

    /// Where the pointer at `place` leads, if that is a place for one and it leads to code.
    fn led_to(&self, place: u64) -> Result<u64, Error> {
        self.mappings.with(place, |mapping| pointer::check(mapping, place, SIZE))??;
        let function = pointer::read(self.memory, place)?;
        if function == 0 {
            return Err(Error::NullPointer { address: place });
        }
        self.detour(function)?;
        Ok(function)
    }

    fn function_in(&self, mapping: &Mapping, target: u64) -> Result<Function, Error> {
        if !mapping.executable {
            return Err(Error::NotCode { address: target });
        }
        // A shared mapping shows the same bytes to other processes, and is not copied when it is written.
        if mapping.shared || lock(&self.host.arena).is_slot(target) {
            return Err(Error::Forbidden { address: target });
        }
        if mapping.inode == 0 {
            return function::unwound(Function::default(), None, mapping, target);
        }
        let Image { start, end, symbols } = self.image_of(mapping)?;
        let function = match &symbols {
            Some(symbols) => function::describe(symbols, mapping, target)?,
            None => Function::default(),
        };
        let function = function::unwound(function, symbols.as_deref(), mapping, target)?;
        let got = symbols.as_deref().and_then(|symbols| Some((symbols.got()?, symbols.bias(mapping)?)));
        let got = got.map(|(got, bias)| got.wrapping_add(bias));
        Ok(Function { image: Some((start, end)), got, ..function })
    }
}

/// Adds a mapping to those before it. Instructions do not care where pages that were exchanged begin: what adjoins is
/// one.
fn append(spans: &mut Vec<Span>, mapping: &Mapping) -> Result<(), Error> {
    let len = usize::try_from(mapping.end - mapping.start).unwrap_or(usize::MAX);
    match spans.last_mut() {
        Some(last) if last.address + last.len as u64 == mapping.start => last.len += len,
        _ => {
            spans.try_reserve(1)?;
            spans.push(Span { address: mapping.start, len });
        }
    }
    Ok(())
}

impl View for ProcessView<'_> {
    fn mode(&self) -> Mode {
        arch::MODE
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.memory.read(address, bytes)
    }

    /// Length and neighbours come from the symbol tables of the mapped file; where it has no symbol of the function, or
    /// is not to be had under its path any more, the length comes from the unwind information that is loaded.
    fn function(&self, target: u64) -> Result<Function, Error> {
        self.mappings.with(target, |mapping| {
            self.function_in(mapping.ok_or(Error::Unreadable { address: target })?, target)
        })?
    }

    /// The span is short: it has a page border inside at the most.
    fn code(&self, span: Span) -> Result<(), Error> {
        let last = span.address.saturating_add((span.len as u64).saturating_sub(1));
        for address in [span.address, last] {
            let is_code = |mapping: &Mapping| mapping.executable && !mapping.shared;
            if !self.mappings.with(address, |mapping| mapping.is_some_and(is_code))? {
                return Err(Error::NotCode { address });
            }
        }
        Ok(())
    }

    fn pointer(&self, place: u64) -> Result<u64, Error> {
        let function = self.led_to(place)?;
        if self.is_unbound(place, function)? {
            return Err(Error::Unbound { address: place });
        }
        Ok(function)
    }

    fn detour(&self, detour: u64) -> Result<(), Error> {
        let executable = self.mappings.with(detour, |mapping| mapping.is_some_and(|one| one.executable))?;
        if executable { Ok(()) } else { Err(Error::NotCode { address: detour }) }
    }

    fn around(&self, address: u64) -> Result<Around, Error> {
        let (entry, mut function) = match self.function(address) {
            Ok(function) => (address, function),
            Err(Error::NotFunction { entry, .. }) if entry != 0 => (entry, self.function(entry)?),
            Err(error) => return Err(error),
        };
        let mappings = self.mappings.all()?;
        let mapping = mappings.of(address).ok_or(Error::Unreadable { address })?;
        let Image { start, end, symbols } = self.image_of(mapping)?;
        let labels = symbols.map(|symbols| function::labels_behind(&symbols, mapping, address));
        function.branch_targets = labels.unwrap_or_default();
        let (mut text, mut data) = (Vec::new(), Vec::new());
        for part in mappings.within(start, end) {
            append(if part.executable { &mut text } else { &mut data }, part)?;
        }
        Ok(Around { entry, function, text, data })
    }
}
