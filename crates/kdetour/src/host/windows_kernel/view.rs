//! What is known about the loaded images at one time.

use super::WindowsKernel;
use super::image::{Loaded, is_session_name};
use super::nt::{Module, Nt};
use crate::Error;
use crate::host::{Function, Span, View};
use alloc::vec::Vec;
use core::cell::RefCell;
use kdetour_plan::Mode;

/// The loaded images, and the one that was last asked about: a session's targets are often neighbours. All of it is asked at `PASSIVE_LEVEL`.
#[derive(Debug)]
pub struct DriverView<'a, N: Nt> {
    host: &'a WindowsKernel<N>,
    modules: Vec<Module>,
    last: RefCell<Option<Loaded>>,
}

/// What kernel patch protection is known to guard on x64: Microsoft's "Kernel patch protection: frequently asked questions" names the kernel, and
/// "Windows Internals" (table "Components Protected by KPP") begins its list with the kernel, `hal.dll`, `ci.dll`, `kdcom.dll` and `pshed.dll`.
/// `win32k.sys`, which the page of bug check 0x109 names, is in session space. The list that is in force is not published: some more that
/// are part of the system are refused to be sure, and one that is not named here may be guarded, too.
const GUARDED: [&[u8]; 12] = [
    b"ntoskrnl.exe",
    b"ntkrnlmp.exe",
    b"ntkrnlpa.exe",
    b"ntkrpamp.exe",
    b"hal.dll",
    b"halmacpi.dll",
    b"ci.dll",
    b"kdcom.dll",
    b"pshed.dll",
    b"clfs.sys",
    b"ndis.sys",
    b"tcpip.sys",
];

impl<'a, N: Nt> DriverView<'a, N> {
    pub(super) fn new(host: &'a WindowsKernel<N>) -> Result<Self, Error> {
        Ok(Self { host, modules: host.nt.modules()?, last: RefCell::new(None) })
    }

    fn module(&self, address: u64) -> Option<&Module> {
        self.modules.iter().find(|module| module.contains(address))
    }

    /// Asks the image that an address is in.
    fn with_image<T>(&self, address: u64, ask: impl FnOnce(&Loaded) -> Result<T, Error>) -> Result<T, Error> {
        let module = self.module(address).ok_or(Error::NotCode { address })?;
        // What is in session space is there in some processes only, and even its headers must not be read in others.
        if is_session_name(&module.name) || !self.host.nt.is_resident(module.base) {
            return Err(Error::SessionSpace { address });
        }
        let mut last = self.last.borrow_mut();
        match &*last {
            Some(image) if image.module == *module => ask(image),
            _ => ask(last.insert(Loaded::read(&self.host.nt, module, &self.modules)?)),
        }
    }

    /// Makes sure that nobody guards the image that an address is in.
    fn guarded(&self, address: u64) -> Result<(), Error> {
        if !self.host.nt.guards_itself() || self.host.nt.is_debugged() {
            return Ok(());
        }
        let is_in = |module: &Module| module.contains(address);
        // The kernel comes first, whatever it is called.
        let is_first = self.modules.first().is_some_and(is_in);
        let is_named = self.module(address).is_some_and(|module| GUARDED.contains(&module.name.as_slice()));
        if is_first || is_named { Err(Error::PatchGuard { address }) } else { Ok(()) }
    }

    /// Makes sure that all of a span may be written.
    pub(super) fn writable(&self, span: Span) -> Result<(), Error> {
        // Kernel patch protection guards what is in session space, too.
        self.with_image(span.address, |image| {
            self.guarded(span.address)?;
            image.check(span)
        })
    }
}

impl<N: Nt> View for DriverView<'_, N> {
    fn mode(&self) -> Mode {
        if cfg!(target_pointer_width = "64") { Mode::Bits64 } else { Mode::Bits32 }
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let outcome = self.with_image(address, |image| image.copy(&self.host.nt, address, bytes));
        outcome.map_err(|error| match error {
            Error::NotCode { address } => Error::Unreadable { address },
            other => other,
        })
    }

    #[inline(never)]
    fn function(&self, target: u64) -> Result<Function, Error> {
        let byte = Span { address: target, len: 1 };
        if self.host.is_slot(target) {
            return Err(Error::Forbidden { address: target });
        }
        self.writable(byte)?;
        self.with_image(target, |image| image.function(&self.host.nt, target))
    }

    fn code(&self, span: Span) -> Result<(), Error> {
        self.writable(span)
    }

    /// What runs at any time must stay where it is, as targets must; nobody minds whose it is.
    fn detour(&self, detour: u64) -> Result<(), Error> {
        self.with_image(detour, |image| image.check(Span { address: detour, len: 1 }))
    }
}
